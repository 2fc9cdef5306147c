# SPDX-License-Identifier: Apache-2.0
"""Doctor finds rows that are in two splits, and vocabularies counted on more than training."""

import re
from collections import Counter

import numpy as np
import pytest
from prepared_rows import write_folder

from data_pipelines.core.workers import Workers
from data_pipelines.doctor import __main__ as doctor
from data_pipelines.doctor import rows as rows_lib
from data_pipelines.doctor.leaks import Leaks, too_many
from data_pipelines.doctor.rows import row_hashes
from data_pipelines.prepared.dataset import FieldInfo
from data_pipelines.prepared.records import read_shard
from data_pipelines.prepared.schema import Attribute, Group, RecordShape, Sequence, read_schema
from data_pipelines.prepared.tfds import split_files

PAIRS = (('validation', 'train'), ('test', 'train'), ('test', 'validation'))


def encoded(values, min_count=1, counted=('train',)):
  """Encodes values, int [rows, fields] by split; counts the vocabulary on some of the splits."""
  width = values['train'].shape[1]
  ids = {split: np.ones(rows.shape, np.int32) for split, rows in values.items()}
  fields = []
  for f in range(width):
    seen = np.concatenate([values[split][:, f] for split in counted])
    tokens, counts = np.unique(seen, return_counts=True)
    order = np.lexsort((tokens, -counts))
    kept = [tokens[k] for k in order if counts[k] >= min_count]
    for number, token in enumerate(kept):
      for split, rows in values.items():
        ids[split][rows[:, f] == token, f] = number + 2
    fields.append(FieldInfo(f'f{f}', len(kept) + 2, min_count, 0.0))
  columns = {
    split: {'ids': rows, 'label': (np.arange(len(rows)) % 3 == 0).astype(np.uint8)}
    for split, rows in ids.items()
  }
  return tuple(fields), columns


def draw(seed, rows, highs):
  """Values uniform below `highs`, by split."""
  rng = np.random.default_rng(seed)
  return {
    split: np.stack([rng.integers(high, size=count) for high in highs], axis=1)
    for split, count in zip(('train', 'validation', 'test'), rows, strict=True)
  }


def diagnose(folder, capsys):
  """Runs doctor; returns exit code, output and the one-line error."""
  capsys.readouterr()
  code = doctor.main([str(folder), '--workers=1'])
  printed = capsys.readouterr()
  assert printed.err.count('\n') == (code == 2)
  return code, printed.out, printed.err


def told(printed):
  """Parses the reported numbers of rows in both splits of a pair, and of repeated training rows."""
  found = {
    (a, b): int(count.replace(',', ''))
    for a, b, count in re.findall(
      r'note    (\w+): rows that stand in (\w+) too: ([\d,]+) of', printed
    )
  }
  (within,) = re.findall(r'note    train: ([\d,]+) of [\d,]+ \(.*\) rows have an equal', printed)
  return found, int(within.replace(',', ''))


def social(rows=(5000, 700, 600)):
  """Rows with events and users and few values, so that many are equal."""
  fields, columns = encoded(draw(1, rows, (4, 9)), min_count=0)
  rng = np.random.default_rng(2)
  for split, count in zip(columns, rows, strict=True):
    events = rng.integers(2, 4, size=(count, 3, 2)).astype(np.int32)
    events[rng.random(count) < 0.5, :2] = 0
    columns[split] |= {'events': events, 'group': rng.integers(3, size=count).astype(np.int32)}
  own = Attribute('kind', 4, None)
  sequence = Sequence(3, [Attribute('f0', fields[0].vocab_size, 'f0'), own])
  return fields, columns, sequence, Group('user', 3)


@pytest.mark.parametrize('kind', ['plain', 'social'])
def test_counts_equal_those_of_a_set(tmp_path, capsys, kind):
  plain = encoded(draw(0, (5000, 700, 600), (5, 6, 7, 8, 9)))
  rest = plain if kind == 'plain' else social()
  columns = rest[1]
  rows = {
    split: [
      tuple(part[i].tobytes() for name, part in sorted(parts.items()) if name != 'label')
      for i in range(len(parts['label']))
    ]
    for split, parts in columns.items()
  }
  code, printed, _ = diagnose(write_folder(tmp_path / 'x', *rest), capsys)
  found, within = told(printed)
  assert code == 0
  assert within == sum(count for count in Counter(rows['train']).values() if count > 1)
  for a, b in PAIRS:
    expected = sum(row in set(rows[b]) for row in rows[a])
    assert found[a, b] == expected
    assert 0 < expected < len(rows[a])


@pytest.mark.parametrize('leaked, fails', [(0, False), (10, True)])
def test_leaked_rows_fail_in_one_line(tmp_path, capsys, leaked, fails):
  values = draw(3, (6000, 300, 400), (50, 60, 70, 80))
  values['train'][100 : 100 + 4 * leaked] = values['test'][: 4 * leaked]
  code, printed, error = diagnose(write_folder(tmp_path / 'x', *encoded(values, 2)), capsys)
  assert (code == 2) == fails
  if fails:
    assert 'test: rows that stand in train too: 40 of 400 (10.00%), where equal rows expl' in error
    assert error.count(' too: ') == 1 and '1 of ' in error  # nothing else is wrong
    assert 'ok      validation: rows that stand in train too' in printed


def test_test_rows_in_validation_fail(tmp_path, capsys):
  values = draw(4, (3000, 400, 400), (50, 60, 70, 80))
  values['validation'][:40] = values['test'][:40]
  code, _, error = diagnose(write_folder(tmp_path / 'x', *encoded(values)), capsys)
  assert code == 2 and 'test: rows that stand in validation too: 40 of 400' in error
  assert '1 of ' in error


def test_duplicates_without_a_leak_pass(tmp_path, capsys):
  values = draw(5, (5000, 500, 500), (4, 5, 6))
  code, printed, _ = diagnose(write_folder(tmp_path / 'x', *encoded(values)), capsys)
  assert code == 0 and told(printed)[0]['test', 'train'] == 500


@pytest.mark.parametrize('most', [1 << 27, 10_000])
def test_rare_tokens_are_compared_as_if_held_out(tmp_path, capsys, monkeypatch, most):
  # A token that occurs twice in training is known there, but a held-out row that has one of
  # only one is unknown, and equal to all other unknown ones.
  monkeypatch.setattr(rows_lib, 'MAX_HASHES', most)
  values = draw(6, (16_000, 1000, 1000), (8000, 2000))
  code, printed, _ = diagnose(write_folder(tmp_path / 'x', *encoded(values, 2)), capsys)
  found, within = told(printed)
  part = 1 if most > 16_000 else 2
  assert too_many(found['test', 'train'], 1000 // part, within, 16_000 // part)
  assert not too_many(0, 1000 // part, within, 16_000 // part)
  assert code == 0 and 'ok      test: rows that stand in train too' in printed
  # A leak is still found.
  values['train'][:400] = values['test'][:400]
  code, _, error = diagnose(write_folder(tmp_path / 'y', *encoded(values, 2)), capsys)
  assert code == 2 and 'test: rows that stand in train too' in error


@pytest.mark.parametrize('most', [1 << 27, 4000])
def test_share_of_held_out_rows_equals_that_of_a_loop(tmp_path, monkeypatch, most):
  fields, columns = encoded(draw(6, (16_000, 300, 300), (8000, 1500)), 2)
  folder = write_folder(tmp_path / 'x', fields, columns)
  monkeypatch.setattr(rows_lib, 'MAX_HASHES', most)
  schema = read_schema(folder)
  plan, workers = rows_lib.row_plan(schema), Workers(1)
  assert plan.drop_bits == (0 if most > 16_000 else 2)
  files = {split: split_files(folder / schema.tfds, split) for split in columns}
  rows = {
    split: rows_lib.read_split(paths, plan, split == 'train', workers)
    for split, paths in files.items()
  }
  found = Leaks(rows, files['train'], plan, {0: 2, 1: 2}).held_out(workers)
  share = found / len(rows['train'].hashes_N)

  stored = [tuple(row) for row in columns['train']['ids'].tolist()]
  counts = [Counter(column) for column in zip(*stored, strict=True)]
  times, expected = Counter(stored), 0
  for row in stored:
    as_held_out = tuple(1 if counts[f][i] == 2 else i for f, i in enumerate(row))
    expected += times[row] > 1 or (as_held_out != row and as_held_out in times)
  assert expected > 2 * sum(count for count in times.values() if count > 1)
  if most > 16_000:
    assert found == expected
  assert share == pytest.approx(expected / 16_000, rel=0.1)


def test_drift_within_a_split_passes(tmp_path, capsys):
  values = draw(7, (4000, 500, 500), (50, 60, 70))
  values['test'][:] = values['train'][0]  # the same row again and again, late in time
  code, printed, _ = diagnose(write_folder(tmp_path / 'x', *encoded(values)), capsys)
  assert code == 0 and told(printed)[0]['test', 'train'] == 500


@pytest.mark.parametrize(
  'found, rows, repeated, of_rows, expected',
  [
    (0, 0, 0, 10, False),
    (1, 1, 0, 100_000, False),  # one row proves nothing
    (3, 3, 0, 100_000, False),
    (5, 5, 0, 100_000, True),
    (100, 10_000, 0, 100_000, False),  # one per cent is tolerated
    (200, 10_000, 0, 100_000, True),
    (2200, 10_000, 20_000, 100_000, False),
    (2400, 10_000, 20_000, 100_000, True),
    (240, 1000, 200, 1000, False),  # the measure is as uncertain as the split
    (10_000, 10_000, 100_000, 100_000, False),
  ],
)
def test_too_many(found, rows, repeated, of_rows, expected):
  assert too_many(found, rows, repeated, of_rows) == expected


def test_false_alarms_are_rare():
  rng = np.random.default_rng(8)
  for seed in range(200):
    pool = rng.zipf(1.3, size=3300) % 3000 + seed
    train, test = pool[:3000], pool[3000:]
    known, counts = np.unique(train, return_counts=True)
    repeated = int(counts[counts > 1].sum())
    assert not too_many(int(np.isin(test, known).sum()), 300, repeated, 3000)


@pytest.mark.parametrize('counted', [('train', 'test'), ('train', 'validation', 'test')])
def test_vocabulary_of_all_rows_fails(tmp_path, capsys, counted):
  values = draw(9, (2000, 500, 500), (400, 3, 3))
  good = write_folder(tmp_path / 'x', *encoded(values, 4))
  assert diagnose(good, capsys)[0] == 0
  bad = write_folder(tmp_path / 'y', *encoded(values, 4, counted))
  code, _, error = diagnose(bad, capsys)
  assert code == 2 and 'vocabulary: every token occurs often enough in train: f0: ' in error
  assert 'vocabulary: ids fall in training count: f0: id ' in error


def test_ids_out_of_order_fail_ties_do_not(tmp_path, capsys):
  values = draw(10, (2000, 100, 100), (20, 20))
  fields, columns = encoded(values)
  counts = np.bincount(columns['train']['ids'][:, 1], minlength=22)
  step = 2 + int(np.flatnonzero(np.diff(counts[2:]) < 0)[0])
  tie = 2 + int(np.flatnonzero(np.diff(counts[2:]) == 0)[0])
  for first, fails in ((step, True), (tie, False)):
    changed = {split: parts | {'ids': parts['ids'].copy()} for split, parts in columns.items()}
    for split, parts in columns.items():
      changed[split]['ids'][:, 1][parts['ids'][:, 1] == first] = first + 1
      changed[split]['ids'][:, 1][parts['ids'][:, 1] == first + 1] = first
    code, _, error = diagnose(write_folder(tmp_path / f'{first}', fields, changed), capsys)
    assert (code == 2) == fails
    line = f'falls in training count: f1: id {first + 1} is more frequent than id {first}'
    assert (line.replace('falls', 'fall') in error) == fails


def test_ids_of_events_count_for_the_field_they_share(tmp_path, capsys):
  fields, columns, sequence, group = social()
  fields = (FieldInfo('f0', fields[0].vocab_size + 1, 1, 0.0), fields[1])
  attribute = Attribute('f0', fields[0].vocab_size, 'f0')
  sequence = Sequence(3, [attribute, sequence.attributes[1]])
  rest = (sequence, group)
  code, _, error = diagnose(write_folder(tmp_path / 'x', fields, columns, *rest), capsys)
  last = fields[0].vocab_size - 1
  assert code == 2 and f'f0: 1 ids occur in fewer than 1 training rows, as id {last} in 0' in error
  columns['train']['events'][17, 2, 0] = last
  assert diagnose(write_folder(tmp_path / 'y', fields, columns, *rest), capsys)[0] == 0


def test_generated_and_hashed_fields_are_exempt(tmp_path, capsys):
  fields, columns = encoded(draw(11, (500, 50, 50), (20, 20)))
  fields = (
    FieldInfo('f0', 1000, 0, 0.0),
    FieldInfo('f1', 40_000_002, 0, 0.0, hashed=True),
  )
  code, printed, _ = diagnose(write_folder(tmp_path / 'x', fields, columns), capsys)
  assert code == 0 and 'note    vocabulary: no field says' in printed


@pytest.mark.parametrize('leak', [False, True])
def test_many_rows_are_sampled(tmp_path, capsys, monkeypatch, leak):
  values = draw(12, (8000, 4000, 4000), (2000, 10))
  if leak:
    values['train'][:1500] = values['test'][:1500]
  folder = write_folder(tmp_path / 'x', *encoded(values, 2))
  whole = told(diagnose(folder, capsys)[1])[0]['test', 'train'] / 4000
  monkeypatch.setattr(rows_lib, 'MAX_HASHES', 2500)
  code, printed, _ = diagnose(folder, capsys)
  assert 'note    duplicates: counted on one in 4 of the distinct rows' in printed
  found = re.search(r'note    test: rows that stand in train too: (\S+) of (\S+)', printed)
  count, rows = (int(text.replace(',', '')) for text in found.groups())
  assert 700 < rows < 1300
  assert abs(count / rows - whole) < 0.15
  assert code == (2 if leak else 0)


def test_a_shard_is_read_once(tmp_path, capsys, monkeypatch):
  folder = write_folder(tmp_path / 'x', *encoded(draw(13, (5000, 300, 300), (90, 90, 90)), 2))
  read = []

  def counting(path, shape):
    read.append(path.name)
    return read_shard(path, shape)

  for module in ('rows', 'leaks'):
    monkeypatch.setattr(f'data_pipelines.doctor.{module}.read_shard', counting)
  assert diagnose(folder, capsys)[0] == 0
  assert len(read) == len(set(read)) == 3


def test_a_block_of_another_shape_is_reported_and_skipped(tmp_path, capsys, monkeypatch):
  folder = write_folder(tmp_path / 'x', *encoded(draw(15, (5000, 300, 300), (9, 9, 9))))

  def damaged(path, shape):
    for k, block in enumerate(read_shard(path, shape)):
      yield block if k == 0 else block | {'ids': block['ids'][:, :2]}

  monkeypatch.setattr('data_pipelines.doctor.rows.read_shard', damaged)
  code, printed, error = diagnose(folder, capsys)
  assert code == 2 and 'train: shapes and labels: block 1: expected arrays of shape' in error
  assert 'stand in' not in printed  # nothing is said of rows that were not all read


def test_row_hashes():
  rng = np.random.default_rng(14)
  shape = RecordShape(fields=3, events=2, event_fields=2, grouped=True)
  block = {
    'ids': np.zeros((4096, 3), np.int32),
    'events': np.zeros((4096, 2, 2), np.int32),
    'group': np.zeros(4096, np.int32),
    'label': rng.integers(2, size=4096).astype(np.uint8),
  }
  assert len(np.unique(row_hashes(block, shape))) == 1
  values = rng.permutation(2**31 - 1 - np.arange(4096) * 7).astype(np.int32)
  seen = []
  for name, place in [
    *(('ids', (slice(None), f)) for f in range(3)),
    *(('events', (slice(None), l, g)) for l in range(2) for g in range(2)),
    ('group', (slice(None),)),
  ]:
    changed = block | {name: block[name].copy()}
    changed[name][place] = values
    seen.append(row_hashes(changed, shape))
  assert len(np.unique(np.concatenate(seen))) == 4096 * len(seen)
  # A row's hash does not depend on other rows.
  part = {name: array[10:20] for name, array in changed.items()}
  assert (row_hashes(part, shape) == seen[-1][10:20]).all()
