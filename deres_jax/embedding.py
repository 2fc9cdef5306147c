# SPDX-License-Identifier: Apache-2.0
"""The tables: arrays of rows outside the Linen module, a table for each width of row.

A batch names, for every device and every owner, the different rows that the device needs of that
owner. `lookup` sends the ids to the owners and the rows back, `update` sends gradients to the
owners, who merge what several devices say of a row and move it. Ids travel, tables never do, and
all costs are O(batch), whatever the vocabulary. docs/scaling_out.md derives what this moves.

Numbers. A column's ids follow one another in its table, tables follow one another, and a row's
*number* is its place in that order. In memory a table is [groups * GROUP, E]: row i of it stands at
`reversed(i % GROUP) * groups + i // GROUP`, its *place*, the bits of i % GROUP being reversed, and
the first axis is split over the mesh. So D devices, a power of two, have the rows with the same
i % D each: neighbouring ids, which are neighbours in frequency too, fall on different devices. The
array means the same on every mesh whose size divides GROUP: a checkpoint restores anywhere.
The array is 2-D since XLA copies a whole 3-D one to scatter into it on TPUs.

Shapes: N rows of a device's part of a table, D devices, K ids that a device asks an owner for
(padded), E row width.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import threefry2x32_p

from deres_jax.errors import UserError
from deres_jax.kernels import library, ops
from deres_jax.parallel import AXIS
from deres_jax.rows import RowOptimizer, round_at_random

Array = jax.Array

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


# What follows runs inside shard_map: `rows` and `slots` are this device's part [N, ...].


def init_rows(key: Array, table: Table, std: float) -> Array:
  """This device's rows from N(0, std^2). [N, E] float32.

  Row i's values are those of jax.random.normal(key, [rows, E])[i], on every mesh and for every
  number of rows, yet no more than a `GROUP`th of the table is drawn at a time.
  """
  here = GROUP // jax.lax.axis_size(AXIS)
  first = jax.lax.axis_index(AXIS) * here
  k1, k2 = jax.random.key_data(key)
  members = jnp.asarray(_REVERSED, jnp.uint32)

  def member(j):
    i_R = jnp.arange(table.groups, dtype=jnp.uint32) * GROUP + members[first + j]
    x_RE = _normal(k1, k2, i_R, table.dim)
    return jnp.where(jnp.arange(table.dim) < table.dim - table.linear, std * x_RE, 0.0)

  return jax.lax.map(member, jnp.arange(here)).reshape(-1, table.dim)


def _normal(k1: Array, k2: Array, i_R: Array, width: int) -> Array:
  """Rows i_R of jax.random.normal of an array of so wide rows. [R, width]."""
  # The element's place in the array, i * width + column, as two words of 32 bits.
  low = (i_R & 0xFFFF) * width
  middle = (i_R >> 16) * width + (low >> 16)
  low, high = (middle << 16) | (low & 0xFFFF), middle >> 16
  low_RE = low[:, None] + jnp.arange(width, dtype=jnp.uint32)
  high_RE = high[:, None] + (low_RE < low[:, None]).astype(jnp.uint32)
  x, y = threefry2x32_p.bind(
    jnp.broadcast_to(k1, low_RE.shape), jnp.broadcast_to(k2, low_RE.shape), high_RE, low_RE
  )
  one = jnp.uint32(0x3F800000)  # of float32
  unit = jax.lax.bitcast_convert_type(((x ^ y) >> 9) | one, jnp.float32) - 1
  least = np.nextafter(np.float32(-1), np.float32(0))
  uniform = jnp.maximum(least, unit * (np.float32(1) - least) + least)
  return np.float32(np.sqrt(2)) * jax.lax.erf_inv(uniform)


def _exchange(x: Array) -> Array:
  """Sends the d-th of D equal parts of [D * K, ...] to device d; what came, by sender."""
  if jax.lax.axis_size(AXIS) == 1:
    return x
  return jax.lax.all_to_all(x, AXIS, 0, 0, tiled=True)


def lookup(rows: Array, ids: Array) -> tuple[Array, Array]:
  """Rows that this device asks for, and what it is asked for.

  Args:
    ids: [D * K] int32, K rows of each of D owners, as places in the owner's part; N and above read
      zeros.

  Returns:
    ([D * K, E] the rows, [D * K] the ids that the D devices ask of this one).
  """
  asked = _exchange(ids)
  return _exchange(_named(rows, asked)), asked


def _named(rows: Array, at: Array) -> Array:
  """rows[at], zeros beyond the rows."""
  if library.on():
    return ops.take(rows, at, fill=0)
  return rows.at[at].get(mode='fill', fill_value=0)


def merge(ids_M: Array, g_ME: Array, size: int) -> tuple[Array, Array]:
  """Sums the gradients of equal ids.

  Returns:
    M different ids, ascending, of which those of `size` and above are padding, and their sums.
  """
  order = jnp.argsort(ids_M)
  ids, g = ids_M[order], g_ME[order]
  first = jnp.concatenate([jnp.ones((1,), bool), ids[1:] != ids[:-1]])
  segment = jnp.cumsum(first) - 1
  M = ids.shape[0]
  sums = jax.ops.segment_sum(g, segment, num_segments=M, indices_are_sorted=True)
  # Padding ids of a batch are below size + M; what is left over comes after them.
  left_over = size + M + jnp.arange(M, dtype=ids.dtype)
  return left_over.at[segment].set(ids), sums


def update(
  optimizer: RowOptimizer,
  rows: Array,
  slots: dict[str, Array],
  asked: Array,
  g: Array,
  lr: Array,
  step: Array,
  ok: Array | bool = True,
) -> tuple[Array, dict[str, Array]]:
  """Applies the row gradients of all devices to the rows that this device owns.

  Args:
    asked: what `lookup` says that this device was asked for.
    g: [D * K, E] gradient of the global loss by the rows that this device asked for.
    ok: False: nothing is written.

  Returns:
    This device's new rows and slots.
  """
  N = rows.shape[0]
  g = _exchange(g)
  if jax.lax.axis_size(AXIS) > 1:  # else they are different and ascending as they are
    asked, g = merge(asked, g, N)
  # To places beyond the last nothing is written; they still differ and ascend.
  at = jnp.where(ok, asked, N + jnp.arange(asked.shape[0], dtype=asked.dtype))
  if library.on() and optimizer.has_kernel:
    return optimizer.move(rows, slots, at, g, lr, step)
  # As `lookup` reads them: on one device XLA then reads them once.
  read = jax.tree.map(lambda x: x.at[asked].get(mode='fill', fill_value=0), (rows, slots))
  new_w, new_slots = optimizer.apply(*read, g, lr, step)
  if optimizer.dtype == 'bfloat16':
    # A row keeps its number whatever the mesh: its place counts over all devices.
    row = jax.lax.axis_index(AXIS) * N + asked
    new_slots = {
      k: round_at_random(v, row, optimizer.salt(step, i))
      for i, (k, v) in enumerate(sorted(new_slots.items()))
    }

  def write(old, value):
    return old.at[at].set(value, mode='drop', unique_indices=True, indices_are_sorted=True)

  return jax.tree.map(write, (rows, slots), (new_w, new_slots))
