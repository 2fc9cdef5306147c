# SPDX-License-Identifier: Apache-2.0
"""Writes the rows of a source as record files; each shard is a task."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

from data_pipelines.core.progress import Log, Progress
from data_pipelines.core.workers import Workers
from data_pipelines.prepared.records import Block, read_stats, write_shard
from data_pipelines.prepared.schema import BLOCK_ROWS, SPLITS, RecordShape
from data_pipelines.prepared.split_stats import SplitStats
from deres_jax.core import files

SHARD_BLOCKS = 64  # blocks in one file, which a worker holds in memory


class BlockSource(Protocol):
  """Encoded rows, in blocks of BLOCK_ROWS. Must be picklable."""

  shape: RecordShape
  rows: Mapping[str, int]  # by split

  def blocks(self, split: str, first: int, last: int) -> Iterator[Block]:
    """Yields blocks [first, last) of a split; `first` is a multiple of SHARD_BLOCKS."""


@dataclasses.dataclass(frozen=True)
class _Task:
  source: BlockSource
  split: str
  first: int
  last: int
  path: Path
  compress: bool


def shards_of(rows: int) -> list[tuple[int, int]]:
  """Returns the first and last block (exclusive) of each shard of this many rows."""
  blocks = -(-rows // BLOCK_ROWS)
  return [(first, min(first + SHARD_BLOCKS, blocks)) for first in range(0, blocks, SHARD_BLOCKS)]


def _write(task: _Task) -> SplitStats:
  if task.path.exists():  # by an earlier build that was stopped
    return read_stats(task.path, task.source.shape)
  blocks = task.source.blocks(task.split, task.first, task.last)
  with files.replacing(task.path, durable=False) as partial:
    return write_shard(partial, task.source.shape, blocks, task.compress)


def write_shards(
  source: BlockSource, folder: Path, compress: bool, workers: Workers, log: Log
) -> dict[str, list[tuple[Path, SplitStats]]]:
  """Writes all shards of all splits into `folder`; returns by split their files and statistics.

  Raises:
    RuntimeError: the disk is full (ArrayRecord's writer raises no other error).
  """
  tasks = [
    _Task(source, split, first, last, folder / f'{split}-{k:05d}', compress)
    for split in SPLITS
    for k, (first, last) in enumerate(shards_of(source.rows[split]))
  ]
  done: dict[str, list[tuple[Path, SplitStats]]] = {split: [] for split in SPLITS}
  with Progress(log, 'writing', sum(source.rows.values())) as progress:
    for task, stats in zip(tasks, workers.map(_write, tasks), strict=True):
      assert not stats.faults, stats.faults[0]
      done[task.split].append((task.path, stats))
      progress.add(stats.rows)
  return done
