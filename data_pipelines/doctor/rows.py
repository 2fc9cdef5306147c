# SPDX-License-Identifier: Apache-2.0
"""What doctor learns of the rows of a shard, in one reading of it, and of a split.

Shapes: N rows, F fields, V ids of a vocabulary.
"""

import dataclasses
import functools
from pathlib import Path

import numpy as np

from data_pipelines.core.workers import Workers
from data_pipelines.prepared.id_counts import Counted, add_counts, count_ids, no_counts
from data_pipelines.prepared.records import Block, read_shard
from data_pipelines.prepared.schema import RecordShape, record_shape
from data_pipelines.prepared.split_stats import SplitStats, total

# Hashes kept of a split (1 GB). Of more rows, every 2nd, 4th ... distinct one is looked at: all of
# its copies in all splits, so that shares stay unbiased.
MAX_HASHES = 1 << 27


@dataclasses.dataclass(frozen=True)
class RowPlan:
  """How shards are read.

  Attributes:
    counted: (field, vocab_size) of the fields whose ids are counted in the training rows.
    shared: (attribute, field) of those attributes of events that share the ids of such a field.
    drop_bits: rows are looked at for duplicates whose hash starts with so many zero bits.
  """

  shape: RecordShape
  counted: tuple[tuple[int, int], ...]
  shared: tuple[tuple[int, int], ...]
  drop_bits: int


def row_plan(schema: dict) -> RowPlan:
  """The plan of a schema. Hashed and generated fields have no vocabulary to be counted."""
  fields = schema['fields']
  counted = {
    field['name']: (f, field['vocab_size'])
    for f, field in enumerate(fields)
    if field['min_count'] > 0 and not field['hashed']
  }
  attributes = schema['sequence']['attributes'] if schema['sequence'] else []
  shared = [
    (a, counted[attribute['field']][0])
    for a, attribute in enumerate(attributes)
    if attribute['field'] in counted
  ]
  rows = max(split['rows'] for split in schema['splits'].values())
  drop_bits = max(0, (max(rows, 1) - 1) // MAX_HASHES).bit_length()
  return RowPlan(record_shape(schema), tuple(counted.values()), tuple(shared), drop_bits)


@dataclasses.dataclass(frozen=True)
class _ShardRows:
  stats: SplitStats
  hashes_N: np.ndarray
  counts: dict[int, Counted]
  events: dict[int, Counted]


@dataclasses.dataclass(frozen=True)
class SplitRows:
  """What is known about the rows of a split.

  Attributes:
    hashes_N: of the rows that are looked at, ascending uint64.
    counts: by field of the plan, how many rows have each id [V]; all 0 but in training.
    events: the same for the events of all rows, of fields that share their ids with an attribute.
  """

  stats: SplitStats
  hashes_N: np.ndarray
  counts: dict[int, np.ndarray]
  events: dict[int, np.ndarray]


def looked_at(hashes_N: np.ndarray, plan: RowPlan) -> np.ndarray:
  """Which rows are looked at: bool [rows]."""
  return hashes_N <= np.uint64((1 << 64 - plan.drop_bits) - 1)


def _read(path: Path, plan: RowPlan, train: bool) -> _ShardRows:
  stats, hashes, ids, events = SplitStats(plan.shape), [np.zeros(0, np.uint64)], [], []
  for block in read_shard(path, plan.shape):
    faults = len(stats.faults)
    stats.update(block)
    if len(stats.faults) > faults:
      continue
    hashes_N = row_hashes(block, plan.shape)
    hashes.append(hashes_N[looked_at(hashes_N, plan)])
    if train and plan.counted:
      ids.append(block['ids'])
    if train and plan.shared:
      events.append(block['events'])
  counts, seen = {}, {}
  if ids:
    ids_NF = np.concatenate(ids)
    counts = {f: count_ids(ids_NF[:, f], size) for f, size in plan.counted}
  for _, f in plan.shared if events else ():
    columns = [a for a, field in plan.shared if field == f]
    ids_M = np.concatenate([events_NLG[..., columns].ravel() for events_NLG in events])
    seen[f] = count_ids(ids_M, dict(plan.counted)[f])
  return _ShardRows(stats, np.concatenate(hashes), counts, seen)


def read_split(files: list[Path], plan: RowPlan, train: bool, workers: Workers) -> SplitRows:
  """Reads every shard of a split once. Blocks of a wrong shape are the stats's faults only."""
  stats, hashes = [], [np.zeros(0, np.uint64)]
  sizes = dict(plan.counted)
  shared = dict.fromkeys(f for _, f in plan.shared)
  zeros = iter(no_counts([(sizes[f],) for f in (*sizes, *shared)], np.int64))
  counts, events = ({f: next(zeros) for f in which} for which in (sizes, shared))
  for part in workers.map(functools.partial(_read, plan=plan, train=train), files):
    stats.append(part.stats)
    hashes.append(part.hashes_N)
    for f, counted in part.counts.items():
      add_counts(counts[f], counted)
    for f, counted in part.events.items():
      add_counts(events[f], counted)
  hashes_N = np.concatenate(hashes)
  hashes_N.sort()
  return SplitRows(total(plan.shape, stats), hashes_N, counts, events)


# 2^64 / golden ratio, odd: the multiples of no small number come near 0 modulo 2^64.
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


_START = np.uint64(0x243F6A8885A308D3)  # digits of pi


_HALF = np.uint64(32)


def row_hashes(block: Block, shape: RecordShape) -> np.ndarray:
  """Hashes of the rows of a block, label aside: uint64 [rows].

  Every column is a bijection of the state so far, so rows that differ in one column never collide.
  Others do with a chance of 2^-64 a pair: about 6e-5 collisions in all of 45.8 million rows.
  """
  rows = len(block['ids'])
  parts = [block['ids']]
  if shape.events:
    parts.append(block['events'].reshape(rows, -1))
  if shape.grouped:
    parts.append(block['group'][:, None])
  state_N = np.full(rows, _START)
  for part_NC in parts:
    for column_N in np.ascontiguousarray(part_NC.T).view(np.uint32):
      state_N ^= column_N
      state_N *= _FACTOR
      state_N ^= state_N >> _HALF
  return state_N
