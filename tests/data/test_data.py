# SPDX-License-Identifier: Apache-2.0
"""Batches are a pure function of (seed, epoch, step) and lose no row."""

import json
import shutil

import numpy as np
import pytest
from made import numbers

from deres_jax.core.errors import UserError
from deres_jax.data import batches as batches_lib
from deres_jax.data import order
from deres_jax.data.blocks import Blocks
from deres_jax.data.schema import load_schema
from deres_jax.embeddings import layout


def batches(folder, batch_size=512, devices=1, window_blocks=64, seed=7, split='train'):
  schema = load_schema(str(folder))
  tables = layout.Tables(schema.vocab_sizes, 4)
  blocks = Blocks(schema, split)
  return batches_lib.Batches(blocks, tables, batch_size, devices, window_blocks, seed)


def decode(b, batch):
  """(ids [n, F], labels [n]) of the real rows of a batch, through ids and inverse."""
  ids = numbers(b._tables, batch, b._devices)
  real = batch.weights == 1
  assert (ids[~real] == b._tables.padding).all() and not batch.labels[~real].any()
  assert batch.rows == real.sum()
  return ids[real], batch.labels[real]


def rows_of(b, indices):
  parts = [decode(b, b[i]) for i in indices]
  return np.concatenate([np.column_stack(p) for p in parts])


def stored(b):
  """All rows of the split in their order on disk, as the model numbers them."""
  blocks = b._reader._blocks
  parts = [blocks.read(i) for i in range(len(blocks._source))]
  return np.concatenate(
    [np.column_stack([r.ids + b._tables.column_offsets, r.labels]) for r in parts]
  )


def as_multiset(rows):
  return rows[np.lexsort(rows.T)]


@pytest.mark.parametrize('window_blocks', [1, 64])
@pytest.mark.parametrize('batch_size', [512, 6000, 8192])
def test_every_row_stands_in_one_batch_of_an_epoch(planted, batch_size, window_blocks):
  b = batches(planted, batch_size, window_blocks=window_blocks)
  for epoch in range(2):
    first = epoch * b.per_epoch
    seen = rows_of(b, range(first, first + b.per_epoch))
    np.testing.assert_array_equal(as_multiset(seen), as_multiset(stored(b)))
  assert b.rows_until(2 * b.per_epoch) == 12_000
  assert sum(b.size(i) for i in range(b.per_epoch)) == 6000


def test_epochs_seeds_and_windows_give_other_orders(planted):
  b = batches(planted)
  first, again = rows_of(b, [0]), rows_of(batches(planted), [0])
  np.testing.assert_array_equal(first, again)
  assert (first != rows_of(b, [b.per_epoch])).any()
  assert (first != rows_of(batches(planted, seed=8), [0])).any()
  assert (first != stored(b)[:512]).any()
  one = batches(planted, split='validation')  # a single block: only its rows can change places
  assert (
    one._reader._order.blocks == 1 and (rows_of(one, [0]) != rows_of(one, [one.per_epoch])).any()
  )


def test_a_batch_does_not_depend_on_what_was_read_before(planted):
  forward = batches(planted, window_blocks=1)
  there = [rows_of(forward, [i]) for i in range(30)]
  back = batches(planted, window_blocks=1)
  for i in reversed(range(30)):
    np.testing.assert_array_equal(rows_of(back, [i]), there[i])


def test_the_global_batch_does_not_depend_on_the_devices(planted):
  one, eight = batches(planted), batches(planted, devices=8)
  for i in (0, 5, one.per_epoch - 1):
    np.testing.assert_array_equal(rows_of(one, [i]), rows_of(eight, [i]))
    (ids,) = eight[i].ids
    assert (np.diff(ids) > 0).all(), 'different and ascending for each asker and owner'


def test_without_a_seed_rows_come_as_they_are_stored(planted):
  b = batches(planted, seed=None, split='test')
  np.testing.assert_array_equal(rows_of(b, range(b.per_epoch)), stored(b))


@pytest.mark.parametrize('devices', [1, 8])
def test_a_batch_that_needs_more_room_gets_it_and_loses_nothing(planted, devices):
  b = batches(planted, batch_size=64, devices=devices)
  usual = b[0].ids[0].shape[1]
  assert usual == b.floor[0] >= b.draft(b.rows(0)).need[0]
  b.floor = np.array([3], np.int32)  # too small on purpose: every batch must find room all the same
  whole = batches(planted, batch_size=64)
  for i in range(3):
    batch = b[i]
    room = batch.ids[0].shape[1]
    assert room & (room - 1) == 0 and room > 3
    np.testing.assert_array_equal(np.column_stack(decode(b, batch)), rows_of(whole, [i]))


def test_the_usual_room_holds_batches_like_the_first_and_wastes_little():
  """Whatever batch came first, of any number of pairs of devices."""
  rng = np.random.default_rng(0)
  for devices in (1, 8, 32):
    for mean in (30, 1000, 20_000):
      need = rng.poisson(mean, (2000, devices**2)).max(axis=1)
      room = np.array([batches_lib.roomy(need[:1], devices)[0] for need in need[:, None][:200]])
      assert (need[None] <= room[:, None]).mean() > 0.99  # counts of rows vary less than Poisson's
    assert room.mean() < 1.06 * mean


def test_neighbouring_ids_are_of_different_owners():
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
def test_hosts_assemble_the_batch_of_one(planted, devices, parts):
  """The parts of all hosts side by side are the batch of a host that has all devices."""
  whole = batches(planted, batch_size=1000, devices=devices)
  schema, blocks = whole.schema, whole._reader._blocks
  hosts = [
    batches_lib.Batches(blocks, whole._tables, 1000, devices, 64, 7, part, parts)
    for part in range(parts)
  ]
  assert schema.block_rows == 4096 and order.LANES == 64
  for k in (0, whole.per_epoch - 1):
    drafts = [h.draft(h.rows(k), h.size(k)) for h in hosts]
    need = np.max([d.need for d in drafts], axis=0)
    room = whole.capacities(need)
    each = [h.finish(d, room) for h, d in zip(hosts, drafts, strict=True)]
    one = whole[k]
    assert one.ids[0].shape == (devices * devices, room[0])
    for name in ('inverse', 'there', 'labels', 'weights'):
      joined = np.concatenate([getattr(x, name) for x in each])
      np.testing.assert_array_equal(joined, getattr(one, name))
    np.testing.assert_array_equal(np.concatenate([x.ids[0] for x in each]), one.ids[0])
    assert {float(x.rows) for x in each} == {float(one.rows)} == {whole.size(k)}


def test_columns_of_few_ids_have_tables_of_their_own(planted):
  """Numbers, places and capacities of three tables, against the ids as they are stored."""
  schema = load_schema(str(planted))
  sizes = sorted(schema.vocab_sizes)
  tables = layout.Tables(schema.vocab_sizes, 8, 0, ((sizes[1], 2), (sizes[3], 4)))
  assert len(tables.parts) == 3
  b = batches_lib.Batches(Blocks(schema, 'train'), tables, 512, 8, 64, None)
  batch, plain = b[0], batches(planted, seed=None)
  column_tables = [tables.table_of[c] for c in schema.columns]
  assert len(batch.ids) == 3 and len({x.shape[1] for x in batch.ids}) > 1
  got = numbers(tables, batch, 8, column_tables) - tables.column_offsets
  np.testing.assert_array_equal(got, decode(plain, plain[0])[0] - plain._tables.column_offsets)


def test_prefetch_keeps_order_starts_anywhere_and_passes_errors_on():
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
    (lambda s: s.update(format='other'), ['format', 'other', 'deres_jax.prepared']),
    (lambda s: s.update(format_version=9), ['9']),
    (lambda s: s.pop('fields'), ['damaged', 'fields', 'doctor']),
    (lambda s: s['splits'].pop('test'), ['test']),
    (lambda s: s['splits']['train'].update(rows='many'), ['damaged', 'many']),
    (lambda s: s.update(tfds='../elsewhere'), ['outside']),
    (lambda s: s['fields'][0].update(kind='dense'), ['dense', 'categorical']),
  ],
)
def test_a_wrong_schema_is_one_clear_line(planted, tmp_path, change, words):
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
    (lambda s: s.update(tfds='nowhere/1.0.0'), ['cannot be read', 'doctor']),
    (lambda s: s.update(tfds='x' * 300), ['cannot be read', 'too long', 'doctor']),
  ],
)
def test_data_that_contradict_the_schema_are_refused(planted, tmp_path, change, words):
  with pytest.raises(UserError) as e:
    b = batches(spoil(planted, tmp_path, change))
    rows_of(b, range(b.per_epoch))
  text = str(e.value)
  assert '\n' not in text and all(w in text for w in words), text


NO_ARRAY = {'encoding': 'none', 'shape': {}}  # TFDS makes None of it where a record lacks it


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
def test_features_that_records_do_not_have_are_refused(planted, tmp_path, change, words):
  folder = spoil(planted, tmp_path, lambda s: None)
  file = next(folder.rglob('features.json'))
  content = json.loads(file.read_text())
  features = content['featuresDict']['features']
  features |= change(features['label'])
  file.write_text(json.dumps(content))
  with pytest.raises(UserError, match=words):
    batches(folder).rows(0)


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
def test_a_damaged_record_file_is_noticed_when_read(planted, tmp_path, harm):
  folder = spoil(planted, tmp_path, lambda s: None)
  harm(next(folder.rglob('*train.array_record*')))
  with pytest.raises(UserError, match=r'split train cannot be read .*doctor'):
    b = batches(folder)
    rows_of(b, range(b.per_epoch))


def test_missing_folders_are_named(tmp_path):
  for path, words in [('', 'data.path is empty'), (tmp_path / 'no', 'no such folder')]:
    with pytest.raises(UserError, match=words):
      load_schema(str(path))
  with pytest.raises(UserError, match=r'holds no schema\.json'):
    load_schema(str(tmp_path))
