# SPDX-License-Identifier: Apache-2.0
"""How often ids occur. Memory: that of the vocabularies, whatever the number of rows.

Shapes: N rows, U distinct ids, V ids of a vocabulary.
"""

import numpy as np

Counted = tuple[np.ndarray, np.ndarray]


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
