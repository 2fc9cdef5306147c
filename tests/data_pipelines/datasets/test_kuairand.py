# SPDX-License-Identifier: Apache-2.0
"""KuaiRand folders to a prepared folder with behaviour sequences, on invented rows."""

import functools
import importlib

import numpy as np
import pytest
from invented_rows import set_block_rows
from kuairand_rows import (
  EARLY,
  FEEDBACK,
  FIELDS,
  LATE,
  LOG_NAMES,
  RANDOM,
  SPLIT_NAMES,
  USERS,
  VIDEOS,
  cut,
  log_rows,
  read_kuairand,
  reference,
  write_folder,
  write_table,
)

from data_pipelines import build
from data_pipelines.core import columns_file
from data_pipelines.core.workers import Workers
from data_pipelines.datasets.kuairand.histories import BUCKET_ROWS, _buckets, bucket_count, hashed
from data_pipelines.datasets.kuairand.side_tables import SideTable, build_side, join
from data_pipelines.datasets.kuairand.split import Clock
from data_pipelines.doctor import __main__ as doctor


def prepare(raw, out, *flags) -> int:
  return build.main(['--dataset=social', f'--raw={raw}', f'--out={out}', *flags])


@pytest.fixture(scope='module')
def logs():
  return {EARLY: log_rows(260, 1), LATE: log_rows(240, 2), RANDOM: log_rows(60, 3)}


@pytest.fixture(scope='module')
def raw(logs, tmp_path_factory):
  return write_folder(tmp_path_factory.mktemp('social') / 'raw' / 'data', logs).parent


def assert_is(expected: dict, out) -> dict:
  """Compares a prepared folder with a reference; returns the schema."""
  schema, arrays = read_kuairand(out)
  for split, wanted in expected['splits'].items():
    for name, values in wanted.items():
      np.testing.assert_array_equal(arrays[split][name], values, f'{split}, {name}')
      assert arrays[split][name].dtype == (np.uint8 if name == 'label' else np.int32)
  assert [field['name'] for field in schema['fields']] == FIELDS
  for field in schema['fields']:
    name = field['name']
    text = (out / 'vocabulary' / f'{name}.txt').read_text()
    assert text.splitlines() == expected['vocabularies'][name], name
    assert field['vocab_size'] == len(expected['vocabularies'][name]) + 2
    assert field['missing_rate_train'] == expected['missing'][name], name
  assert schema['group'] == {'name': 'user_id', 'groups': expected['groups']}
  head, torso = expected['borders']
  assert schema['items'] == {'field': 'video_id', 'head_below': head, 'torso_below': torso}
  return schema


@pytest.mark.parametrize(
  ('flags', 'label', 'length', 'min_count', 'seed'),
  [
    ((), 'is_click', 50, 2, 0),
    (('--label=long_view', '--events=3', '--min_count=9', '--seed=7'), 'long_view', 3, 9, 7),
    (('--label=is_like', '--events=1', '--random_log'), 'is_like', 1, 2, 0),
  ],
)
def test_the_build_equals_the_plain_protocol(
  raw, logs, tmp_path, flags, label, length, min_count, seed
):
  out = tmp_path / 'out'
  assert prepare(raw, out, *flags) == 0
  rows = [*logs[EARLY], *logs[LATE], *(logs[RANDOM] if '--random_log' in flags else [])]
  expected = reference(rows, label, length, min_count, seed)
  schema = assert_is(expected, out)
  sizes = {field['name']: field['vocab_size'] for field in schema['fields']}
  shared = ('video_id', 'author_id', 'tag')
  assert schema['sequence'] == {
    'length': length,
    'attributes': [
      *({'name': name, 'vocab_size': sizes[name], 'field': name} for name in shared),
      {'name': 'feedback', 'vocab_size': 65, 'field': None},
      {'name': 'gap', 'vocab_size': 28, 'field': None},
    ],
  }
  feedback = (out / 'vocabulary' / 'feedback.txt').read_text().splitlines()
  assert feedback[:3] == ['click', 'like', 'click+like'] and feedback[-1] == (
    'click+like+follow+comment+forward+long_view'
  )
  gaps = (out / 'vocabulary' / 'gap.txt').read_text().splitlines()
  assert gaps == ['0', *(str(2**k) for k in range(25))]
  assert (schema['raw']['rows_read'], schema['raw']['rows_rejected']) == (len(rows), 0)
  assert doctor.main([str(out)]) == 0
  # The rows must have all lengths, or the test would show nothing.
  lengths = [(np.array(e)[:, 0] > 0).sum() for e in expected['splits']['train']['events']]
  assert min(lengths) == 0 and max(lengths) == min(length, max(lengths)) >= min(length, 20)


def files_of(folder) -> dict:
  return {p.relative_to(folder): p.read_bytes() for p in folder.rglob('*') if p.is_file()}


def cut_small(monkeypatch) -> None:
  """Makes chunks, buckets and all other working sizes tiny."""
  for name, size in (
    ('text.ingest._PARSE_BYTES', 300),
    ('datasets.kuairand.histories.BUCKET_ROWS', 90),
    ('datasets.kuairand.histories._SHUFFLED_ROWS', 130),
    ('text.encoding._GROUP_ROWS', 100),
    ('text.encoding._TURN_ROWS', 9),
    ('text.encoding._UINT32_ROWS', 100),
    ('text.sequences._EXPANDED_ROWS', 7),
    ('datasets.kuairand.side_tables._LINES', 3),
  ):
    monkeypatch.setattr(f'data_pipelines.{name}', size)


@pytest.mark.parametrize('chunk_bytes', [900, 4000])
def test_sizes_and_gzip_change_nothing(raw, logs, tmp_path, monkeypatch, chunk_bytes):
  """Six buckets for ten users: some hold several, some none."""
  assert prepare(raw, tmp_path / 'one') == 0
  packed = write_folder(tmp_path / 'packed', logs, packed=True)
  cut_small(monkeypatch)
  monkeypatch.setattr('data_pipelines.text.ingest.CHUNK_BYTES', chunk_bytes)
  assert prepare(packed, tmp_path / 'many') == 0
  one, two = (read_kuairand(tmp_path / name) for name in ('one', 'many'))
  for entry in ('fields', 'sequence', 'group', 'items', 'splits', 'vocabulary'):
    assert one[0][entry] == two[0][entry], entry
  names = [entry['name'] for entry in two[0]['raw']['files']]
  assert names == [f'{name}.gz' for name in (EARLY, LATE, USERS, VIDEOS)]
  assert doctor.main([str(tmp_path / 'many')]) == 0


def test_shards_collect_sequences_from_every_group(raw, tmp_path, monkeypatch):
  cut_small(monkeypatch)
  assert prepare(raw, tmp_path / 'one') == 0
  set_block_rows(monkeypatch, 16)
  monkeypatch.setattr('data_pipelines.prepared.shards.SHARD_BLOCKS', 3)
  assert prepare(raw, tmp_path / 'many', '--workers=1') == 0  # others would not see the above
  (_, one), (schema, many) = (read_kuairand(tmp_path / name) for name in ('one', 'many'))
  assert len(schema['splits']['train']['files']) > 3
  for split, arrays in one.items():
    for name, values in arrays.items():
      np.testing.assert_array_equal(many[split][name], values)
  assert doctor.main([str(tmp_path / 'many')]) == 0


def test_workers_change_nothing(raw, tmp_path, monkeypatch):
  assert prepare(raw, tmp_path / 'one', '--workers=1') == 0
  monkeypatch.setattr('data_pipelines.build.Workers', functools.partial(Workers, start_after=0))
  assert prepare(raw, tmp_path / 'two', '--workers=2') == 0
  assert files_of(tmp_path / 'one') == files_of(tmp_path / 'two')


@pytest.mark.parametrize(
  'place',
  [
    *(
      'datasets.kuairand.dataset.build_side',
      'text.ingest._parse',
      'datasets.kuairand.histories._shuffle',
      'datasets.kuairand.histories._build_bucket',
    ),
    *('text.encoding._build_field', 'text.encoding._encode_group', 'prepared.shards._write'),
  ],
)
@pytest.mark.parametrize('after', [False, True])
def test_stopped_build_goes_on_and_ends_in_the_same_bytes(
  raw, tmp_path, monkeypatch, capsys, place, after
):
  """Stops before and after the second task of a kind is done."""
  cut_small(monkeypatch)
  monkeypatch.setattr('data_pipelines.text.ingest.CHUNK_BYTES', 4000)
  given = [raw, '--workers=1', '--events=4']
  assert prepare(raw, tmp_path / 'whole', *given[1:]) == 0
  module, name = place.rsplit('.', 1)
  module = importlib.import_module(f'data_pipelines.{module}')
  real, calls = getattr(module, name), []

  def stops(task):
    calls.append(task)
    if len(calls) == 2 and not after:
      raise KeyboardInterrupt
    result = real(task)
    if len(calls) == 2:
      raise KeyboardInterrupt
    return result

  with monkeypatch.context() as patch:
    patch.setattr(module, name, stops)
    assert prepare(raw, tmp_path / 'out', *given[1:]) == 130
  assert prepare(raw, tmp_path / 'out', *given[1:]) == 0
  assert 'going on with a build that was stopped' in capsys.readouterr().out
  assert files_of(tmp_path / 'out') == files_of(tmp_path / 'whole')


def test_a_second_build_changes_nothing_and_checks_every_file(logs, tmp_path, capsys):
  raw = write_folder(tmp_path / 'raw', logs)
  assert prepare(raw, tmp_path / 'out') == 0
  assert prepare(raw, tmp_path / 'out') == 0
  assert 'already holds this data set' in capsys.readouterr().out
  for name in (EARLY, LATE, USERS, VIDEOS):
    data = (raw / name).read_bytes()
    (raw / name).write_bytes(data + b'\n')
    assert prepare(raw, tmp_path / 'out') == 2
    assert 'the raw files differ' in capsys.readouterr().err, name
    (raw / name).write_bytes(data)
  (raw / RANDOM).unlink()
  assert prepare(raw, tmp_path / 'out') == 0
  assert prepare(raw, tmp_path / 'out', '--events=7') == 2
  assert 'events: 50 there, 7 given' in capsys.readouterr().err


def test_limit_counts_lines_of_each_log(raw, logs, tmp_path):
  assert prepare(raw, tmp_path / 'out', '--limit=101') == 0
  rows = [*logs[EARLY][:100], *logs[LATE][:100]]
  assert_is(reference(rows, 'is_click', 50, 2, 0), tmp_path / 'out')


def test_bad_rows_are_reported_counted_and_skipped(logs, tmp_path, capsys):
  raw = write_folder(tmp_path / 'raw', logs)
  row = logs[EARLY][0]
  bad = {
    'is_follow must be 0 or 1, found 2': row | {'is_follow': 2},
    'long_view must be 0 or 1, found -1': row | {'long_view': -1},
    "label must be 0 or 1, found '3'": row | {'is_click': 3},
    'time_ms: expected milliseconds since 1970, found 0': row | {'time_ms': 0},
    "video_id: not an integer: '7.0'": row | {'video_id': '7.0'},
    'tab: empty': row | {'tab': ''},
  }
  write_table(raw / EARLY, LOG_NAMES, [logs[EARLY][0], *bad.values(), *logs[EARLY][1:]])
  lines = (raw / LATE).read_text().splitlines()
  (raw / LATE).write_text('\n'.join([*lines[:9], lines[9] + ',1', *lines[10:], '']))
  assert prepare(raw, tmp_path / 'out') == 0
  printed = capsys.readouterr().out
  good = [*logs[EARLY], *logs[LATE][:8], *logs[LATE][9:]]
  schema = assert_is(reference(good, 'is_click', 50, 2, 0), tmp_path / 'out')
  rejects = [line.split('\t') for line in (tmp_path / 'out/rejects.tsv').read_text().splitlines()]
  assert [(name, int(n), reason) for name, n, reason, _ in rejects] == [
    *((EARLY, 3 + i, reason) for i, reason in enumerate(bad)),
    (LATE, 10, 'expected 19 comma-separated columns, found 20'),
  ]
  assert f'{EARLY}, line 3: is_follow must be 0 or 1' in printed
  raw_entry = schema['raw']
  assert (raw_entry['rows_read'], raw_entry['rows_rejected']) == (506, 7)
  assert raw_entry['rows_written'] == len(good) == 499


def test_feedback_of_a_row_is_seen_by_later_rows_only(logs, tmp_path):
  """The property that keeps a label out of its own features."""
  rows = [dict(row) for row in (*logs[EARLY], *logs[LATE])]
  changed = 137
  base = rows[changed] | dict.fromkeys(FEEDBACK, 0)
  arrays = []
  for k, row in enumerate((base, base | {'is_like': 1, 'is_comment': 1})):
    rows[changed] = row
    raw = write_folder(tmp_path / f'raw{k}', {EARLY: rows[:260], LATE: rows[260:]})
    assert prepare(raw, tmp_path / f'out{k}') == 0
    arrays.append(read_kuairand(tmp_path / f'out{k}')[1])
  # The order of rows does not depend on feedback, so their positions identify them.
  order = sorted(rows, key=lambda r: (r['user_id'] * 0x9E3779B97F4A7C15 % 2**64, r['time_ms']))
  times = [row['time_ms'] for row in order]
  borders, generator = [cut(times, 8), cut(times, 9)], np.random.default_rng(0)
  saw = 0
  for s, split in enumerate(SPLIT_NAMES):
    numbers = [i for i, t in enumerate(times) if sum(t >= b for b in borders) == s]
    one, two = (a[split] for a in arrays)
    for name in ('ids', 'label', 'group'):
      np.testing.assert_array_equal(one[name], two[name])
    for k, i in enumerate(generator.permutation(np.array(numbers)).tolist()):
      same = (one['events'][k] == two['events'][k]).all()
      if order[i]['user_id'] != base['user_id'] or order[i]['time_ms'] <= base['time_ms']:
        assert same
      saw += not same
  assert saw > 5


def test_side_integers_beyond_int32_and_batches_of_plain_digits(tmp_path, monkeypatch):
  """The fast and the slow way of reading a column agree."""
  monkeypatch.setattr('data_pipelines.datasets.kuairand.side_tables._LINES', 2)
  path = tmp_path / 'table.csv'
  path.write_text('n,a\n7,12\n5,999999999999999999\n6,-3\n4,\n99999999999,1.0\n1,"7,8"\n')
  table = SideTable(path, 'n', ('a',), (), tmp_path / 'out')
  build_side(table)
  keys, missing = join(table, np.array([1, 2, 4, 5, 6, 7, 99999999999, 10**12]))['a']
  assert missing.tolist() == [False, True, True, False, False, False, False, True]
  assert keys[~missing].tolist() == [7, 999999999999999999, -3, 12, 1]


@pytest.mark.parametrize('seed', range(4))
def test_cuts_are_the_nearest_that_ties_allow(tmp_path, seed):
  rng = np.random.default_rng(seed)
  parts = [np.sort(rng.integers(10, 30, n)) for n in (0, 17, 1, 40)]
  files = []
  for k, part in enumerate(parts):
    files.append(tmp_path / str(k))
    columns_file.write(files[-1], {'time': rng.permutation(part), 'sorted': part})
  clock = Clock(tuple(files))
  for tenths in (1, 5, 8, 9):
    assert clock.cut(tenths) == cut(np.concatenate(parts).tolist(), tenths)


def test_buckets_hold_whole_users_in_order_and_are_even():
  user_N = np.arange(-100, 20_000)
  bucket_N = _buckets(user_N, 7)
  counts = np.bincount(bucket_N.astype(int), minlength=7)
  assert counts.max() - counts.min() < 10 and len(counts) == 7
  order = np.argsort(hashed(user_N))
  assert (np.diff(bucket_N[order].astype(int)) >= 0).all()
  assert bucket_count(1) == 1 and bucket_count(BUCKET_ROWS + 1) == 2
