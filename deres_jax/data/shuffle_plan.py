# SPDX-License-Identifier: Apache-2.0
"""Which row of a split comes when in an epoch: a pure function of (seed, epoch).

Every epoch permutes the blocks, then the rows inside windows of several blocks (the build shuffled
all rows once). A window is cut into lanes: a batch is as many equal parts as there are lanes, and
the rows of a lane come from neighbouring blocks of the permuted window. So a host that feeds an
eighth of every batch reads an eighth of the blocks, and batches do not depend on the number of
hosts. Data of a single window have one lane: they are soon read completely.

Positions count the rows of an epoch: batch k holds positions k * batch_size and on.

Shapes: L lanes, N rows.
"""

import dataclasses
import functools
import itertools
from typing import NamedTuple

import numpy as np

LANES = 64  # more hosts than this read some blocks twice


def _draws(n: int, *key: int) -> np.ndarray:
  """Returns random uint64 [n], the same in every version of NumPy."""
  return np.random.Philox(np.random.SeedSequence(key)).random_raw(n)


def permutation(n: int, *key: int) -> np.ndarray:
  """Returns a permutation of range(n) that depends on `key` only, in every version of NumPy.

  NumPy guarantees the streams of its bit generators, but not what `permutation` makes of them.
  """
  return _argsort(_draws(n, *key))


def _argsort(draws_N: np.ndarray) -> np.ndarray:
  """Returns the stable argsort of uint64 by 16-bit digits, in half of np.argsort's time."""
  digits = np.ascontiguousarray(draws_N.astype('<u8').view('<u2').reshape(-1, 4).T)
  order_N = np.argsort(digits[0], kind='stable')
  for digit in digits[1:]:
    order_N = order_N[np.argsort(digit[order_N], kind='stable')]
  return order_N


class Segments(NamedTuple):
  """Rows of a batch that come from one window.

  Attributes:
    window: number of the window.
    ranges: (start, stop, offset) of each lane with such rows: they are start .. stop - 1 among the
      window's rows in `ShufflePlan.shuffle`'s order, and begin at `offset` in what is requested.
  """

  window: int
  ranges: list[tuple[int, int, int]]


@dataclasses.dataclass(frozen=True)
class ShufflePlan:
  """The order of a split's rows in every epoch.

  Attributes:
    block_rows: rows of every block but the last.
    rows: rows of the split.
    batch_size: rows of a batch; the last batch of an epoch may be shorter.
    window_blocks: blocks that are shuffled together.
    seed: None gives rows in stored order, one block a window.
  """

  block_rows: int
  rows: int
  batch_size: int
  window_blocks: int
  seed: int | None

  @property
  def blocks(self) -> int:
    return -(-self.rows // self.block_rows)

  @property
  def blocks_per_window(self) -> int:
    return 1 if self.seed is None else self.window_blocks

  @property
  def windows(self) -> int:
    """Number of windows in an epoch."""
    return -(-self.blocks // self.blocks_per_window)

  @functools.cached_property
  def _lane_ends(self) -> np.ndarray:
    """End of each lane's part of a batch, in rows. int64 [L]."""
    lanes = 1 if self.seed is None or self.windows == 1 else LANES
    return np.arange(1, lanes + 1) * self.batch_size // lanes

  @functools.lru_cache(maxsize=4)  # noqa: B019 (few plans exist, and as long as the process)
  def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the blocks in the epoch's order, and the position at which each one ends."""
    n = self.blocks
    order = np.arange(n) if self.seed is None else permutation(n, self.seed, 0, epoch)
    sizes = np.full(n, self.block_rows, np.int64)
    sizes[order == n - 1] = self.rows - (n - 1) * self.block_rows
    return order, np.cumsum(sizes)

  def _window_range(self, epoch: int, window: int) -> tuple[int, int]:
    """Returns the first position of a window and the one after its last."""
    ends = self._epoch(epoch)[1]
    first = window * self.blocks_per_window
    last = min(first + self.blocks_per_window, len(ends)) - 1
    return int(ends[first - 1]) if first else 0, int(ends[last])

  def _count_before(self, position: int | np.ndarray) -> np.ndarray:
    """Returns each lane's number of rows before a position (one for all lanes, or [L])."""
    batch, offset = np.divmod(position, self.batch_size)
    sizes = np.diff(self._lane_ends, prepend=0)
    return batch * sizes + np.clip(offset - (self._lane_ends - sizes), 0, sizes)

  def lanes(self, part: int, parts: int) -> tuple[int, int]:
    """Returns the range of lanes that hold slice `part` of `parts` equal slices of each batch."""
    low, high = part * self.batch_size // parts, (part + 1) * self.batch_size // parts
    first = np.searchsorted(self._lane_ends, low, side='right')
    last = np.searchsorted(self._lane_ends, high, side='left')
    return int(first), int(last) + 1

  def blocks_in_window(self, epoch: int, window: int) -> np.ndarray:
    """Returns the blocks of a window, in order."""
    first = window * self.blocks_per_window
    return self._epoch(epoch)[0][first : first + self.blocks_per_window]

  def lane_starts(self, epoch: int, window: int) -> np.ndarray:
    """Returns each lane's first row in the concatenated blocks of a window, and the end."""
    start, stop = self._window_range(epoch, window)
    return np.append(0, np.cumsum(self._count_before(stop) - self._count_before(start)))

  def shuffle(self, epoch: int, window: int, lanes: tuple[int, int]) -> np.ndarray:
    """Returns the shuffled rows of some lanes, as indices into a window's concatenated blocks."""
    starts = self.lane_starts(epoch, window)[lanes[0] : lanes[1] + 1]
    if self.seed is None:
      return np.arange(starts[0], starts[-1])
    first, stop = self._window_range(epoch, window)
    draws = _draws(stop - first, self.seed, 1, epoch, window)
    return np.concatenate(
      [start + _argsort(draws[start:stop]) for start, stop in itertools.pairwise(starts.tolist())]
    )

  def source_of(self, epoch: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns where each row of a batch is stored: its block and its row in it. int64 [N]."""
    n = min(self.batch_size, self.rows - batch * self.batch_size)
    block_N, row_N = np.empty(n, np.int64), np.empty(n, np.int64)
    all_lanes = (0, len(self._lane_ends))
    for window, ranges in self.segments(epoch, batch, 0, n):
      blocks = self.blocks_in_window(epoch, window)
      sizes = np.minimum(self.block_rows, self.rows - blocks * self.block_rows)
      ends, order = np.cumsum(sizes), self.shuffle(epoch, window, all_lanes)
      for start, stop, offset in ranges:
        rows = order[start:stop]
        k = np.searchsorted(ends, rows, side='right')
        block_N[offset : offset + len(rows)] = blocks[k]
        row_N[offset : offset + len(rows)] = rows - (ends - sizes)[k]
    return block_N, row_N

  def segments(self, epoch: int, batch: int, first: int, last: int) -> list[Segments]:
    """Returns where rows first .. last - 1 of a batch come from, by window."""
    base = batch * self.batch_size
    ends = self._epoch(epoch)[1]
    low, high = np.searchsorted(ends, [base + first, base + last - 1], side='right')
    lane_ends = self._lane_ends
    low_L = base + np.clip(np.append(0, lane_ends[:-1]), first, last)
    high_L = base + np.clip(lane_ends, first, last)
    segments = []
    for window in range(low // self.blocks_per_window, high // self.blocks_per_window + 1):
      window_range = self._window_range(epoch, window)
      # Positions of each lane's part of the batch that lie in this window.
      from_L, to_L = np.clip(low_L, *window_range), np.clip(high_L, *window_range)
      skipped_L = self._count_before(from_L) - self._count_before(window_range[0])
      start_L = self.lane_starts(epoch, window)[:-1] + skipped_L
      bounds = np.stack([start_L, start_L + to_L - from_L, from_L - base - first], axis=1)
      ranges = [(start, stop, offset) for start, stop, offset in bounds.tolist() if start < stop]
      if ranges:
        segments.append(Segments(int(window), ranges))
    return segments
