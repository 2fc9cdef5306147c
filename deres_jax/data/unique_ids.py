# SPDX-License-Identifier: Apache-2.0
"""Unique ids of a batch with their inverse, faster than a sort."""

import threading

import numpy as np

from deres_jax.embeddings.layout import Tables

_MARKED_ROWS = 1 << 26  # one mark for each row of a larger table would take over 256 MiB a thread
_HASH_BITS = 22


class UniqueIds:
  """Finds unique ids by marking each one in an array, far faster than by sorting all of them.

  Rows of large tables share marks by a hash of their global ids; those that collide are sorted.
  """

  def __init__(self, tables: Tables):
    self._tables = tables
    self._hashed = tables.padding + 1 > _MARKED_ROWS
    self._size = 1 << _HASH_BITS if self._hashed else tables.padding + 1
    self._local = threading.local()

  def unique(self, ids_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns storage indices of the unique ids, ascending, and each id's position among them.

    Padding has no index, and position -1. Like np.unique(..., return_inverse=True).

    Args:
      ids_N: global ids.
    Returns: int32 [U], int32 [N].
    """
    if not hasattr(self._local, 'marks'):
      self._local.marks = np.empty(self._size, np.int32)  # every mark is written before it is read
    marks, order_N = self._local.marks, np.arange(len(ids_N), dtype=np.int32)
    slot_N = self._slot(ids_N)
    marks[slot_N] = order_N
    last_N = marks[slot_N]
    unique = ids_N[last_N == order_N]  # the last of equal ids finds its own mark
    if self._hashed:
      collided_N = ids_N[last_N] != ids_N
      unique = np.concatenate([unique, np.unique(ids_N[collided_N])])
    index_U = np.sort(self._tables.storage_index(unique))
    ids_U = self._tables.global_ids(index_U)
    marks[self._slot(ids_U)] = order_N[: len(index_U)]
    inverse_N = marks[slot_N]
    if self._hashed:
      wrong = np.flatnonzero(ids_U[inverse_N] != ids_N)
      inverse_N[wrong] = np.searchsorted(index_U, self._tables.storage_index(ids_N[wrong]))
    if len(index_U) and index_U[-1] == self._tables.padding:
      index_U = index_U[:-1]
      inverse_N[inverse_N == len(index_U)] = -1
    return index_U, inverse_N

  def _slot(self, ids_N: np.ndarray) -> np.ndarray:
    if not self._hashed:
      return ids_N
    # Multiplicative hashing (Knuth, vol. 3, section 6.4).
    return (ids_N.view(np.uint32) * np.uint32(0x9E3779B1)) >> np.uint32(32 - _HASH_BITS)
