# SPDX-License-Identifier: Apache-2.0
"""Splits rows 8:1:1 in the order of time; rows of the same millisecond stay together."""

from pathlib import Path

import numpy as np

from data_pipelines.core import columns_file
from data_pipelines.prepared.schema import SPLITS
from data_pipelines.text.splits import shuffle_splits
from deres_jax.core.errors import UserError

TENTHS = {'train': (0, 8), 'validation': (8, 9), 'test': (9, 10)}


class Clock:
  """The times of all rows, on disk; see histories.ByUser.times."""

  def __init__(self, files: tuple[Path, ...]):
    """Args: at least one row in all."""
    self._sorted = []
    for path in files:
      with columns_file.Reader(path) as file:
        self._sorted.append(file.map('sorted'))
    filled = [times for times in self._sorted if len(times)]
    self.rows = sum(map(len, filled))
    self._low = min(int(times[0]) for times in filled)
    self._high = max(int(times[-1]) for times in filled)

  def before(self, time: int) -> int:
    """Returns the number of rows earlier than a time."""
    return sum(int(np.searchsorted(times, time)) for times in self._sorted)

  def cut(self, tenths: int) -> int:
    """Returns the time before which lie `tenths` tenths of the rows, as nearly as ties allow.

    Of two equally near times it is the earlier.
    """
    low, high = self._low, self._high + 1  # before(low) <= target < before(high), in tenths
    while high - low > 1:
      middle = (low + high) // 2
      if 10 * self.before(middle) <= tenths * self.rows:
        low = middle
      else:
        high = middle
    target = tenths * self.rows
    nearer = target - 10 * self.before(low) <= 10 * self.before(high) - target
    return low if nearer else high


def split_by_time(files: tuple[Path, ...], rows: int, seed: int, raw: Path) -> dict:
  """Returns the row numbers of each split, in the order in which they are written.

  Each split is shuffled by the same generator, in the order train, validation, test.

  Args:
    files: see histories.ByUser.times.
    rows: number of rows in all of them.
    raw: the folder of raw files, for error messages.

  Raises:
    UserError: a split would be empty.
  """
  clock = Clock(files)
  cuts = [clock.cut(tenths) for _, tenths in TENTHS.values()][:-1]
  counts = np.diff([0, *(clock.before(cut) for cut in cuts), rows]).tolist()
  if not all(counts):
    sizes = ', '.join(f'{split} {count}' for split, count in zip(SPLITS, counts, strict=True))
    raise UserError(
      f'--raw={raw}: {rows} rows cannot be split 8:1:1 by time: rows of the same millisecond '
      f'stay together, which leaves {sizes}; give more rows'
    )
  kind = np.uint32 if rows <= 1 << 32 else np.uint64
  order = {split: np.empty(count, kind) for split, count in zip(SPLITS, counts, strict=True)}
  filled, start = dict.fromkeys(SPLITS, 0), 0
  for path in files:
    with columns_file.Reader(path) as file:
      split_N = np.searchsorted(cuts, file.read('time'), side='right')
    for s, split in enumerate(SPLITS):
      numbers = np.flatnonzero(split_N == s) + start
      order[split][filled[split] : filled[split] + len(numbers)] = numbers
      filled[split] += len(numbers)
    start += len(split_N)
  return shuffle_splits(order, np.random.default_rng(seed))
