# SPDX-License-Identifier: Apache-2.0
"""How a TPU lays out a table and what an in-place update of some rows costs in memory.

  python tests/bench/tpu_layout.py --slice=v5e:2x4

Needs libtpu (pip install libtpu) and no TPU: programs are compiled by the TPU's own compiler and
not run. The program reads U rows of a donated table and writes them back changed. Columns:
  E           columns of the table
  form        2d: [N, E]. 3d: [N / 1024, 1024, E], its second axis split over the devices, used as
              [n, E]. halves: two arrays [N, E / 2]. promised: 2d, told that ids are sorted, unique.
  layout      of one device's table: order of the axes, the minor first, and tiles
  table MiB   of one device, as laid out; temp MiB: what the program needs beside it
"""

import argparse
import os
import re

# Else libtpu asks the cloud which slice this host belongs to.
os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
os.environ['JAX_PLATFORMS'] = 'cpu'

import jax
import jax.numpy as jnp
import libtpu
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

GROUP = 1024
BATCH = PartitionSpec('data')
WIDTHS = (1, 8, 16, 17, 32, 48, 56, 57, 64, 96, 120, 128, 192, 256)


def update(table, ids_U, g_UE, promised):
  """Some rows of each array [n, e] of the table, read, changed and written back."""
  out, column = [], 0
  for rows in table:
    e = rows.shape[-1]
    flat = rows.reshape(-1, e)
    read = flat.at[ids_U].get(mode='clip')
    new = (read - g_UE[:, column : column + e].astype(read.dtype)).astype(flat.dtype)
    flat = flat.at[ids_U].set(
      new, mode='drop', unique_indices=promised, indices_are_sorted=promised
    )
    out.append(flat.reshape(rows.shape))
    column += e
  return out


def measure(mesh: Mesh, rows: int, E: int, form: str, dtype, asked: int) -> tuple[str, int, int]:
  """Layout, bytes of the table and bytes of temporaries of one device."""
  n = rows * mesh.size
  spec = PartitionSpec(None, 'data') if form == '3d' else BATCH
  shapes = {'3d': [(n // GROUP, GROUP, E)], 'halves': [(n, E // 2)] * 2}.get(form, [(n, E)])
  step = jax.shard_map(
    lambda *args: update(*args, form == 'promised'),
    mesh=mesh,
    in_specs=([spec] * len(shapes), BATCH, BATCH),
    out_specs=[spec] * len(shapes),
    check_vma=False,
  )

  def abstract(shape, dtype, spec):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

  compiled = (
    jax.jit(step, donate_argnums=0)
    .lower(
      [abstract(shape, dtype, spec) for shape in shapes],
      abstract((mesh.size * asked,), jnp.int32, BATCH),
      abstract((mesh.size * asked, E), jnp.float32, BATCH),
    )
    .compile()
  )
  memory = compiled.memory_analysis()
  layout = re.search(r'entry_computation_layout=\{\(\w+\[[\d,]*\](\{[^}]*\})', compiled.as_text())
  return layout[1], memory.alias_size_in_bytes, memory.temp_size_in_bytes


def main():
  flags = argparse.ArgumentParser()
  flags.add_argument('--slice', default='v5e:2x4', help='as libtpu calls it')
  flags.add_argument('--rows', type=int, default=1 << 22, help='of the table, a device')
  flags.add_argument('--asked', type=int, default=4096, help='rows that are updated, a device')
  args = flags.parse_args()
  devices = topologies.get_topology_desc(args.slice, platform='tpu').devices
  mesh = Mesh(np.array(devices), ('data',))
  print(f'{args.slice}, jax {jax.__version__}, libtpu {libtpu.__version__}; a device has')
  print(f'{args.rows:,} rows and updates {args.asked:,}\n')
  print('| E | dtype | form | layout | table MiB | temp MiB |\n|--:|---|---|---|--:|--:|')
  cases = [(E, '2d', jnp.float32) for E in WIDTHS]
  cases += [(E, '2d', jnp.bfloat16) for E in (16, 32, 64, 128)]
  cases += [(E, form, jnp.float32) for form in ('promised', '3d', 'halves') for E in (16, 64, 128)]
  for E, form, dtype in cases:
    layout, table, temp = measure(mesh, args.rows, E, form, dtype, args.asked)
    sizes = f'{table / 2**20:,.0f} | {temp / 2**20:,.0f}'
    print(f'| {E} | {jnp.dtype(dtype).name} | {form} | `{layout}` | {sizes} |', flush=True)


if __name__ == '__main__':
  main()
