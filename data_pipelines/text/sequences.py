# SPDX-License-Identifier: Apache-2.0
"""Behaviour sequences in files of keys and of ids: each event is stored once, rows refer to ranges.

A file of keys (see ingest.Ingested) has, beside the keys of its rows,
  `event_row` [events]: the row of each event; events of a group (a user) lie together in the order
    of time, and a row's sequence is a range of them.
  `begin`, `count` [rows]: the range of each row.
  `time` int64 [rows]: milliseconds.
  `group` [rows]: number of the row's group within the file, from 0.
  `attribute0`, `attribute1` ... [events]: ids of attribute 0, 1, ... if it has its own ids.

A file of ids has `begin`, `count`, `time` and `group` of its rows, and `event_ids` int32 [events,
attributes] and `event_time` of its events. Sequences are expanded only when rows are written, so
that neither disk nor memory holds an event fifty times.

Shapes: N rows, E events, L length of a sequence, G attributes.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from data_pipelines.core.columns_file import Reader
from data_pipelines.prepared.dataset import FieldInfo
from data_pipelines.prepared.schema import FIRST_TOKEN_ID, PADDING_ID, Attribute, Sequence

_EXPANDED_ROWS = 1 << 12  # at a time


@dataclasses.dataclass(frozen=True)
class EventAttribute:
  """An attribute of an event; exactly one of `field` and `tokens` is given.

  Attributes:
    field: number of the field whose ids it shares: its id is that of the event's own row.
    tokens: its fixed vocabulary: token i has id FIRST_TOKEN_ID + i.
    age: turns milliseconds from the event to the row (int64, at least 0) into ids, for an attribute
      that says how long ago the event was; None: the ids are in the files of keys.
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


def describe_sequence(spec: EventSpec, fields: tuple[FieldInfo, ...]) -> Sequence:
  """Returns the description of the sequences in schema.json."""
  attributes = [
    Attribute(a.name, FIRST_TOKEN_ID + len(a.tokens), None)
    if a.field is None
    else Attribute(a.name, fields[a.field].vocab_size, fields[a.field].name)
    for a in spec.attributes
  ]
  return Sequence(spec.length, attributes)


class Collector:
  """Collects the sequences of several files of keys for one file of ids of `rows` rows."""

  def __init__(self, spec: EventSpec, rows: int):
    self._spec = spec
    self._begin_N = np.zeros(rows, np.int32)
    self._count_N = np.zeros(rows, np.uint16)
    self._time_N = np.zeros(rows, np.int64)
    self._group_N = np.zeros(rows, np.int32)
    self._row_E: list[np.ndarray] = []
    self._stored_ids: list[dict[int, np.ndarray]] = []
    self._events = 0

  def add(self, file: Reader, place_N: np.ndarray, first_group: int) -> None:
    """Adds a file of keys, of at least one row.

    Args:
      place_N: positions of its rows in the file of ids.
      first_group: number of its first group.
    """
    self._begin_N[place_N] = file.read('begin') + np.int32(self._events)
    self._count_N[place_N] = file.read('count')
    self._time_N[place_N] = file.read('time')
    self._group_N[place_N] = file.read('group') + np.int32(first_group)
    self._row_E.append(place_N[file.read('event_row')])
    self._stored_ids.append({a: file.read(f'attribute{a}') for a in self._stored()})
    self._events += len(self._row_E[-1])

  def _stored(self) -> list[int]:
    """Returns the attributes whose ids are in the files of keys."""
    attributes = enumerate(self._spec.attributes)
    return [a for a, attribute in attributes if attribute.field is None and attribute.age is None]

  def arrays(self, ids_of: Callable[[int], np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the arrays of the file of ids.

    Args:
      ids_of: field number to the ids of all rows, in the order of the file of ids.
    """
    row_E = np.concatenate([*self._row_E, np.zeros(0, np.int64)])
    # An age depends on the row that looks back: its column stays 0 here.
    ids_EG = np.zeros((self._events, len(self._spec.attributes)), np.int32)
    for a, attribute in enumerate(self._spec.attributes):
      if attribute.field is not None:
        ids_EG[:, a] = ids_of(attribute.field)[row_E]
    for a in self._stored() if self._stored_ids else ():
      ids_EG[:, a] = np.concatenate([ids[a] for ids in self._stored_ids])
    return {
      'begin': self._begin_N,
      'count': self._count_N,
      'time': self._time_N,
      'group': self._group_N,
      'event_ids': ids_EG,
      'event_time': self._time_N[row_E],
    }


def expand(
  spec: EventSpec, file: Reader, start: int, stop: int, place_N: np.ndarray, out_NLG: np.ndarray
) -> None:
  """Expands the sequences of rows [start, stop) of a file of ids into out_NLG[place_N].

  Args:
    out_NLG: int32; sequences are padded with PADDING_ID at the front.
  """
  begin_N = file.read('begin', start, stop).astype(np.int64)
  end_N = begin_N + file.read('count', start, stop)
  time_N = file.read('time', start, stop)
  ids_EG, time_E = file.map('event_ids'), file.map('event_time')
  ages = [a for a, attribute in enumerate(spec.attributes) if attribute.age is not None]
  for first in range(0, stop - start, _EXPANDED_ROWS):
    part = slice(first, first + _EXPANDED_ROWS)
    event_NL = end_N[part, None] + np.arange(-spec.length, 0)
    event_mask_NL = event_NL >= begin_N[part, None]
    event_M = event_NL[event_mask_NL]
    ids_MG = ids_EG[event_M]
    if ages:
      age_M = np.repeat(time_N[part], event_mask_NL.sum(axis=1)) - time_E[event_M]
      for a in ages:
        ids_MG[:, a] = spec.attributes[a].age(age_M)
    events_NLG = np.full((*event_NL.shape, len(spec.attributes)), PADDING_ID, np.int32)
    events_NLG[event_mask_NL] = ids_MG
    out_NLG[place_N[part]] = events_NLG
