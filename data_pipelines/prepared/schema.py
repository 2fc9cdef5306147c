# SPDX-License-Identifier: Apache-2.0
"""`schema.json`: describes a prepared folder, and is the only proof that it is finished."""

import dataclasses
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from data_pipelines.core.errors import UserError

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


@dataclasses.dataclass(frozen=True)
class RecordShape:
  """What a row of a block is made of.

  Attributes:
    fields: single-valued categorical fields: `ids` int32 [rows, fields].
    events: length of the behaviour sequence, 0 for none: `events` int32 [rows, events,
      event_fields], oldest first, short ones padded with 0 at the front.
    event_fields: attributes of an event.
    grouped: whether rows belong to a user: `group` int32 [rows], his number.
  """

  fields: int
  events: int = 0
  event_fields: int = 0
  grouped: bool = False


def record_shape(schema: dict) -> RecordShape:
  """The make-up of the rows that a schema describes."""
  sequence = schema['sequence']
  return RecordShape(
    fields=len(schema['fields']),
    events=sequence['length'] if sequence else 0,
    event_fields=len(sequence['attributes']) if sequence else 0,
    grouped=schema['group'] is not None,
  )


def write_schema(folder: Path, schema: dict) -> None:
  """Writes `folder/schema.json` atomically: a reader sees all of it or none."""
  temporary = folder / (SCHEMA_FILE + '.tmp')
  with open(temporary, 'w', encoding='ascii') as file:
    json.dump(schema, file, indent=1, allow_nan=False)
    file.write('\n')
    file.flush()
    os.fsync(file.fileno())
  os.replace(temporary, folder / SCHEMA_FILE)


def _no_number(name: str):
  raise ValueError(f'{name} is no number of JSON')


def read_schema(folder: Path) -> dict:
  """Returns the schema of a prepared folder.

  Raises:
    UserError: no folder, no schema.json, not JSON, or not this format and version.
  """
  path = folder / SCHEMA_FILE
  if not folder.exists():
    raise UserError(f'{folder}: no such folder; give the --out folder of data_pipelines.build')
  if not path.is_file():
    raise UserError(
      f'{folder}: no {SCHEMA_FILE}, so it is not a finished prepared data set; '
      'run python -m data_pipelines.build again'
    )
  try:
    schema = json.loads(path.read_text(encoding='utf-8'), parse_constant=_no_number)
    json.dumps(schema, ensure_ascii=False).encode()  # halves of characters, which no file can hold
  except (ValueError, RecursionError) as error:
    raise UserError(f'{path}: not JSON ({error}); build the data set again') from error
  found = None
  if isinstance(schema, dict):
    found = (schema.get('format'), schema.get('format_version'))
  if found != (FORMAT, FORMAT_VERSION):
    raise UserError(
      f'{path}: expected format {(FORMAT, FORMAT_VERSION)}, found {found}; '
      'build the data set with this version of data_pipelines'
    )
  return schema


class _Maybe(NamedTuple):
  """null, or what is inside."""

  inner: Any


class _Named(NamedTuple):
  """An object of any names, each with what is inside."""

  inner: Any


class _Several(NamedTuple):
  """A list, which may be empty, each with what is inside."""

  inner: Any


_NUMBER = (int, float)
_LARGEST = 2**53  # that a float holds
_SPLIT = {
  'rows': int,
  'blocks': int,
  'clicks': int,
  'click_rate': _NUMBER,
  'events': int,
  'content_sha256': str,
  'files': _Named({'bytes': int, 'sha256': str}),
}

_STRUCTURE = {
  'dataset': str,
  'tfds': str,
  'build': dict,
  'block_rows': int,
  'fields': [
    {
      'name': str,
      'kind': str,
      'vocab_size': int,
      'hashed': bool,
      'min_count': int,
      'missing_rate_train': _NUMBER,
      'missing_kept': bool,
      'oov_rate': dict.fromkeys(SPLITS, _NUMBER),
    }
  ],
  'sequence': _Maybe(
    {
      'length': int,
      'attributes': [{'name': str, 'vocab_size': int, 'field': _Maybe(str)}],
    }
  ),
  'group': _Maybe({'name': str, 'groups': int}),
  'items': _Maybe({'field': str, 'head_below': int, 'torso_below': int}),
  'splits': dict.fromkeys(SPLITS, _SPLIT),
  'vocabulary': dict,
  'raw': {
    'files': _Several({'name': str, 'bytes': int, 'sha256': str}),
    **dict.fromkeys(('rows_read', 'rows_written', 'rows_rejected'), int),
  },
}


def structure_problems(schema: dict) -> list[str]:
  """What is missing or of the wrong type in a schema, or no name of a file in its folder."""
  return list(_problems(schema, _STRUCTURE, 'schema')) or list(_unsafe_names(schema))


def _unsafe_names(schema: dict):
  """Names that would lead out of the folder, or steer a terminal."""
  attributes = schema['sequence']['attributes'] if schema['sequence'] else []
  names = [x['name'] for x in (*schema['fields'], *attributes)] + [*schema['vocabulary']]
  names += [name for split in SPLITS for name in schema['splits'][split]['files']]
  names += schema['tfds'].split('/')
  for name in names:
    if name in ('', '.', '..') or '/' in name or '\\' in name or not name.isprintable():
      yield f'schema: {name!r} cannot be the name of a file in the folder'
  if not schema['dataset'].isprintable():
    yield f'schema.dataset: {schema["dataset"]!r} is not a line of text'


def check_inside(folder: Path, files: Iterable[Path]) -> None:
  """Raises UserError where one of the files is a link that leads out of the prepared folder."""
  root = folder.resolve()
  for file in files:
    if not file.resolve().is_relative_to(root):
      raise UserError(
        f'{file}: leads out of the folder, to {file.resolve()}; copy the whole folder, or build '
        'it again'
      )


def _problems(value, expected, where: str):
  if isinstance(expected, _Maybe):
    if value is not None:
      yield from _problems(value, expected.inner, where)
  elif isinstance(expected, dict | _Named):
    if not isinstance(value, dict):
      yield f'{where}: expected an object, found {type(value).__name__}'
      return
    named = isinstance(expected, _Named)
    for key, inner in (dict.fromkeys(value, expected.inner) if named else expected).items():
      if key in value:
        yield from _problems(value[key], inner, f'{where}.{key}')
      else:
        yield f'{where}.{key}: missing'
  elif isinstance(expected, list | _Several):
    if not isinstance(value, list) or (not value and isinstance(expected, list)):
      yield f'{where}: expected a list with at least one entry, found {value!r}'
      return
    for i, item in enumerate(value):
      yield from _problems(item, expected[0], f'{where}[{i}]')
  elif not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
    names = [t.__name__ for t in (expected if isinstance(expected, tuple) else (expected,))]
    yield f'{where}: expected {" or ".join(names)}, found {value!r}'
  elif isinstance(value, int) and not 0 <= value <= _LARGEST:
    yield f'{where}: expected a number from 0 to {_LARGEST}, found one of {len(str(value))} digits'
