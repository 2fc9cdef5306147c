# SPDX-License-Identifier: Apache-2.0
"""How often ids occur. Memory: that of the vocabularies, whatever the number of rows.

Shapes: N rows, U distinct ids, V ids of a vocabulary.
"""

import math
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

Counted = tuple[np.ndarray, np.ndarray]


def no_counts(shapes: Iterable[tuple[int, ...]], dtype) -> list[np.ndarray]:
  """Counts of zero, an array a shape.

  Raises:
    MemoryError: they are more than half of the memory that is free (where Linux tells). Sizes come
      from schema.json, and pages of zeros are only taken when they are read: without this a damaged
      one, or too small a machine, would end in a kill.
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
  """Bytes of memory that a process can have."""
  file = Path('/proc/meminfo')
  found = re.search(r'MemAvailable: *(\d+) kB', file.read_text()) if file.exists() else None
  return int(found[1]) * 1024 if found else None


def count_ids(ids_N: np.ndarray, size: int) -> Counted:
  """The ids that occur, ascending, and how often: both [U]. Ids outside [0, size) are left out."""
  if len(ids_N) and (ids_N.min() < 0 or ids_N.max() >= size):
    ids_N = ids_N[(ids_N >= 0) & (ids_N < size)]
  if size > 4 * len(ids_N):  # else most of the counts would be zeros
    return np.unique(ids_N, return_counts=True)
  counts_V = np.bincount(ids_N, minlength=size)
  ids_U = np.flatnonzero(counts_V).astype(np.int32)
  return ids_U, counts_V[ids_U]


def add_counts(total_V: np.ndarray, counted: Counted) -> None:
  """Adds counts of a part to the total."""
  ids_U, counts_U = counted
  total_V[ids_U] += counts_U.astype(total_V.dtype)
