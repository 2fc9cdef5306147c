# SPDX-License-Identifier: Apache-2.0
"""Encodes raw rows, dicts of strings, as ids, exactly as the build of the data did.

Uses Python's own types only, so that a single row takes microseconds.

Shapes: N rows, S ids of a row: fields, then the attributes of all events, oldest event first.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from deres_jax.core.errors import UserError
from deres_jax.data.schema import FIRST_TOKEN_ID
from deres_jax.serving import recipes
from deres_jax.serving.recipes import EVENTS, Column, Inputs

PADDING_ID, UNKNOWN_ID = 0, 1

_CACHED_VALUES = 1 << 12  # of each column: looking up a common value takes a tenth of the time


def _column_encoder(column: Column, ids: Mapping[str, int]) -> Callable[[dict, dict, str], int]:
  """Returns a function: (row, the row itself or one of its events, place for errors) -> id."""
  recipe, key = column.recipe, column.recipe.column
  is_age = recipe.kind == 'age_buckets'  # of an event: the row's value less the event's

  def id_of_token(token: str) -> int:
    if column.hashed:
      return FIRST_TOKEN_ID + int(token, 16) % (column.vocab_size - FIRST_TOKEN_ID)
    return ids.get(token, UNKNOWN_ID)

  @functools.lru_cache(_CACHED_VALUES)
  def id_of(text: str) -> int:
    return id_of_token(recipe.token(text))

  missing = UNKNOWN_ID if recipe.missing is None else id_of_token(recipe.missing)

  def encode(row: dict[str, Any], source: dict[str, Any], where: str) -> int:
    text = _text(source, key, where)
    now = _text(row, key, where) if is_age else text
    if not text or not now:
      return missing
    try:
      return id_of(_age(now, text) if is_age else text)
    except ValueError as e:
      value = f'{text!r} and the row has {now!r}' if is_age else _quoted(text)
      expected = recipes.KINDS[recipe.kind][1]
      raise UserError(f'{where}: {key} is {value}: expected {expected}') from e

  return encode


def _age(now: str, then: str) -> str:
  age = recipes.integer(now) - recipes.integer(then)
  if age <= 0:
    raise ValueError
  return str(age)


def _ids_by_token(vocabulary: bytes) -> dict[str, int]:
  lines = vocabulary.decode('utf-8').split('\n')[:-1]
  return {token: i for i, token in enumerate(lines, FIRST_TOKEN_ID)}


class Encoder:
  """Encodes raw rows by the recipes and vocabularies of a prepared folder."""

  def __init__(self, inputs: Inputs, vocabularies: Mapping[str, bytes]):
    """Reads vocabulary files by name; line i (from 0) is the token of id i + 2."""
    ids = {name: _ids_by_token(text) for name, text in vocabularies.items()}

    def encoders(columns: list[Column]) -> list[Callable[[dict, dict, str], int]]:
      return [_column_encoder(x, {} if x.hashed else ids[x.vocabulary]) for x in columns]

    self._fields, self._attributes = encoders(inputs.fields), encoders(inputs.attributes)
    self._length = inputs.sequence.length if inputs.sequence else 0
    self._event_keys = {x.recipe.column for x in inputs.attributes}
    # The age of an event needs the row's own column too.
    ages = {x.recipe.column for x in inputs.attributes if x.recipe.kind == 'age_buckets'}
    self._keys = {x.recipe.column for x in inputs.fields} | ages
    if self._length:
      self._keys.add(EVENTS)

  def encode(self, rows: list[dict[str, Any]]) -> np.ndarray:
    """Returns the ids of rows, [N, S] int32.

    Args:
      rows: strings by raw column; a key that is absent, or an empty string, is a missing value.
        Rows of data with histories may have EVENTS, oldest first; the last ones count.

    Raises:
      UserError: names the row, the column and the expected value.
    """
    if not isinstance(rows, list):
      raise UserError(f'rows are a {type(rows).__name__}: expected a list of dicts of strings')
    ids: list[int] = []
    for i, row in enumerate(rows):
      where = f'row {i}'
      _check(row, self._keys, where)
      ids += [encode(row, row, where) for encode in self._fields]
      if self._length:
        ids += self._events(row, where)
    columns = len(self._fields) + self._length * len(self._attributes)
    return np.array(ids, np.int32).reshape(len(rows), columns)

  def _events(self, row: dict[str, Any], where: str) -> list[int]:
    events = row.get(EVENTS, [])
    if not isinstance(events, list):
      raise UserError(f'{where}: {EVENTS} is {_quoted(events)}: expected a list of dicts')
    events = events[-self._length :]
    ids = [PADDING_ID] * ((self._length - len(events)) * len(self._attributes))
    for i, event in enumerate(events, -len(events)):
      inside = f'{where}, {EVENTS}[{i}]'
      _check(event, self._event_keys, inside)
      ids += [encode(row, event, inside) for encode in self._attributes]
    return ids


def _check(row: Any, keys: set[str], where: str):
  if not isinstance(row, dict):
    raise UserError(f'{where} is {_quoted(row)}: expected a dict of strings by column')
  if not row.keys() <= keys:
    unknown = ', '.join(sorted(map(repr, row.keys() - keys)))
    raise UserError(f'{where}: unknown key {unknown}: expected some of {", ".join(sorted(keys))}')


def _quoted(value: Any) -> str:
  text = repr(value)
  return f'{text if len(text) <= 40 else text[:40] + "..."} ({type(value).__name__})'


def _text(row: dict[str, Any], key: str, where: str) -> str:
  text = row.get(key, '')
  if not isinstance(text, str):
    raise UserError(
      f'{where}: {key} is {_quoted(text)}: expected a string, as in the raw file; omit the key if '
      'the value is missing'
    )
  return text
