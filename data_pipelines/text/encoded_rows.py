# SPDX-License-Identifier: Apache-2.0
"""Encoded rows in files of groups, each sorted by output position, and the source that reads them.

A shard collects its own rows from every group with one read each.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_pipelines.core import columns_file
from data_pipelines.prepared.records import Block
from data_pipelines.prepared.schema import BLOCK_ROWS, SPLITS, RecordShape
from data_pipelines.prepared.shards import shards_of
from data_pipelines.text import sequences
from data_pipelines.text.sequences import EventSpec


@dataclasses.dataclass(frozen=True)
class Plan:
  """Settings of the encoding, the same for all groups.

  Attributes:
    lookups: files of the fields' keys.
    small, large: fields whose ids fit uint16, and those whose ids need int32.
    hash_sizes, missing_kept, events: see TextProtocol.
    positions: file of each row's position in the output order of all splits.
    borders: first position of each shard, and the end.
  """

  lookups: tuple[Path, ...]
  small: tuple[int, ...]
  large: tuple[int, ...]
  hash_sizes: tuple[int | None, ...]
  missing_kept: tuple[bool, ...]
  positions: Path
  borders: tuple[int, ...]
  events: EventSpec | None = None


def borders_of(rows: dict[str, int]) -> tuple[int, ...]:
  """Returns the first position of each shard and the end, given the rows of each split."""
  borders, base = [], 0
  for split in SPLITS:
    borders += [base + first * BLOCK_ROWS for first, _ in shards_of(rows[split])]
    base += rows[split]
  return (*borders, base)


@dataclasses.dataclass(frozen=True)
class EncodedRows:
  """The BlockSource of an ingested text: collects a shard's rows from all groups.

  Attributes:
    before: file of int64 [groups, borders]: rows of a group that come before a border.
  """

  shape: RecordShape
  rows: dict[str, int]
  plan: Plan
  groups: tuple[Path, ...]
  before: Path

  def blocks(self, split: str, first: int, last: int) -> Iterator[Block]:
    """See BlockSource.blocks; [first, last) must be a whole shard."""
    base = sum(self.rows[s] for s in SPLITS[: SPLITS.index(split)])
    low = base + first * BLOCK_ROWS
    high = base + min(last * BLOCK_ROWS, self.rows[split])
    plan = self.plan
    shard = plan.borders.index(low)
    assert plan.borders[shard + 1] == high, 'not a whole shard'
    before = np.load(self.before, mmap_mode='r', allow_pickle=False)
    small_NF = np.empty((high - low, len(plan.small)), np.uint16)
    large_NF = np.empty((high - low, len(plan.large)), np.int32)
    label_N = np.empty(high - low, np.uint8)
    user_arrays = {}
    if plan.events is not None:
      layout = (high - low, self.shape.events, self.shape.event_fields)
      user_arrays = {'events': np.empty(layout, np.int32), 'group': np.empty(high - low, np.int32)}
    for path, (start, stop) in zip(self.groups, before[:, shard : shard + 2], strict=True):
      if start == stop:
        continue
      with columns_file.Reader(path) as file:
        position_N = file.read('position', start, stop)
        place = position_N - position_N.dtype.type(low)
        small_NF[place] = file.read('small', start, stop)
        large_NF[place] = file.read('large', start, stop)
        label_N[place] = file.read('label', start, stop)
        if plan.events is not None:
          sequences.expand(plan.events, file, start, stop, place, user_arrays['events'])
          user_arrays['group'][place] = file.read('group', start, stop)
    for start in range(0, high - low, BLOCK_ROWS):
      part = slice(start, min(start + BLOCK_ROWS, high - low))
      ids_NF = np.empty((part.stop - start, self.shape.fields), np.int32)
      ids_NF[:, plan.small] = small_NF[part]
      ids_NF[:, plan.large] = large_NF[part]
      part_arrays = {name: array[part] for name, array in user_arrays.items()}
      yield {'ids': ids_NF, 'label': label_N[part], **part_arrays}
