# SPDX-License-Identifier: Apache-2.0
"""Reading shuffled rows beside other ways, and training from disk beside training on one batch.

One process each. Every way gives ids int32 [B, 39] and labels of shuffled rows, as numbers of table
rows, from files that the page cache holds:
  deres_jax         blocks of a prepared folder, `deres_jax.data.batches.Reader`
  memory-mapped     two .npy files of all rows; rows permuted inside windows of equal size
  per-row records   an ArrayRecord record a row (as TFDS and Grain users mostly have them), read in
                    the order of a permutation, a batch at a time
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import scale_made
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter
from scale_made import Times

from deres_jax import config
from deres_jax.data import batches as batches_lib
from deres_jax.data.blocks import Blocks
from deres_jax.data.feed import Prefetch, feed
from deres_jax.data.reader import Reader
from deres_jax.data.schema import load_schema
from deres_jax.data.shuffle_plan import ShufflePlan
from deres_jax.embeddings import layout
from deres_jax.pod import mesh as mesh_lib
from deres_jax.training import run as run_lib
from deres_jax.training import step

BATCH = 8192
WINDOW_BLOCKS = 64
RECORD_ROWS = 50_000  # a record a row is too slow for more
REPEATS = 5
STEPS = 40


def _rate(read: Callable[[int], Iterator[int]]) -> list[float]:
  """Rows a second of several epochs, the first of which only warms up."""
  rates = []
  for epoch in range(REPEATS + 1):
    began = time.perf_counter()
    rows = sum(read(epoch))
    rates.append(rows / (time.perf_counter() - began))
  return rates[1:]


def _ours(schema, batches: bool) -> Callable[[int], Iterator[int]]:
  tables = layout.Tables(schema.vocab_sizes, 16)
  blocks = Blocks(schema, 'train')
  plan = ShufflePlan(schema.block_rows, blocks.rows, BATCH, WINDOW_BLOCKS, 0)
  per_epoch = -(-blocks.rows // BATCH)
  reader = Reader(blocks, tables, plan, 0, 1)
  whole = batches_lib.Batches(blocks, tables, BATCH, 1, WINDOW_BLOCKS, 0)

  def run(epoch):
    for k in range(per_epoch):
      if batches:
        yield int(whole[epoch * per_epoch + k].weights.sum())
      else:
        yield len(reader.read(epoch, k).labels)

  return run


def _all_rows(schema) -> tuple[np.ndarray, np.ndarray]:
  blocks = Blocks(schema, 'train')
  rows = [blocks.read(k) for k in range(-(-blocks.rows // schema.block_rows))]
  return np.concatenate([r.ids for r in rows]), np.concatenate([r.labels for r in rows])


def _mapped(schema, folder: Path) -> Callable[[int], Iterator[int]]:
  offsets = layout.Tables(schema.vocab_sizes, 16).column_offsets
  for name, array in zip(('ids', 'labels'), _all_rows(schema), strict=True):
    np.save(folder / f'{name}.npy', array)
  size = WINDOW_BLOCKS * schema.block_rows

  def run(epoch):
    ids_NF = np.load(folder / 'ids.npy', mmap_mode='r')
    label_N = np.load(folder / 'labels.npy', mmap_mode='r')
    rng = np.random.default_rng(epoch)
    for start in range(0, len(label_N), size):
      order = start + rng.permutation(min(size, len(label_N) - start))
      for first in range(0, len(order), BATCH):
        part = order[first : first + BATCH]
        batch = ids_NF[part] + offsets, label_N[part]
        yield len(batch[1])

  return run


def _records(schema, folder: Path) -> Callable[[int], Iterator[int]]:
  offsets = layout.Tables(schema.vocab_sizes, 16).column_offsets
  ids_NF, label_N = (x[:RECORD_ROWS] for x in _all_rows(schema))
  path = folder / 'rows.array_record'
  writer = ArrayRecordWriter(str(path), 'group_size:1')
  for ids_F, label in zip(ids_NF, label_N, strict=True):
    writer.write(ids_F.tobytes() + label.tobytes())
  writer.close()

  def run(epoch):
    with ArrayRecordDataSource([str(path)]) as source:
      order = np.random.default_rng(epoch).permutation(len(source))
      for first in range(0, len(order), BATCH):
        records = source.__getitems__(order[first : first + BATCH].tolist())
        ids = np.stack([np.frombuffer(r, np.int32, len(offsets)) for r in records]) + offsets
        labels = np.array([r[-1] for r in records], np.uint8)
        assert len(ids) == len(labels)
        yield len(labels)

  return run


def training(prepared: Path, overrides: str, steps: int, rounds: int) -> tuple[Times, int]:
  """Times of `steps` steps from disk and on one batch, as runs do them; the rows of all of them."""
  c = config.resolve(config.base(f'{overrides},data.path={prepared}'))
  run = run_lib.build_run(c, mesh_lib.make_mesh(1))
  mesh = run.spec.mesh
  train_step, one = step.make_train_step(run.spec), batches_lib.put(run.train[0], mesh)
  state, stream = step.init_state(run.spec), step.init_stream(run.spec)
  at = 0

  def go(batches):
    nonlocal state, stream
    for batch in batches:
      state, stream = train_step(state, stream, batch)
    jax.block_until_ready(state)

  def from_disk(n):
    nonlocal at
    for _ in range(n):
      ahead = Prefetch(c.data.threads, c.data.prefetch)
      go(fed.batch for fed in feed(run.train, mesh, (at, at + steps), ahead, lambda: False))
      at += steps

  def on_one(n):
    go([one] * (steps * n))

  times = scale_made.round_robin({'disk': from_disk, 'one': on_one}, rounds, rounds, seconds=0)
  return times, steps * c.data.batch_size


# The fastest models leave the reader the least time.
MODELS = {
  'lr': 'model.backbone=lr,model.embed_dim=1,data.batch_size=8192',
  'dnn': 'model.backbone=dnn,mlp.layers=3,mlp.units=400,data.batch_size=4096',
  'onetrans, 2 layers': 'model.depth=2,model.dim=32,data.batch_size=2048',
}


def table(prepared: Path, folder: Path) -> list[dict]:
  """Rows of the table on prepared data to batches."""
  folder.mkdir()
  schema = load_schema(str(prepared))
  lines = []

  def add(what: str, rates: list[float]) -> float:
    line = {
      'what': what,
      'rows_per_second': float(np.median(rates)),
      'lowest': min(rates),
      'highest': max(rates),
    }
    lines.append(line)
    print(
      f'{what:<44} {line["rows_per_second"]:>14,.0f} {line["lowest"]:>14,.0f} '
      f'{line["highest"]:>14,.0f}',
      flush=True,
    )
    return line['rows_per_second']

  print(f'{"read":<44} {"rows/s":>14} {"lowest":>14} {"highest":>14}')
  add('deres_jax: shuffled rows', _rate(_ours(schema, batches=False)))
  add('deres_jax: batches (different ids named once)', _rate(_ours(schema, batches=True)))
  add('memory-mapped array: shuffled rows', _rate(_mapped(schema, folder)))
  add('per-row records: shuffled rows', _rate(_records(schema, folder)))
  for name, overrides in MODELS.items():
    times, rows = training(prepared, overrides, STEPS, REPEATS)
    disk, cached = ([1e3 * rows / ms for ms in times.ms[kind]] for kind in ('disk', 'one'))
    share = add(f'training {name}: from disk', disk) / add(f'training {name}: one batch', cached)
    print(f'{"":<44} {share:>14.1%} of training on one batch')
    lines[-2]['of_one_batch'] = share
  return lines
