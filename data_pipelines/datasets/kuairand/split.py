# SPDX-License-Identifier: Apache-2.0
"""8:1:1 in the order of time, of rows in any order; rows of the same millisecond stay together."""

from pathlib import Path

import numpy as np

from data_pipelines.core import columns_file
from data_pipelines.core.errors import UserError
from data_pipelines.prepared.schema import SPLITS

TENTHS = {'train': (0, 8), 'validation': (8, 9), 'test': (9, 10)}


class Clock:
  """The times of all rows; see histories.ByUser.times. They stay on disk."""

  def __init__(self, files: tuple[Path, ...]):
    """Args: at least one row in all."""
    self._sorted = []
    for path in files:
      with columns_file.Reader(path) as file:
        self._sorted.append(file.map('sorted'))
    some = [times for times in self._sorted if len(times)]
    self.rows = sum(map(len, some))
    self._low = min(int(times[0]) for times in some)
    self._high = max(int(times[-1]) for times in some)

  def before(self, time: int) -> int:
    """Rows earlier than a time."""
    return sum(int(np.searchsorted(times, time)) for times in self._sorted)

  def cut(self, tenths: int) -> int:
    """The time before which there are as nearly `tenths` tenths of the rows as ties allow.

    Of two that are equally near, the earlier.
    """
    low, high = self._low, self._high + 1  # before(low) <= the wanted < before(high)
    while high - low > 1:
      middle = (low + high) // 2
      if 10 * self.before(middle) <= tenths * self.rows:
        low = middle
      else:
        high = middle
    wanted = tenths * self.rows
    nearer = wanted - 10 * self.before(low) <= 10 * self.before(high) - wanted
    return low if nearer else high


def split_by_time(files: tuple[Path, ...], rows: int, seed: int, raw: Path) -> dict:
  """Row numbers of each split, in the order in which they are written.

  Each split is shuffled by the same generator, in the order train, validation, test.

  Args:
    files: see histories.ByUser.times.
    rows: in all of them.
    raw: for people.

  Raises:
    UserError: no row of one of the splits.
  """
  clock = Clock(files)
  cuts = [clock.cut(tenths) for _, tenths in TENTHS.values()][:-1]
  counts = np.diff([0, *(clock.before(cut) for cut in cuts), rows]).tolist()
  if not all(counts):
    found = ', '.join(f'{split} {count}' for split, count in zip(SPLITS, counts, strict=True))
    raise UserError(
      f'--raw={raw}: {rows} rows cannot be split 8:1:1 by time: rows of the same millisecond '
      f'stay together, which leaves {found}; give more rows'
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
  generator = np.random.default_rng(seed)
  for split in SPLITS:
    generator.shuffle(order[split])
  return order
