# SPDX-License-Identifier: Apache-2.0
"""Avazu from raw text to a prepared folder, on invented rows."""

import collections
import datetime
import functools
import gzip
import itertools

import numpy as np
import pytest
from invented_rows import AVAZU_HEADER, avazu_lines, concatenate, read_prepared, write_lines

from data_pipelines import build
from data_pipelines.datasets.avazu import AVAZU_TEXT, HEXES, INTEGERS, calendar, dates_of
from data_pipelines.doctor import __main__ as doctor
from data_pipelines.text import ingest
from data_pipelines.text.chunks import TextFile
from data_pipelines.text.parser import parse

NAMES = AVAZU_HEADER.split(',')
SPLIT_NAMES = ('train', 'validation', 'test')


def prepare(raw, out, *flags) -> int:
  return build.main(['--dataset=avazu', f'--raw={raw}', f'--out={out}', *flags])


def with_value(line: str, column: str, value: str) -> str:
  values = line.split(',')
  values[NAMES.index(column)] = value
  return ','.join(values)


def reference(lines: list[str], protocol: str, seed: int, min_count: int):
  """A protocol in plain Python: tokens by field, and (ids, labels) by split."""
  rows = []
  for line in lines:
    row = dict(zip(NAMES, line.split(','), strict=True))
    moment = datetime.datetime.strptime(row['hour'], '%y%m%d%H')
    row['hour'] = str(moment.hour)
    row['weekday'] = moment.strftime('%w')
    row['weekend'] = str(int(moment.weekday() >= 5))
    rows.append(row)
  columns = NAMES[3:]
  fields = [*columns, 'hour'] if protocol == 'x1' else ['hour', 'weekday', 'weekend', *columns]
  tenth, generator = len(rows) // 10, np.random.default_rng(seed)
  if protocol == 'x4':
    order = generator.permutation(len(rows)).tolist()
    numbers = (order[2 * tenth :], order[tenth : 2 * tenth], order[:tenth])
  else:
    test = 2 * tenth if protocol == 'x1' else tenth
    cuts = (0, len(rows) - test - tenth, len(rows) - test, len(rows))
    numbers = [generator.permutation(np.arange(a, b)).tolist() for a, b in itertools.pairwise(cuts)]
  splits = {s: [rows[i] for i in n] for s, n in zip(SPLIT_NAMES, numbers, strict=True)}
  vocabularies = []
  for field in fields:
    counts = collections.Counter(row[field] for row in splits['train'])
    kept = [token for token in counts if counts[token] >= min_count]
    vocabularies.append(sorted(kept, key=lambda token: (-counts[token], token)))
  encoded = {
    split: (
      [
        [
          v.index(row[f]) + 2 if row[f] in v else 1
          for f, v in zip(fields, vocabularies, strict=True)
        ]
        for row in part
      ],
      [int(row['click']) for row in part],
    )
    for split, part in splits.items()
  }
  return fields, vocabularies, encoded


def bad_rows(line: str) -> dict[str, str]:
  """Lines that must be rejected, by the expected reason."""
  return {
    'hour: expected YYMMDDHH, a date and an hour, found 14102124': with_value(
      line, 'hour', '14102124'
    ),
    'hour: expected YYMMDDHH, a date and an hour, found 14023005': with_value(
      line, 'hour', '14023005'
    ),
    "hour: not an integer: '2014-10-21'": with_value(line, 'hour', '2014-10-21'),
    'hour: empty': with_value(line, 'hour', ''),
    "site_id: not 8 hex digits: 'f9c6970'": with_value(line, 'site_id', 'f9c6970'),
    'C21: empty': with_value(line, 'C21', ''),
    "label must be 0 or 1, found '2'": with_value(line, 'click', '2'),
    'a second header': AVAZU_HEADER,
    'expected 24 comma-separated columns, found 23': line.rpartition(',')[0],
    'empty line': '',
  }


@pytest.fixture(scope='module')
def raw(tmp_path_factory):
  """6000 good rows in the order of time with bad ones among them: lines, bad lines, file."""
  good = avazu_lines(6000, seed=1)
  bad = list(bad_rows(good[0]).items())
  numbers = (702, 4100, 2, 3, 700, 701, 3000, 4000, 6010, 6011)  # the header is line 1
  placed = dict(zip(numbers, bad, strict=True))
  rest = iter(good)
  lines = [placed[n][1] if n in placed else next(rest) for n in range(2, 6012)]
  path = tmp_path_factory.mktemp('avazu') / 'train.csv'
  write_lines(path, [AVAZU_HEADER, *lines])
  return good, {n: reason for n, (reason, _) in placed.items()}, path


@pytest.mark.parametrize('protocol', ['x4', 'x1', 'time'])
def test_ids_equal_those_of_the_plain_protocol(raw, tmp_path, protocol, capsys):
  good, bad, path = raw
  out = tmp_path / 'out'
  assert prepare(path, out, f'--protocol={protocol}', '--seed=4', '--min_count=230') == 0
  printed = capsys.readouterr().out
  schema, blocks = read_prepared(out)
  fields, vocabularies, encoded = reference(good, protocol, seed=4, min_count=230)
  assert [field['name'] for field in schema['fields']] == fields
  for field, tokens in zip(schema['fields'], vocabularies, strict=True):
    text = (out / 'vocabulary' / f'{field["name"]}.txt').read_text()
    assert text.splitlines() == tokens, field['name']
    assert field['vocab_size'] == len(tokens) + 2
    assert field['missing_rate_train'] == 0
  for split, (ids, labels) in encoded.items():
    np.testing.assert_array_equal(np.concatenate([b[0] for b in blocks[split]]), ids)
    np.testing.assert_array_equal(np.concatenate([b[1] for b in blocks[split]]), labels)
  assert schema['raw']['rows_read'] == 6010
  assert (schema['raw']['rows_written'], schema['raw']['rows_rejected']) == (6000, 10)
  assert (schema['dataset'], schema['tfds']) == ('avazu', f'avazu/{protocol}/1.0.0')
  rejects = [line.split('\t', 3) for line in (out / 'rejects.tsv').read_text().splitlines()]
  assert {int(n): reason for _, n, reason, _ in rejects} == bad
  assert [int(n) for _, n, _, _ in rejects] == sorted(bad)
  lines = path.read_text().splitlines()
  assert all(lines[int(n) - 1] == text for _, n, _, text in rejects)
  assert f'train.csv, line 2: {bad[2]}' in printed
  assert doctor.main([str(out)]) == 0


def test_default_minimum_counts(raw, tmp_path):
  _, _, path = raw
  for protocol, min_count in (('x4', 2), ('x1', 1), ('time', 2)):
    assert prepare(path, tmp_path / protocol, f'--protocol={protocol}') == 0
    assert read_prepared(tmp_path / protocol)[0]['build']['min_count'] == min_count


def test_chunks_and_gzip_change_nothing(raw, tmp_path, monkeypatch):
  _, _, path = raw
  flags = ('--protocol=time', '--limit=5000')
  assert prepare(path, tmp_path / 'one', *flags) == 0
  packed = tmp_path / 'train.gz'
  packed.write_bytes(gzip.compress(path.read_bytes().replace(b'\n', b'\r\n')))
  monkeypatch.setattr('data_pipelines.text.ingest.CHUNK_BYTES', 50_000)
  monkeypatch.setattr('data_pipelines.text.ingest._PARSE_BYTES', 700)
  assert prepare(packed, tmp_path / 'many', *flags) == 0
  one, many = read_prepared(tmp_path / 'one')[0], read_prepared(tmp_path / 'many')[0]
  assert one['raw']['rows_read'] == many['raw']['rows_read'] == 4999  # the header is a line
  assert one['vocabulary'] == many['vocabulary']
  for split in SPLIT_NAMES:
    assert one['splits'][split]['content_sha256'] == many['splits'][split]['content_sha256']


def test_header_may_be_absent(tmp_path):
  lines = avazu_lines(50)
  write_lines(tmp_path / 'with', [AVAZU_HEADER, *lines])
  write_lines(tmp_path / 'without', lines)
  for name in ('with', 'without'):
    assert prepare(tmp_path / name, tmp_path / f'out-{name}') == 0
  one, other = (read_prepared(tmp_path / f'out-{name}')[0] for name in ('with', 'without'))
  assert one['raw']['rows_read'] == other['raw']['rows_read'] == 50
  assert one['splits']['train']['content_sha256'] == other['splits']['train']['content_sha256']


@pytest.fixture
def mistake(tmp_path, capsys):
  """Runs a build of a text that must fail; returns its one-line error."""

  def run(text: str, *flags: str) -> str:
    raw = tmp_path / 'train.csv'
    raw.write_text(text)
    assert prepare(raw, tmp_path / 'out', *flags) == 2
    error = capsys.readouterr().err
    assert error.startswith(f'error: --raw={raw}: ') and error.count('\n') == 1, error
    assert not list(tmp_path.glob('out*'))
    return error

  return run


@pytest.mark.parametrize('end', ['', '\n', '\r\n'])
def test_header_alone_is_refused(mistake, end):
  assert 'no valid row' in mistake(AVAZU_HEADER + end)


def test_other_headers_are_refused(mistake):
  lines = '\n'.join(avazu_lines(30))
  swapped = AVAZU_HEADER.replace('C14,C15', 'C15,C14')
  line = mistake(f'{swapped}\n{lines}\n')
  assert "its header names column 17 'C15', expected 'C14'" in line
  unlabelled = AVAZU_HEADER.replace('click,', '')
  assert 'its header names 23 columns, expected 24' in mistake(f'{unlabelled}\n{lines}\n')


@pytest.mark.parametrize('protocol', ['x1', 'time'])
def test_unsorted_hours_are_refused_where_rows_are_split_by_time(mistake, protocol):
  lines = avazu_lines(60)
  lines.insert(41, 'broken')  # line 43, no row
  lines[42] = with_value(lines[42], 'hour', '14102300')
  line = mistake('\n'.join([AVAZU_HEADER, *lines, '']), f'--protocol={protocol}')
  assert 'line 44 goes back in time (hour 14102300 after 14102716)' in line
  assert 'sort them by hour, or choose a protocol that splits at random' in line


def test_unsorted_hours_are_accepted_where_rows_are_split_at_random(tmp_path):
  raw = write_lines(tmp_path / 'raw', avazu_lines(60)[::-1])
  assert prepare(raw, tmp_path / 'out', '--protocol=x4') == 0


def test_the_first_fall_is_found_for_all_chunk_sizes(mistake, monkeypatch):
  """The reported line is right within a parsed part and between two parts."""
  lines = avazu_lines(24)
  for part, place in itertools.product((150, 400, 900), range(1, 23)):
    monkeypatch.setattr('data_pipelines.text.ingest._PARSE_BYTES', part)
    monkeypatch.setattr('data_pipelines.text.ingest.CHUNK_BYTES', 2 * part)
    changed = lines.copy()
    changed[place] = with_value(lines[place], 'hour', '14102023')
    changed[place + 1] = with_value(lines[place + 1], 'hour', '14101900')  # falls once more
    line = mistake('\n'.join([AVAZU_HEADER, *changed, '']), '--protocol=time')
    assert f'line {place + 2} goes back in time (hour 14102023 after ' in line


def test_the_order_of_chunks_parsed_by_an_earlier_build_is_known(tmp_path, monkeypatch):
  """A stopped build leaves parsed chunks; the next one knows their order only from the results."""
  lines = avazu_lines(60)
  raw = write_lines(tmp_path / 'raw', [AVAZU_HEADER, *lines])
  monkeypatch.setattr('data_pipelines.text.ingest.CHUNK_BYTES', 700)
  whole, calls = ingest._parse, iter(range(1000))

  def stop_after_two(task):
    if next(calls) == 2:
      raise KeyboardInterrupt
    return whole(task)

  with monkeypatch.context() as patch:
    patch.setattr('data_pipelines.text.ingest._parse', stop_after_two)
    assert prepare(raw, tmp_path / 'out', '--protocol=time', '--workers=1') == 130
  spans = []
  monkeypatch.setattr(
    'data_pipelines.text.ingest._parse',
    lambda task: spans.append(whole(task).span) or whole(task),
  )
  assert prepare(raw, tmp_path / 'out', '--protocol=time', '--workers=1') == 0
  assert [span.line for span in spans][:2] == [2, 1] and all(spans)
  assert spans[0].first == 14102100 and spans[-1].last == int(lines[-1].split(',')[2])


def test_a_nul_byte_rejects_a_row_even_in_an_unread_column():
  lines = [line.encode() for line in avazu_lines(3)]
  lines[1] = b'1\0' + lines[1]
  rows, bad, count = parse(AVAZU_TEXT, b'\n'.join(lines), 1)
  assert (len(rows.label_N), count) == (2, 3)
  assert [(x.line, x.reason) for x in bad] == [(2, 'embedded NUL byte')]


def test_calendar_agrees_with_datetime():
  start = datetime.datetime(2010, 1, 1)
  moments = [start + datetime.timedelta(hours=5 * k) for k in range(90 * 365 * 24 // 5)]
  hour_N = np.array([int(moment.strftime('%y%m%d%H')) for moment in moments])
  found = calendar(hour_N)
  assert found['hour'].tolist() == [moment.hour for moment in moments]
  assert found['weekday'].tolist() == [moment.isoweekday() % 7 for moment in moments]
  assert found['weekend'].tolist() == [int(moment.isoweekday() >= 6) for moment in moments]
  assert moments[-1].year == 2099


@functools.cache
def _is_date(year: int, month: int, day: int) -> bool:
  try:
    datetime.date(2000 + year, month, day)
  except ValueError:
    return False
  return year >= 10


def test_only_the_hours_of_a_calendar_are_valid():
  parts = [*itertools.product((0, 9, 10, 14, 16, 99), range(15), range(34), (0, 23, 24, 99))]
  hour_N = np.array([((y * 100 + m) * 100 + d) * 100 + h for y, m, d, h in parts])
  expected = [_is_date(y, m, d) and h < 24 for y, m, d, h in parts]
  assert (~np.isnat(dates_of(hour_N))).tolist() == expected
  odd_N = np.array([0, -1, -14102100, 114102100, 10**17, -(10**17)])
  assert np.isnat(dates_of(odd_N)).all()


# Real samples, where they are at hand (no row is kept here). Distinct values in a uniform sample
# of 20,000 rows, and in the union of two samples.
DISTINCT = {
  'hour': (240, 240), 'C1': (7, 7), 'banner_pos': (6, 6), 'site_id': (803, 1183),
  'site_domain': (671, 1021), 'site_category': (16, 20), 'app_id': (618, 1065),
  'app_domain': (47, 75), 'app_category': (18, 21), 'device_id': (3431, 10531),
  'device_ip': (17566, 52178), 'device_model': (1793, 2788), 'device_type': (4, 4),
  'device_conn_type': (4, 4), 'C14': (1202, 1348), 'C15': (6, 7), 'C16': (7, 8), 'C17': (351, 367),
  'C18': (4, 4), 'C19': (61, 63), 'C20': (136, 154), 'C21': (58, 59),
}  # fmt: skip
FILES = {'avazu_sample.csv.gz': (20_000, 0.1677, 0), 'avazu_biased.csv.gz': (75_636, 0.1713, 1)}


@pytest.fixture(params=sorted(FILES))
def sample(request, samples):
  path = samples / request.param
  if not path.is_file():
    pytest.skip(f'no {path.name} in {samples}')
  return path, *FILES[request.param]


def test_statistics_of_the_samples(sample):
  path, count, click_rate, which = sample
  parts = [parse(AVAZU_TEXT, chunk.read(), 1) for chunk in TextFile(path).chunks(1 << 20, None)]
  bad = [line for _, lines, _ in parts for line in lines]
  assert [(line.line, line.reason) for line in bad] == [(1, 'a second header')]
  rows = concatenate([part for part, _, _ in parts])
  assert len(rows.label_N) == count and abs(rows.label_N.mean() - click_rate) < 5e-5
  columns = dict(zip(INTEGERS, rows.ints_NI.T, strict=True))
  columns |= zip(HEXES, rows.hexes_NC.T, strict=True)
  found = {name: len(np.unique(column)) for name, column in columns.items()}
  assert found == {name: distinct[which] for name, distinct in DISTINCT.items()}
  assert (np.diff(columns['hour']) >= 0).all()


@pytest.mark.parametrize('protocol', ['x4', 'x1', 'time'])
def test_samples_build_and_are_whole(sample, tmp_path, protocol):
  path, count, _, _ = sample
  assert prepare(path, tmp_path / 'out', f'--protocol={protocol}') == 0
  schema = read_prepared(tmp_path / 'out')[0]
  assert schema['raw']['rows_read'] == schema['raw']['rows_written'] == count
  assert doctor.main([str(tmp_path / 'out')]) == 0
