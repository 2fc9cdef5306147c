# SPDX-License-Identifier: Apache-2.0
"""Sharded lookup and update the plain way, to test and to time the real ones against.

All devices' ids are gathered, each device fills in the rows that it owns, and a reduce-scatter
brings every row to the one that asked; gradients are gathered too, and each device takes those of
its rows. Right on any mesh and without capacities, but D times as many rows travel.

Runs inside shard_map. `places` [C] are places over all devices' parts, N a device; beyond them:
padding.
"""

import jax
import jax.numpy as jnp

from deres_jax.embeddings import exchange
from deres_jax.pod.mesh import AXIS


def lookup(rows, places):
  """[C] -> [C, E]; padding reads zeros."""
  N = rows.shape[0]
  local = jax.lax.all_gather(places, AXIS, tiled=True) - jax.lax.axis_index(AXIS) * N
  here = (local >= 0) & (local < N)
  found = jnp.where(here[:, None], rows.at[local].get(mode='clip'), 0)
  return jax.lax.psum_scatter(found, AXIS, tiled=True)


def update(optimizer, rows, slots, places, g, lr, step, ok=True):
  """This device's new rows and slots. `optimizer` keeps its slots in float32."""
  N = rows.shape[0]
  local = jax.lax.all_gather(places, AXIS, tiled=True) - jax.lax.axis_index(AXIS) * N
  local = jnp.where((local >= 0) & (local < N), local, N)
  local = jnp.where(ok, local, N)
  ids, sums = exchange.merge(local, jax.lax.all_gather(g, AXIS, tiled=True), N)
  read = jax.tree.map(lambda x: x.at[ids].get(mode='clip'), (rows, slots))
  new = optimizer.update(*read, sums, lr, step)
  return jax.tree.map(lambda old, x: old.at[ids].set(x, mode='drop'), (rows, slots), new)
