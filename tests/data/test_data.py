# SPDX-License-Identifier: Apache-2.0
"""Batches are a pure function of (seed, epoch, step) and lose no row."""

import json
import shutil

import numpy as np
import pytest
from made import numbers

from deres_jax.core.errors import UserError
from deres_jax.data import batches as batches_lib
from deres_jax.data import shuffle_plan
from deres_jax.data.blocks import Blocks
from deres_jax.data.schema import load_schema
from deres_jax.embeddings import layout


def batches(folder, batch_size=512, devices=1, window_blocks=64, seed=7, split='train'):
  schema = load_schema(str(folder))
  tables = layout.Tables(schema.vocab_sizes, 4)
  blocks = Blocks(schema, split)
  return batches_lib.Batches(blocks, tables, batch_size, devices, window_blocks, seed)


def decode(b, batch):
  """Returns (ids [n, F], labels [n]) of the real examples of a batch."""
  ids = numbers(b._tables, batch, b._devices)
  real = batch.weights == 1
  assert (ids[~real] == b._tables.padding).all() and not batch.labels[~real].any()
  assert batch.num_examples == real.sum()
  return ids[real], batch.labels[real]


def rows_of(b, indices):
  parts = [decode(b, b[i]) for i in indices]
  return np.concatenate([np.column_stack(p) for p in parts])


def stored(b):
  """Returns all rows of the split in stored order, with global ids."""
  blocks = b._reader._blocks
  parts = [blocks.read(i) for i in range(len(blocks._source))]
  return np.concatenate(
    [np.column_stack([r.ids + b._tables.column_offsets, r.labels]) for r in parts]
  )


def as_multiset(rows):
  return rows[np.lexsort(rows.T)]


@pytest.mark.parametrize('window_blocks', [1, 64])
@pytest.mark.parametrize('batch_size', [512, 6000, 8192])
def test_every_row_is_in_exactly_one_batch_of_an_epoch(planted, batch_size, window_blocks):
  b = batches(planted, batch_size, window_blocks=window_blocks)
  for epoch in range(2):
    first = epoch * b.per_epoch
    seen = rows_of(b, range(first, first + b.per_epoch))
    np.testing.assert_array_equal(as_multiset(seen), as_multiset(stored(b)))
  assert b.examples_until(2 * b.per_epoch) == 12_000
  assert sum(b.size(i) for i in range(b.per_epoch)) == 6000


def test_epochs_seeds_and_windows_change_the_order(planted):
  b = batches(planted)
  first, again = rows_of(b, [0]), rows_of(batches(planted), [0])
  np.testing.assert_array_equal(first, again)
  assert (first != rows_of(b, [b.per_epoch])).any()
  assert (first != rows_of(batches(planted, seed=8), [0])).any()
  assert (first != stored(b)[:512]).any()
  one = batches(planted, split='validation')  # a single block: only its rows change order
  assert (
    one._reader._plan.blocks == 1 and (rows_of(one, [0]) != rows_of(one, [one.per_epoch])).any()
  )


def test_a_batch_does_not_depend_on_earlier_reads(planted):
  forward = batches(planted, window_blocks=1)
  there = [rows_of(forward, [i]) for i in range(30)]
  back = batches(planted, window_blocks=1)
  for i in reversed(range(30)):
    np.testing.assert_array_equal(rows_of(back, [i]), there[i])


def test_the_global_batch_does_not_depend_on_the_number_of_devices(planted):
  one, eight = batches(planted), batches(planted, devices=8)
  for i in (0, 5, one.per_epoch - 1):
    np.testing.assert_array_equal(rows_of(one, [i]), rows_of(eight, [i]))
    (ids,) = eight[i].unique_ids
    assert (np.diff(ids) > 0).all(), 'different and ascending for each asker and owner'


def test_without_a_seed_rows_come_in_stored_order(planted):
  b = batches(planted, seed=None, split='test')
  np.testing.assert_array_equal(rows_of(b, range(b.per_epoch)), stored(b))


@pytest.mark.parametrize('devices', [1, 8])
def test_a_batch_above_the_default_capacity_grows_and_loses_nothing(planted, devices):
  b = batches(planted, batch_size=64, devices=devices)
  default = b[0].unique_ids[0].shape[1]
  assert default == b.default_capacity[0] >= b.host_batch(b.examples(0)).required[0]
  b.default_capacity = np.array([3], np.int32)  # too small: every batch must grow
  whole = batches(planted, batch_size=64)
  for i in range(3):
    batch = b[i]
    capacity = batch.unique_ids[0].shape[1]
    assert capacity & (capacity - 1) == 0 and capacity > 3
    np.testing.assert_array_equal(np.column_stack(decode(b, batch)), rows_of(whole, [i]))


def test_the_default_capacity_fits_nearly_all_batches_and_wastes_little():
  """For any first batch and any number of devices."""
  rng = np.random.default_rng(0)
  for devices in (1, 8, 32):
    for mean in (30, 1000, 20_000):
      required = rng.poisson(mean, (2000, devices**2)).max(axis=1)
      first = required[:200, None]
      capacity = np.array([batches_lib.initial_capacity(x, devices)[0] for x in first])
      # Real counts vary less than Poisson's.
      assert (required[None] <= capacity[:, None]).mean() > 0.99
    assert capacity.mean() < 1.06 * mean


def test_neighbouring_ids_are_in_different_shards():
  tables = layout.Tables((100_000, 50_000), 4, narrow=((60_000, 2),))
  for devices in (2, 8, 64, 1024):
    edges = tables.shard_bounds(devices)
    for start in tables.table_offsets[:-1].astype(np.int32):
      row = np.arange(0, 5000, dtype=np.int32)
      owner = np.searchsorted(edges, tables.storage_index(start + row), side='right') - 1
      first = np.array([owner[row % devices == r][0] for r in range(devices)])
      assert len(set(first.tolist())) == devices
      np.testing.assert_array_equal(owner, first[row % devices])


@pytest.mark.parametrize(('devices', 'parts'), [(8, 2), (8, 8), (4, 4)])
def test_the_slices_of_all_hosts_make_the_batch_of_a_single_host(planted, devices, parts):
  whole = batches(planted, batch_size=1000, devices=devices)
  schema, blocks = whole.schema, whole._reader._blocks
  hosts = [
    batches_lib.Batches(blocks, whole._tables, 1000, devices, 64, 7, part, parts)
    for part in range(parts)
  ]
  assert schema.block_rows == 4096 and shuffle_plan.LANES == 64
  for k in (0, whole.per_epoch - 1):
    host_batches = [h.host_batch(h.examples(k), h.size(k)) for h in hosts]
    required = np.max([d.required for d in host_batches], axis=0)
    room = whole.capacities(required)
    each = [h.finish(d, room) for h, d in zip(hosts, host_batches, strict=True)]
    one = whole[k]
    assert one.unique_ids[0].shape == (devices * devices, room[0])
    for name in ('inverse', 'event_mask', 'labels', 'weights'):
      joined = np.concatenate([getattr(x, name) for x in each])
      np.testing.assert_array_equal(joined, getattr(one, name))
    np.testing.assert_array_equal(
      np.concatenate([x.unique_ids[0] for x in each]), one.unique_ids[0]
    )
    assert {float(x.num_examples) for x in each} == {float(one.num_examples)} == {whole.size(k)}


def test_columns_with_few_ids_have_separate_tables(planted):
  """Compares the global ids of three tables with the stored ids."""
  schema = load_schema(str(planted))
  sizes = sorted(schema.vocab_sizes)
  tables = layout.Tables(schema.vocab_sizes, 8, 0, ((sizes[1], 2), (sizes[3], 4)))
  assert len(tables.parts) == 3
  b = batches_lib.Batches(Blocks(schema, 'train'), tables, 512, 8, 64, None)
  batch, plain = b[0], batches(planted, seed=None)
  column_tables = [tables.table_of[c] for c in schema.columns]
  assert len(batch.unique_ids) == 3 and len({x.shape[1] for x in batch.unique_ids}) > 1
  got = numbers(tables, batch, 8, column_tables) - tables.column_offsets
  np.testing.assert_array_equal(got, decode(plain, plain[0])[0] - plain._tables.column_offsets)


def test_prefetch_keeps_order_starts_anywhere_and_propagates_errors():
  assert list(batches_lib.prefetch(lambda i: i * i, 3, 9, 2, 4)) == [9, 16, 25, 36, 49, 64]

  def fail(i):
    if i == 4:
      raise UserError('block 4 is bad')
    return i

  with pytest.raises(UserError, match='block 4 is bad'):
    list(batches_lib.prefetch(fail, 0, 9, 2, 4))


def spoil(planted, tmp_path, change):
  folder = tmp_path / 'data'
  shutil.copytree(planted, folder)
  file = folder / 'schema.json'
  schema = json.loads(file.read_text())
  change(schema)
  file.write_text(json.dumps(schema))
  return folder


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    (
      lambda s: s.update(format='other'),
      ["format ('other', 3)", 'build the folder with this version'],
    ),
    (lambda s: s.update(format_version=9), ["format ('deres_jax.prepared', 9)", 'expected']),
    (lambda s: s.pop('fields'), ['missing required field `fields`', 'doctor']),
    (lambda s: s['splits'].pop('test'), ['test']),
    (
      lambda s: s['splits']['train'].update(rows='many'),
      ['rows`', 'expected `int`, got `str`'],
    ),
    (lambda s: s.update(tfds='../elsewhere'), ['outside']),
    (lambda s: s['fields'][0].update(kind='dense'), ['$.fields[0].kind', 'dense']),
  ],
)
def test_a_wrong_schema_gives_a_one_line_error(planted, tmp_path, change, words):
  folder = spoil(planted, tmp_path, change)
  with pytest.raises(UserError) as e:
    load_schema(str(folder))
  text = str(e.value)
  assert '\n' not in text and all(w in text for w in words), text


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    (lambda s: s['fields'][2].update(vocab_size=4), ['out of range 0..3', 'field', 'block']),
    (
      lambda s: s['fields'][1].update(vocab_size=s['fields'][1]['vocab_size'] - 1),
      ['out of range', 'field f02'],
    ),
    (lambda s: s['splits']['train'].update(rows=60_000), ['blocks', 'expects 15']),
    (lambda s: s['splits']['train'].update(rows=5999), ['block 1', 'expects']),
    (lambda s: s['fields'].pop(), ['expects ids int32', ', 5]']),
    (lambda s: s.update(tfds='nowhere/1.0.0'), ['No such file', 'doctor']),
    (lambda s: s.update(tfds='x' * 300), ['too long', 'doctor']),
  ],
)
def test_data_that_contradict_the_schema_are_refused(planted, tmp_path, change, words):
  with pytest.raises(UserError) as e:
    b = batches(spoil(planted, tmp_path, change))
    rows_of(b, range(b.per_epoch))
  text = str(e.value)
  assert '\n' not in text and all(w in text for w in words), text


NO_ARRAY = {'encoding': 'none', 'shape': {}}  # TFDS reads it as None where a record lacks it


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    (lambda label: {'extra': label | {'tensor': label['tensor'] | NO_ARRAY}}, 'extra object'),
    (
      lambda label: {'label': label | {'tensor': label['tensor'] | {'encoding': 'zlib'}}},
      'cannot be read .*decompressing',
    ),
  ],
)
def test_features_that_records_lack_are_refused(planted, tmp_path, change, words):
  folder = spoil(planted, tmp_path, lambda s: None)
  file = next(folder.rglob('features.json'))
  content = json.loads(file.read_text())
  features = content['featuresDict']['features']
  features |= change(features['label'])
  file.write_text(json.dumps(content))
  with pytest.raises(UserError, match=words):
    batches(folder).examples(0)


def _remove(file):
  file.unlink()


def _truncate(file):
  file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _flip(file):
  content = bytearray(file.read_bytes())
  for at in range(0, len(content), 1009):
    content[at] ^= 0xFF
  file.write_bytes(bytes(content))


@pytest.mark.parametrize('harm', [_remove, _truncate, _flip])
def test_reading_a_damaged_record_file_fails(planted, tmp_path, harm):
  folder = spoil(planted, tmp_path, lambda s: None)
  harm(next(folder.rglob('*train.array_record*')))
  with pytest.raises(UserError, match=r'split train cannot be read .*doctor'):
    b = batches(folder)
    rows_of(b, range(b.per_epoch))


def test_errors_name_missing_folders(tmp_path):
  for path, words in [('', 'data.path is empty'), (tmp_path / 'no', 'no such folder')]:
    with pytest.raises(UserError, match=words):
      load_schema(str(path))
  with pytest.raises(UserError, match=r'holds no schema\.json'):
    load_schema(str(tmp_path))
