# SPDX-License-Identifier: Apache-2.0
"""What a prepared folder says of itself: `schema.json`, as `data_pipelines` writes it."""

import dataclasses
import pathlib
from typing import Any

from deres_jax.core import files
from deres_jax.core.errors import UserError, shown

FORMAT = 'deres_jax.prepared'
FORMAT_VERSION = 3
FIRST_TOKEN_ID = 2  # 0 pads events, 1 is an unknown or missing value


@dataclasses.dataclass(frozen=True)
class Split:
  """Rows, blocks and clicks of one split."""

  rows: int
  blocks: int
  clicks: int


@dataclasses.dataclass(frozen=True)
class Sequence:
  """The behaviour sequence of every row.

  Attributes:
    length: events, oldest first, padded at the front.
    attributes: names of an event's attributes.
    columns: for each attribute the column of `Schema.vocab_sizes` that its ids are of: a field's
      for the first `shared` attributes, whose ids say the same as that field, else its own.
  """

  length: int
  attributes: tuple[str, ...]
  columns: tuple[int, ...]
  shared: int


@dataclasses.dataclass(frozen=True)
class Items:
  """Where a candidate's item stands among the common ones: its field, and borders of its id.

  Ids from FIRST_TOKEN_ID to head_below - 1 are the head, those up to torso_below - 1 the torso.
  """

  field: int
  head_below: int
  torso_below: int


@dataclasses.dataclass(frozen=True)
class Schema:
  """What a prepared folder says of itself.

  Attributes:
    path: the prepared folder.
    dataset: its name, for people.
    tfds: folder of the TFDS data set in it.
    fields: names of the single-valued categorical fields.
    vocab_sizes: of each field, then of the events' own attributes: ids run from 0 to it - 1.
    sequence, items: of data that have them.
    group: what the rows belong to (users), or empty; groups: how many there are.
    splits: train, validation, test.
    content: SHA-256 of each split's rows: what the data is, wherever it lies.
    planted: figures of a synthetic teacher by split (such as bayes_auc), else empty.
  """

  path: pathlib.Path
  dataset: str
  tfds: str
  block_rows: int
  fields: tuple[str, ...]
  vocab_sizes: tuple[int, ...]
  sequence: Sequence | None
  group: str
  groups: int
  items: Items | None
  splits: dict[str, Split]
  content: dict[str, str]
  planted: dict[str, Any]

  @property
  def click_rate(self) -> float:
    """Of the training split: the models' prior."""
    train = self.splits['train']
    return train.clicks / train.rows

  @property
  def columns(self) -> tuple[int, ...]:
    """For each id of a row, fields and then all events' attributes, its column of vocab_sizes."""
    events = self.sequence.columns * self.sequence.length if self.sequence else ()
    return (*range(len(self.fields)), *events)


def load_schema(path: str) -> Schema:
  """Reads DIR/schema.json; raises UserError for a missing, foreign or damaged one."""
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
  raw = files.read_json(file, dict, 'build the folder again')
  found = raw.get('format'), raw.get('format_version')
  if found != (FORMAT, FORMAT_VERSION):
    raise UserError(
      f'{file}: format {found}, expected {(FORMAT, FORMAT_VERSION)}: '
      'build the folder with this version of data_pipelines'
    )
  try:
    schema = _schema(folder, raw)
  except (KeyError, TypeError, ValueError, AttributeError) as e:
    raise UserError(
      f'{file}: damaged, {type(e).__name__} {shown(e)}: python -m data_pipelines.doctor {path} '
      'tells more; build the folder again'
    ) from e
  train = schema.splits['train']
  if not 0 < train.clicks < train.rows:
    raise UserError(
      f'{file}: {train.clicks} of the {train.rows} training rows are clicks, expected both kinds: '
      'there is nothing to learn; build the folder from more rows'
    )
  return schema


_MOST = 2**53  # whole numbers that JSON's readers agree on


def _count(node: dict[str, Any], key: str, least: int = 0) -> int:
  value = node[key]
  if type(value) is not int or not least <= value < _MOST:
    raise ValueError(f'{key} is {value!r}, expected a whole number from {least} on')
  return value


def _text(node: dict[str, Any], key: str) -> str:
  value = node[key]
  if not isinstance(value, str) or not value or not value.isprintable():
    raise ValueError(f'{key} is {value!r}, expected a line of text')
  return value


def _schema(folder: pathlib.Path, raw: dict[str, Any]) -> Schema:
  splits = {
    name: Split(_count(s, 'rows'), _count(s, 'blocks'), _count(s, 'clicks'))
    for name, s in raw['splits'].items()
  }
  kinds = {f['kind'] for f in raw['fields']}
  if kinds != {'categorical'}:
    raise ValueError(f'fields of kinds {sorted(kinds)}, expected categorical')
  if not {'train', 'validation', 'test'} <= set(splits):
    raise ValueError(f'splits {sorted(splits)}, expected train, validation, test')
  inside = (folder / _text(raw, 'tfds')).resolve()
  if not inside.is_relative_to(folder.resolve()):
    raise ValueError(f'tfds folder {raw["tfds"]!r} is outside of it')
  fields = tuple(_text(f, 'name') for f in raw['fields'])
  vocab_sizes = [_count(f, 'vocab_size', 1) for f in raw['fields']]
  sequence = _sequence(raw['sequence'], fields, vocab_sizes)
  return Schema(
    path=folder,
    dataset=_text(raw, 'dataset'),
    tfds=raw['tfds'],
    block_rows=_count(raw, 'block_rows', 1),
    fields=fields,
    vocab_sizes=tuple(vocab_sizes),
    sequence=sequence,
    group=_text(raw['group'], 'name') if raw['group'] else '',
    groups=_count(raw['group'], 'groups') if raw['group'] else 0,
    items=_items(raw['items'], fields),
    splits=splits,
    content={name: _text(s, 'content_sha256') for name, s in raw['splits'].items()},
    planted=dict(raw.get('planted') or {}),
  )


def _sequence(raw: dict | None, fields: tuple[str, ...], vocab_sizes: list[int]) -> Sequence | None:
  """The sequence, if there is one; its own attributes' sizes are added to `vocab_sizes`."""
  if raw is None:
    return None
  columns, shared = [], 0
  for attribute in raw['attributes']:
    if attribute['field'] is None:
      columns.append(len(vocab_sizes))
      vocab_sizes.append(_count(attribute, 'vocab_size', 1))
      continue
    if len(columns) > shared:
      raise ValueError(f'attribute {attribute["name"]!r} shares a field after one that does not')
    columns.append(fields.index(attribute['field']))
    shared += 1
  names = tuple(_text(attribute, 'name') for attribute in raw['attributes'])
  if not names:
    raise ValueError('a sequence of events without attributes')
  return Sequence(_count(raw, 'length', 1), names, tuple(columns), shared)


def _items(raw: dict | None, fields: tuple[str, ...]) -> Items | None:
  if raw is None:
    return None
  head, torso = _count(raw, 'head_below'), _count(raw, 'torso_below')
  return Items(fields.index(raw['field']), head, torso)
