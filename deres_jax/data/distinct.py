# SPDX-License-Identifier: Apache-2.0
"""Distinct ids of a batch with their inverse, faster than a sort."""

import threading

import numpy as np

from deres_jax.embeddings.layout import Tables

_MARKED_ROWS = 1 << 26  # marks of all rows of larger tables would need more than 256 MiB a thread


_HASH_BITS = 22


class Distinct:
  """Finds the different rows among many: a mark a row, far faster than sorting them all.

  Rows of large tables share marks, by a hash of their numbers; those that meet are sorted.
  """

  def __init__(self, tables: Tables):
    self._tables = tables
    self._hashed = tables.padding + 1 > _MARKED_ROWS
    self._size = 1 << _HASH_BITS if self._hashed else tables.padding + 1
    self._local = threading.local()

  def find(self, numbers_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The places of the different rows, ascending, and each row's position among them.

    Padding has no place, and position -1. int32 [U], int32 [N].
    """
    if not hasattr(self._local, 'marks'):
      self._local.marks = np.empty(self._size, np.int32)  # what it holds is written before read
    marks, order_N = self._local.marks, np.arange(len(numbers_N), dtype=np.int32)
    slot_N = self._slot(numbers_N)
    marks[slot_N] = order_N
    last_N = marks[slot_N]
    different = numbers_N[last_N == order_N]  # one of the equal rows finds its own mark
    if self._hashed:
      lost_N = numbers_N[last_N] != numbers_N
      different = np.concatenate([different, np.unique(numbers_N[lost_N])])
    places_U = np.sort(self._tables.storage_index(different))
    numbers_U = self._tables.global_ids(places_U)
    marks[self._slot(numbers_U)] = order_N[: len(places_U)]
    at_N = marks[slot_N]
    if self._hashed:
      wrong = np.flatnonzero(numbers_U[at_N] != numbers_N)
      at_N[wrong] = np.searchsorted(places_U, self._tables.storage_index(numbers_N[wrong]))
    if len(places_U) and places_U[-1] == self._tables.padding:
      places_U = places_U[:-1]
      at_N[at_N == len(places_U)] = -1
    return places_U, at_N

  def _slot(self, numbers_N: np.ndarray) -> np.ndarray:
    if not self._hashed:
      return numbers_N
    # Multiplicative hashing (Knuth, vol. 3, section 6.4).
    return (numbers_N.view(np.uint32) * np.uint32(0x9E3779B1)) >> np.uint32(32 - _HASH_BITS)
