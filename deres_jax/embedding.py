# SPDX-License-Identifier: Apache-2.0
"""The table: one array of rows for all fields, outside the Linen module.

A batch names the rows it needs once (`unique`, padded); `lookup` brings them to the device that
asked and `update` brings their gradients back to the device that owns them. Ids travel, tables
never do, and both cost O(batch), whatever the vocabulary.

Layout: row i stands at [i // GROUP, i % GROUP] of an array [R, GROUP, E] whose second axis is
split over the mesh. Neighbouring ids, which are neighbours in frequency too, so fall on different
devices, and the array means the same on every mesh whose size divides GROUP: a checkpoint
restores anywhere.

Shapes: N ids asked for by one device, D devices, E row width.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from deres_jax.errors import UserError
from deres_jax.parallel import AXIS

Array = jax.Array

GROUP = 1024


@dataclasses.dataclass(frozen=True)
class Table:
  """Sizes of the table. Field f's id v is row offsets[f] + v; `padding` is no row at all.

  Attributes:
    dim: columns of a row.
    linear: how many of them, the last, are weights of a linear part, which start at zero.
  """

  vocab_sizes: tuple[int, ...]
  dim: int
  linear: int = 0

  @property
  def rows(self) -> int:
    return sum(self.vocab_sizes)

  @property
  def offsets(self) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(self.vocab_sizes)[:-1]]).astype(np.int32)

  @property
  def shape(self) -> tuple[int, int, int]:
    return -(-self.rows // GROUP), GROUP, self.dim

  @property
  def padding(self) -> int:
    """An id beyond the last row: read as anything, written nowhere."""
    return self.shape[0] * GROUP

  def check(self, devices: int):
    if self.padding >= 2**31:
      raise UserError(f'the vocabulary has {self.rows} rows: at most 2^31 - {GROUP} fit int32 ids')
    if GROUP % devices:
      raise UserError(f'{devices} devices do not divide the table: use 1, 2, 4, ... {GROUP}')


@dataclasses.dataclass(frozen=True)
class RowOptimizer:
  """How touched rows move. All other rows stay as they are, bit for bit.

  rowwise_adagrad: s += mean_E(g^2); w -= lr g / (sqrt(s) + eps). One float of state a row; exactly
    the dense optimizer, since a row with g = 0 does not move (Duchi et al. 2011; row-wise as in
    FBGEMM).
  lazy_adam: Adam (Kingma & Ba 2015) on the touched rows with the global step's bias correction.
    NOT dense Adam: moments of untouched rows do not decay.
  """

  kind: str
  eps: float
  l2: float  # g += l2 * w for each touched row, once a step
  b1: float
  b2: float

  def init(self, table: Table) -> dict[str, Array]:
    """Slots of zeros for the whole table."""
    if self.kind == 'rowwise_adagrad':
      return {'sum': jnp.zeros(table.shape[:2], jnp.float32)}
    return {'m': jnp.zeros(table.shape, jnp.float32), 'v': jnp.zeros(table.shape, jnp.float32)}

  def apply(
    self, w_NE: Array, slots_N: dict[str, Array], g_NE: Array, lr: Array, step: Array
  ) -> tuple[Array, dict[str, Array]]:
    """New rows and slots of N different rows; `step` counts from 0."""
    g = g_NE + self.l2 * w_NE
    if self.kind == 'rowwise_adagrad':
      s_N = slots_N['sum'] + jnp.mean(g * g, axis=-1)
      return w_NE - lr * g / (jnp.sqrt(s_N) + self.eps)[:, None], {'sum': s_N}
    t = step.astype(jnp.float32) + 1
    m = self.b1 * slots_N['m'] + (1 - self.b1) * g
    v = self.b2 * slots_N['v'] + (1 - self.b2) * g * g
    unbiased = jnp.sqrt(v / (1 - self.b2**t)) + self.eps
    return w_NE - lr * (m / (1 - self.b1**t)) / unbiased, {'m': m, 'v': v}


def init_rows(key: Array, table: Table, std: float) -> Array:
  """Rows from N(0, std^2). [R, GROUP, E] float32, the same values on every mesh."""
  rows = std * jax.random.normal(key, table.shape, jnp.float32)
  return jnp.where(jnp.arange(table.dim) < table.dim - table.linear, rows, 0.0)


# What follows runs inside shard_map: `rows` and `slots` are this device's part [R, GROUP/D, ...].


def _locate(ids: Array, members: int, groups: int) -> tuple[Array, Array]:
  """Flat position of ids in this device's part (out of range where absent), and who is here."""
  first = jax.lax.axis_index(AXIS) * members
  column = ids % GROUP - first
  here = (column >= 0) & (column < members) & (ids < groups * GROUP)
  return jnp.where(here, ids // GROUP * members + column, groups * members), here


def _flat(x: Array) -> Array:
  return x.reshape(-1, *x.shape[2:])


def lookup(rows: Array, unique_N: Array) -> Array:
  """Rows of the ids that this device asks for. [N] int32 -> [N, E].

  All devices' ids are gathered, each device fills in the rows it owns, and a reduce-scatter brings
  every row to the one that asked. Padding ids read zeros.
  """
  groups, members = rows.shape[:2]
  ids = jax.lax.all_gather(unique_N, AXIS, tiled=True)
  where, here = _locate(ids, members, groups)
  found = _flat(rows).at[where].get(mode='clip')
  return jax.lax.psum_scatter(jnp.where(here[:, None], found, 0), AXIS, tiled=True)


def merge(ids_N: Array, g_NE: Array, padding: int) -> tuple[Array, Array]:
  """Sums the gradients of equal ids. Returns N different-or-padding ids and their sums."""
  order = jnp.argsort(ids_N)
  ids, g = ids_N[order], g_NE[order]
  first = jnp.concatenate([jnp.ones((1,), bool), ids[1:] != ids[:-1]])
  segment = jnp.cumsum(first) - 1
  sums = jax.ops.segment_sum(g, segment, num_segments=ids.shape[0], indices_are_sorted=True)
  merged = jnp.full_like(ids, padding).at[segment].set(ids)
  return merged, sums


def update(
  optimizer: RowOptimizer,
  rows: Array,
  slots: dict[str, Array],
  unique_N: Array,
  g_NE: Array,
  lr: Array,
  step: Array,
) -> tuple[Array, dict[str, Array]]:
  """Applies the row gradients of all devices to the rows that this device owns.

  Args:
    unique_N: this device's ids, different from one another but for padding.
    g_NE: gradient of the global loss with respect to this device's copies of those rows.

  Returns:
    This device's new rows and slots.
  """
  groups, members = rows.shape[:2]
  padding = groups * GROUP
  if jax.lax.axis_size(AXIS) > 1:
    # Two devices may have asked for the same row.
    ids = jax.lax.all_gather(unique_N, AXIS, tiled=True)
    g = jax.lax.all_gather(g_NE, AXIS, tiled=True)
    unique_N, g_NE = merge(ids, g, padding)
  where, _ = _locate(unique_N, members, groups)
  read = jax.tree.map(lambda x: _flat(x).at[where].get(mode='clip'), (rows, slots))
  new = optimizer.apply(*read, g_NE, lr, step)

  def write(old, value):
    return _flat(old).at[where].set(value, mode='drop').reshape(old.shape)

  return jax.tree.map(write, (rows, slots), new)
