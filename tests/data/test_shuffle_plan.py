# SPDX-License-Identifier: Apache-2.0
"""The shuffle plan: every row once an epoch, on any number of hosts, from any step on."""

import concurrent.futures
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deres_jax.data import shuffle_plan, unique_ids
from deres_jax.data.blocks import Examples
from deres_jax.data.reader import Reader
from deres_jax.data.schema import Field, Group, Schema, Split
from deres_jax.embeddings import layout


class MadeBlocks:
  """Blocks of one field whose ids are row numbers; records which blocks were read."""

  def __init__(self, rows, block_rows):
    self.rows, self.read_blocks = rows, []
    split = Split(rows, -(-rows // block_rows), 0, '')
    self.schema = Schema(
      format='deres_jax.prepared', format_version=3, dataset='made', tfds='made',
      block_rows=block_rows, fields=(Field('row', 'categorical', rows + 1, False),), sequence=None,
      group=Group('user'), items=None, splits=dict.fromkeys(('train', 'validation', 'test'), split),
      vocabulary={},
    )  # fmt: skip

  def size(self, index):
    return min(self.schema.block_rows, self.rows - index * self.schema.block_rows)

  def read(self, index):
    self.read_blocks.append(index)
    numbers = index * self.schema.block_rows + np.arange(self.size(index), dtype=np.int32)
    return Examples(numbers[:, None], (numbers % 2).astype(np.uint8), numbers + 7)


def reader(rows, block_rows, batch_size, window_blocks, seed, part=0, parts=1):
  blocks = MadeBlocks(rows, block_rows)
  table = layout.Tables(blocks.schema.vocab_sizes, 4)
  plan = shuffle_plan.ShufflePlan(block_rows, rows, batch_size, window_blocks, seed)
  return Reader(blocks, table, plan, part, parts), blocks


def numbers(got):
  """Returns the row numbers, after checking that all columns belong to the same rows."""
  rows = got.ids[:, 0]
  np.testing.assert_array_equal(got.labels, rows % 2)
  np.testing.assert_array_equal(got.groups, rows + 7)
  return rows.tolist()


def joined(batches):
  return list(itertools.chain.from_iterable(batches))


def epoch_of(reader, batch_size, rows, epoch):
  return [numbers(reader.read(epoch, k)) for k in range(-(-rows // batch_size))]


def reference(rows, block_rows, batch_size, window_blocks, seed, epoch):
  """Computes the order of an epoch as the module describes it, position by position."""
  blocks = [list(range(i, min(i + block_rows, rows))) for i in range(0, rows, block_rows)]
  if seed is None:
    return list(range(rows))
  permuted = [blocks[i] for i in shuffle_plan.permutation(len(blocks), seed, 0, epoch)]
  windows = [permuted[i : i + window_blocks] for i in range(0, len(blocks), window_blocks)]
  lanes = shuffle_plan.LANES if len(windows) > 1 else 1
  ends = [(l + 1) * batch_size // lanes for l in range(lanes)]
  out, start = {}, 0
  for w, window in enumerate(windows):
    inside = [row for block in window for row in block]
    draws = np.random.Philox(np.random.SeedSequence((seed, 1, epoch, w))).random_raw(len(inside))
    done = 0
    for l in range(lanes):
      mine = [
        p for p in range(start, start + len(inside))
        if next(i for i, end in enumerate(ends) if p % batch_size < end) == l
      ]  # fmt: skip
      part = sorted(range(done, done + len(mine)), key=lambda i: draws[i])
      out |= {place: inside[i] for place, i in zip(mine, part, strict=True)}
      done += len(mine)
    start += sum(map(len, window))
  return [out[p] for p in range(rows)]


# rows, block_rows, batch_size, window_blocks
SIZES = [
  (1000, 50, 64, 4),
  (1000, 50, 70, 3),
  (997, 10, 128, 7),
  (640, 64, 64, 1),
  (500, 50, 64, 64),  # one window
  (300, 7, 500, 2),  # one batch
  (77, 100, 10, 4),  # one block
  (1000, 30, 3, 5),  # fewer rows a batch than lanes
]


@pytest.mark.parametrize('sizes', SIZES)
@pytest.mark.parametrize('seed', [None, 5])
def test_the_order_matches_its_description(sizes, seed):
  for epoch in (0, 3):
    got = epoch_of(reader(*sizes, seed)[0], sizes[2], sizes[0], epoch)
    assert joined(got) == reference(*sizes, seed, epoch)
    assert {len(batch) for batch in got[:-1]} <= {sizes[2]}


@settings(max_examples=40, deadline=None)
@given(
  st.integers(1, 600), st.integers(1, 40), st.integers(1, 200), st.integers(1, 9),
  st.integers(0, 9), st.integers(0, 3), st.sampled_from([1, 2, 3, 4, 8, 16]),
)  # fmt: skip
def test_every_row_comes_once_an_epoch_on_any_number_of_hosts(
  rows, block_rows, batch_size, window_blocks, seed, epoch, parts
):
  sizes = (rows, block_rows, batch_size, window_blocks, seed)
  whole = epoch_of(reader(*sizes)[0], batch_size, rows, epoch)
  assert sorted(joined(whole)) == list(range(rows))
  each = [
    epoch_of(reader(*sizes, part, parts)[0], batch_size, rows, epoch) for part in range(parts)
  ]
  for batch, *there in zip(whole, *each, strict=True):
    assert joined(there) == batch


@pytest.mark.parametrize('sizes', SIZES)
def test_reading_can_begin_at_any_batch(sizes):
  one = reader(*sizes, 5)[0]
  whole = [batch for epoch in range(3) for batch in epoch_of(one, sizes[2], sizes[0], epoch)]
  per_epoch = len(whole) // 3
  for k in np.random.default_rng(0).permutation(len(whole)).tolist()[:20]:
    other = reader(*sizes, 5)[0]
    assert numbers(other.read(*divmod(k, per_epoch))) == whole[k]
    assert numbers(one.read(*divmod(k, per_epoch))) == whole[k]


def test_concurrent_threads_read_the_same_rows():
  """Windows come and go while others are used: no buffer may be reused too early."""
  rows, block_rows, batch_size, window_blocks = 4000, 50, 100, 4
  whole = [reader(rows, block_rows, batch_size, window_blocks, 5)[0].read(0, k) for k in range(40)]
  one = reader(rows, block_rows, batch_size, window_blocks, 5)[0]
  made, empty = [], one._empty
  one._empty = lambda n: made.append(n) or empty(n)
  keys = np.random.default_rng(0).integers(0, 40, 600).tolist()
  with concurrent.futures.ThreadPoolExecutor(6) as pool:
    for k, got in zip(keys, pool.map(lambda k: one.read(0, k), keys), strict=True):
      np.testing.assert_array_equal(got.ids, whole[k].ids)
      np.testing.assert_array_equal(got.groups, whole[k].groups)
  assert sum(n > batch_size for n in made) <= 16  # windows: a few buffers are reused


def test_a_host_reads_only_the_blocks_of_its_rows():
  """With 64 blocks a window and 8 hosts: 8 blocks of each window, and at most 2 shared ones."""
  rows, block_rows, batch_size, windows = 64 * 4 * 32, 32, 128, 4
  for part in range(8):
    one, blocks = reader(rows, block_rows, batch_size, 64, 3, part, 8)
    for k in range(rows // batch_size):
      one.read(0, k)
    one._window_loader.shutdown(wait=True)  # the window after the last is of the next epoch
    this_epoch = blocks.read_blocks[: -len(blocks.read_blocks) // (windows + 1) or None]
    assert windows * 8 <= len(this_epoch) <= windows * 10
    assert len(set(this_epoch)) == len(this_epoch)


def test_rows_of_a_block_are_spread_over_the_batches_of_their_window():
  got = epoch_of(reader(64 * 4 * 32, 32, 128, 64, 3)[0], 128, 64 * 4 * 32, 0)
  where = {row: k for k, batch in enumerate(got) for row in batch}
  for block in range(0, 256, 17):
    batches = {where[row] for row in range(32 * block, 32 * block + 32)}
    assert len(batches) >= 12 and max(batches) - min(batches) <= 16  # 16 batches a window


def test_an_error_in_reading_ahead_is_raised_where_the_window_is_needed():
  one, blocks = reader(1000, 50, 100, 4, 5)
  whole = blocks.read
  bad = int(one._plan.blocks_in_window(0, 1)[0])

  def read(index):
    if index == bad:
      raise OSError('gone')
    return whole(index)

  blocks.read = read
  one.read(0, 0)
  with pytest.raises(OSError, match='gone'):
    one.read(0, 3)


@pytest.mark.parametrize('marked', [True, False])
def test_unique_ids_match_numpy(monkeypatch, marked):
  if not marked:  # few marks, so that many ids share one
    monkeypatch.setattr('deres_jax.data.unique_ids._MARKED_ROWS', 10)
    monkeypatch.setattr('deres_jax.data.unique_ids._HASH_BITS', 8)
  tables = layout.Tables((5000, 300), 4)
  unique = unique_ids.UniqueIds(tables)
  rng = np.random.default_rng(1)
  for n, high in ((1, 3), (40, 3), (9000, 5300), (20_000, tables.padding + 1)):
    ids = np.minimum(rng.zipf(1.3, n), high - 1).astype(np.int32)
    ids[: n // 9] = tables.padding
    expected, at = np.unique(tables.storage_index(ids), return_inverse=True)
    if expected[-1] == tables.padding:
      expected, at = expected[:-1], np.where(at == len(expected) - 1, -1, at)
    places, inverse = unique.unique(ids)
    np.testing.assert_array_equal(places, expected)
    np.testing.assert_array_equal(inverse, at)
    assert places.dtype == inverse.dtype == np.int32


def test_permutations_are_pinned():
  """A change here changes the data order of every run, and needs a line in CHANGELOG."""
  assert shuffle_plan.permutation(8, 1, 2, 3).tolist() == [1, 2, 4, 6, 5, 0, 7, 3]
  draws = np.random.Philox(np.random.SeedSequence((3, 1))).random_raw(5000)
  np.testing.assert_array_equal(shuffle_plan.permutation(5000, 3, 1), np.argsort(draws))
