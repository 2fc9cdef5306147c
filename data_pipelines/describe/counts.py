# SPDX-License-Identifier: Apache-2.0
"""Counts the rows of a prepared folder, reading every shard once.

Shapes: N rows, F fields, V ids of a field, L events of a sequence, U users (groups).
"""

import dataclasses
import functools
from pathlib import Path

import numpy as np

from data_pipelines.core.workers import Workers
from data_pipelines.prepared.id_counts import Counted, add_counts, count_ids, no_counts
from data_pipelines.prepared.records import read_shard
from data_pipelines.prepared.schema import (
  FIRST_TOKEN_ID,
  OOV_ID,
  PADDING_ID,
  SPLITS,
  RecordShape,
  Schema,
  record_shape,
)
from data_pipelines.prepared.tfds import split_files


@dataclasses.dataclass(frozen=True)
class SplitCounts:
  """Counts of a split.

  Attributes:
    unknown_F: rows with the unknown id.
    by_length: rows by number of events, int64 [length + 1].
    by_group: rows by user, int64 [groups].
    by_part: rows and clicks of head, torso and tail items, int64 [3, 2].
  """

  rows: int
  clicks: int
  unknown_F: np.ndarray
  by_length: np.ndarray
  by_group: np.ndarray
  by_part: np.ndarray


@dataclasses.dataclass(frozen=True)
class Counts:
  """Counts by split, and by field the training rows of each id without and with a click [V, 2].

  The latter take the memory of the vocabularies, 8 bytes an id (16 from 2^32 rows on).
  """

  splits: dict[str, SplitCounts]
  ids: list[np.ndarray]


@dataclasses.dataclass(frozen=True)
class _Plan:
  shape: RecordShape
  sizes: tuple[int, ...]
  groups: int
  items: tuple[int, int, int] | None  # field, head_below, torso_below


@dataclasses.dataclass(frozen=True)
class _Part:
  sums: dict[str, int | np.ndarray]  # as in SplitCounts
  groups: Counted
  ids: list[Counted]  # of 2 id + label, by field


def _plan(schema: Schema) -> _Plan:
  names = [field.name for field in schema.fields]
  items = schema.items
  return _Plan(
    shape=record_shape(schema),
    sizes=tuple(field.vocab_size for field in schema.fields),
    groups=schema.group.groups if schema.group else 0,
    items=(names.index(items.field), items.head_below, items.torso_below) if items else None,
  )


def item_parts(ids_N: np.ndarray, head_below: int, torso_below: int) -> np.ndarray:
  """Returns 0 for head, 1 for torso, 2 for tail items (the unknown id too): int [N]."""
  part_N = np.digitize(ids_N, (head_below, torso_below))
  return np.where(ids_N < FIRST_TOKEN_ID, 2, part_N)


def _count(path: Path, plan: _Plan, train: bool) -> _Part:
  blocks = list(read_shard(path, plan.shape))
  ids_NF = np.concatenate([block['ids'] for block in blocks])
  label_N = np.concatenate([block['label'] for block in blocks])
  by_length = np.zeros(plan.shape.events + 1, np.int64)
  if plan.shape.events:
    for block in blocks:
      length_N = (block['events'] != PADDING_ID).any(axis=-1).sum(axis=-1)
      by_length += np.bincount(length_N, minlength=len(by_length))
  groups = (np.zeros(0, np.int32),) * 2
  if plan.shape.grouped:
    groups = count_ids(np.concatenate([block['group'] for block in blocks]), plan.groups)
  by_part = np.zeros((3, 2), np.int64)
  if plan.items:
    field, head, torso = plan.items
    part_N = item_parts(ids_NF[:, field], head, torso)
    by_part[:, 0] = np.bincount(part_N, minlength=3)
    by_part[:, 1] = np.bincount(part_N[label_N > 0], minlength=3)
  pairs = []
  if train:
    for f, size in enumerate(plan.sizes):
      wide = np.int64 if size > 1 << 30 else np.int32
      pairs.append(count_ids(ids_NF[:, f].astype(wide) * 2 + label_N, 2 * size))
  sums = {
    'rows': len(label_N),
    'clicks': int(label_N.sum(dtype=np.int64)),
    'unknown_F': np.count_nonzero(ids_NF == OOV_ID, axis=0),
    'by_length': by_length,
    'by_part': by_part,
  }
  return _Part(sums, groups, pairs)


def count_folder(folder: Path, schema: Schema, workers: Workers) -> Counts:
  """Counts all rows of a prepared folder."""
  plan = _plan(schema)
  wide = schema.splits.train.rows >= 1 << 32
  ids = no_counts([(size, 2) for size in plan.sizes], np.uint64 if wide else np.uint32)
  splits = {}
  for split in SPLITS:
    shapes = (plan.shape.fields,), (plan.shape.events + 1,), (3, 2), (plan.groups,)
    unknown_F, by_length, by_part, by_group = no_counts(shapes, np.int64)
    totals = {'rows': 0, 'clicks': 0}
    totals |= {'unknown_F': unknown_F, 'by_length': by_length, 'by_part': by_part}
    count = functools.partial(_count, plan=plan, train=split == 'train')
    for part in workers.map(count, split_files(folder / schema.tfds, split)):
      totals = {name: total + part.sums[name] for name, total in totals.items()}
      add_counts(by_group, part.groups)
      for total_V2, pairs in zip(ids, part.ids, strict=split == 'train'):
        add_counts(total_V2.reshape(-1), pairs)
    splits[split] = SplitCounts(**totals, by_group=by_group)
  return Counts(splits, ids)
