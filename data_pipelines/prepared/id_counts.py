# SPDX-License-Identifier: Apache-2.0
"""Counts of ids, in the memory of the vocabularies for any number of rows.

Shapes: N rows, U distinct ids, V ids of a vocabulary.
"""

import math
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

Counted = tuple[np.ndarray, np.ndarray]  # distinct ids [U], their counts [U]


def no_counts(shapes: Iterable[tuple[int, ...]], dtype) -> list[np.ndarray]:
  """Returns an array of zeros for each shape.

  Raises:
    MemoryError: they take more than half of the free memory (where Linux tells). Sizes come from
      schema.json, and the kernel gives pages of zeros only when they are touched: without this
      check a damaged file, or too small a machine, would get the process killed.
  """
  shapes = list(shapes)
  needed, free = np.dtype(dtype).itemsize * sum(map(math.prod, shapes)), _free()
  if free is not None and needed > free / 2:
    raise MemoryError(
      f'counts of the ids that schema.json names take {needed / 2**30:,.1f} GiB, half of what is '
      f'free is {free / 2**31:,.1f}'
    )
  return [np.zeros(shape, dtype) for shape in shapes]


def _free() -> int | None:
  """Returns the bytes of memory that a process can have."""
  file = Path('/proc/meminfo')
  match = re.search(r'MemAvailable: *(\d+) kB', file.read_text()) if file.exists() else None
  return int(match[1]) * 1024 if match else None


def count_ids(ids_N: np.ndarray, size: int) -> Counted:
  """Returns the ids that occur, ascending, and their counts; ignores ids outside [0, size)."""
  if len(ids_N) and (ids_N.min() < 0 or ids_N.max() >= size):
    ids_N = ids_N[(ids_N >= 0) & (ids_N < size)]
  if size > 4 * len(ids_N):  # else most of the counts would be zeros
    return np.unique(ids_N, return_counts=True)
  counts_V = np.bincount(ids_N, minlength=size)
  ids_U = np.flatnonzero(counts_V).astype(np.int32)
  return ids_U, counts_V[ids_U]


def add_counts(total_V: np.ndarray, counted: Counted) -> None:
  """Adds the counts of a part to the total."""
  ids_U, counts_U = counted
  total_V[ids_U] += counts_U.astype(total_V.dtype)
