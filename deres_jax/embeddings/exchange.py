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

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import threefry2x32_p

from deres_jax.embeddings import layout
from deres_jax.embeddings.optimizers import RowOptimizer, round_at_random
from deres_jax.kernels import library, ops
from deres_jax.pod.mesh import AXIS

Array = jax.Array


# What follows runs inside shard_map: `rows` and `slots` are this device's part [N, ...].


def init_rows(key: Array, table: layout.Table, std: float) -> Array:
  """This device's rows from N(0, std^2). [N, E] float32.

  Row i's values are those of jax.random.normal(key, [rows, E])[i], on every mesh and for every
  number of rows, yet no more than a `GROUP`th of the table is drawn at a time.
  """
  here = layout.GROUP // jax.lax.axis_size(AXIS)
  first = jax.lax.axis_index(AXIS) * here
  k1, k2 = jax.random.key_data(key)
  members = jnp.asarray(layout._REVERSED, jnp.uint32)

  def member(j):
    i_R = jnp.arange(table.groups, dtype=jnp.uint32) * layout.GROUP + members[first + j]
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
