# SPDX-License-Identifier: Apache-2.0
"""The layout of embedding tables: columns, widths, shards over devices."""

import dataclasses
import functools

import numpy as np

from deres_jax.core.errors import UserError

GROUP = 1024


_BITS = GROUP.bit_length() - 1


# For each member of a group the number with the bits reversed; its own inverse.
_REVERSED = np.array([int(f'{i:0{_BITS}b}'[::-1], 2) for i in range(GROUP)], np.int32)


@dataclasses.dataclass(frozen=True)
class Table:
  """Sizes of one array of rows.

  Attributes:
    rows: that ids name; dim: columns of a row.
    linear: how many of them, the last, are weights of a linear part, which start at zero.
  """

  rows: int
  dim: int
  linear: int = 0

  @property
  def groups(self) -> int:
    return -(-self.rows // GROUP)

  @property
  def size(self) -> int:
    """Rows in memory."""
    return self.groups * GROUP

  @property
  def shape(self) -> tuple[int, int]:
    return self.size, self.dim


@dataclasses.dataclass(frozen=True)
class Tables:
  """All tables of a run.

  Attributes:
    vocab_sizes: ids of each column.
    dim: width of a row, but for columns of few ids.
    linear: as of `Table`, beyond `dim`'s other columns; every table has it.
    narrow: pairs (ids, width), ascending: a column of at most so many ids has rows so wide.
  """

  vocab_sizes: tuple[int, ...]
  dim: int
  linear: int = 0
  narrow: tuple[tuple[int, int], ...] = ()

  @functools.cached_property
  def parts(self) -> tuple[Table, ...]:
    """The tables, the widest rows first."""
    widths = self._widths
    rows = dict.fromkeys(sorted(set(widths), reverse=True), 0)
    for size, width in zip(self.vocab_sizes, widths, strict=True):
      rows[width] += size
    return tuple(Table(n, d, self.linear) for d, n in rows.items())

  @property
  def _widths(self) -> list[int]:
    """Width of each column's rows."""

    def of(size: int) -> int:
      narrow = [width for ids, width in self.narrow if size <= ids]
      return narrow[0] + self.linear if narrow else self.dim

    return [of(size) for size in self.vocab_sizes]

  @functools.cached_property
  def table_of(self) -> tuple[int, ...]:
    """For each column its table."""
    dims = [t.dim for t in self.parts]
    return tuple(dims.index(d) for d in self._widths)

  @functools.cached_property
  def starts(self) -> np.ndarray:
    """Number of each table's first row, and the end. int64 [tables + 1]."""
    return np.concatenate([[0], np.cumsum([t.size for t in self.parts])])

  @functools.cached_property
  def offsets(self) -> np.ndarray:
    """Number of each column's id 0. int32 [columns]."""
    free = self.starts[:-1].copy()
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
    """A number beyond the last row: read as zeros, written nowhere."""
    return int(self.starts[-1])

  @property
  def parameters(self) -> int:
    return sum(t.rows * t.dim for t in self.parts)

  def places(self, numbers_N: np.ndarray) -> np.ndarray:
    """Where rows stand in memory, tables following one another. `padding` stays what it is."""
    return self._move(numbers_N, lambda i, groups: _REVERSED[i % GROUP] * groups + i // GROUP)

  def numbers(self, places_N: np.ndarray) -> np.ndarray:
    """The inverse of `places`."""
    return self._move(
      places_N, lambda p, groups: p % groups * GROUP + _REVERSED[p // groups % GROUP]
    )

  def _move(self, x_N: np.ndarray, move) -> np.ndarray:
    if len(self.parts) == 1:
      out_N = move(x_N, np.int32(self.parts[0].groups))
      out_N[x_N == self.padding] = self.padding
      return out_N
    out_N = x_N.copy()
    for start, table in zip(self.starts, self.parts, strict=False):
      here_N = (x_N >= start) & (x_N < start + table.size)
      out_N[here_N] = move(x_N[here_N] - np.int32(start), np.int32(table.groups)) + np.int32(start)
    return out_N

  def edges(self, devices: int) -> np.ndarray:
    """First place of each owner's part of each table, and the end. int64 [tables * devices + 1]."""
    parts = [
      start + np.arange(devices) * (table.size // devices)
      for start, table in zip(self.starts, self.parts, strict=False)
    ]
    return np.concatenate([*parts, self.starts[-1:]])

  def check(self, devices: int):
    # Numbers beyond the last row are padding too, as many as a batch may need.
    """Raises UserError where the tables are too large or cannot be split over `devices`."""
    if self.padding >= 2**31 - 2**24:
      raise UserError(f'the vocabulary has {self.rows} rows: at most 2^31 - 2^24 fit int32 ids')
    if GROUP % devices:
      raise UserError(f'{devices} devices do not divide the table: use 1, 2, 4, ... {GROUP}')
