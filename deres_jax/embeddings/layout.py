# SPDX-License-Identifier: Apache-2.0
"""The layout of embedding tables: which column is in which table, and where each row is stored.

Columns of one width share a table, one after another; tables follow one another, each padded to a
multiple of `GROUP` rows. An id's place in that order is its *global id*.

In memory a table is [groups * GROUP, E], split over the mesh by its first axis. Its row i stands at
`bit_reversed(i % GROUP) * groups + i // GROUP`, its *storage index*. On D devices (D a power of
two) rows with the same i % D share a device. Ids are sorted by frequency, so hot rows spread
evenly. The array means the same on every mesh whose size divides GROUP: a checkpoint restores
anywhere. It is 2-D because XLA copies a whole 3-D array to scatter into it on TPUs.
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from deres_jax.core.errors import UserError

GROUP = 1024
_BITS = GROUP.bit_length() - 1
# BIT_REVERSED[i] is i with its bits in reverse order. The permutation is its own inverse.
BIT_REVERSED = np.array([int(f'{i:0{_BITS}b}'[::-1], 2) for i in range(GROUP)], np.int32)


@dataclasses.dataclass(frozen=True)
class Table:
  """Sizes of one table.

  Attributes:
    rows: number of ids.
    dim: width of an embedding.
    linear: how many of its last columns are weights of a linear part, which start at zero.

  Example:
    >>> Table(rows=1500, dim=8).shape  # two groups of 1,024 rows
    (2048, 8)
  """

  rows: int
  dim: int
  linear: int = 0

  @property
  def groups(self) -> int:
    return -(-self.rows // GROUP)

  @property
  def size(self) -> int:
    """Rows in memory, padding included."""
    return self.groups * GROUP

  @property
  def shape(self) -> tuple[int, int]:
    return self.size, self.dim


@dataclasses.dataclass(frozen=True)
class Tables:
  """All tables of a run.

  Attributes:
    vocab_sizes: number of ids of each column.
    dim: width of an embedding, except in the columns that `narrow` applies to.
    linear: number of linear weights that end each row of every table.
    narrow: ascending pairs (ids, width): a column of at most `ids` ids has embeddings of `width`
      (mixed dimensions, Ginart et al. 2019, arXiv 1909.11810).

  Example:
    Column 1 begins at global id 700. Its neighbouring ids are stored far apart.

    >>> tables = Tables(vocab_sizes=(700, 1500), dim=8)
    >>> tables.column_offsets.tolist()
    [0, 700]
    >>> stored = tables.storage_index(np.array([700, 701, 702], np.int32))
    >>> stored.tolist(), tables.global_ids(stored).tolist()
    ([735, 2271, 1503], [700, 701, 702])
  """

  vocab_sizes: tuple[int, ...]
  dim: int
  linear: int = 0
  narrow: tuple[tuple[int, int], ...] = ()

  @functools.cached_property
  def parts(self) -> tuple[Table, ...]:
    """The tables, the widest first."""
    widths = self._widths
    rows = dict.fromkeys(sorted(set(widths), reverse=True), 0)
    for size, width in zip(self.vocab_sizes, widths, strict=True):
      rows[width] += size
    return tuple(Table(n, d, self.linear) for d, n in rows.items())

  @property
  def _widths(self) -> list[int]:
    """The embedding width of each column."""

    def width_of(size: int) -> int:
      narrow = [width for ids, width in self.narrow if size <= ids]
      return narrow[0] + self.linear if narrow else self.dim

    return [width_of(size) for size in self.vocab_sizes]

  @functools.cached_property
  def table_of(self) -> tuple[int, ...]:
    """The table of each column."""
    dims = [t.dim for t in self.parts]
    return tuple(dims.index(d) for d in self._widths)

  @functools.cached_property
  def table_offsets(self) -> np.ndarray:
    """The first global id of each table, and the end. int64 [tables + 1]."""
    return np.concatenate([[0], np.cumsum([t.size for t in self.parts])])

  @functools.cached_property
  def column_offsets(self) -> np.ndarray:
    """The global id of each column's id 0. int32 [columns]."""
    free = self.table_offsets[:-1].copy()
    out = np.empty(len(self.vocab_sizes), np.int64)
    for c, (size, t) in enumerate(zip(self.vocab_sizes, self.table_of, strict=True)):
      out[c] = free[t]
      free[t] += size
    return out.astype(np.int32)

  @property
  def rows(self) -> int:
    return sum(self.vocab_sizes)

  @property
  def padding(self) -> int:
    """The global id of padding, past the last row: read as zeros and never written."""
    return int(self.table_offsets[-1])

  @property
  def parameters(self) -> int:
    return sum(t.rows * t.dim for t in self.parts)

  def storage_index(self, global_ids_N: np.ndarray) -> np.ndarray:
    """Returns where rows are stored, counted over all tables. `padding` maps to itself."""
    return self._map(global_ids_N, lambda i, groups: BIT_REVERSED[i % GROUP] * groups + i // GROUP)

  def global_ids(self, storage_N: np.ndarray) -> np.ndarray:
    """Returns the global ids of stored rows: the inverse of `storage_index`."""
    return self._map(
      storage_N, lambda i, groups: i % groups * GROUP + BIT_REVERSED[i // groups % GROUP]
    )

  def _map(self, x_N: np.ndarray, within_table: Callable) -> np.ndarray:
    if len(self.parts) == 1:
      out_N = within_table(x_N, np.int32(self.parts[0].groups))
      out_N[x_N == self.padding] = self.padding
      return out_N
    out_N = x_N.copy()
    for start, table in zip(self.table_offsets, self.parts, strict=False):
      in_table_N = (x_N >= start) & (x_N < start + table.size)
      local = x_N[in_table_N] - np.int32(start)
      out_N[in_table_N] = within_table(local, np.int32(table.groups)) + np.int32(start)
    return out_N

  def shard_bounds(self, devices: int) -> np.ndarray:
    """Returns the first storage index of each device's shard of each table, and the end.

    Returns:
      int64 [tables * devices + 1].
    """
    shards = [
      start + np.arange(devices) * (table.size // devices)
      for start, table in zip(self.table_offsets, self.parts, strict=False)
    ]
    return np.concatenate([*shards, self.table_offsets[-1:]])

  def check(self, devices: int):
    """Raises UserError if the tables are too large or cannot be split over `devices`."""
    # The padding of a batch takes ids past the last row, one for each row that it may ask for.
    if self.padding >= 2**31 - 2**24:
      raise UserError(f'the vocabulary has {self.rows} rows: at most 2^31 - 2^24 fit int32 ids')
    if GROUP % devices:
      raise UserError(f'{devices} devices do not divide the table: use 1, 2, 4, ... {GROUP}')
