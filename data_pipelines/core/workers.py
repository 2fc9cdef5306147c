# SPDX-License-Identifier: Apache-2.0
"""Runs pure functions on several processes; results come back in the order of the tasks."""

import collections
import concurrent.futures
import itertools
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import numpy as np

from deres_jax.core.errors import UserError

_LARGE_BLOCK = 31 << 20  # glibc's dynamic threshold ends at 32 MiB


def default_workers() -> int:
  """Returns the number of cores that this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def cut_runs(sizes: Sequence[int], least: int) -> list[tuple[int, int]]:
  """Cuts items into runs of neighbours, [first, last), of at least `least` in all but the end."""
  runs, first, total = [], 0, 0
  for i, size in enumerate(sizes):
    total += size
    if total >= least or i == len(sizes) - 1:
      runs.append((first, i + 1))
      first, total = i + 1, 0
  return runs


class Workers:
  """A pool of processes for the tasks of many calls. Functions and tasks must be picklable.

  Small work runs in this process: the pool starts after half a second of it. Processes are spawned,
  not forked: libraries of the parent may hold threads and locks.
  """

  def __init__(self, count: int, start_after: float = 0.5):
    """Args: number of processes (1: only this one), seconds of work before they start."""
    self.count = count
    self._left = start_after
    self._pool: concurrent.futures.ProcessPoolExecutor | None = None
    keep_memory()

  def __enter__(self) -> 'Workers':
    return self

  def __exit__(self, kind, error, trace) -> None:
    if self._pool is not None:
      self._pool.shutdown(wait=True, cancel_futures=True)
      self._pool = None

  def map(self, function: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[Any]:
    """Yields function(task) for each task, in order; draws tasks only a little ahead.

    Raises:
      UserError: a process was killed, for example because memory ran out.
      Exception: the first one that a task raised.
    """
    tasks = iter(tasks)
    for task in tasks:
      if self.count > 1 and self._left <= 0:
        yield from self._spread(function, itertools.chain([task], tasks))
        return
      began = time.monotonic()
      result = function(task)
      self._left -= time.monotonic() - began
      yield result

  def _spread(self, function: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[Any]:
    if self._pool is None:
      self._pool = concurrent.futures.ProcessPoolExecutor(
        self.count, multiprocessing.get_context('spawn'), initializer=_start
      )
    waiting: collections.deque = collections.deque()
    try:
      for task in tasks:
        waiting.append(self._pool.submit(function, task))
        if len(waiting) > 2 * self.count:
          yield waiting.popleft().result()
      while waiting:
        yield waiting.popleft().result()
    except BrokenProcessPool as error:
      self._pool = None
      raise UserError(
        f'one of {self.count} worker processes was killed, perhaps for want of memory; '
        f'run the same command again with --workers={max(1, self.count // 2)}'
      ) from error
    finally:
      for future in waiting:
        future.cancel()


def _start() -> None:
  # Ctrl-C reaches the whole process group; the parent alone decides what to do.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  keep_memory()


def keep_memory() -> None:
  """Lets NumPy's arrays of up to 32 MB reuse freed memory.

  glibc returns large blocks to the kernel at once, and every new one costs a page fault per 4 kB:
  twice the time of parsing. Freeing one large block raises its threshold (mallopt(3),
  M_MMAP_THRESHOLD). Other allocators are not affected.
  """
  np.empty(_LARGE_BLOCK, np.uint8)  # freed at once
