# SPDX-License-Identifier: Apache-2.0
"""Sharded embedding tables: lookup and update by exchanging ids and embeddings between devices.

Tables are model-parallel and the rest of the model is data-parallel, with an all-to-all between
them, as in DLRM (Naumov et al. 2019, arXiv 1906.00091). The tables are plain arrays outside the
Linen module, one for each embedding width. A batch lists, for every device and every owner, the
unique ids that the device needs from that owner. `lookup` sends the ids to the owners and the
embeddings back; `update` sends gradients to the owners, which sum what several devices send for one
row. Tables never travel, and every cost is O(batch), whatever the vocabulary. docs/scaling_out.md
derives the bytes sent.

Shapes: N rows of a device's shard of a table, D devices, K ids that a device requests from an owner
(padded), E embedding width. `lookup` and `update` run inside shard_map over the mesh axis `AXIS`:
`table` [N, E] and `opt_state` [N, ...] are this device's shards.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import threefry2x32_p

from deres_jax.embeddings import layout
from deres_jax.embeddings.optimizers import SparseOptimizer, round_stochastically
from deres_jax.kernels import library, ops
from deres_jax.pod.mesh import AXIS

Array = jax.Array


def init_tables(key: Array, tables: layout.Tables, std: float) -> tuple[Array, ...]:
  """Draws this device's shards of all tables from N(0, std^2), linear weights being zero.

  Row i of a table equals jax.random.normal(key, [rows, E])[i] times `std`, on every mesh and for
  every number of rows; only one `GROUP`th of a table is drawn at a time. Table t > 0 takes
  jax.random.fold_in(key, t). Runs inside shard_map.

  Returns:
    [N, E] float32 for each table.

  Example:
    >>> tables = layout.Tables(vocab_sizes=(3,), dim=2, linear=1)
    >>> mesh = jax.sharding.Mesh(jax.devices()[:1], (AXIS,))
    >>> draw = jax.shard_map(
    ...   lambda: init_tables(jax.random.key(0), tables, 0.01),
    ...   mesh=mesh, in_specs=(), out_specs=jax.P(AXIS), check_vma=False,
    ... )
    >>> [table.shape for table in jax.jit(draw)()]
    [(1024, 2)]
  """
  return tuple(
    _init_table(jax.random.fold_in(key, t) if t else key, table, std)
    for t, table in enumerate(tables.parts)
  )


def _init_table(key: Array, table: layout.Table, std: float) -> Array:
  members_here = layout.GROUP // jax.lax.axis_size(AXIS)
  first = jax.lax.axis_index(AXIS) * members_here
  k1, k2 = jax.random.key_data(key)
  members = jnp.asarray(layout.BIT_REVERSED, jnp.uint32)

  def member(j):
    i_R = jnp.arange(table.groups, dtype=jnp.uint32) * layout.GROUP + members[first + j]
    x_RE = _normal(k1, k2, i_R, table.dim)
    return jnp.where(jnp.arange(table.dim) < table.dim - table.linear, std * x_RE, 0.0)

  return jax.lax.map(member, jnp.arange(members_here)).reshape(-1, table.dim)


def _normal(k1: Array, k2: Array, i_R: Array, width: int) -> Array:
  """Returns rows i_R of jax.random.normal(key, [any, width]). [R, width]."""
  # The element's index in the array, i * width + column, as two words of 32 bits.
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


def lookup(table: Array, ids: Array) -> tuple[Array, Array]:
  """Returns table[ids] from the devices that own the rows.

  Two all-to-alls: ids to the owners, embeddings back.

  Args:
    table: [N, E], this device's shard.
    ids: [D * K] int32, K ids for each of the D owners, counted within the owner's shard; ids from N
      on are padding and read zeros.

  Returns:
    The embeddings [D * K, E], and the ids [D * K] that the D devices request from this one, which
    `update` needs.

  Example:
    >>> mesh = jax.sharding.Mesh(jax.devices()[:1], (AXIS,))
    >>> read = jax.shard_map(lookup, mesh=mesh, in_specs=jax.P(AXIS), out_specs=jax.P(AXIS))
    >>> table = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    >>> print(read(table, jnp.array([1, 2]))[0])
    [[3. 4.]
     [0. 0.]]
  """
  requested = _exchange(ids)
  return _exchange(_read(table, requested)), requested


def _exchange(x: Array) -> Array:
  """Sends part d of D equal parts of [D * K, ...] to device d; returns the parts by sender."""
  if jax.lax.axis_size(AXIS) == 1:
    return x
  return jax.lax.all_to_all(x, AXIS, 0, 0, tiled=True)


def _read(table: Array, ids: Array) -> Array:
  if library.on():
    return ops.take(table, ids, fill=0)
  return table.at[ids].get(mode='fill', fill_value=0)


def merge(ids_M: Array, g_ME: Array, size: int) -> tuple[Array, Array]:
  """Sums the gradients of equal ids.

  Args:
    ids_M: ids below `size`, and padding in [size, size + M).
    g_ME: gradient of each.

  Returns:
    M different ids, ascending, of which those from `size` on are padding, and their sums [M, E].

  Example:
    >>> ids, sums = merge(jnp.array([7, 3, 7]), jnp.array([[1.0], [2.0], [3.0]]), size=10)
    >>> ids.tolist(), sums.ravel().tolist()
    ([3, 7, 15], [2.0, 4.0, 0.0])
  """
  order = jnp.argsort(ids_M)
  ids, g = ids_M[order], g_ME[order]
  first = jnp.concatenate([jnp.ones((1,), bool), ids[1:] != ids[:-1]])
  segment = jnp.cumsum(first) - 1
  M = ids.shape[0]
  sums = jax.ops.segment_sum(g, segment, num_segments=M, indices_are_sorted=True)
  # Positions that no segment takes get ids after all padding of the batch.
  unused = size + M + jnp.arange(M, dtype=ids.dtype)
  return unused.at[segment].set(ids), sums


def update(
  optimizer: SparseOptimizer,
  table: Array,
  opt_state: dict[str, Array],
  requested: Array,
  g: Array,
  lr: Array,
  step: Array,
  ok: Array | bool = True,
) -> tuple[Array, dict[str, Array]]:
  """Applies the gradients of all devices to the rows that this device owns.

  One all-to-all sends each gradient to the row's owner. Rows without a gradient keep their bits.

  Args:
    requested: [D * K] int32, the ids that `lookup` returned.
    g: [D * K, E], gradient of the global loss with respect to what `lookup` returned.
    step: number of steps done, from 0.
    ok: if False, nothing is written.

  Returns:
    This device's new shards of the table and its optimizer state.

  Example:
    With lr 0.1 the first row-wise Adagrad step moves a row by 0.1 g / sqrt(mean(g^2)).

    >>> adagrad = SparseOptimizer('rowwise_adagrad', eps=0.0, l2=0.0, b1=0.9, b2=0.999)
    >>> table = jnp.zeros((2, 2))
    >>> run = jax.shard_map(
    ...   lambda ids, g: update(adagrad, table, adagrad.init(table), ids, g, 0.1, jnp.int32(0)),
    ...   mesh=jax.sharding.Mesh(jax.devices()[:1], (AXIS,)),
    ...   in_specs=jax.P(AXIS), out_specs=jax.P(AXIS), check_vma=False,
    ... )
    >>> print(run(jnp.array([1]), jnp.array([[1.0, 1.0]]))[0])
    [[ 0.   0. ]
     [-0.1 -0.1]]
  """
  N = table.shape[0]
  g = _exchange(g)
  if jax.lax.axis_size(AXIS) > 1:  # on one device the ids are different and ascending already
    requested, g = merge(requested, g, N)
  # Ids past the shard are dropped. They too must be different and ascending.
  ids = jnp.where(ok, requested, N + jnp.arange(requested.shape[0], dtype=requested.dtype))
  if library.on() and optimizer.has_kernel:
    return optimizer.update_inplace(table, opt_state, ids, g, lr, step)
  # Read as `lookup` reads: on one device XLA then reads the rows once.
  old = jax.tree.map(lambda x: x.at[requested].get(mode='fill', fill_value=0), (table, opt_state))
  new_table, new_state = optimizer.update(*old, g, lr, step)
  if optimizer.dtype == 'bfloat16':
    # Counted over all devices, so that a row is rounded alike on every mesh.
    row = jax.lax.axis_index(AXIS) * N + requested
    new_state = {
      k: round_stochastically(v, row, optimizer.salt(step, i))
      for i, (k, v) in enumerate(sorted(new_state.items()))
    }

  def write(old, value):
    return old.at[ids].set(value, mode='drop', unique_indices=True, indices_are_sorted=True)

  return jax.tree.map(write, (table, opt_state), (new_table, new_state))
