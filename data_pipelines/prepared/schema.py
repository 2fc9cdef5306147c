# SPDX-License-Identifier: Apache-2.0
"""The file `schema.json`: describes a prepared folder and is the only proof that it is finished.

The structs below have the names, types and order of the file. msgspec checks them when it is read.
"""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

import msgspec

from deres_jax.core import files
from deres_jax.core.errors import UserError

FORMAT = 'deres_jax.prepared'
FORMAT_VERSION = 3
SCHEMA_FILE = 'schema.json'
VOCABULARY_FOLDER = 'vocabulary'
REJECTS_FILE = 'rejects.tsv'

SPLITS = ('train', 'validation', 'test')
BLOCK_ROWS = 4096  # rows in one record; only the last block of a split is shorter
PADDING_ID = 0  # never occurs in single-valued fields
OOV_ID = 1  # out of vocabulary, or missing
FIRST_TOKEN_ID = 2  # line i (0-based) of a vocabulary file is the token of id i + 2

Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]  # a float holds all of these
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
T = TypeVar('T')


class BySplit(msgspec.Struct, Generic[T]):
  """A value for each of SPLITS."""

  train: T
  validation: T
  test: T

  def __getitem__(self, split: str) -> T:
    """Returns the value of a split."""
    return getattr(self, split)


class Field(msgspec.Struct):
  """A single-valued categorical field.

  Attributes:
    vocab_size: ids run from 1 to vocab_size - 1; vocabulary/NAME.txt has the tokens from id 2 on.
    hashed: there is no vocabulary; an id is the value's hash modulo vocab_size - 2, plus 2.
    min_count: training rows that a token needed to be kept; 0: no minimum.
    missing_kept: a missing value is a token like any other; else it has the unknown id.
    oov_rate: share of rows with the unknown id.
  """

  name: str
  kind: Literal['categorical']
  vocab_size: Count
  hashed: bool
  min_count: Count
  missing_rate_train: Share
  missing_kept: bool
  oov_rate: BySplit[Share]


class Attribute(msgspec.Struct):
  """An attribute of the events of a behaviour sequence.

  Attributes:
    vocab_size: ids run from 1 (unknown) to vocab_size - 1; 0 pads.
    field: the field that says the same of the candidate (its item, its category) and shares its ids
      and vocabulary; None: the attribute has its own ids, with tokens in vocabulary/NAME.txt.
  """

  name: str
  vocab_size: Count
  field: str | None


class Sequence(msgspec.Struct):
  """The behaviour sequence of every row; attributes that share a field's ids come first."""

  length: Count
  attributes: Annotated[list[Attribute], msgspec.Meta(min_length=1)]


class Group(msgspec.Struct):
  """Groups of rows (users), numbered from 0 to groups - 1 over all splits."""

  name: str
  groups: Count


class Items(msgspec.Struct):
  """How common the candidates are: `field` holds the item; ids fall in training frequency.

  Ids from FIRST_TOKEN_ID to head_below - 1 are head items, those up to torso_below - 1 torso items;
  the others and the unknown id are the tail.
  """

  field: str
  head_below: Count
  torso_below: Count


class RecordFile(msgspec.Struct):
  """A record file of a split."""

  bytes: Count
  sha256: str


class Split(msgspec.Struct):
  """Counts of a split. `content_sha256` depends on its rows alone (see SplitStats)."""

  rows: Count
  blocks: Count
  clicks: Count
  click_rate: Share
  events: Count
  content_sha256: str
  files: dict[str, RecordFile]


class RawFile(msgspec.Struct):
  """A raw file that was read."""

  name: str
  bytes: Count
  sha256: str


class Raw(msgspec.Struct):
  """Raw files and what became of their rows."""

  files: list[RawFile]
  rows_read: Count
  rows_written: Count
  rows_rejected: Count


class Schema(msgspec.Struct, kw_only=True):
  """Contents of `schema.json`.

  Attributes:
    dataset: its name.
    tfds: the TFDS data set, a folder in this one.
    build: the options that determine the output.
    vocabulary: SHA-256 of each vocabulary file.
    recipes: how raw values become tokens (see recipes), by vocabulary or hashed field.
    planted: what is known about generated labels.
  """

  format: Literal['deres_jax.prepared'] = FORMAT
  format_version: Literal[3] = FORMAT_VERSION
  dataset: str
  tfds: str
  build: dict[str, Any]
  block_rows: Count
  fields: Annotated[list[Field], msgspec.Meta(min_length=1)]
  sequence: Sequence | None
  group: Group | None
  items: Items | None
  splits: BySplit[Split]
  vocabulary: dict[str, str]
  raw: Raw
  recipes: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET
  planted: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET

  def __post_init__(self):
    """Raises ValueError for a name that would lead out of the folder or steer a terminal."""
    names = [x.name for x in (*self.fields, *self.attributes)] + [*self.vocabulary]
    names += [name for split in SPLITS for name in self.splits[split].files]
    for name in [*names, *self.tfds.split('/')]:
      if name in ('', '.', '..') or '/' in name or '\\' in name or not name.isprintable():
        raise ValueError(f'{name!r} cannot be the name of a file in the folder')
    if not self.dataset.isprintable():
      raise ValueError(f'dataset: {self.dataset!r} is not a line of text')

  @property
  def attributes(self) -> list[Attribute]:
    """Attributes of the behaviour sequence, if there is one."""
    return self.sequence.attributes if self.sequence else []


@dataclasses.dataclass(frozen=True)
class RecordShape:
  """Layout of the rows of a block.

  Attributes:
    fields: single-valued categorical fields: `ids` int32 [rows, fields].
    events: length of the behaviour sequence, 0 for none: `events` int32 [rows, events,
      event_fields], oldest first, short ones padded with 0 at the front.
    event_fields: attributes of an event.
    grouped: whether rows belong to a user: `group` int32 [rows], the user's number.
  """

  fields: int
  events: int = 0
  event_fields: int = 0
  grouped: bool = False

  def arrays(self, rows: int | None) -> dict[str, tuple[int | None, ...]]:
    """Returns the shape of each array of a block of `rows` rows."""
    shapes = {'ids': (rows, self.fields), 'label': (rows,)}
    if self.events:
      shapes['events'] = (rows, self.events, self.event_fields)
    if self.grouped:
      shapes['group'] = (rows,)
    return shapes


def record_shape(schema: Schema) -> RecordShape:
  """Returns the layout of the rows that a schema describes."""
  return RecordShape(
    fields=len(schema.fields),
    events=schema.sequence.length if schema.sequence else 0,
    event_fields=len(schema.attributes),
    grouped=schema.group is not None,
  )


def write_schema(folder: Path, schema: Schema) -> None:
  """Writes `folder/schema.json` in one piece."""
  text = json.dumps(msgspec.to_builtins(schema), indent=1, allow_nan=False)
  files.write(folder / SCHEMA_FILE, text + '\n')


class _Header(msgspec.Struct):
  format: Any = None
  format_version: Any = None


def read_schema(folder: Path) -> Schema:
  """Reads the schema of a prepared folder.

  Raises:
    UserError: no folder, no schema.json, one of another format or version, or a damaged one.
  """
  path = folder / SCHEMA_FILE
  if not folder.exists():
    raise UserError(f'{folder}: no such folder; give the --out folder of data_pipelines.build')
  if not path.is_file():
    raise UserError(
      f'{folder}: no {SCHEMA_FILE}, so it is not a finished prepared data set; '
      'run python -m data_pipelines.build again'
    )
  header = files.read_json(path, _Header, 'build the data set again')
  if (header.format, header.format_version) != (FORMAT, FORMAT_VERSION):
    raise UserError(
      f'{path}: expected format {(FORMAT, FORMAT_VERSION)}, found '
      f'{(header.format, header.format_version)!r:.300}; '
      'build the data set with this version of data_pipelines'
    )
  return files.read_json(path, Schema, 'build the data set again')


def check_inside(folder: Path, paths: Iterable[Path]) -> None:
  """Raises UserError where one of the paths is a link that leads out of the prepared folder."""
  root = folder.resolve()
  for path in paths:
    if not path.resolve().is_relative_to(root):
      raise UserError(
        f'{path}: leads out of the folder, to {path.resolve()}; copy the whole folder, or build '
        'it again'
      )
