# SPDX-License-Identifier: Apache-2.0
"""The side tables of KuaiRand: features of users and of videos, joined by number.

The csv module reads a table some lines at a time, one row per line; the result is one sorted column
file that all workers map. A bad row ends the build: a table is small beside the logs, and each of
its rows is joined to many rows.
"""

import contextlib
import csv
import dataclasses
import functools
import gzip
import itertools
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from data_pipelines.core import columns_file
from data_pipelines.core.columns_file import narrow
from data_pipelines.core.files import file_sha256, is_zipped
from data_pipelines.prepared.schema import RawFile
from deres_jax.core.errors import UserError

_LINES = 1 << 16  # read at a time
_MAX_DIGITS = 18  # any such integer fits int64
_INTEGER = re.compile(rf'(-?[0-9]{{1,{_MAX_DIGITS}}})(?:\.0+)?')


@dataclasses.dataclass(frozen=True)
class SideTable:
  """A side table.

  Attributes:
    path: the raw file.
    key: its column of numbers that rows refer to, each only once.
    integers: columns of integers (3.0 is 3; of a list "12,34" the first counts), empty if missing.
    texts: columns of text, empty if missing.
    out: the column file of the table: `key`, rising; for each column NAME `key_NAME` and
      `missing_NAME`; for a text column also `text_NAME`, its tokens, ascending, one per line. The
      key of a text is the index of its token.
  """

  path: Path
  key: str
  integers: tuple[str, ...]
  texts: tuple[str, ...]
  out: Path

  @property
  def columns(self) -> tuple[str, ...]:
    """All but the key."""
    return (*self.integers, *self.texts)


def _quoted(text: str) -> str:
  return repr(text if len(text) <= 30 else f'{text[:30]}...')


@functools.lru_cache(1 << 16)
def _integer(text: str) -> int | None:
  """Returns the integer, or the first of a list; None for another text."""
  match = _INTEGER.fullmatch(text.partition(',')[0].strip())
  return int(match[1]) if match else None


def _explain(table: SideTable, names: list[str], line: str) -> str | None:
  """Says what is wrong with a line; None for a good row. Slow."""
  try:
    row = next(csv.reader([line], strict=True), [])
  except csv.Error as error:
    return f'no comma-separated row ({error})'
  if not row:
    return 'empty line'
  if len(row) != len(names):
    return f'expected {len(names)} comma-separated columns, found {len(row)}'
  values = dict(zip(names, row, strict=True))
  if _integer(values[table.key]) is None:
    return f'{table.key}: not an integer: {_quoted(values[table.key])}'
  for name in table.integers:
    if values[name] and _integer(values[name]) is None:
      return f'{name}: not an integer: {_quoted(values[name])}'
  for name in table.texts:
    if not values[name].isprintable():
      return f'{name}: not a text of one line in UTF-8: {_quoted(values[name])}'
  return None


class _Integers:
  """A column of integers."""

  def __init__(self):
    self.keys: list[np.ndarray] = []
    self.missing: list[np.ndarray] = []

  def add(self, texts: Sequence[str]) -> bool:
    """Adds values; returns False if one of them is not an integer."""
    digits = ''.join(texts)
    plain = digits.isascii() and digits.isdigit() and max(map(len, texts)) <= _MAX_DIGITS
    if plain and all(texts):
      values = list(map(int, texts))  # five times as fast as what follows
    else:
      values = [_integer(text) if text else 0 for text in texts]
    if None in values:
      return False
    self.keys.append(narrow(np.array(values, np.int64)))
    self.missing.append(np.array([not text for text in texts], bool))
    return True

  def arrays(self, name: str, order: np.ndarray) -> dict[str, np.ndarray]:
    return {
      f'key_{name}': np.concatenate(self.keys)[order],
      f'missing_{name}': np.concatenate(self.missing)[order],
    }


class _Texts:
  """A column of text; keys are in the order of first occurrence until all are known."""

  def __init__(self):
    self._places: dict[str, int] = {}
    self.keys: list[np.ndarray] = []

  def add(self, texts: Sequence[str]) -> bool:
    """Adds values; returns False if one of them cannot be a token."""
    for text in set(texts) - self._places.keys():
      if not text.isprintable():
        return False
    places = self._places
    self.keys.append(narrow(np.array([places.setdefault(t, len(places)) for t in texts], 'i8')))
    return True

  def arrays(self, name: str, order: np.ndarray) -> dict[str, np.ndarray]:
    tokens = sorted(text.encode('utf-8') for text in self._places if text)
    rank = {token: k for k, token in enumerate(tokens)}
    ranks = np.array([rank.get(text.encode('utf-8'), -1) for text in self._places], np.int32)
    key_R = ranks[np.concatenate(self.keys)[order]]
    text = b''.join(token + b'\n' for token in tokens)
    return {
      f'key_{name}': np.maximum(key_R, 0),
      f'missing_{name}': key_R < 0,
      f'text_{name}': np.frombuffer(text, np.uint8),
    }


@contextlib.contextmanager
def _lines(path: Path) -> Iterator[Iterator[str]]:
  # Bytes that are not UTF-8 fail later: they make no integer and are not printable.
  options = {'mode': 'rt', 'encoding': 'utf-8', 'errors': 'surrogateescape', 'newline': '\n'}
  with gzip.open(path, **options) if is_zipped(path) else open(path, **options) as file:
    try:
      yield file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
      raise UserError(
        f'--raw={path}: truncated or damaged gzip ({error}); download it again'
      ) from error


def _header(table: SideTable, line: str) -> list[str]:
  names = line.rstrip('\r\n').split(',')
  required = (table.key, *table.columns)
  missing = [name for name in required if name not in names]
  if missing or len(set(names)) != len(names):
    problem = f'lacks the column {missing[0]}' if missing else 'names a column twice'
    raise UserError(
      f'--raw={table.path}: line 1: its header {problem}; give the file as it was published, '
      f'with the columns {", ".join(required)}'
    )
  return names


def _read(table: SideTable) -> dict[str, np.ndarray]:
  columns = {
    table.key: _Integers(),
    **{name: _Integers() for name in table.integers},
    **{name: _Texts() for name in table.texts},
  }
  with _lines(table.path) as file:
    names = _header(table, next(file, ''))
    indices = {name: names.index(name) for name in columns}
    first_line = 2
    while lines := list(itertools.islice(file, _LINES)):
      if not _add(columns, indices, len(names), lines):
        raise UserError(_first_fault(table, names, lines, first_line))
      first_line += len(lines)
  if first_line == 2:
    raise UserError(f'--raw={table.path}: no row after the header; download it again')
  key_R = np.concatenate(columns[table.key].keys)
  order = np.argsort(key_R, kind='stable')
  twice = np.flatnonzero(np.diff(key_R[order]) == 0)
  if twice.size:
    k = int(np.argmin(order[twice + 1]))
    row, before = order[twice[k] + 1], order[twice[k]]
    raise UserError(
      f'--raw={table.path}: line {row + 2}: {table.key} {key_R[row]} is there already, in line '
      f'{before + 2}; keep one row of each'
    )
  arrays = {'key': key_R[order]}
  for name in table.columns:
    arrays |= columns.pop(name).arrays(name, order)
  return arrays


def _add(columns: dict, indices: dict[str, int], width: int, lines: list[str]) -> bool:
  """Adds lines to the columns; returns False if one of them is a bad row."""
  try:
    rows = list(csv.reader(lines, strict=True))
  except csv.Error:
    return False
  # A row of several lines, or a line of several columns too many, would shift all that follow.
  if len(rows) != len(lines) or {len(row) for row in rows} != {width}:
    return False
  values = list(zip(*rows, strict=True))
  keyed = all(row[indices[next(iter(columns))]] for row in rows)
  return keyed and all(column.add(values[indices[name]]) for name, column in columns.items())


def _first_fault(table: SideTable, names: list[str], lines: list[str], first_line: int) -> str:
  for number, line in enumerate(lines, first_line):
    reason = _explain(table, names, line)
    if reason is not None:
      return f'--raw={table.path}: line {number}: {reason}; mend the line, or download it again'
  raise AssertionError(f'{table.path}: rejected for no reason after line {first_line}')


def build_side(table: SideTable) -> RawFile:
  """Writes the column file of a table, unless it is there; a task.

  Returns:
    The raw file's entry in schema.json.

  Raises:
    UserError: a bad row (the message has its line), or another kind of table.
  """
  if not table.out.exists():
    columns_file.write(table.out, _read(table))
  path = table.path
  return RawFile(path.name, path.stat().st_size, file_sha256(path))


def text_tokens(table: SideTable) -> dict[str, tuple[bytes, ...]]:
  """Returns the tokens of the text columns of a built table."""
  with columns_file.Reader(table.out) as file:
    texts = {name: file.read(f'text_{name}').tobytes() for name in table.texts}
  return {name: tuple(text.split(b'\n')[:-1]) for name, text in texts.items()}


def join(table: SideTable, numbers_U: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Returns the key column of each column for some numbers, which are best in rising order.

  A number that the table does not have misses all columns.
  """
  names = [f'{kind}_{name}' for name in table.columns for kind in ('key', 'missing')]
  with columns_file.Reader(table.out) as file:
    arrays = {name: file.map(name) for name in ('key', *names)}
  key_R = arrays['key']
  place_U = np.minimum(np.searchsorted(key_R, numbers_U), len(key_R) - 1)
  unknown_U = key_R[place_U] != numbers_U
  return {
    name: (arrays[f'key_{name}'][place_U], arrays[f'missing_{name}'][place_U] | unknown_U)
    for name in table.columns
  }
