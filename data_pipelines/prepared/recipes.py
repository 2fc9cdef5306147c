# SPDX-License-Identifier: Apache-2.0
"""Recipes: how raw values become tokens, as data, so that a server encodes a row as the build does.

`recipes` of schema.json has one for each vocabulary and each hashed field, by name. A recipe has
  column: the raw column that it reads, of the row or, for an attribute of events, of the event;
  kind: the conversion, see the functions below;
  missing: the token of an empty value; null: an empty value has the unknown id;
and the settings of its kind. The id of a token is that of its vocabulary; in a hashed field it is
the token, read as a hexadecimal number, modulo vocab_size - 2, plus 2. `deres_jax.serving.encoder`
reads recipes.
"""

from collections.abc import Sequence

Recipe = dict[str, object]


def integer(column: str) -> Recipe:
  """Reads at most 18 decimal digits, perhaps after a minus; the token is the number."""
  return {'column': column, 'kind': 'integer', 'missing': None}


def integer_of_list(column: str) -> Recipe:
  """Reads integers separated by commas, perhaps with .0; the token is the first number."""
  return {'column': column, 'kind': 'integer_of_list', 'missing': None}


def log_squared(column: str, missing: str) -> Recipe:
  """Reads an integer v; the token is floor(ln(v)^2) where v > 2, else v."""
  return {'column': column, 'kind': 'log_squared', 'missing': missing}


def hexadecimal(column: str) -> Recipe:
  """Reads eight hexadecimal digits; the token is the digits in lower case."""
  return {'column': column, 'kind': 'hex', 'missing': None}


def text(column: str) -> Recipe:
  """Reads printable text; the token is the text."""
  return {'column': column, 'kind': 'text', 'missing': None}


def buckets(column: str, edges: Sequence[int], tokens: Sequence[str]) -> Recipe:
  """Reads an integer; the index of the token is the number of edges that are not above it."""
  recipe = {'column': column, 'kind': 'buckets', 'missing': None}
  return {**recipe, 'edges': list(edges), 'tokens': list(tokens)}


def age_buckets(column: str, edges: Sequence[int], tokens: Sequence[str]) -> Recipe:
  """Reads the column of the row and of its earlier event; `buckets` of the difference."""
  return {**buckets(column, edges, tokens), 'kind': 'age_buckets'}


def subset(column: str, members: Sequence[str]) -> Recipe:
  """Reads some of the members, joined by plus signs; the token has them in this order."""
  return {'column': column, 'kind': 'subset', 'missing': None, 'members': list(members)}


def calendar_hour(column: str, part: str) -> Recipe:
  """Reads YYMMDDHH of 2010 to 2099; the token is hour, weekday (0: Sunday) or weekend (0 or 1)."""
  return {'column': column, 'kind': 'yymmddhh', 'missing': None, 'part': part}


def calendar_ms(column: str, part: str, offset_ms: int) -> Recipe:
  """Reads milliseconds since 1970; the token is hour or weekday in a zone this far ahead of UTC."""
  return {**calendar_hour(column, part), 'kind': 'milliseconds', 'offset_ms': offset_ms}
