# SPDX-License-Identifier: Apache-2.0
"""What a step on a sharded table sends: rows an owner is asked for, and bytes of six ways.

  python tests/bench/exchange.py

Ids are drawn, not read: 39 fields of 10 to 1,000,000 ids, sizes in geometric steps, ids from
Zipf(1.05) cut at the field's size, neighbours in the table being neighbours in frequency (as in a
prepared folder). Two tables:
  1. For D devices: different rows that a device needs (U), asks of one owner on average (U / D)
     and at most (K, over all pairs), with rows dealt out by row % D or in D ranges; how many times
     the 8 devices of a host ask for the same row; U / D + sqrt(2 U / D ln D^2) beside K.
  2. Bytes that one of 8 devices sends for lookup and gradients, read from the programs that XLA
     makes (8 simulated devices, or a TPU slice with --slice and libtpu installed), K as in 1 and U
     rounded up to a multiple of 128: of other sizes the TPU's compiler makes all-reduces.
No device runs anything, so there are no seconds here.
"""

import argparse
import os

# Before JAX is imported. Without the first two, libtpu asks the cloud which slice this is.
os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count=8'

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from deres_jax.costs import collectives

FIELDS, EXPONENT, HOST = 39, 1.05, 8
SIZES = np.geomspace(10, 1_000_000, FIELDS).astype(int)
OFFSETS = np.concatenate([[0], np.cumsum(SIZES)[:-1]])
N = int(SIZES.sum())
SPLIT = P('data')


def draw(rows: int, generator: np.random.Generator) -> np.ndarray:
  """Table rows [rows, FIELDS] of a device's part of a batch."""
  out = []
  for size, offset in zip(SIZES, OFFSETS, strict=True):
    weight = np.arange(1, size + 1) ** -EXPONENT
    total = np.cumsum(weight)
    out.append(offset + np.searchsorted(total, generator.random(rows) * total[-1]))
  return np.stack(out, 1)


def owners(devices: int, rows: int, generator) -> tuple[int, int]:
  """Prints a line of table 1. Returns (largest U, K by row % D)."""
  needed = [np.unique(draw(rows, generator)) for _ in range(devices)]
  U = np.mean([len(ids) for ids in needed])
  by_mod = np.array([np.bincount(ids % devices, minlength=devices) for ids in needed])
  size = -(-N // devices)
  by_range = np.array([np.bincount(ids // size, minlength=devices) for ids in needed])
  merged = np.mean(
    [
      sum(map(len, host)) / len(np.unique(np.concatenate(host)))
      for host in (needed[i : i + HOST] for i in range(0, devices, HOST))
    ]
  )
  mean = U / devices
  expected = mean + np.sqrt(2 * mean * np.log(devices**2))
  print(
    f'| {devices} | {rows} | {U:,.0f} | {mean:,.1f} | {by_mod.max()} | {expected:,.0f} '
    f'| {1 - mean / by_mod.max():.1%} | {by_range.max():,} | {merged:.2f} |'
  )
  return max(map(len, needed)), int(by_mod.max())


def ways(D: int, E: int, ids: int, U: int, K: int):
  """(name, function of shards, specs, shapes): lookup of rows, then gradients sent home."""

  def exchange(table, asked):
    asked = lax.all_to_all(asked, 'data', 0, 0, tiled=True)
    rows = lax.all_to_all(table.at[asked].get(mode='clip'), 'data', 0, 0, tiled=True)
    g = lax.all_to_all(rows * rows, 'data', 0, 0, tiled=True)
    return table.at[asked].add(g, mode='drop')

  def masked(table, asked):
    asked = lax.all_gather(asked, 'data', tiled=True)
    rows = lax.psum_scatter(table.at[asked].get(mode='clip'), 'data', tiled=True)
    g = lax.all_gather(rows * rows, 'data', tiled=True)
    return table.at[asked].add(g, mode='drop')

  def columns(table, asked):
    asked = lax.all_gather(asked, 'data', tiled=True)
    rows = lax.all_to_all(table.at[asked].get(mode='clip'), 'data', 0, 1, tiled=True)
    g = lax.all_to_all(rows * rows, 'data', 1, 0, tiled=True)
    return table.at[asked].add(g, mode='drop')

  def whole(table, asked):
    def loss(table):
      return jnp.sum(lax.all_gather(table, 'data', tiled=True)[asked] ** 2)

    return table + jax.grad(loss)(table)

  n, U = -(-N // D) * D, -(-U // 128) * 128
  yield 'exchange, K rows of each owner', exchange, SPLIT, n, D * D * K
  yield 'columns split, U ids', columns, P(None, 'data'), n, D * U
  yield 'ids to all, masked sum (U ids)', masked, SPLIT, n, D * U
  yield 'table gathered, gradient scattered', whole, SPLIT, n, D * ids


def compiled(fn, mesh, spec, n, E, ids):
  def abstract(shape, dtype, spec):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

  args = abstract((n, E), jnp.float32, spec), abstract((ids,), jnp.int32, SPLIT)
  text = jax.jit(fn, donate_argnums=0).lower(*args).compile().as_text()
  return collectives.wire_bytes_by_kind(collectives.parse(text))


def line(name: str, wire: dict[str, float]):
  parts = ', '.join(f'{kind} {n / 2**20:,.2f}' for kind, n in wire.items())
  print(f'| {name} | {sum(wire.values()) / 2**20:,.2f} | {parts} |', flush=True)


def main():
  flags = argparse.ArgumentParser()
  flags.add_argument('--slice', default='', help='of 8 chips, such as v5e:2x4; needs libtpu')
  flags.add_argument('--width', type=int, default=16, help='columns of a row')
  args = flags.parse_args()
  D, E, rows = 8, args.width, 1024
  print(f'{FIELDS} fields, {N:,} table rows; numpy generator 0\n')
  print('| D | rows a device | U | U / D | K | expected K | padding | K of ranges | host |')
  print('|--:|--:|--:|--:|--:|--:|--:|--:|--:|')
  U, K = owners(D, rows, np.random.default_rng(0))
  for devices, b in ((8, 8192), (64, 1024), (64, 8192), (256, 1024)):
    owners(devices, b, np.random.default_rng(0))
  found = (
    topologies.get_topology_desc(args.slice, platform='tpu').devices
    if args.slice
    else jax.devices()
  )
  mesh = Mesh(np.array(found), ('data',), axis_types=(AxisType.Auto,))
  where = args.slice or '8 simulated devices'
  print(f'\n{where}, jax {jax.__version__}; E = {E}, {rows} rows a device, U = {U}, K = {K}\n')
  print('| way | MiB sent | by kind |\n|---|--:|---|')
  for name, fn, spec, n, ids in ways(D, E, rows * FIELDS, U, K):
    body = jax.shard_map(fn, mesh=mesh, in_specs=(spec, SPLIT), out_specs=spec, check_vma=False)
    line(name, compiled(body, mesh, spec, n, E, ids))

  def left_to_xla(table, asked):
    return table + jax.grad(lambda t: jnp.sum(t[asked] ** 2))(table)

  n, U = -(-N // D) * D, -(-U // 128) * 128
  for name, ids in (('left to XLA, U ids', D * U), ('left to XLA, all ids', D * rows * FIELDS)):
    line(name, compiled(left_to_xla, mesh, SPLIT, n, E, ids))


if __name__ == '__main__':
  main()
