# SPDX-License-Identifier: Apache-2.0
"""Recipes: how a raw value, a string, becomes the token of a column.

`data_pipelines.prepared.recipes` writes them into schema.json, and an exported file contains them,
so that it encodes raw rows without the prepared folder.
"""

import bisect
import datetime
import hashlib
import math
import re
from typing import Any

import msgspec

from deres_jax.core.errors import UserError
from deres_jax.data.schema import FIRST_TOKEN_ID, Positive, Schema, advice

EVENTS = 'events'  # key of a row's history: a list of events, each with strings by column

_INTEGER = re.compile(r'-?[0-9]{1,18}')
_FIRST_OF_LIST = re.compile(r'(-?[0-9]{1,18})(?:\.0+)?')
_HEX = re.compile(r'[0-9a-fA-F]{8}')
_HOUR_MS, _DAY_MS, _END_MS = 3_600_000, 86_400_000, 1 << 43
_EXAMPLE_HOUR, _EXAMPLE_MS = '14102100', 1_650_000_000_000
_PARTS = {'yymmddhh': ('hour', 'weekday', 'weekend'), 'milliseconds': ('hour', 'weekday')}


class Recipe(msgspec.Struct, frozen=True, omit_defaults=True):
  """How a raw column becomes tokens.

  Attributes:
    kind: a key of `KINDS`.
    missing: token of an empty value; None: the unknown id.
    edges, tokens, members, part, offset_ms: arguments of some kinds.
  """

  column: str
  kind: str
  missing: str | None
  edges: list[int] = []
  tokens: list[str] = []
  members: list[str] = []
  part: str = ''
  offset_ms: int = 0

  def __post_init__(self):
    if self.kind not in KINDS:
      raise ValueError(f'kind is {self.kind!r}, expected one of {", ".join(KINDS)}')
    if 'buckets' in self.kind and not 0 < len(self.edges) == len(self.tokens) - 1:
      raise ValueError(f'{len(self.edges)} edges and {len(self.tokens)} tokens, expected one more')
    if self.part not in _PARTS.get(self.kind, ('',)):
      raise ValueError(f'part is {self.part!r}, expected one of {", ".join(_PARTS[self.kind])}')

  def token(self, text: str) -> str:
    """Returns the token of a value that is not empty; raises ValueError for an invalid value."""
    return KINDS[self.kind][0](self, text)

  def example(self, token: str) -> str:
    """Returns a value with this token, or empty for the empty token."""
    if self.kind == 'yymmddhh':
      return _EXAMPLE_HOUR
    if self.kind == 'milliseconds':
      return str(_EXAMPLE_MS)
    if self.kind == 'age_buckets':
      return str(_EXAMPLE_MS - self.edges[-1])
    if token and self.kind == 'log_squared' and int(token) > 2:
      return str(math.ceil(math.exp(math.sqrt(int(token)))))
    if self.kind == 'buckets' and token in self.tokens:
      bucket = self.tokens.index(token)
      return str(self.edges[bucket - 1] if bucket else self.edges[0] - 1)
    return token


def integer(text: str) -> int:
  """Parses an integer of at most 18 digits; raises ValueError for any other text."""
  if _INTEGER.fullmatch(text) is None:
    raise ValueError
  return int(text)


def _integer_of_list(recipe: Recipe, text: str) -> str:
  match = _FIRST_OF_LIST.fullmatch(text.partition(',')[0].strip())
  if match is None:
    raise ValueError
  return str(int(match[1]))


def _log_squared(recipe: Recipe, text: str) -> str:
  value = integer(text)
  return str(math.floor(math.log(value) ** 2) if value > 2 else value)


def _hex(recipe: Recipe, text: str) -> str:
  if _HEX.fullmatch(text) is None:
    raise ValueError
  return text.lower()


def _text(recipe: Recipe, text: str) -> str:
  if not text.isprintable():
    raise ValueError
  return text


def _bucket(recipe: Recipe, text: str) -> str:
  return recipe.tokens[bisect.bisect_right(recipe.edges, integer(text))]


def _subset(recipe: Recipe, text: str) -> str:
  names = text.split('+')
  if len(set(names)) < len(names) or not set(names) <= set(recipe.members):
    raise ValueError
  return '+'.join(member for member in recipe.members if member in names)


def _yymmddhh(recipe: Recipe, text: str) -> str:
  rest, hour = divmod(integer(text), 100)
  rest, day = divmod(rest, 100)
  year, month = divmod(rest, 100)
  if not 10 <= year <= 99:
    raise ValueError
  weekday = datetime.datetime(2000 + year, month, day, hour).isoweekday() % 7
  return str({'hour': hour, 'weekday': weekday, 'weekend': int(weekday in (0, 6))}[recipe.part])


def _milliseconds(recipe: Recipe, text: str) -> str:
  value = integer(text)
  if not 0 < value < _END_MS:
    raise ValueError
  local = value + recipe.offset_ms
  # 1970-01-01 was a Thursday.
  return str({'hour': local // _HOUR_MS % 24, 'weekday': (local // _DAY_MS + 4) % 7}[recipe.part])


# How each kind makes the token of a value that is not empty, and which values are valid.
_AN_INTEGER = 'an integer of at most 18 digits'
KINDS = {
  'integer': (lambda recipe, text: str(integer(text)), _AN_INTEGER),
  'integer_of_list': (_integer_of_list, f'{_AN_INTEGER}, or several separated by commas'),
  'log_squared': (_log_squared, _AN_INTEGER),
  'hex': (_hex, '8 hexadecimal digits'),
  'text': (_text, 'printable text'),
  'buckets': (_bucket, _AN_INTEGER),
  'age_buckets': (_bucket, f"{_AN_INTEGER}, below the row's"),
  'subset': (_subset, 'some of its names, each once, joined by plus signs'),
  'yymmddhh': (_yymmddhh, 'YYMMDDHH, a date and an hour'),
  'milliseconds': (_milliseconds, 'milliseconds since 1970'),
}


class Column(msgspec.Struct, frozen=True):
  """A field, or an attribute of events; `vocabulary` is None for hashed fields."""

  name: str
  vocabulary: str | None
  vocab_size: int
  hashed: bool
  recipe: Recipe

  def __post_init__(self):
    if self.hashed and self.vocab_size <= FIRST_TOKEN_ID:
      raise ValueError(f'{self.vocab_size} ids are too few for hashed values')


class Events(msgspec.Struct, frozen=True):
  """The events of a row: how many, and their attributes."""

  length: Positive
  attributes: list[Column]


class Inputs(msgspec.Struct, frozen=True):
  """The columns of a raw row, in the order of their ids."""

  fields: list[Column]
  sequence: Events | None

  @property
  def attributes(self) -> list[Column]:
    return self.sequence.attributes if self.sequence else []


def inputs_of(schema: Schema) -> Inputs:
  """Returns the columns of a raw row with their recipes; raises UserError if one is missing."""
  if schema.recipes is None:
    raise UserError(
      f'{schema.path}: does not say how raw values become ids, as folders of earlier versions: '
      'build it again with the same flags (the rows stay the same) and give it with --data=DIR'
    )
  try:
    recipes = msgspec.convert(schema.recipes, dict[str, Recipe])
    fields = {
      x.name: Column(x.name, None if x.hashed else x.name, x.vocab_size, x.hashed, recipes[x.name])
      for x in schema.fields
    }
    attributes = [
      msgspec.structs.replace(fields[x.field], name=x.name)
      if x.field
      else Column(x.name, x.name, x.vocab_size, False, recipes[x.name])
      for x in schema.attributes
    ]
  except (msgspec.ValidationError, KeyError) as e:
    raise UserError(
      f'{schema.path / "schema.json"}: damaged recipes ({e}): {advice(schema.path)}'
    ) from e
  sequence = Events(schema.sequence.length, attributes) if schema.sequence else None
  return Inputs(list(fields.values()), sequence)


def vocabularies_of(schema: Schema) -> dict[str, bytes]:
  """Reads the vocabulary files, by name; raises UserError if one is missing or altered."""
  names = [field.name for field in schema.fields if not field.hashed]
  names += [attribute.name for attribute in schema.attributes if not attribute.field]
  out = {}
  for name in names:
    path = schema.path / 'vocabulary' / f'{name}.txt'
    inside = path.is_file() and path.resolve().is_relative_to(schema.path.resolve())
    data = path.read_bytes() if inside else b''
    if hashlib.sha256(data).hexdigest() != schema.vocabulary.get(path.name):
      raise UserError(f'{path}: is missing or altered: {advice(schema.path)}')
    out[name] = data
  return out


def example(inputs: Inputs, texts: dict[str, bytes]) -> dict[str, Any]:
  """Returns a raw row with each field's most common token, and one event like it."""

  def values(columns: list[Column]) -> dict[str, str]:
    return {x.recipe.column: x.recipe.example(most_common(x)) for x in columns}

  def most_common(column: Column) -> str:
    if column.hashed:
      return '00000000'
    return texts[column.vocabulary].split(b'\n')[0].decode()

  row: dict[str, Any] = values(inputs.fields)
  if inputs.sequence is not None:
    row[EVENTS] = [values(inputs.sequence.attributes)]
  return row
