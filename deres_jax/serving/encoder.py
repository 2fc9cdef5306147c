# SPDX-License-Identifier: Apache-2.0
"""Raw rows, as strings by column, to ids: what the build of the data did to every row of it.

The recipes come from the prepared folder (`recipes` of schema.json;
`data_pipelines.prepared.recipes` says what each kind means). A test holds the ids to those of built
folders, row by row. Python's own types only, so that a single row takes microseconds.

Shapes: N rows, S ids of a row: fields, then the attributes of all events, oldest event first.
"""

import bisect
import dataclasses
import datetime
import functools
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from deres_jax.core.errors import UserError
from deres_jax.data.schema import FIRST_TOKEN_ID

EVENTS = 'events'  # key of a row's history: a list of events, each with strings by column
PADDING_ID, UNKNOWN_ID = 0, 1

_INTEGER = re.compile(r'-?[0-9]{1,18}')
_OF_LIST = re.compile(r'(-?[0-9]{1,18})(?:\.0+)?')
_HEX = re.compile(r'[0-9a-fA-F]{8}')
_HOUR_MS, _DAY_MS, _END_MS = 3_600_000, 86_400_000, 1 << 43

_REMEMBERED = 1 << 12  # values of a column

Recipe = Mapping[str, Any]


def _integer(text: str) -> int:
  if _INTEGER.fullmatch(text) is None:
    raise ValueError
  return int(text)


def _integers(recipe: Recipe) -> Callable[[str], str]:
  return lambda text: str(_integer(text))


def _integers_of_list(recipe: Recipe) -> Callable[[str], str]:
  def token(text: str) -> str:
    found = _OF_LIST.fullmatch(text.partition(',')[0].strip())
    if found is None:
      raise ValueError
    return str(int(found[1]))

  return token


def _log_squared(recipe: Recipe) -> Callable[[str], str]:
  def token(text: str) -> str:
    value = _integer(text)
    return str(math.floor(math.log(value) ** 2) if value > 2 else value)

  return token


def _hexes(recipe: Recipe) -> Callable[[str], str]:
  def token(text: str) -> str:
    if _HEX.fullmatch(text) is None:
      raise ValueError
    return text.lower()

  return token


def _texts(recipe: Recipe) -> Callable[[str], str]:
  def token(text: str) -> str:
    if not text.isprintable():
      raise ValueError
    return text

  return token


def _buckets(recipe: Recipe) -> Callable[[str], str]:
  edges, tokens = recipe['edges'], recipe['tokens']
  return lambda text: tokens[bisect.bisect_right(edges, _integer(text))]


def _subset(recipe: Recipe) -> Callable[[str], str]:
  members = recipe['members']

  def token(text: str) -> str:
    given = text.split('+')
    if len(set(given)) < len(given) or not set(given) <= set(members):
      raise ValueError
    return '+'.join(member for member in members if member in given)

  return token


def _yymmddhh(recipe: Recipe) -> Callable[[str], str]:
  part = recipe['part']

  def token(text: str) -> str:
    rest, hour = divmod(_integer(text), 100)
    rest, day = divmod(rest, 100)
    year, month = divmod(rest, 100)
    if not 10 <= year <= 99:
      raise ValueError
    moment = datetime.datetime(2000 + year, month, day, hour)
    weekday = moment.isoweekday() % 7
    return str({'hour': hour, 'weekday': weekday, 'weekend': int(weekday in (0, 6))}[part])

  return token


def _milliseconds(recipe: Recipe) -> Callable[[str], str]:
  part, offset = recipe['part'], recipe['offset_ms']

  def token(text: str) -> str:
    value = _integer(text)
    if not 0 < value < _END_MS:
      raise ValueError
    local = value + offset
    # 1970-01-01 was a Thursday.
    return str({'hour': local // _HOUR_MS % 24, 'weekday': (local // _DAY_MS + 4) % 7}[part])

  return token


# By kind: what makes the function from a value that is not empty to its token, which raises
# ValueError, and what a value must be.
_AN_INTEGER = 'an integer of at most 18 digits'
_KINDS = {
  'integer': (_integers, _AN_INTEGER),
  'integer_of_list': (_integers_of_list, f'{_AN_INTEGER}, or several by commas'),
  'log_squared': (_log_squared, _AN_INTEGER),
  'hex': (_hexes, '8 hexadecimal digits'),
  'text': (_texts, 'printable text'),
  'buckets': (_buckets, _AN_INTEGER),
  'age_buckets': (_buckets, f'{_AN_INTEGER}, below what the row has'),
  'subset': (_subset, 'some of its names, each once, by plus signs'),
  'yymmddhh': (_yymmddhh, 'YYMMDDHH, a date and an hour'),
  'milliseconds': (_milliseconds, 'milliseconds since 1970'),
}


@dataclasses.dataclass(frozen=True)
class Column:
  """What makes the ids of one field or attribute.

  Attributes:
    key: the raw column; expected: what its values are, for people.
    id_of: a value that is not empty to its id, UNKNOWN_ID if it is not known; raises ValueError.
    empty: id of a missing value.
    aged: whether it reads the age of an event, the row's column less the event's.
  """

  key: str
  expected: str
  id_of: Callable[[str], int]
  empty: int
  aged: bool


def _column(entry: Mapping[str, Any], tokens: Mapping[str, int]) -> Column:
  recipe = entry['recipe']
  make, expected = _KINDS[recipe['kind']]
  token, size = make(recipe), entry['vocab_size'] - FIRST_TOKEN_ID

  def hashed(token: str) -> int:
    return FIRST_TOKEN_ID + int(token, 16) % size

  def known(token: str) -> int:
    return tokens.get(token, UNKNOWN_ID)

  ids = hashed if entry['hashed'] else known
  # Common values come again and again; a look-up here takes a tenth of the time.
  id_of = functools.lru_cache(_REMEMBERED)(lambda text: ids(token(text)))
  empty = UNKNOWN_ID if recipe['missing'] is None else ids(recipe['missing'])
  return Column(recipe['column'], expected, id_of, empty, recipe['kind'] == 'age_buckets')


def tokens_of(text: bytes) -> dict[str, int]:
  """Ids of the tokens of a vocabulary file: line i (from 0) is the token of id i + 2."""
  lines = text.decode('utf-8').split('\n')[:-1]
  return {token: i for i, token in enumerate(lines, FIRST_TOKEN_ID)}


class Encoder:
  """Ids of raw rows."""

  def __init__(self, inputs: Mapping[str, Any], vocabularies: Mapping[str, bytes]):
    """Of `inputs` as deres_jax.export describes them, and vocabulary files by name."""
    tokens = {name: tokens_of(text) for name, text in vocabularies.items()}
    nothing: dict[str, int] = {}

    def column(entry: Mapping[str, Any]) -> Column:
      return _column(entry, nothing if entry['hashed'] else tokens[entry['vocabulary']])

    self._fields = [column(entry) for entry in inputs['fields']]
    sequence = inputs['sequence']
    self._attributes = [column(entry) for entry in sequence['attributes']] if sequence else []
    self._length = sequence['length'] if sequence else 0
    # An age needs the row's own column too.
    aged = {c.key for c in self._attributes if c.aged}
    self._keys = {c.key for c in self._fields} | aged | ({EVENTS} if sequence else set())
    self._event_keys = {c.key for c in self._attributes}

  def encode(self, rows: list[dict[str, Any]]) -> np.ndarray:
    """Ids of rows, [N, S] int32.

    Args:
      rows: strings by raw column. A column that is not there, or is empty, is a missing value. A
        row of data with histories may have EVENTS, oldest first, of which the last ones count.

    Raises:
      UserError: names the row, the column and what was expected there.
    """
    if not isinstance(rows, list):
      raise UserError(f'rows are a {type(rows).__name__}: expected a list of dicts of strings')
    ids: list[int] = []
    for i, row in enumerate(rows):
      where = f'row {i}'
      _check(row, self._keys, where)
      ids += [_id(column, row, where) for column in self._fields]
      if self._length:
        ids += self._events(row, where)
    slots = len(self._fields) + self._length * len(self._attributes)
    return np.array(ids, np.int32).reshape(len(rows), slots)

  def _events(self, row: dict[str, Any], where: str) -> list[int]:
    events = row.get(EVENTS, [])
    if not isinstance(events, list):
      raise UserError(f'{where}: {EVENTS} is {_shown(events)}: expected a list of dicts')
    events = events[-self._length :]
    ids = [PADDING_ID] * ((self._length - len(events)) * len(self._attributes))
    for i, event in enumerate(events, -len(events)):
      inside = f'{where}, {EVENTS}[{i}]'
      _check(event, self._event_keys, inside)
      ids += [
        _age_id(column, row, event, inside) if column.aged else _id(column, event, inside)
        for column in self._attributes
      ]
    return ids


def _check(row: Any, keys: set[str], where: str):
  if not isinstance(row, dict):
    raise UserError(f'{where} is {_shown(row)}: expected a dict of strings by column')
  if not row.keys() <= keys:
    unknown = ', '.join(sorted(map(repr, row.keys() - keys)))
    raise UserError(f'{where}: unknown key {unknown}: expected some of {", ".join(sorted(keys))}')


def _shown(value: Any) -> str:
  text = repr(value)
  return f'{text if len(text) <= 40 else text[:40] + "..."} ({type(value).__name__})'


def _not_text(column: Column, value: Any, where: str) -> UserError:
  return UserError(
    f'{where}: {column.key} is {_shown(value)}: expected a string, as in the raw file; leave the '
    'key out where the value is missing'
  )


def _id(column: Column, row: dict[str, Any], where: str) -> int:
  text = row.get(column.key, '')
  if not isinstance(text, str):
    raise _not_text(column, text, where)
  if not text:
    return column.empty
  try:
    return column.id_of(text)
  except ValueError as e:
    raise UserError(f'{where}: {column.key} is {_shown(text)}: expected {column.expected}') from e


def _age_id(column: Column, row: dict[str, Any], event: dict[str, Any], where: str) -> int:
  times = row.get(column.key, ''), event.get(column.key, '')
  for text in times:
    if not isinstance(text, str):
      raise _not_text(column, text, where)
  if not all(times):
    return column.empty
  now, then = times
  try:
    age = _integer(now) - _integer(then)
    if age <= 0:
      raise ValueError
    return column.id_of(str(age))
  except ValueError as e:
    raise UserError(
      f'{where}: {column.key} is {then!r} and that of the row {now!r}: expected {column.expected}'
    ) from e
