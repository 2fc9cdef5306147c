# SPDX-License-Identifier: Apache-2.0
"""Two exchanges of rows on simulated devices; what replicating or merging rows would save."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import masked_exchange
import numpy as np
import scale_made

from deres_jax.costs import collectives
from deres_jax.data import batches as batches_lib
from deres_jax.embeddings import exchange as exchange_lib
from deres_jax.pod import mesh as mesh_lib
from deres_jax.training import step

DEVICES, ROWS, HOST = 8, 1024, 8  # devices, rows of a batch on each, devices of a host
VOCABULARY = 4_000_000
BATCHES = 3  # counted and averaged
OVERRIDES = 'model.backbone=dnn,mlp.layers=1,mlp.units=128'


def _programs(spec: step.StepSpec, batches: batches_lib.Batches):
  """(compiled programs of lookup and update, their arguments) of both exchanges, same batch."""
  mesh, optimizer = spec.mesh, spec.sparse_optimizer
  host_batch = batches.host_batch(batches.examples(0))
  ids = batches.finish(host_batch, batches.capacities(host_batch.required)).unique_ids[0]
  asked = int(batches_lib.initial_capacity(np.array([max(map(len, host_batch.unique_ids))]), 1)[0])
  places = np.full((DEVICES, asked), spec.tables.padding, np.int32)
  for row, mine in zip(places, host_batch.unique_ids, strict=True):
    row[: len(mine)] = mine

  def exchange(rows, slots, ids):
    found, asked = exchange_lib.lookup(rows, ids.reshape(-1))
    return exchange_lib.update(optimizer, rows, slots, asked, found, 0.01, jnp.int32(0))

  def masked(rows, slots, places):
    found = masked_exchange.lookup(rows, places.reshape(-1))
    return masked_exchange.update(
      optimizer, rows, slots, places.reshape(-1), found, 0.01, jnp.int32(0)
    )

  for name, body, given in (('exchange', exchange, ids), ('masked', masked, places)):
    mapped = jax.shard_map(
      body,
      mesh=mesh,
      in_specs=(mesh_lib.TABLE, mesh_lib.TABLE, mesh_lib.BATCH),
      out_specs=(mesh_lib.TABLE, mesh_lib.TABLE),
      check_vma=False,
    )
    given = jax.device_put(given, mesh_lib.sharding(mesh, mesh_lib.BATCH))
    state = step.init_state(spec)
    state = state.tables[0], state.table_opt_state[0]
    yield name, jax.jit(mapped, donate_argnums=(0, 1)).lower(*state, given).compile(), state, given


def exchanges() -> Iterator[list[dict]]:
  """Bytes on the wire and time of lookup and update, all-to-all beside masked reduce-scatter."""
  spec, batches = scale_made.parts(OVERRIDES, VOCABULARY, DEVICES * ROWS, DEVICES, VOCABULARY)
  wire, variants = {}, {}
  for name, compiled, state, given in _programs(spec, batches['zipf']):
    wire[name] = collectives.wire_bytes_by_kind(collectives.parse(compiled.as_text()))

    def run(n, holder=[state], compiled=compiled, given=given):  # noqa: B006
      for _ in range(n):
        holder[0] = compiled(*holder[0], given)
      jax.block_until_ready(holder[0])

    variants[name] = run
  ours, beside = (sum(wire[name].values()) / 2**20 for name in ('exchange', 'masked'))
  times = scale_made.round_robin(variants)
  yield [
    {
      'what': 'sent by a device for rows and gradients: exchange beside masked sum, D=8, zipf',
      'unit': 'MiB',
      'ours': ours,
      'beside': beside,
      'ratio': ours / beside,
      'aim': '<= 0.2',
      'by_kind': wire,
    },
    times.line('time of the same on simulated devices (says little)', 'exchange', 'masked'),
  ]


def _asked(devices: int, generator: np.random.Generator) -> list[np.ndarray]:
  """For each device the different rows that its part of a batch needs, hottest rows first.

  Rows are renumbered by how often they are drawn, over all fields.
  """
  sizes = scale_made.sizes(VOCABULARY)
  offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]])
  weights = [np.arange(1, n + 1) ** -scale_made.EXPONENT for n in sizes]
  often = np.concatenate([w / w.sum() for w in weights])
  rank = np.empty(len(often), np.int64)
  rank[np.argsort(-often, kind='stable')] = np.arange(len(often))

  def one():
    ids = [scale_made.draw(n, ROWS, 'zipf', generator) for n in sizes]
    return np.unique(rank[np.concatenate(ids) + np.repeat(offsets, ROWS)])

  return [one() for _ in range(devices)]


def hot_rows() -> Iterator[list[dict]]:
  """What copies of the hottest rows would save of the exchange's bytes, by their number."""
  E, generator = 16, np.random.default_rng(0)
  for D in (2, 8, 64):
    q = np.zeros(VOCABULARY)  # devices that ask for a row, in the mean of batches
    distinct, by_all = 0.0, 0.0
    for _ in range(BATCHES):
      counts = np.bincount(np.concatenate(_asked(D, generator)), minlength=VOCABULARY)
      q += counts / BATCHES
      distinct += np.count_nonzero(counts) / BATCHES
      by_all += np.count_nonzero(counts == D) / BATCHES
    away = 1 - 1 / D
    exchange = q * away * (8 * E + 4)
    saved = np.cumsum(exchange - 2 * (D - 1) * 4 * E)
    best = int(np.argmax(saved)) + 1
    shares = {n: float(saved[n - 1] / exchange.sum()) for n in (100, 1000, 10_000, 100_000)}
    yield [
      {
        'what': f'rows asked for by all of {D} devices beside all different rows of a batch',
        'unit': 'rows',
        'ours': by_all,
        'beside': distinct,
        'ratio': by_all / distinct,
        'aim': '',
      },
      {
        'what': f'sent by {D} devices, {best:,} hottest rows copied (the best number) beside none',
        'unit': 'MiB',
        'ours': float(exchange.sum() - saved[best - 1]) / 2**20,
        'beside': float(exchange.sum()) / 2**20,
        'ratio': float(1 - saved[best - 1] / exchange.sum()),
        'aim': '',
        'saved_share_by_number_of_copies': shares,
      },
    ]


def merged_in_hosts() -> Iterator[list[dict]]:
  """What telling a host once would save of the bytes between hosts of 8 devices."""
  D, generator = 64, np.random.default_rng(1)
  told, once = 0, 0
  for _ in range(BATCHES):
    asked = _asked(D, generator)
    for h in range(D // HOST):
      rows = np.concatenate(asked[h * HOST : (h + 1) * HOST])
      # Its rank spreads rows over owners as evenly as their places do.
      rows = rows[rows % D // HOST != h]
      told += len(rows)
      once += len(np.unique(rows))
  yield [
    {
      'what': f'rows told between hosts of {HOST}, merged in a host beside each device its own',
      'unit': 'rows',
      'ours': once / BATCHES,
      'beside': told / BATCHES,
      'ratio': once / told,
      'aim': '',
    }
  ]
