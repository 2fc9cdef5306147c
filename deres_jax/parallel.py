# SPDX-License-Identifier: Apache-2.0
"""The mesh and where arrays live on it.

One axis, AXIS: the batch is split over it, and so are the rows of the table. Dense parameters are
on every device. One device is a mesh of one, and the step is the same program.
"""

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from deres_jax.errors import UserError

AXIS = 'data'

REPLICATED = PartitionSpec()
BATCH = PartitionSpec(AXIS)  # leading axis of a batch
TABLE = PartitionSpec(None, AXIS)  # tables and their slots are [group, member, ...]


def make_mesh(devices: int) -> Mesh:
  """A mesh of the first `devices` visible devices, or of all of them if 0."""
  visible = jax.devices()
  if devices > len(visible):
    raise UserError(
      f'config mesh.devices={devices}: only {len(visible)} {visible[0].platform} devices are here'
    )
  chosen = visible[: devices or len(visible)]
  return jax.make_mesh((len(chosen),), (AXIS,), axis_types=(AxisType.Auto,), devices=chosen)


def sharding(mesh: Mesh, spec: PartitionSpec) -> NamedSharding:
  return NamedSharding(mesh, spec)


def check_batch(rows: int, mesh: Mesh, field: str):
  """Raises UserError unless the mesh divides a batch of `rows`."""
  if rows % mesh.size:
    below = rows // mesh.size * mesh.size
    raise UserError(
      f'config {field}={rows} is not divisible by the {mesh.size} devices of the mesh: '
      f'take {below or mesh.size} or {below + mesh.size}, or set mesh.devices'
    )
