# SPDX-License-Identifier: Apache-2.0
"""Reads shuffled examples from blocks, one window ahead, in the order of a shuffle plan."""

import collections
import concurrent.futures
import os
import threading
from typing import NamedTuple

import numpy as np

from deres_jax.data.blocks import Blocks, Examples
from deres_jax.data.shuffle_plan import ShufflePlan
from deres_jax.embeddings.layout import Tables


class PooledBuffer:
  """Arrays that return to a pool when the last reference to the buffer is gone.

  The kernel clears fresh memory page by page; reading into used arrays saves a fifth of the time.
  """

  def __init__(self, arrays: Examples, pool: list[Examples]):
    self._arrays, self._pool = arrays, pool

  def __del__(self):
    self._pool.append(self._arrays)


class Window(NamedTuple):
  """Those blocks of a window that this host needs.

  Attributes:
    examples: of these blocks, concatenated; valid while `buffer` is referenced.
    buffer: owner of their memory.
    first: first row of the window, in `ShufflePlan.shuffle`'s order, that order_N covers.
    order_N: index in `examples` of that row and of those that follow.
  """

  examples: Examples
  buffer: PooledBuffer
  first: int
  order_N: np.ndarray


# Reading and checking a block mostly runs without the GIL.
_READERS = min(4, os.cpu_count() or 1)  # threads
_LARGE_BLOCK = 31 << 20  # bytes; glibc's dynamic mmap threshold ends at 32 MiB


class Reader:
  """Reads a host's slice of every batch.

  Ids come out as global ids, with `tables.padding` where an event is padding. The next window is
  read while the examples of the current one are used.
  """

  def __init__(self, blocks: Blocks, tables: Tables, plan: ShufflePlan, part: int, parts: int):
    """Reads slice `part` of `parts` equal slices of each batch."""
    self._blocks, self._plan, self._part, self._parts = blocks, plan, part, parts
    self._offsets_S = tables.column_offsets[np.array(blocks.schema.columns)]
    self._padding = tables.padding
    self._lanes = plan.lanes(part, parts)
    self._windows: collections.OrderedDict[tuple[int, int], concurrent.futures.Future]
    self._windows = collections.OrderedDict()
    self._window_loader = concurrent.futures.ThreadPoolExecutor(1)
    self._block_readers = concurrent.futures.ThreadPoolExecutor(_READERS)
    self._lock = threading.Lock()
    self._pool: list[Examples] = []
    # glibc returns large blocks to the kernel at once and faults new ones in page by page, which
    # halves the speed of reading. Freeing a large block raises its threshold (mallopt(3)).
    np.empty(_LARGE_BLOCK, np.uint8)

  def read(self, epoch: int, batch: int) -> Examples:
    """Reads this slice's real examples of a batch: none where the last batch is too short."""
    plan = self._plan
    real = min(plan.batch_size, plan.rows - batch * plan.batch_size)
    low, high = (plan.batch_size * p // self._parts for p in (self._part, self._part + 1))
    n = max(0, min(high, real) - low)
    out = self._empty(n)
    segments = plan.segments(epoch, batch, low, low + n) if n else []
    for number, ranges in segments:
      window = self._window(epoch, number)
      order_N, first = window.order_N, window.first
      source = np.concatenate([order_N[a - first : b - first] for a, b, _ in ranges])
      if len(segments) == 1:
        for into, values in zip(out, window.examples, strict=True):
          np.take(values, source, axis=0, out=into, mode='clip')
      else:
        target = np.concatenate([np.arange(offset, offset + b - a) for a, b, offset in ranges])
        for into, values in zip(out, window.examples, strict=True):
          into[target] = values[source]
    return out

  def _window(self, epoch: int, window: int) -> Window:
    with self._lock:
      future = self._start(epoch, window)
      if window + 1 < self._plan.windows:
        self._start(epoch, window + 1)
      elif self._plan.seed is not None:
        self._start(epoch + 1, 0)
      while len(self._windows) > 3:  # this one, the next, and one that the batch began in
        self._windows.popitem(last=False)
    return future.result()

  def _start(self, epoch: int, window: int) -> concurrent.futures.Future:
    key = (epoch, window)
    if key not in self._windows:
      self._windows[key] = self._window_loader.submit(self._load, epoch, window)
    self._windows.move_to_end(key)
    return self._windows[key]

  def _load(self, epoch: int, window: int) -> Window:
    plan = self._plan
    starts = plan.lane_starts(epoch, window)[self._lanes[0] : self._lanes[1] + 1]
    blocks, start = [], 0
    for block in plan.blocks_in_window(epoch, window).tolist():
      stop = start + self._blocks.size(block)
      if start < starts[-1] and stop > starts[0]:
        blocks.append((block, start, stop))
      start = stop
    base = blocks[0][1] if blocks else 0
    examples, buffer = self._borrow(blocks[-1][2] - base if blocks else 0)
    reads = [
      self._block_readers.submit(self._fill, examples, block, slice(start - base, stop - base))
      for block, start, stop in blocks
    ]
    order_N = plan.shuffle(epoch, window, self._lanes) - base
    concurrent.futures.wait(reads)  # all: after an error none may still write into the buffer
    for read in reads:
      read.result()
    return Window(examples, buffer, int(starts[0]), order_N)

  def _fill(self, out: Examples, block: int, into: slice):
    examples = self._blocks.read(block)
    np.add(examples.ids, self._offsets_S, out=out.ids[into])
    if self._blocks.schema.sequence is not None:
      fields = len(self._blocks.schema.fields)
      out.ids[into, fields:][examples.ids[:, fields:] == 0] = self._padding
    out.labels[into], out.groups[into] = examples.labels, examples.groups

  def _borrow(self, n: int) -> tuple[Examples, PooledBuffer]:
    """Returns memory for n examples. Only the thread of `_window_loader` calls it."""
    arrays = self._pool.pop() if self._pool else self._empty(n)
    if len(arrays.labels) < n:
      arrays = self._empty(n)
    return Examples(*(x[:n] for x in arrays)), PooledBuffer(arrays, self._pool)

  def _empty(self, n: int) -> Examples:
    columns = len(self._offsets_S)
    return Examples(np.empty((n, columns), np.int32), np.empty(n, np.uint8), np.empty(n, np.int32))
