# SPDX-License-Identifier: Apache-2.0
"""Behaviour sequences in files of keys and of ids: an event is kept once, rows refer to ranges.

A file of keys (see ingest.Ingested) has, beside the keys of its rows,
  `event_row` [events]: the row that each event is; events of a group (a user) stand together in
    the order of time, and a row's sequence is a range of them.
  `begin`, `count` [rows]: the range of each row.
  `time` int64 [rows]: milliseconds.
  `group` [rows]: number of the row's group within the file, from 0.
  `own0`, `own1` ... [events]: ids of attribute 0, 1, ... where they are the attribute's own.

A file of ids has `begin`, `count`, `time` and `group` of its rows, and `event_ids` int32 [events,
attributes] and `event_time` of its events: the sequences themselves are laid out only where rows
are written, so that neither disk nor memory holds an event fifty times.

Shapes: N rows, E events, L length of a sequence, G attributes.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from data_pipelines.core.columns_file import Reader
from data_pipelines.prepared.dataset import AttributeInfo, FieldInfo, GroupInfo, SequenceInfo
from data_pipelines.prepared.schema import FIRST_TOKEN_ID, PADDING_ID

_LAID_OUT_ROWS = 1 << 12  # at a time


@dataclasses.dataclass(frozen=True)
class EventAttribute:
  """An attribute of an event; exactly one of `field` and `tokens` is given.

  Attributes:
    field: number of the field whose ids it shares: those of the row that the event is.
    tokens: its vocabulary, fixed: token i has id FIRST_TOKEN_ID + i.
    age: milliseconds from the event to the row (int64, at least 0) to ids, where it says how long
      ago the event was; else the ids are in the files of keys.
  """

  name: str
  field: int | None = None
  tokens: tuple[bytes, ...] = ()
  age: Callable[[np.ndarray], np.ndarray] | None = None


@dataclasses.dataclass(frozen=True)
class EventSpec:
  """The behaviour sequences of a data set. Must be picklable.

  Attributes:
    length: events of a sequence, at most.
    attributes: those that share a field's ids come first.
    item, group: numbers of the fields that hold the item and the user.
  """

  length: int
  attributes: tuple[EventAttribute, ...]
  item: int
  group: int


def sequence_info(spec: EventSpec, fields: list[FieldInfo]) -> SequenceInfo:
  """What schema.json says of the sequences."""
  shared = [fields[a.field] if a.field is not None else None for a in spec.attributes]
  return SequenceInfo(
    spec.length,
    tuple(
      AttributeInfo(a.name, field.vocab_size, field.name)
      if field is not None
      else AttributeInfo(a.name, FIRST_TOKEN_ID + len(a.tokens))
      for a, field in zip(spec.attributes, shared, strict=True)
    ),
  )


def group_info(spec: EventSpec, fields: list[FieldInfo], groups: tuple[int, ...]) -> GroupInfo:
  """What schema.json says of the groups."""
  return GroupInfo(fields[spec.group].name, sum(groups))


class Collector:
  """The sequences of several files of keys, for one file of ids."""

  def __init__(self, spec: EventSpec, rows: int):
    """Args: rows of all files."""
    self._spec = spec
    self._begin_N = np.zeros(rows, np.int32)
    self._count_N = np.zeros(rows, np.uint16)
    self._time_N = np.zeros(rows, np.int64)
    self._group_N = np.zeros(rows, np.int32)
    self._row_E: list[np.ndarray] = []
    self._own: list[dict[int, np.ndarray]] = []
    self._events = 0

  def add(self, file: Reader, place_N: np.ndarray, first_group: int) -> None:
    """Adds a file of keys, of at least one row.

    Args:
      place_N: where its rows stand in the file of ids.
      first_group: number of its first group.
    """
    self._begin_N[place_N] = file.read('begin') + np.int32(self._events)
    self._count_N[place_N] = file.read('count')
    self._time_N[place_N] = file.read('time')
    self._group_N[place_N] = file.read('group') + np.int32(first_group)
    self._row_E.append(place_N[file.read('event_row')])
    self._own.append({a: file.read(f'own{a}') for a in self._stored()})
    self._events += len(self._row_E[-1])

  def _stored(self) -> list[int]:
    """Attributes whose ids are in the files of keys."""
    attributes = enumerate(self._spec.attributes)
    return [a for a, attribute in attributes if attribute.field is None and attribute.age is None]

  def arrays(self, ids_of: Callable[[int], np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of the file of ids.

    Args:
      ids_of: field number to the ids of all rows, in the order of the file of ids.
    """
    row_E = np.concatenate([*self._row_E, np.zeros(0, np.int64)])
    # An age is known only where the row is: its column stays 0 here.
    ids_EG = np.zeros((self._events, len(self._spec.attributes)), np.int32)
    for a, attribute in enumerate(self._spec.attributes):
      if attribute.field is not None:
        ids_EG[:, a] = ids_of(attribute.field)[row_E]
    for a in self._stored() if self._own else ():
      ids_EG[:, a] = np.concatenate([own[a] for own in self._own])
    return {
      'begin': self._begin_N,
      'count': self._count_N,
      'time': self._time_N,
      'group': self._group_N,
      'event_ids': ids_EG,
      'event_time': self._time_N[row_E],
    }


def lay_out(
  spec: EventSpec, file: Reader, start: int, stop: int, place_N: np.ndarray, out_NLG: np.ndarray
) -> None:
  """Writes the sequences of rows [start, stop) of a file of ids to out_NLG[place_N].

  Args:
    out_NLG: int32; sequences are padded with PADDING_ID at the front.
  """
  begin_N = file.read('begin', start, stop).astype(np.int64)
  end_N = begin_N + file.read('count', start, stop)
  time_N = file.read('time', start, stop)
  ids_EG, time_E = file.map('event_ids'), file.map('event_time')
  ages = [a for a, attribute in enumerate(spec.attributes) if attribute.age is not None]
  for first in range(0, stop - start, _LAID_OUT_ROWS):
    part = slice(first, first + _LAID_OUT_ROWS)
    event_NL = end_N[part, None] + np.arange(-spec.length, 0)
    there_NL = event_NL >= begin_N[part, None]
    event_M = event_NL[there_NL]
    ids_MG = ids_EG[event_M]
    if ages:
      age_M = np.repeat(time_N[part], there_NL.sum(axis=1)) - time_E[event_M]
      for a in ages:
        ids_MG[:, a] = spec.attributes[a].age(age_M)
    events_NLG = np.full((*event_NL.shape, len(spec.attributes)), PADDING_ID, np.int32)
    events_NLG[there_NL] = ids_MG
    out_NLG[place_N[part]] = events_NLG
