# SPDX-License-Identifier: Apache-2.0
"""A table as large as memory allows, born sharded over 8 simulated devices and trained."""

import resource
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import made
import numpy as np
import process
import scale_made

from deres_jax.data import batches as batches_lib
from deres_jax.training import step

DEVICES, BATCH, STEPS, FULL = 8, 4096, 8, 200_000_000
OVERRIDES = 'model.backbone=dnn,mlp.layers=1,mlp.units=128,optim.table_lr=0.1'
BYTES_A_ROW = 4 * (16 + 1)  # E = 16 and row-wise Adagrad's slot
ROOM = 1.3


def affordable(memory_gib: float) -> int:
  """The largest power-of-two fraction of FULL rows that fits, with room, in so much memory."""
  rows = FULL
  while rows * BYTES_A_ROW * ROOM > min(process.free_memory(), memory_gib * 2**30):
    rows //= 2
  return rows


class Peak:
  """The most memory resident while it watches, in bytes."""

  def __init__(self):
    self.bytes, self._stop = 0, threading.Event()
    self._thread = threading.Thread(target=self._watch)

  def _watch(self):
    while not self._stop.wait(0.05):
      self.bytes = max(self.bytes, resident())

  def __enter__(self):
    self._thread.start()
    return self

  def __exit__(self, *_):
    self._stop.set()
    self._thread.join()
    self.bytes = max(self.bytes, resident())


def resident() -> int:
  pages = int(Path('/proc/self/statm').read_text().split()[1])
  return pages * resource.getpagesize()


def _sample(state: step.State, touched: np.ndarray, generator) -> list[tuple[int, np.ndarray]]:
  """For each device places of its part that the batch does not name."""
  part = state.tables[0].shape[0] // DEVICES
  out = []
  for d in range(DEVICES):
    places = generator.integers(0, part, 20_000)
    out.append(places[~np.isin(places + d * part, touched)])
  return out


def _read(state: step.State, places) -> np.ndarray:
  shards = sorted(state.tables[0].addressable_shards, key=lambda s: s.index[0].start or 0)
  return np.concatenate([s.data[at] for s, at in zip(shards, places, strict=True)])


def big_table(rows: int) -> Iterator[list[dict]]:
  spec, batches = scale_made.parts(OVERRIDES, rows, BATCH, DEVICES, rows)
  zipf = batches['zipf']
  host_batch = zipf.host_batch(zipf.examples(0))
  batch = batches_lib.put(zipf.finish(host_batch, zipf.capacities(host_batch.required)), spec.mesh)
  abstract = step.abstract_state(spec)
  size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(abstract))
  train, read = step.make_train_step(spec), made.read_stream
  before = resident()
  with Peak() as peak:
    began = time.perf_counter()
    state = step.init_state(spec)
    jax.block_until_ready(state)
    born = time.perf_counter() - began
    places = _sample(state, np.concatenate(host_batch.unique_ids), np.random.default_rng(0))
    untouched = _read(state, places)
    seconds, losses = [], []
    for _ in range(STEPS):
      stream = step.init_stream(spec)
      began = time.perf_counter()
      state, stream = train(state, stream, batch)
      jax.block_until_ready(state)
      seconds.append(time.perf_counter() - began)
      losses.append(float(read(stream)['logloss']))
  changed = int((untouched != _read(state, places)).any(axis=1).sum())
  what = f'{rows:,} rows, E=16, row-wise Adagrad, 8 simulated devices'
  gib = 2**30
  used, ends = peak.bytes - before, (losses[-1], losses[0])
  moments = [1e3 * s for s in seconds[1:]]  # the first one compiles
  falls = np.isfinite(losses).all() and np.max(np.diff(losses)) < 0
  yield [
    _line(f'born sharded: {what}', 's', born),
    _line(f'step: {what}', 'ms', float(np.median(moments)))
    | {'spread': [min(moments), max(moments)]},
    _line(f'peak memory beside the state: {what}', 'GiB', used / gib, size / gib, '<= 1.3'),
    _line('log loss of a repeated batch, last beside first: the same', 'nats', *ends, '< 1')
    | {'losses': losses, 'falls_every_step': bool(falls)},
    _line('sampled untouched rows that changed: the same', 'rows', changed, aim='= 0')
    | {'sampled': len(untouched)},
  ]


def _line(what, unit, ours, beside=None, aim='') -> dict:
  ratio = None if beside is None else ours / beside
  return {'what': what, 'unit': unit, 'ours': ours, 'beside': beside, 'ratio': ratio, 'aim': aim}
