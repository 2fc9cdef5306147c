# SPDX-License-Identifier: Apache-2.0
"""The mesh and where arrays live on it.

One axis, AXIS: the batch is split over it, and so are the rows of the tables. Dense parameters are
on every device. One device is a mesh of one, and the step is the same program.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from deres_jax.core.errors import UserError

AXIS = 'data'

REPLICATED = PartitionSpec()
BATCH = PartitionSpec(AXIS)  # leading axis of a batch
TABLE = PartitionSpec(AXIS)  # rows of tables and their slots


def make_mesh(devices: int) -> Mesh:
  """A mesh of `devices` of all processes' devices, as many of each, or of all of them if 0.

  Devices of a process are neighbours, so that a host's part of a batch is one piece.
  """
  visible = sorted(jax.devices(), key=lambda d: d.process_index)  # stable: else in JAX's order
  processes = jax.process_count()
  if devices > len(visible):
    raise UserError(
      f'config mesh.devices={devices}: only {len(visible)} {visible[0].platform} devices are here'
    )
  if devices % processes:
    raise UserError(
      f'config mesh.devices={devices}: the {processes} processes need as many each: '
      f'take {devices // processes * processes or processes}, or 0 for all'
    )
  each = (devices or len(visible)) // processes
  chosen = [
    d for p in range(processes) for d in [x for x in visible if x.process_index == p][:each]
  ]
  return mesh_of(chosen)


def mesh_of(devices: Sequence[jax.Device]) -> Mesh:
  """The mesh of some devices, in their order."""
  return Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))


def sharding(mesh: Mesh, spec: PartitionSpec) -> NamedSharding:
  """How an array lies on the mesh."""
  return NamedSharding(mesh, spec)


def check_batch(rows: int, mesh: Mesh, field: str):
  """Raises UserError unless the mesh divides a batch of `rows`."""
  if rows % mesh.size:
    below = rows // mesh.size * mesh.size
    raise UserError(
      f'config {field}={rows} is not divisible by the {mesh.size} devices of the mesh: '
      f'take {below or mesh.size} or {below + mesh.size}, or another mesh'
    )


def settled(mesh: Mesh, fn: Callable) -> Callable:
  """`fn`, waited for where programs may not be under way together.

  XLA:CPU runs programs that do not need one another side by side. Two that wait for other processes
  can then wait for each other for ever, in two processes in two orders. Accelerators run them in
  the order of their calls.
  """
  if jax.process_count() == 1 or mesh.devices.flat[0].platform != 'cpu':
    return fn
  return lambda *args: jax.block_until_ready(fn(*args))


def make_largest(mesh: Mesh) -> Callable[[np.ndarray], jax.Array]:
  """local int32 [N] -> [N] on every device: the largest of all processes' numbers.

  Returns at once: its result is there when all processes have called it and the devices have done
  what they were asked before.
  """
  largest = jax.jit(lambda x_DN: jnp.max(x_DN, axis=0), out_shardings=sharding(mesh, REPLICATED))
  devices = mesh.size // jax.process_count()

  def run(local_N: np.ndarray) -> jax.Array:
    x_DN = np.tile(np.asarray(local_N, np.int32), (devices, 1))
    return largest(jax.make_array_from_process_local_data(sharding(mesh, BATCH), x_DN))

  return settled(mesh, run)
