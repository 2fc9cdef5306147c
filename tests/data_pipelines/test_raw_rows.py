# SPDX-License-Identifier: Apache-2.0
"""A server encodes raw rows to the ids of the build, row by row."""

import csv

import invented_rows
import kuairand_rows
import numpy as np
import pytest
from made import feed_row

from data_pipelines import build
from data_pipelines.datasets import avazu
from data_pipelines.datasets.avazu import PROTOCOLS as AVAZU_PROTOCOLS
from data_pipelines.datasets.criteo import FIELD_NAMES
from data_pipelines.datasets.criteo import PROTOCOLS as CRITEO_PROTOCOLS
from data_pipelines.datasets.kuairand import fields
from data_pipelines.text.splits import Split
from deres_jax.core.errors import UserError
from deres_jax.data.schema import load_schema
from deres_jax.serving import recipes
from deres_jax.serving.encoder import Encoder

SPLITS = ('train', 'validation', 'test')


def encoder_of(folder) -> Encoder:
  schema = load_schema(str(folder))
  return Encoder(recipes.inputs_of(schema), recipes.vocabularies_of(schema))


def stored(folder) -> dict[str, np.ndarray]:
  """All ids of each split [N, S], fields and then events."""
  schema = load_schema(str(folder))
  out = {}
  for split in SPLITS:
    blocks = list(invented_rows.open_split(folder / schema.tfds, split))
    parts = [np.concatenate([b['ids'] for b in blocks])]
    if schema.sequence is not None:
      events = np.concatenate([b['events'] for b in blocks])
      parts.append(events.reshape(len(events), -1))
    out[split] = np.concatenate(parts, axis=1)
  return out


def assert_same_ids(folder, rows, split: Split, seed=0):
  """`rows` are the valid ones, in the order of the raw file."""
  encoder, wanted = encoder_of(folder), stored(folder)
  numbers = split.rows(len(rows), seed)
  assert sum(map(len, numbers.values())) == len(rows)
  for name in SPLITS:
    got = encoder.encode([rows[i] for i in numbers[name]])
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, wanted[name], name)


def criteo_row(line: str) -> dict[str, str]:
  return dict(zip(FIELD_NAMES, line.split('\t')[1:], strict=True))


ODD_NUMBERS = ('-0', '007', '-1', '-999999999999999999', '999999999999999999', '2', '3', '1619')
JUNK = ('1.5', ' 1', '1 ', '+1', '0x1', '1e3', '-', '--1', '1234567890123456789', '٣', 'abc', 'nan')


@pytest.mark.parametrize('name', ['criteo', 'criteo_1tb'])
def test_criteo_rows_become_the_ids_of_the_build(tmp_path, name):
  """Unknown and hashed categories, missing, negative and large numbers; junk fails in both."""
  lines = invented_rows.criteo_lines(1500, seed=1)
  for i, number in enumerate(ODD_NUMBERS):  # 1, 2, 3 ... rows: some become known, some do not
    for k in range(i * 20, i * 20 + i + 1):
      values = lines[k].split('\t')
      values[1 + i] = number
      values[14 + i] = values[14 + i].upper()
      lines[k] = '\t'.join(values)
  bad = [f'0\t{junk}\t' + '\t'.join([''] * 38) for junk in JUNK]
  bad += ['0\t' + '\t' * 13 + junk + '\t' * 25 for junk in ('0123abc', '0123abcg', '0123abcde')]
  raw = invented_rows.write_lines(tmp_path / 'raw.txt', [*bad, *lines])
  flags = [f'--dataset={name}', f'--raw={raw}', f'--out={tmp_path / "out"}', '--min_count=6']
  flags += ['--max_ids=1000'] if name == 'criteo_1tb' else []
  assert build.main(flags) == 0
  assert len((tmp_path / 'out' / 'rejects.tsv').read_text().splitlines()) == len(bad)
  rows = [criteo_row(line) for line in lines]
  split = Split(8, 1, 1, by_time=True) if name == 'criteo_1tb' else CRITEO_PROTOCOLS['x4'].split
  assert_same_ids(tmp_path / 'out', rows, split)
  found = stored(tmp_path / 'out')['train']
  assert (found[:, :13] == 1).any(), 'a number that is too rare'
  encoder = encoder_of(tmp_path / 'out')
  for line in bad:
    with pytest.raises(UserError, match=r'^row 0: [IC]1 is .*expected'):
      encoder.encode([criteo_row(line)])


def test_a_missing_key_is_an_empty_value(tmp_path):
  lines = invented_rows.criteo_lines(400, seed=2)
  raw = invented_rows.write_lines(tmp_path / 'raw.txt', lines)
  assert build.main(['--dataset=criteo', f'--raw={raw}', f'--out={tmp_path / "out"}']) == 0
  encoder = encoder_of(tmp_path / 'out')
  rows = [criteo_row(line) for line in lines]
  without = [{k: v for k, v in row.items() if v} for row in rows]
  assert sum(map(len, without)) < 39 * len(rows) * 0.9
  np.testing.assert_array_equal(encoder.encode(without), encoder.encode(rows))
  nothing = encoder.encode([{}])[0]
  zero = encoder.encode([dict.fromkeys(FIELD_NAMES[:13], '0')])[0]
  assert (nothing[:13] == zero[:13]).all() and (nothing[:13] > 1).all()
  assert (nothing[13:] == 1).all()


@pytest.mark.parametrize('protocol', ['x4', 'x1'])
def test_avazu_rows_become_the_ids_of_the_build(tmp_path, protocol):
  """Hours become calendar fields; a split by time has tokens that are not in training."""
  lines = invented_rows.avazu_lines(1200, seed=3)
  raw = invented_rows.write_lines(tmp_path / 'raw.csv', [invented_rows.AVAZU_HEADER, *lines])
  flags = [f'--protocol={protocol}', '--min_count=20']
  assert build.main(['--dataset=avazu', f'--raw={raw}', f'--out={tmp_path / "out"}', *flags]) == 0
  rows = list(csv.DictReader([invented_rows.AVAZU_HEADER, *lines]))
  rows = [{k: v for k, v in row.items() if k not in ('id', 'click')} for row in rows]
  assert_same_ids(tmp_path / 'out', rows, AVAZU_PROTOCOLS[protocol].split)
  encoder = encoder_of(tmp_path / 'out')
  for hour in ('14103124', '14043100', '09010100', '141021', '-14102100'):
    assert np.isnat(avazu.dates_of(np.array([int(hour)])))  # so the build refuses the row
    with pytest.raises(UserError, match=r'^row 0: hour is .*expected YYMMDDHH'):
      encoder.encode([{**rows[0], 'hour': hour}])
  # The format has no missing value, so it is unknown.
  assert (encoder.encode([{}]) == 1).all()


def kuairand_request(row, rows, users, videos):
  """Joins a row of the logs with the side tables and the user's earlier events."""

  def known(row):
    logged = {name: str(row[name]) for name in ('user_id', 'video_id', 'tab')}
    side = {**users.get(logged['user_id'], {}), **videos.get(logged['video_id'], {})}
    names = set(fields.FIELDS) - logged.keys()
    return logged | {name: text for name, text in side.items() if name in names}

  events = [
    {k: v for k, v in known(event).items() if k in fields.SHARED}
    | {
      'feedback': '+'.join(k.removeprefix('is_') for k in kuairand_rows.FEEDBACK if event[k]),
      'time_ms': str(event['time_ms']),
    }
    for event in kuairand_rows.past_of(row, rows, 10**6)
  ]
  own = {name: str(row[name]) for name in ('time_ms', 'duration_ms')}
  return known(row) | own | {'events': events}


def test_histories_become_the_ids_of_the_build(tmp_path):
  logs = kuairand_rows.log_rows(260, 1)
  files = {kuairand_rows.EARLY: logs[:150], kuairand_rows.LATE: logs[150:]}
  raw = kuairand_rows.write_folder(tmp_path / 'raw' / 'data', files).parent
  flags = ['--dataset=social', '--events=4', f'--raw={raw}', f'--out={tmp_path / "out"}']
  assert build.main(flags) == 0
  users = {row['user_id']: row for row in kuairand_rows.user_rows()}
  videos = {row['video_id']: row for row in kuairand_rows.video_rows()}
  # The reference has the rows in the order of the folder.
  rows = sorted(logs, key=lambda r: (r['user_id'] * 0x9E3779B97F4A7C15 % 2**64, r['time_ms']))
  times = [row['time_ms'] for row in rows]
  borders = [kuairand_rows.cut(times, 8), kuairand_rows.cut(times, 9)]
  generator, encoder, wanted = np.random.default_rng(0), encoder_of(tmp_path / 'out'), {}
  wanted = stored(tmp_path / 'out')
  for s, split in enumerate(SPLITS):
    numbers = [i for i, t in enumerate(times) if sum(t >= border for border in borders) == s]
    numbers = generator.permutation(np.array(numbers)).tolist()
    requests = [kuairand_request(rows[i], rows, users, videos) for i in numbers]
    np.testing.assert_array_equal(encoder.encode(requests), wanted[split], split)
  assert (wanted['train'][:, -1] > 1).any() and (wanted['train'][:, -5] == 0).any()
  request = next(r for r in requests if r['events'])
  last = request['events'][-1]
  swapped = [{**last, 'feedback': 'like+click'}, {**last, 'feedback': 'click+like'}]
  ids = [encoder.encode([{**request, 'events': [event]}]) for event in swapped]
  np.testing.assert_array_equal(*ids)
  for change, words in (
    ({'feedback': 'click+click'}, 'feedback is .*expected some of its names'),
    ({'feedback': 'liked'}, 'feedback is .*expected some of its names'),
    ({'time_ms': request['time_ms']}, "time_ms is .*below the row's"),
    ({'duration_ms': '1'}, "unknown key 'duration_ms'"),
    ({'time_ms': 5}, 'time_ms is 5 .*expected a string'),
  ):
    with pytest.raises(UserError, match=rf'^row 0, events\[-1\]: {words}'):
      encoder.encode([{**request, 'events': [{**last, **change}]}])
  with pytest.raises(UserError, match=r'^row 0: events is .*expected a list'):
    encoder.encode([{**request, 'events': {}}])


def test_planted_rows_become_the_ids_of_the_build(planted):
  encoder, names = encoder_of(planted), [f'f{f:02d}' for f in range(1, 7)]
  ids = stored(planted)['test']
  rows = [dict(zip(names, (str(i - 2) for i in row), strict=True)) for row in ids.tolist()]
  np.testing.assert_array_equal(encoder.encode(rows), ids)
  assert encoder.encode([{'f01': '4000'}])[0, 0] == 1


@pytest.mark.parametrize(
  ('rows', 'words'),
  [
    ([{'f01': '1'}, {'f99': '1', 'label': '1'}], "^row 1: unknown key 'f99', 'label': expected"),
    ([{'f01': 1}], '^row 0: f01 is 1 .int.: expected a string'),
    ([{'f01': None}], '^row 0: f01 is None .NoneType.: expected a string'),
    ([{'f01': True}], '^row 0: f01 is True .bool.: expected a string'),
    ([['1']], '^row 0 is .*expected a dict'),
    ({'f01': '1'}, '^rows are a dict: expected a list'),
    ([{'events': []}], "^row 0: unknown key 'events'"),
  ],
)
def test_a_malformed_row_gives_a_one_line_error(planted, rows, words):
  with pytest.raises(UserError, match=words) as caught:
    encoder_of(planted).encode(rows)
  assert '\n' not in str(caught.value)


def test_every_length_of_history_is_padded_at_the_front(feed):
  encoder, wanted, schema = encoder_of(feed), stored(feed), load_schema(str(feed))
  lengths = set()
  for split in SPLITS:
    rows = [feed_row(schema, ids) for ids in wanted[split].tolist()]
    np.testing.assert_array_equal(encoder.encode(rows), wanted[split], split)
    lengths |= {len(row['events']) for row in rows}
  assert lengths == set(range(7))
