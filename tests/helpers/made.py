# SPDX-License-Identifier: Apache-2.0
"""Shared by tests: batches read back, tables in the order of their numbers, made-up schemas."""

import pathlib

import jax
import numpy as np

from deres_jax.data.blocks import Blocks, Examples
from deres_jax.data.schema import Field, Schema, Split, load_schema


def numbers(tables, batch, devices, column_tables=None):
  """Numbers of the table rows that each slot of a whole batch stands for. [B, S]."""
  B, S = batch.inverse.shape
  column_tables = np.zeros(S, int) if column_tables is None else np.array(column_tables)
  out = np.empty((B, S), np.int64)
  inverse = batch.inverse.reshape(devices, B // devices, S)
  edges = tables.shard_bounds(devices)
  for t, (table, ids) in enumerate(zip(tables.parts, batch.unique_ids, strict=True)):
    part = table.size // devices
    K = ids.shape[1]
    # [asker, owner * K]: the place over all owners, or padding
    ids = ids.reshape(devices, devices, K).astype(np.int64)
    first = edges[t * devices : (t + 1) * devices]
    number = np.where(
      ids < part,
      tables.global_ids((ids + first[None, :, None]).reshape(-1)).reshape(ids.shape),
      tables.padding,
    )
    number = number.reshape(devices, -1)
    assert (number[:, -1] == tables.padding).all()
    for d in range(devices):
      mine = inverse[d][:, column_tables == t]
      rows = slice(d * (B // devices), (d + 1) * (B // devices))
      out[rows, column_tables == t] = number[d][mine]
  return out


def in_order(tables, arrays):
  """Tables (or slots of theirs) [N, ...] as one array by number, for tables of one width."""
  out = np.concatenate([np.asarray(x) for x in arrays])
  return out[tables.storage_index(np.arange(tables.padding, dtype=np.int32))]


def read_stream(stream):
  """Figures of streaming metrics [D, ...], summed over devices."""
  return jax.tree.map(lambda x: np.asarray(x).sum(axis=0), stream).compute()


def schema(vocab_sizes, click_rate=0.25, rows=1000):
  """A schema of fields alone, with no folder behind it."""
  split = Split(rows, 1, round(rows * click_rate), '')
  return Schema(
    format='deres_jax.prepared',
    format_version=3,
    dataset='made',
    tfds='made',
    block_rows=4096,
    fields=tuple(Field(f'f{i}', 'categorical', n, False) for i, n in enumerate(vocab_sizes)),
    sequence=None,
    group=None,
    items=None,
    splits=dict.fromkeys(('train', 'validation', 'test'), split),
    vocabulary={},
    path=pathlib.Path('nowhere'),
  )


def ids_of(folder, split='test'):
  """All ids of a split of a prepared folder, a list a row: fields, then the events' attributes."""
  schema = load_schema(str(folder))
  blocks = Blocks(schema, split)
  count = -(-blocks.rows // schema.block_rows)
  return np.concatenate([blocks.read(i).ids for i in range(count)]).tolist()


KINDS, MINUTES = ('click', 'like', 'share', 'hide'), (0, *(1 << b for b in range(15)))


def feed_row(schema, ids):
  """A raw row of the planted feed, as strings, of its ids: fields, then the events' attributes."""
  width = len(schema.fields)

  def event(part):
    values = [*(str(i - 2) for i in part[:3]), KINDS[part[3] - 2], str(MINUTES[part[4] - 2])]
    return {a.name: v for a, v in zip(schema.sequence.attributes, values, strict=True)}

  parts = [ids[k : k + 5] for k in range(width, len(ids), 5)]
  row = {field.name: str(i - 2) for field, i in zip(schema.fields, ids, strict=False)}
  return row | {'events': [event(part) for part in parts if part[0]]}


class ZipfBlocks:
  """Blocks of made-up rows: field f draws from vocab_sizes[f] ids, id i as often as 1 / (i + 1)^a.

  Ids are in the order of frequency, as in a prepared folder.
  """

  def __init__(self, vocab_sizes, rows, exponent=1.05, seed=0):
    self.schema, self.rows, self._seed = schema(vocab_sizes, rows=rows), rows, seed
    self._cdfs = []
    for size in vocab_sizes:
      total = np.cumsum(np.arange(1, size + 1) ** -exponent)
      self._cdfs.append(total / total[-1])

  def size(self, index):
    return min(self.schema.block_rows, self.rows - index * self.schema.block_rows)

  def read(self, index):
    n, rng = self.size(index), np.random.default_rng((self._seed, index))
    ids = [np.searchsorted(cdf[:-1], rng.random(n), side='right') for cdf in self._cdfs]
    labels = rng.random(n) < 0.25
    return Examples(
      np.stack(ids, 1).astype(np.int32), labels.astype(np.uint8), np.zeros(n, np.int32)
    )
