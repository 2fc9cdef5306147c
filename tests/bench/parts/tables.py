# SPDX-License-Identifier: Apache-2.0
"""The update of a table alone: 79,872 ids of a batch, their rows, gradients and slots.

Timed is what a step does for its table on one device: gather the named rows, add the batch's
gradients up by row, move the rows. Spreading the rows over the batch, which is as much as reading
the gradients, has a line of its own. Ids are named on the host before.
"""

import gc
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import process
import scale_made
import steps

from deres_jax.embeddings import exchange
from deres_jax.kernels import library
from deres_jax.pod import mesh as mesh_lib
from deres_jax.training import step

SIZES = {'1M': 1_000_000, '4M': 4_000_000, '10M': 10_000_000}
KINDS = {'row-wise Adagrad': (steps.ADAGRAD, '<= 3'), 'lazy Adam': (steps.ADAM, '<= 8')}
PEERS = {'row-wise Adagrad': 'Adagrad', 'lazy Adam': 'SparseAdam'}
TABLE = 'model.backbone=dnn,model.embed_dim=64,mlp.units=16,mlp.layers=1'


class Update:
  """A table with its slots, and the compiled update by one batch."""

  def __init__(self, overrides: str, table_rows: int):
    spec, batches = scale_made.parts(overrides, table_rows, steps.BATCH, 1, 100_000)
    batch = batches['zipf'][0]
    state = step.init_state(spec)
    self.named = batch.unique_ids[0].size
    self._table = state.tables[0], state.table_opt_state[0]
    ids, inverse = jnp.asarray(batch.unique_ids[0].reshape(-1)), jnp.asarray(batch.inverse)
    shape = (*batch.inverse.shape, spec.tables.dim)
    self._g = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)

    def body(rows, slots, g_BSE):
      with library.using(spec.kernels):
        found, asked = exchange.lookup(rows, ids)
        g_BSE, found = jax.lax.optimization_barrier((g_BSE, found))  # gradients need the rows
        (g,) = step.scatter_add_columns(spec, (found,), inverse, g_BSE)
        return exchange.update(spec.sparse_optimizer, rows, slots, asked, g, 1e-3, jnp.int32(0))

    def spread(rows):
      with library.using(spec.kernels):
        return step.gather_columns(spec, (rows,), inverse)

    table, whole = mesh_lib.TABLE, mesh_lib.REPLICATED
    mapped = jax.shard_map(
      body,
      mesh=spec.mesh,
      in_specs=(table, table, whole),
      out_specs=(table, table),
      check_vma=False,
    )
    self._update, self._spread = jax.jit(mapped, donate_argnums=(0, 1)), jax.jit(spread)
    self._found = jnp.zeros((self.named, spec.tables.dim))

  def run(self, n: int):
    for _ in range(n):
      self._table = self._update(*self._table, self._g)
    jax.block_until_ready(self._table)

  def spread(self, n: int):
    for _ in range(n):
      self._spread(self._found).block_until_ready()


def _peer(kind: str, table_rows: int):
  """PyTorch's sparse optimizer on the same number of ids, its gradient given."""
  import torch

  table = torch.nn.Parameter(torch.zeros(table_rows, 64))
  _, batches = scale_made.parts(TABLE, table_rows, steps.BATCH, 1, 100_000)
  host = batches['zipf'][0]
  ids = torch.tensor(host.unique_ids[0].reshape(-1)[host.inverse].reshape(1, -1)).long()
  values = torch.randn(ids.shape[1], 64)
  optimizer = getattr(torch.optim, PEERS[kind])([table])

  def run(n: int):
    for _ in range(n):
      table.grad = torch.sparse_coo_tensor(ids, values, table.shape, check_invariants=False)
      optimizer.step()

  return run


def tables(rounds: int) -> Iterator[list[dict]]:
  for kind, (override, aim) in KINDS.items():
    for size, rows in SIZES.items():
      yield _update(kind, f'{TABLE},{override}', aim, size, rows, rounds)
      gc.collect()
  yield [_naming(rounds)]
  for size in ('1M', '10M'):
    yield [_floor(size, rounds)]
    gc.collect()


def _update(kind: str, overrides: str, aim: str, size: str, rows: int, rounds: int) -> list[dict]:
  what = f'table update, {kind}, 79,872 Zipf ids, {size} x 64'
  # Values of rows and slots, and as much again while the first rows are drawn.
  needed, free = 4 * 64 * rows * (4 if kind == 'lazy Adam' else 2), process.free_memory()
  if needed > free:
    note = f'skipped: needs {needed / 2**30:.0f} GiB of memory, {free / 2**30:.0f} are free'
    return [{'what': what, 'unit': 'ms', 'aim': '', 'note': note}]
  update = Update(overrides, rows)
  runs = {'ours': update.run, 'spread': update.spread}
  if size == '1M':
    runs['peer'] = _peer(kind, rows)
  times = scale_made.round_robin(runs, rounds, rounds, 0.25, steps.PAUSE)
  line = times.beside(what, 'ours', aim, note=f'{update.named:,} rows named')
  if size == '1M':
    line['peer'] = float(np.median(times.ms['peer']))
    line['note'] += f'; peer: torch.optim.{PEERS[kind]}'
  spread = times.beside(f'spreading its rows over the batch: {kind}, {size}', 'spread')
  return [line, spread]


def _naming(rounds: int) -> dict:
  """What the reader's thread pays to name the different rows of a batch."""
  _, batches = scale_made.parts(TABLE, SIZES['1M'], steps.BATCH, 1, 100_000)
  given = batches['zipf'].examples(0)

  def run(n: int):
    for _ in range(n):
      batches['zipf'].host_batch(given)

  times = scale_made.round_robin({'ours': run}, rounds, rounds)
  return times.beside("naming the batch's different rows, on the host", 'ours')


def _floor(size: str, rounds: int) -> dict:
  spec, _, trained = steps.trained(f'{steps.TRANSFORMER},{steps.ADAGRAD}', SIZES[size])
  floor = steps.Floor(spec, trained.batches['zipf'])
  runs = {'step': trained.steps('zipf'), 'floor': floor.run}
  times = scale_made.round_robin(runs, rounds, rounds, 0.5)
  what = f'step of the Transformer, row-wise Adagrad, {size} x 64, beside its dense part'
  return times.beside(what, 'step', '>= 0.95', limit='floor')
