# SPDX-License-Identifier: Apache-2.0
"""The Criteo 1TB logs from a folder of days to a prepared folder, on invented rows."""

import collections
import gzip
import json
import math
import shutil

import numpy as np
import pytest
from invented_rows import concatenate, criteo_lines, read_prepared, write_lines

from data_pipelines import build
from data_pipelines.datasets.criteo import CRITEO_TEXT, FIELD_NAMES
from data_pipelines.datasets.criteo_1tb import day_files, split_by_day
from data_pipelines.doctor import __main__ as doctor
from data_pipelines.text.chunks import TextFile
from data_pipelines.text.parser import parse
from deres_jax.core.errors import UserError

SPLIT_NAMES = ('train', 'validation', 'test')


def prepare(raw, out, *flags) -> int:
  return build.main(['--dataset=criteo_1tb', f'--raw={raw}', f'--out={out}', *flags])


def reference(train: list[str], last: list[str], seed: int, min_count: int, max_ids: int):
  """The protocol in plain Python: vocabularies of the integers, and (ids, labels) by split."""
  rows = [line.split('\t') for line in [*train, *last]]
  first, half = len(train), (len(last) + 1) // 2
  generator = np.random.default_rng(seed)
  numbers = (np.arange(first), first + np.arange(half), np.arange(first + half, len(rows)))
  splits = {
    split: [rows[i] for i in generator.permutation(n).tolist()]
    for split, n in zip(SPLIT_NAMES, numbers, strict=True)
  }

  def bucket(text: str) -> str:
    value = int(text) if text else 0
    return str(math.floor(math.log(value) ** 2) if value > 2 else value)

  vocabularies = []
  for f in range(13):
    counts = collections.Counter(bucket(row[f + 1]) for row in splits['train'])
    kept = [token for token in counts if counts[token] >= min_count]
    vocabularies.append(sorted(kept, key=lambda token: (-counts[token], token)))

  def ids(row: list[str]) -> list[int]:
    buckets = [bucket(text) for text in row[1:14]]
    known = zip(buckets, vocabularies, strict=True)
    return [
      *(v.index(token) + 2 if token in v else 1 for token, v in known),
      *(2 + int(text, 16) % max_ids if text else 1 for text in row[14:]),
    ]

  encoded = {
    split: ([ids(row) for row in part], [int(row[0]) for row in part])
    for split, part in splits.items()
  }
  return vocabularies, encoded


@pytest.fixture(scope='module')
def days(tmp_path_factory):
  """Days 0, 1, 2 and 10: good rows by day, rejected (file, line), the folder."""
  folder = tmp_path_factory.mktemp('days') / 'raw'
  folder.mkdir()
  good = {day: criteo_lines(n, seed=day) for day, n in ((0, 500), (1, 300), (2, 900), (10, 601))}
  write_lines(folder / 'day_0', ['broken', *good[0]])
  packed = '\n'.join([*good[1][:100], '', *good[1][100:]])
  (folder / 'day_1.gz').write_bytes(gzip.compress(packed.encode()))  # no newline at its end
  write_lines(folder / 'day_2', good[2])
  write_lines(folder / 'day_10', [*good[10], '7' + good[10][0][1:]])
  (folder / 'README').write_text('not a day')
  (folder / 'day_3.tmp').write_text('not a day either')
  return good, [('day_0', 1), ('day_1.gz', 101), ('day_10', 602)], folder


def test_ids_equal_those_of_the_plain_protocol(days, tmp_path, capsys):
  """The folder lacks days 3 to 9, so the training days are given; the last is day 10."""
  good, bad, folder = days
  out = tmp_path / 'out'
  flags = ('--train_days=0-2', '--seed=3', '--min_count=40', '--max_ids=1009')
  assert prepare(folder, out, *flags) == 0
  printed = capsys.readouterr().out
  schema, blocks = read_prepared(out)
  train = [*good[0], *good[1], *good[2]]
  vocabularies, encoded = reference(train, good[10], seed=3, min_count=40, max_ids=1009)
  for split, (ids, labels) in encoded.items():
    np.testing.assert_array_equal(np.concatenate([b[0] for b in blocks[split]]), ids)
    np.testing.assert_array_equal(np.concatenate([b[1] for b in blocks[split]]), labels)
  assert [schema['splits'][split]['rows'] for split in SPLIT_NAMES] == [1700, 301, 300]
  for field, tokens in zip(schema['fields'], vocabularies, strict=False):
    text = (out / 'vocabulary' / f'{field["name"]}.txt').read_text()
    assert text.splitlines() == tokens
    assert (field['vocab_size'], field['hashed']) == (len(tokens) + 2, False)
    assert field['min_count'] == 40
  hashed = schema['fields'][13:]
  assert [f['name'] for f in hashed] == [f'C{i}' for i in range(1, 27)]
  assert {(f['vocab_size'], f['hashed'], f['min_count']) for f in hashed} == {(1011, True, 0)}
  missing = [sum(not line.split('\t')[c] for line in train) / 1700 for c in range(1, 40)]
  assert [field['missing_rate_train'] for field in schema['fields']] == missing
  assert sorted(schema['vocabulary']) == sorted(f'I{i}.txt' for i in range(1, 14))

  assert [f['name'] for f in schema['raw']['files']] == ['day_0', 'day_1.gz', 'day_2', 'day_10']
  assert (schema['raw']['rows_read'], schema['raw']['rows_rejected']) == (2304, 3)
  rejects = [line.split('\t') for line in (out / 'rejects.tsv').read_text().splitlines()]
  assert [(name, int(line)) for name, line, *_ in rejects] == bad
  for name, line in bad:
    assert f'  {name}, line {line}: ' in printed
  assert (schema['dataset'], schema['tfds']) == ('criteo_1tb', 'criteo_1tb/1.0.0')
  assert doctor.main([str(out)]) == 0


def test_chunks_workers_and_wide_row_numbers_change_nothing(days, tmp_path, monkeypatch):
  _, _, folder = days
  flags = ('--train_days=0-2', '--min_count=3')
  assert prepare(folder, tmp_path / 'one', *flags) == 0
  monkeypatch.setattr('data_pipelines.text.ingest.CHUNK_BYTES', 5000)
  monkeypatch.setattr('data_pipelines.text.encoding._GROUP_ROWS', 60)
  monkeypatch.setattr('data_pipelines.text.encoding._UINT32_ROWS', 100)
  assert prepare(folder, tmp_path / 'many', *flags) == 0
  one, many = (
    json.loads((tmp_path / name / 'schema.json').read_text()) for name in ('one', 'many')
  )
  for entry in ('raw', 'vocabulary', 'fields'):
    assert one[entry] == many[entry]
  for split in SPLIT_NAMES:
    assert one['splits'][split]['content_sha256'] == many['splits'][split]['content_sha256']


def test_missing_and_unseen_values(tmp_path):
  """A value that is not in training keeps its own id; a missing one has id 1."""
  raw = tmp_path / 'raw'
  raw.mkdir()
  lines = [line.split('\t') for line in criteo_lines(40)]
  for i, values in enumerate(lines):
    values[14] = ('', '00000000', 'ffffffff', '02625a00', '02625A01')[i % 5]
  lines = ['\t'.join(values) for values in lines]
  write_lines(raw / 'day_0', [line for i, line in enumerate(lines) if i % 5 < 2])
  write_lines(raw / 'day_1', lines)
  assert prepare(raw, tmp_path / 'out') == 0
  schema, blocks = read_prepared(tmp_path / 'out')
  ids = {split: {int(i) for b in blocks[split] for i in b[0][:, 13]} for split in SPLIT_NAMES}
  assert ids['train'] == {1, 2}
  # 0x2625a00 is 40,000,000, the default cap.
  assert ids['validation'] == ids['test'] == {1, 2, 3, 2 + 0xFFFFFFFF % 40_000_000}
  assert schema['fields'][13]['vocab_size'] == 40_000_002
  assert schema['fields'][13]['oov_rate'] == {'train': 0.5, 'validation': 0.2, 'test': 0.2}
  assert doctor.main([str(tmp_path / 'out')]) == 0


def test_largest_cap_fits_int32(tmp_path, days):
  good, _, _ = days
  raw = tmp_path / 'raw'
  raw.mkdir()
  lines = [line.rpartition('\t')[0] + '\t7ffffffc' for line in good[0]]
  write_lines(raw / 'day_0', lines)
  write_lines(raw / 'day_1', lines)
  largest = 2**31 - 3
  assert prepare(raw, tmp_path / 'out', f'--max_ids={largest}') == 0
  schema, blocks = read_prepared(tmp_path / 'out')
  assert {int(i) for i in blocks['train'][0][0][:, 38]} == {2 + 0x7FFFFFFC % largest}
  assert schema['fields'][38]['vocab_size'] == 2**31 - 1


def test_limit_counts_lines_of_each_day(days, tmp_path):
  good, _, folder = days
  flags = ('--train_days=0-2', '--min_count=1', '--max_ids=50')
  assert prepare(folder, tmp_path / 'out', *flags, '--limit=121') == 0
  schema, blocks = read_prepared(tmp_path / 'out')
  assert (schema['raw']['rows_read'], schema['raw']['rows_rejected']) == (484, 2)
  train = [*good[0][:120], *good[1][:120], *good[2][:121]]
  _, encoded = reference(train, good[10][:121], seed=0, min_count=1, max_ids=50)
  for split, (ids, _) in encoded.items():
    np.testing.assert_array_equal(np.concatenate([b[0] for b in blocks[split]]), ids)


def test_a_single_file_is_split_in_its_order(tmp_path):
  lines = criteo_lines(200)
  assert prepare(write_lines(tmp_path / 'day_7', lines), tmp_path / 'out', '--max_ids=997') == 0
  schema, blocks = read_prepared(tmp_path / 'out')
  assert [schema['splits'][split]['rows'] for split in SPLIT_NAMES] == [160, 20, 20]
  for split, part in (
    ('train', lines[:160]),
    ('validation', lines[160:180]),
    ('test', lines[180:]),
  ):
    found = sorted(ids.tolist() for ids in np.concatenate([b[0] for b in blocks[split]])[:, 13:])
    rows = [line.split('\t')[14:] for line in part]
    assert found == sorted([2 + int(x, 16) % 997 if x else 1 for x in row] for row in rows)
  assert doctor.main([str(tmp_path / 'out')]) == 0


def test_training_days_choose_files(days, tmp_path):
  good, _, folder = days
  assert prepare(folder, tmp_path / 'out', '--train_days=1-1', '--max_ids=50') == 0
  schema, blocks = read_prepared(tmp_path / 'out')
  assert [f['name'] for f in schema['raw']['files']] == ['day_1.gz', 'day_10']
  _, encoded = reference(good[1], good[10], seed=0, min_count=10, max_ids=50)
  np.testing.assert_array_equal(blocks['train'][0][0], encoded['train'][0])


def test_split_by_day():
  order = split_by_day((4, 3, 5), seed=1)
  assert [sorted(order[split].tolist()) for split in SPLIT_NAMES] == [
    list(range(7)),
    [7, 8, 9],
    [10, 11],
  ]
  again = split_by_day((4, 3, 5), seed=2)
  assert any((order[split] != again[split]).any() for split in SPLIT_NAMES)


def test_a_second_build_changes_nothing_and_notices_other_files(days, tmp_path, capsys):
  raw = shutil.copytree(days[2], tmp_path / 'raw')
  assert prepare(raw, tmp_path / 'out', '--train_days=0-2') == 0
  assert prepare(raw, tmp_path / 'out', '--train_days=0-2') == 0
  assert 'already holds this data set' in capsys.readouterr().out
  write_lines(raw / 'day_11', criteo_lines(5))
  assert prepare(raw, tmp_path / 'out', '--train_days=0-2') == 2
  assert 'the raw files differ' in capsys.readouterr().err
  assert prepare(raw, tmp_path / 'out', '--train_days=0-2', '--overwrite') == 0


def test_doctor_finds_an_id_beyond_the_cap(days, tmp_path, capsys):
  out = tmp_path / 'out'
  assert prepare(days[2], out, '--train_days=0-2', '--max_ids=1009') == 0
  schema = json.loads((out / 'schema.json').read_text())
  schema['fields'][20]['vocab_size'] = 500
  (out / 'schema.json').write_text(json.dumps(schema))
  assert doctor.main([str(out)]) == 2
  assert 'C8: expected ids 1 to 499' in capsys.readouterr().err


@pytest.fixture
def mistake(capsys, tmp_path):
  """Runs a build that must fail; returns its one-line error."""

  def run(raw, *flags: str) -> str:
    assert prepare(raw, tmp_path / 'out', *flags) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ') and error.count('\n') == 1, error
    assert not list(tmp_path.glob('out*'))
    return error

  return run


def test_folders_that_cannot_be_used(mistake, tmp_path):
  raw = tmp_path / 'raw'
  assert 'no such folder' in mistake(raw)
  raw.write_text('a file')
  assert 'is a single file' in mistake(raw, '--train_days=0-1')
  assert 'no valid row in the first 1 lines' in mistake(raw)
  write_lines(raw, criteo_lines(9))
  assert 'valid rows: 9, expected at least 10, since it is split 8:1:1' in mistake(raw)
  raw.unlink()
  raw.mkdir()
  assert 'found 0 day files' in mistake(raw)
  write_lines(raw / 'day_0', criteo_lines(5))
  assert 'found 1 day files, expected at least 2' in mistake(raw)
  write_lines(raw / 'day_3', criteo_lines(5))
  write_lines(raw / 'day_4', criteo_lines(5))
  assert 'no file of day 1, 2; download it, or choose' in mistake(raw)
  (raw / 'day_4.gz').write_bytes(gzip.compress(b'x'))
  assert 'day 4 is there twice, as day_4 and day_4.gz' in mistake(raw)
  (raw / 'day_4.gz').unlink()
  write_lines(raw / 'day_3', [])
  assert 'day_3: the file is empty' in mistake(raw, '--train_days=3-3')
  (raw / 'day_3').unlink()
  (raw / 'day_3').mkdir()
  assert 'day_3: expected a file, found a folder' in mistake(raw, '--train_days=3-3')


def test_a_day_without_rows_is_refused(mistake, tmp_path):
  raw = tmp_path / 'raw'
  raw.mkdir()
  for day in range(3):
    write_lines(raw / f'day_{day}', criteo_lines(5))
  write_lines(raw / 'day_1', ['broken', 'too'])
  line = mistake(raw)
  assert 'day_1: no valid row in the first 2 lines (line 1: expected 40' in line
  write_lines(raw / 'day_1', ['broken'] * 5000)
  assert 'day_1: no valid row in the first 5,000 lines' in mistake(raw)
  write_lines(raw / 'day_1', criteo_lines(5))
  write_lines(raw / 'day_2', criteo_lines(1))
  assert (
    'day_2: valid rows: 1, expected at least 2, since the last day is cut in two halves'
    in mistake(raw)
  )


def test_wrong_flags(mistake, days):
  folder = days[2]
  for text in ('3', '3-', '5-3', 'a-b', '-1-2', ''):
    assert f'--train_days={text}: expected FIRST-LAST' in mistake(folder, f'--train_days={text}')
  line = mistake(folder, '--train_days=0-10')
  assert 'day 10 is the last one in' in line and 'train on days up to 2' in line
  assert '--max_ids=0' in mistake(folder, '--max_ids=0')
  assert '--max_ids=2147483646: expected 1 to 2147483645' in mistake(folder, '--max_ids=2147483646')
  assert '--limit=1' in mistake(folder, '--limit=1')
  assert '--min_count=0' in mistake(folder, '--min_count=0')
  assert '--seed=-1' in mistake(folder, '--seed=-1')


def test_days_are_sorted_by_number(days):
  _, _, folder = days
  assert [path.name for path in day_files(folder, '0-2')] == [
    'day_0',
    'day_1.gz',
    'day_2',
    'day_10',
  ]
  with pytest.raises(UserError, match='no file of day 3, 4, 5, 6, 7, 8, 9'):
    day_files(folder, '0-9')


# A real sample of day 0, where it is at hand (no row is kept here): missing rate and distinct
# values of I1..I13, C1..C26.
STATISTICS = (
  (0.238, 277), (0.102, 1674), (0.254, 69), (0.493, 690), (0.465, 250), (0.092, 56), (0.032, 19),
  (0, 878), (0, 51), (0.092, 6), (0.465, 67), (0.015, 5931), (0.254, 119),
  (0.026, 2755), (0, 1796), (0, 2704), (0, 724), (0, 1452), (0, 3), (0, 1934), (0, 518), (0, 20),
  (0.026, 2550), (0.026, 1451), (0, 3019), (0, 9), (0.467, 355), (0, 1127), (0.467, 29),
  (0.467, 3), (0, 166), (0, 12), (0.026, 2799), (0.026, 2088), (0.026, 2692), (0.467, 1260),
  (0, 2136), (0, 29), (0, 24),
)  # fmt: skip


@pytest.fixture
def sample(samples):
  path = samples / 'criteo_1tb_sample.tsv.gz'
  if not path.is_file():
    pytest.skip(f'no {path.name} in {samples}')
  return path


def test_statistics_of_the_sample(sample):
  parts = [parse(CRITEO_TEXT, chunk.read(), 1) for chunk in TextFile(sample).chunks(1 << 20, None)]
  assert not any(bad for _, bad, _ in parts)
  rows = concatenate([part for part, _, _ in parts])
  assert len(rows.label_N) == 10_000 and abs(rows.label_N.mean() - 0.0265) < 5e-5
  columns = [*zip(rows.ints_NI.T, rows.ints_missing_NI.T, strict=True)]
  columns += zip(rows.hexes_NC.T, rows.hexes_missing_NC.T, strict=True)
  for name, (column_N, missing_N), (rate, distinct) in zip(
    FIELD_NAMES, columns, STATISTICS, strict=True
  ):
    assert len(np.unique(column_N[~missing_N])) == distinct, name
    assert abs(missing_N.mean() - rate) < 6e-4, name


def test_sample_builds_and_is_whole(sample, tmp_path, capsys):
  """The one file at hand stands for two days."""
  raw = tmp_path / 'raw'
  raw.mkdir()
  for day in (0, 1):
    (raw / f'day_{day}.gz').symlink_to(sample)
  assert prepare(raw, tmp_path / 'out') == 0
  schema, blocks = read_prepared(tmp_path / 'out')
  assert [schema['splits'][split]['rows'] for split in SPLIT_NAMES] == [10_000, 5_000, 5_000]
  assert schema['raw']['rows_rejected'] == 0
  ids_NF = np.concatenate([b[0] for b in blocks['train']])
  for f, (rate, distinct) in enumerate(STATISTICS):
    assert abs(schema['fields'][f]['missing_rate_train'] - rate) < 6e-4
    if f >= 13:  # modulo 40,000,000 hardly any of so few values fall together
      found = len(np.unique(ids_NF[:, f])) - (schema['fields'][f]['missing_rate_train'] > 0)
      assert distinct - 2 <= found <= distinct
  # The only fault: the last day has the first day's rows.
  capsys.readouterr()
  assert doctor.main([str(tmp_path / 'out')]) == 2
  error = capsys.readouterr().err
  assert ', 2 of ' in error
  for split in ('validation', 'test'):
    assert f'{split}: rows that stand in train too: 5,000 of 5,000 (100.00%)' in error
