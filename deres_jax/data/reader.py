# SPDX-License-Identifier: Apache-2.0
"""Shuffled rows from blocks, in the order of `deres_jax.data.order`, a window ahead.

Shapes: N rows, S ids of a row.
"""

import collections
import concurrent.futures
import os
import threading
from typing import NamedTuple

import numpy as np

from deres_jax.data.blocks import Blocks, Rows
from deres_jax.data.order import Order
from deres_jax.embeddings.layout import Tables


class Loan:
  """Arrays that go back to a list of spare ones when nobody holds the loan any more.

  The kernel clears fresh memory page by page; reading into used arrays saves a fifth of the time.
  """

  def __init__(self, arrays: Rows, spare: list[Rows]):
    self._arrays, self._spare = arrays, spare

  def __del__(self):
    self._spare.append(self._arrays)


class Window(NamedTuple):
  """Some of the blocks of a window, read.

  Attributes:
    rows: of these blocks side by side; they hold as long as the loan is held.
    first: row of the window, as `Order.shuffle` orders them, that order_N begins with.
    order_N: place in `rows` of that row and of those that follow.
  """

  rows: Rows
  loan: Loan
  first: int
  order_N: np.ndarray


# Reading and checking a block leaves Python's lock free for the most part.
_READERS = min(4, os.cpu_count() or 1)  # threads
_LARGE_BLOCK = 31 << 20  # bytes; glibc's dynamic threshold ends at 32 MiB


class Reader:
  """The rows of a part of every batch, from the blocks that hold them.

  Ids come out as numbers of table rows, and `tables.padding` where an event is padding. The next
  window is read while the rows of this one are used.
  """

  def __init__(self, blocks: Blocks, tables: Tables, order: Order, part: int, parts: int):
    """Reads the given one of equal parts of every batch; hosts may take a part each."""
    self._blocks, self._order, self._part, self._parts = blocks, order, part, parts
    self._offsets_S = tables.column_offsets[np.array(blocks.schema.columns)]
    self._padding = tables.padding
    self._lanes = order.lanes_of(part, parts)
    self._windows: collections.OrderedDict[tuple[int, int], concurrent.futures.Future]
    self._windows = collections.OrderedDict()
    self._pool = concurrent.futures.ThreadPoolExecutor(1)  # loads windows
    self._readers = concurrent.futures.ThreadPoolExecutor(_READERS)  # their blocks
    self._lock = threading.Lock()
    self._spare: list[Rows] = []
    # glibc gives large blocks back to the kernel at once and faults new ones in page by page,
    # which halves the speed of reading. Freeing a large one raises its threshold (mallopt(3)).
    np.empty(_LARGE_BLOCK, np.uint8)

  def read(self, epoch: int, batch: int) -> Rows:
    """This part's real rows of a batch; none where the last batch is short."""
    order = self._order
    real = min(order.batch_size, order.rows - batch * order.batch_size)
    low, high = (order.batch_size * p // self._parts for p in (self._part, self._part + 1))
    n = max(0, min(high, real) - low)
    out = self._empty(n)
    pieces = order.pieces(epoch, batch, low, low + n) if n else []
    for window, *spans in pieces:
      spans = [(a, b, at) for a, b, at in zip(*(x.tolist() for x in spans), strict=True) if a < b]
      if not spans:
        continue
      held = self._window(epoch, window)
      rows, first = held.rows, held.first
      here = np.concatenate([held.order_N[a - first : b - first] for a, b, _ in spans])
      if len(pieces) == 1:
        for into, values in zip(out, rows, strict=True):
          np.take(values, here, axis=0, out=into, mode='clip')
      else:
        there = np.concatenate([np.arange(at, at + b - a) for a, b, at in spans])
        for into, values in zip(out, rows, strict=True):
          into[there] = values[here]
    return out

  def _window(self, epoch: int, window: int) -> Window:
    with self._lock:
      here = self._started(epoch, window)
      if window + 1 < self._order.windows:
        self._started(epoch, window + 1)
      elif self._order.seed is not None:
        self._started(epoch + 1, 0)
      while len(self._windows) > 3:  # one that a batch straddles, this one and the next
        self._windows.popitem(last=False)
    return here.result()

  def _started(self, epoch: int, window: int) -> concurrent.futures.Future:
    key = (epoch, window)
    if key not in self._windows:
      self._windows[key] = self._pool.submit(self._load, epoch, window)
    self._windows.move_to_end(key)
    return self._windows[key]

  def _load(self, epoch: int, window: int) -> Window:
    order = self._order
    starts = order.lane_starts(epoch, window, self._lanes)
    blocks, start = [], 0
    for block in order.members(epoch, window).tolist():
      stop = start + self._blocks.size(block)
      if start < starts[-1] and stop > starts[0]:
        blocks.append((block, start, stop))
      start = stop
    base = blocks[0][1] if blocks else 0
    out, loan = self._borrow(blocks[-1][2] - base if blocks else 0)
    reading = [
      self._readers.submit(self._fill, out, block, slice(start - base, stop - base))
      for block, start, stop in blocks
    ]
    order_N = order.shuffle(epoch, window, self._lanes) - base
    concurrent.futures.wait(reading)  # all of them: a fault must not leave one that still writes
    for one in reading:
      one.result()
    return Window(out, loan, int(starts[0]), order_N)

  def _fill(self, out: Rows, block: int, here: slice):
    rows = self._blocks.read(block)
    np.add(rows.ids, self._offsets_S, out=out.ids[here])
    if self._blocks.schema.sequence is not None:
      fields = len(self._blocks.schema.fields)
      out.ids[here, fields:][rows.ids[:, fields:] == 0] = self._padding
    out.labels[here], out.groups[here] = rows.labels, rows.groups

  def _borrow(self, n: int) -> tuple[Rows, Loan]:
    """Room for n rows. Called by one thread only, that of `_pool`."""
    arrays = self._spare.pop() if self._spare else self._empty(n)
    if len(arrays.labels) < n:
      arrays = self._empty(n)
    return Rows(*(x[:n] for x in arrays)), Loan(arrays, self._spare)

  def _empty(self, n: int) -> Rows:
    slots = len(self._offsets_S)
    return Rows(np.empty((n, slots), np.int32), np.empty(n, np.uint8), np.empty(n, np.int32))
