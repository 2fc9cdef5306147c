# SPDX-License-Identifier: Apache-2.0
"""The mesh, and how arrays are sharded over it.

The only axis, AXIS, splits the batch and the rows of the tables; dense parameters are replicated. A
single device is a mesh of one and runs the same program.
"""

import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from deres_jax.core.errors import UserError

AXIS = 'data'

REPLICATED = PartitionSpec()
BATCH = PartitionSpec(AXIS)  # leading axis of a batch
TABLE = PartitionSpec(AXIS)  # rows of tables and of their optimizer state


def make_mesh(devices: int) -> Mesh:
  """Returns a mesh of `devices` devices, equally many of each process; 0: of all devices.

  Devices of a process are neighbours, so that a host's slice of a batch is contiguous.
  """
  visible = sorted(jax.devices(), key=lambda d: d.process_index)  # stable: else in JAX's order
  processes = jax.process_count()
  if devices > len(visible):
    raise UserError(
      f'config mesh.devices={devices}: there are only {len(visible)} {visible[0].platform} devices'
    )
  if devices % processes:
    raise UserError(
      f'config mesh.devices={devices}: the {processes} processes need equally many each: '
      f'take {devices // processes * processes or processes}, or 0 for all'
    )
  per_process = (devices or len(visible)) // processes
  groups = itertools.groupby(visible, key=lambda d: d.process_index)
  return mesh_of([d for _, group in groups for d in itertools.islice(group, per_process)])


def mesh_of(devices: Sequence[jax.Device]) -> Mesh:
  """Returns the mesh of these devices, in their order."""
  return Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))


def sharding(mesh: Mesh, spec: PartitionSpec) -> NamedSharding:
  """Returns the sharding of an array over the mesh."""
  return NamedSharding(mesh, spec)


def check_batch(batch_size: int, mesh: Mesh, field: str):
  """Raises UserError unless the mesh divides a batch."""
  if batch_size % mesh.size:
    below = batch_size // mesh.size * mesh.size
    raise UserError(
      f'config {field}={batch_size} is not divisible by the {mesh.size} devices of the mesh: '
      f'take {below or mesh.size} or {below + mesh.size}, or another mesh'
    )


def serialize_dispatch(mesh: Mesh, fn: Callable) -> Callable:
  """Makes `fn` block until its result is ready where concurrent programs could deadlock.

  XLA:CPU runs independent programs concurrently. Two that wait for other processes can then wait
  for each other forever, in two processes in two orders. Accelerators run programs in the order of
  their calls.
  """
  if jax.process_count() == 1 or mesh.devices.flat[0].platform != 'cpu':
    return fn
  return lambda *args: jax.block_until_ready(fn(*args))


def make_max_over_processes(mesh: Mesh) -> Callable[[np.ndarray], jax.Array]:
  """Returns a function: local int32 [N] -> [N] on every device, the maximum over all processes.

  The function returns at once. Its result is ready when all processes have called it and the
  devices have finished their earlier work.
  """
  maximum = jax.jit(lambda x_DN: jnp.max(x_DN, axis=0), out_shardings=sharding(mesh, REPLICATED))
  devices = mesh.size // jax.process_count()

  def run(local_N: np.ndarray) -> jax.Array:
    x_DN = np.tile(np.asarray(local_N, np.int32), (devices, 1))
    return maximum(jax.make_array_from_process_local_data(sharding(mesh, BATCH), x_DN))

  return serialize_dispatch(mesh, run)
