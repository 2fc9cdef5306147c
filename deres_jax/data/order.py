# SPDX-License-Identifier: Apache-2.0
"""Which row of a split stands where in an epoch: a pure function of (seed, epoch).

Blocks are permuted every epoch and rows inside windows of some blocks (they were shuffled once
when they were prepared). A window is cut into lanes: a batch is as many equal parts as there are
lanes, and the rows of a lane come from neighbouring blocks of the permuted window. A host that
feeds an eighth of every batch so needs an eighth of the blocks, and the batches do not depend on
how many hosts there are. Data of a single window are one lane: they are soon read whole.

Positions count the rows of an epoch: batch k holds positions k * batch_size and on.
"""

import dataclasses
import functools
import itertools
from typing import NamedTuple

import numpy as np

LANES = 64  # no more than this many hosts save reading


def _draws(n: int, *key: int) -> np.ndarray:
  """Random numbers, uint64 [n], of the kind that NumPy keeps the same in every version."""
  return np.random.Philox(np.random.SeedSequence(key)).random_raw(n)


def permutation(n: int, *key: int) -> np.ndarray:
  """A permutation of range(n) that depends on `key` alone, in every version of NumPy.

  NumPy keeps its bit generators' streams for ever but not what `permutation` makes of them.
  """
  return _ranks(_draws(n, *key))


def _ranks(draws_N: np.ndarray) -> np.ndarray:
  """np.argsort of uint64, stable; half as long, since NumPy sorts 16-bit numbers by radix."""
  digits = np.ascontiguousarray(draws_N.astype('<u8').view('<u2').reshape(-1, 4).T)
  order_N = np.argsort(digits[0], kind='stable')
  for digit in digits[1:]:
    order_N = order_N[np.argsort(digit[order_N], kind='stable')]
  return order_N


class Pieces(NamedTuple):
  """Rows of a batch that come from one window, a piece a lane.

  Attributes:
    window: its number.
    start_L, stop_L: the lane's rows, as `Order.shuffle` orders those of the window. int64 [lanes].
    at_L: where the piece stands among the rows that were asked for. int64 [lanes].
  """

  window: int
  start_L: np.ndarray
  stop_L: np.ndarray
  at_L: np.ndarray


@dataclasses.dataclass(frozen=True)
class Order:
  """The order of rows in every epoch.

  Attributes:
    block_rows: rows of every block but the last; rows: of all blocks.
    batch_size: rows of a batch; the last one of an epoch may be shorter.
    window_blocks: blocks that are mixed.
    seed: None: rows come as they are stored, one block a window.
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
  def per_window(self) -> int:
    """Blocks of a window."""
    return 1 if self.seed is None else self.window_blocks

  @property
  def windows(self) -> int:
    """Windows of an epoch."""
    return -(-self.blocks // self.per_window)

  @functools.cached_property
  def _lane_ends(self) -> np.ndarray:
    """End of each lane's part of a batch, in rows. int64 [lanes]."""
    lanes = 1 if self.seed is None or self.windows == 1 else LANES
    return np.arange(1, lanes + 1) * self.batch_size // lanes

  @functools.lru_cache(maxsize=4)  # noqa: B019 (few orders live, and as long as the process)
  def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Blocks in the order of the epoch, and the position after each of them."""
    n = self.blocks
    order = np.arange(n) if self.seed is None else permutation(n, self.seed, 0, epoch)
    sizes = np.full(n, self.block_rows, np.int64)
    sizes[order == n - 1] = self.rows - (n - 1) * self.block_rows
    return order, np.cumsum(sizes)

  def _span(self, epoch: int, window: int) -> tuple[int, int]:
    """First position of a window and the one after its last."""
    ends = self._epoch(epoch)[1]
    first = window * self.per_window
    return int(ends[first - 1]) if first else 0, int(
      ends[min(first + self.per_window, len(ends)) - 1]
    )

  def _before(self, position: int | np.ndarray) -> np.ndarray:
    """How many positions each lane has before a position, or before one of its own. [lanes]."""
    batch, offset = np.divmod(position, self.batch_size)
    ends = self._lane_ends
    sizes = np.diff(ends, prepend=0)
    return batch * sizes + np.clip(offset - (ends - sizes), 0, sizes)

  def _starts(self, span: tuple[int, int]) -> np.ndarray:
    """First row of each lane in a window, and the end. int64 [lanes + 1]."""
    count = self._before(span[1]) - self._before(span[0])
    return np.concatenate([[0], np.cumsum(count)])

  def lanes_of(self, part: int, parts: int) -> tuple[int, int]:
    """First lane of one of so many equal parts of a batch, and the one after its last."""
    low, high = part * self.batch_size // parts, (part + 1) * self.batch_size // parts
    ends = self._lane_ends
    return (
      int(np.searchsorted(ends, low, side='right')),
      int(np.searchsorted(ends, high, side='left')) + 1,
    )

  def members(self, epoch: int, window: int) -> np.ndarray:
    """The blocks of a window, in order."""
    first = window * self.per_window
    return self._epoch(epoch)[0][first : first + self.per_window]

  def lane_starts(self, epoch: int, window: int, lanes: tuple[int, int]) -> np.ndarray:
    """First row of each of some lanes, counted in the window's blocks side by side, and the end."""
    return self._starts(self._span(epoch, window))[lanes[0] : lanes[1] + 1]

  def shuffle(self, epoch: int, window: int, lanes: tuple[int, int]) -> np.ndarray:
    """Rows of some lanes of a window in order, counted in the window's blocks side by side."""
    starts = self.lane_starts(epoch, window, lanes)
    if self.seed is None:
      return np.arange(starts[0], starts[-1])
    first, stop = self._span(epoch, window)
    draws = _draws(stop - first, self.seed, 1, epoch, window)
    spans = itertools.pairwise(starts.tolist())
    return np.concatenate([a + _ranks(draws[a:b]) for a, b in spans])

  def stored(self, epoch: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Where each row of a batch is stored: its block, and its row in that block. int64 [rows]."""
    n = min(self.batch_size, self.rows - batch * self.batch_size)
    block_N, row_N = np.empty(n, np.int64), np.empty(n, np.int64)
    lanes = (0, len(self._lane_ends))
    for window, start_L, stop_L, at_L in self.pieces(epoch, batch, 0, n):
      members = self.members(epoch, window)
      sizes = np.minimum(self.block_rows, self.rows - members * self.block_rows)
      ends, order_N = np.cumsum(sizes), self.shuffle(epoch, window, lanes)
      for start, stop, at in zip(start_L, stop_L, at_L, strict=True):
        here = order_N[start:stop]
        k = np.searchsorted(ends, here, side='right')
        block_N[at : at + len(here)] = members[k]
        row_N[at : at + len(here)] = here - (ends - sizes)[k]
    return block_N, row_N

  def pieces(self, epoch: int, batch: int, first: int, last: int) -> list[Pieces]:
    """Where the rows of a batch come from: its rows first .. last - 1, by window."""
    base = batch * self.batch_size
    ends = self._epoch(epoch)[1]
    low, high = np.searchsorted(ends, [base + first, base + last - 1], side='right')
    end_L = self._lane_ends
    low_L = base + np.clip(np.concatenate([[0], end_L[:-1]]), first, last)
    high_L = base + np.clip(end_L, first, last)
    found = []
    for window in range(low // self.per_window, high // self.per_window + 1):
      span = self._span(epoch, window)
      # Positions of each lane's part of the batch that lie in this window.
      from_L, to_L = np.clip(low_L, *span), np.clip(high_L, *span)
      start_L = self._starts(span)[:-1] + self._before(from_L) - self._before(span[0])
      found.append(Pieces(int(window), start_L, start_L + to_L - from_L, from_L - base - first))
    return found
