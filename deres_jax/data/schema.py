# SPDX-License-Identifier: Apache-2.0
"""Reads `schema.json`, which `data_pipelines` writes into every prepared folder."""

import pathlib
from typing import Annotated, Any, Literal

import msgspec

from deres_jax.core import files
from deres_jax.core.errors import UserError, excerpt

_FORMAT = 'deres_jax.prepared', 3  # name and version
FIRST_TOKEN_ID = 2  # 0 pads events, 1 is an unknown or missing value

# All readers of JSON agree on integers below 2^53.
Count = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]
Positive = Annotated[int, msgspec.Meta(ge=1, lt=2**53)]


class Field(msgspec.Struct, frozen=True):
  """A single-valued categorical field. Its ids are 0 .. vocab_size - 1."""

  name: str
  kind: Literal['categorical']
  vocab_size: Positive
  hashed: bool


class Attribute(msgspec.Struct, frozen=True):
  """An attribute of an event; `field` names the field whose ids it shares, if any."""

  name: str
  vocab_size: Positive
  field: str | None


class Sequence(msgspec.Struct, frozen=True):
  """The behaviour sequence of every row: `length` events, oldest first, padded at the front.

  Attributes that share a field's ids come first.
  """

  length: Positive
  attributes: Annotated[tuple[Attribute, ...], msgspec.Meta(min_length=1)]


class Group(msgspec.Struct, frozen=True):
  """Groups of rows, such as users."""

  name: str


class Items(msgspec.Struct, frozen=True):
  """The field of the recommended item, and bounds of its id, which tells how common the item is.

  Ids from FIRST_TOKEN_ID to head_below - 1 are the head, those up to torso_below - 1 the torso.
  """

  field: str
  head_below: Count
  torso_below: Count


class Split(msgspec.Struct, frozen=True):
  """Statistics of one split."""

  rows: Count
  blocks: Count
  clicks: Count
  content_sha256: str


class Schema(msgspec.Struct, frozen=True):
  """A prepared folder.

  Attributes:
    tfds: folder of the TFDS data set in it.
    vocabulary: SHA-256 of each vocabulary file.
    recipes: how raw values become tokens, by field; None for folders of early versions.
    planted: figures of a synthetic teacher by split (such as bayes_auc), else empty.
    path: the prepared folder.
  """

  format: Literal['deres_jax.prepared']
  format_version: Literal[3]
  dataset: str
  tfds: str
  block_rows: Positive
  fields: Annotated[tuple[Field, ...], msgspec.Meta(min_length=1)]
  sequence: Sequence | None
  group: Group | None
  items: Items | None
  splits: dict[str, Split]
  vocabulary: dict[str, str]
  recipes: dict[str, Any] | None = None
  planted: dict[str, Any] = {}
  path: pathlib.Path = pathlib.Path()

  def __post_init__(self):
    if not {'train', 'validation', 'test'} <= self.splits.keys():
      raise ValueError(f'splits are {sorted(self.splits)}, expected train, validation, test')
    names = [field.name for field in self.fields]
    others = [self.group.name] if self.group else []
    for text in (self.dataset, self.tfds, *names, *(a.name for a in self.attributes), *others):
      if not text or not text.isprintable():
        raise ValueError(f'{excerpt(text)} is not a line of text')
    for name in [a.field for a in self.attributes if a.field] + [
      i.field for i in [self.items] if i
    ]:
      if name not in names:
        raise ValueError(f'field {excerpt(name)} is named, but not in fields')
    if any(attribute.field for attribute in self.attributes[len(self.shared_columns) :]):
      raise ValueError('an attribute shares a field after one that does not')

  @property
  def attributes(self) -> tuple[Attribute, ...]:
    return self.sequence.attributes if self.sequence else ()

  @property
  def vocab_sizes(self) -> tuple[int, ...]:
    """Sizes of all columns: the fields, then the attributes that share no field."""
    unshared = (attribute.vocab_size for attribute in self.attributes if not attribute.field)
    return (*(field.vocab_size for field in self.fields), *unshared)

  @property
  def shared_columns(self) -> tuple[int, ...]:
    """Columns of the fields that the first attributes of events share."""
    return tuple(self.column(attribute.field) for attribute in self.attributes if attribute.field)

  @property
  def columns(self) -> tuple[int, ...]:
    """Column of each id of a row: the fields, then the attributes of all events."""
    fields = range(len(self.fields))
    if self.sequence is None:
      return tuple(fields)
    event = (*self.shared_columns, *range(len(fields), len(self.vocab_sizes)))
    return (*fields, *event * self.sequence.length)

  @property
  def content(self) -> dict[str, str]:
    """SHA-256 of each split's rows: identifies the data, wherever the folder is."""
    return {name: split.content_sha256 for name, split in self.splits.items()}

  @property
  def click_rate(self) -> float:
    """Click rate of the training split: the models' prior."""
    train = self.splits['train']
    return train.clicks / train.rows

  def column(self, name: str) -> int:
    """Returns the column of a field."""
    return [field.name for field in self.fields].index(name)


class _Header(msgspec.Struct):
  format: Any = None
  format_version: Any = None


def advice(folder: pathlib.Path) -> str:
  """Returns what to do about a damaged prepared folder."""
  return f'python -m data_pipelines.doctor {folder} says more; build the folder again'


def load_schema(path: str) -> Schema:
  """Reads the schema of a prepared folder; raises UserError for a missing or damaged one."""
  if not path:
    raise UserError(
      'config data.path is empty: give a prepared folder, --config.data.path=DIR '
      '(python -m data_pipelines.build makes one)'
    )
  folder = pathlib.Path(path)
  file = folder / 'schema.json'
  if not folder.is_dir():
    raise UserError(
      f'data.path={path}: no such folder; python -m data_pipelines.build --out={path} makes one'
    )
  if not file.is_file():
    raise UserError(
      f'data.path={path}: holds no schema.json, so it is not a prepared folder (or its build was '
      'interrupted): run python -m data_pipelines.build again'
    )
  header = files.read_json(file, _Header, advice(folder))
  if (header.format, header.format_version) != _FORMAT:
    raise UserError(
      f'{file}: format {(header.format, header.format_version)!r:.300}, expected {_FORMAT}: '
      'build the folder with this version of data_pipelines'
    )
  schema = msgspec.structs.replace(files.read_json(file, Schema, advice(folder)), path=folder)
  if not (folder / schema.tfds).resolve().is_relative_to(folder.resolve()):
    raise UserError(f'{file}: tfds folder {schema.tfds!r} is outside of it: {advice(folder)}')
  train = schema.splits['train']
  if not 0 < train.clicks < train.rows:
    raise UserError(
      f'{file}: {train.clicks} of the {train.rows} training rows are clicks, expected both kinds: '
      'there is nothing to learn; build the folder from more rows'
    )
  return schema
