# SPDX-License-Identifier: Apache-2.0
"""How a raw value becomes a token, as data: what a server needs to encode a row as the build does.

`recipes` of schema.json has one for each vocabulary and each hashed field, by name. A recipe is
  column: the raw column that it reads, of the row or, for an attribute of events, of the event;
  kind: what is done to the text, see the functions below;
  missing: the token that an empty value stands for; null: it has none, and becomes the unknown id;
and what its kind needs. A token becomes an id by its vocabulary, or, of a hashed field, the number
that it is as hexadecimal modulo vocab_size - 2, plus 2. `deres_jax.serving.encoder` reads recipes.
"""

from collections.abc import Sequence

Recipe = dict[str, object]


def integer(column: str) -> Recipe:
  """Decimal digits, at most 18, perhaps after a minus; the token is the number."""
  return {'column': column, 'kind': 'integer', 'missing': None}


def integer_of_list(column: str) -> Recipe:
  """The first of integers by commas, which may end in .0; the token is the number."""
  return {'column': column, 'kind': 'integer_of_list', 'missing': None}


def log_squared(column: str, missing: str) -> Recipe:
  """An integer v; the token is floor(ln(v)^2) where v > 2, else v."""
  return {'column': column, 'kind': 'log_squared', 'missing': missing}


def hexadecimal(column: str) -> Recipe:
  """Eight hexadecimal digits; the token is they in lower case."""
  return {'column': column, 'kind': 'hex', 'missing': None}


def text(column: str) -> Recipe:
  """Printable text as it is."""
  return {'column': column, 'kind': 'text', 'missing': None}


def buckets(column: str, edges: Sequence[int], tokens: Sequence[str]) -> Recipe:
  """An integer; the token's place is the number of edges that are not above it."""
  return {
    'column': column,
    'kind': 'buckets',
    'missing': None,
    'edges': list(edges),
    'tokens': list(tokens),
  }


def age_buckets(column: str, edges: Sequence[int], tokens: Sequence[str]) -> Recipe:
  """`buckets` of what the column is in the row less what it is in the event, which is earlier."""
  return {**buckets(column, edges, tokens), 'kind': 'age_buckets'}


def subset(column: str, members: Sequence[str]) -> Recipe:
  """Some of the members, by plus signs; the token has them in this order."""
  return {'column': column, 'kind': 'subset', 'missing': None, 'members': list(members)}


def calendar_hour(column: str, part: str) -> Recipe:
  """YYMMDDHH of 2010 to 2099; the token is the hour, weekday (0: Sunday) or weekend (1: it is)."""
  return {'column': column, 'kind': 'yymmddhh', 'missing': None, 'part': part}


def calendar_ms(column: str, part: str, offset_ms: int) -> Recipe:
  """Milliseconds since 1970; the token is the hour or weekday of the place, so far ahead of UTC."""
  return {
    'column': column,
    'kind': 'milliseconds',
    'missing': None,
    'part': part,
    'offset_ms': offset_ms,
  }
