# SPDX-License-Identifier: Apache-2.0
"""Every mistake with a KuaiRand folder gives a one-line error and code 2, and leaves nothing."""

import gzip
import shutil

import pytest
from kuairand_rows import (
  EARLY,
  FEEDBACK,
  LATE,
  LOG_NAMES,
  START_MS,
  USER_NAMES,
  USERS,
  VIDEO_NAMES,
  VIDEOS,
  log_rows,
  user_rows,
  write_folder,
  write_table,
)

from data_pipelines import build


def prepare(raw, out, *flags) -> int:
  return build.main(['--dataset=social', f'--raw={raw}', f'--out={out}', *flags])


@pytest.fixture(scope='module')
def logs():
  return {EARLY: log_rows(160, 1), LATE: log_rows(140, 2)}


@pytest.fixture(scope='module')
def raw(logs, tmp_path_factory):
  return write_folder(tmp_path_factory.mktemp('social') / 'raw', logs)


@pytest.fixture
def mistake(tmp_path, capsys):
  """Runs a build that must fail; returns its one-line error."""

  def run(raw, *flags: str) -> str:
    assert prepare(raw, tmp_path / 'out', *flags) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ') and error.count('\n') == 1, error
    assert not list(tmp_path.glob('out*'))
    return error

  return run


def test_folders_that_cannot_be_used(mistake, logs, tmp_path):
  raw = tmp_path / 'raw'
  assert 'no such folder' in mistake(raw)
  raw.write_text('a file')
  assert 'expected the folder of the KuaiRand files' in mistake(raw)
  raw.unlink()
  write_folder(raw, {EARLY: logs[EARLY]})
  assert 'found 1 files log_standard_*.csv, expected at least 2' in mistake(raw)
  write_table(raw / LATE, LOG_NAMES, logs[LATE])
  assert 'no file log_random_*.csv; download it, or leave' in mistake(raw, '--random_log')
  write_table(raw / LATE, LOG_NAMES, logs[LATE], packed=True)
  assert f'{LATE} is there twice, plain and .gz' in mistake(raw)
  (raw / f'{LATE}.gz').unlink()
  (raw / USERS).rename(raw / 'x')
  assert 'found 0 files user_features_*.csv, expected exactly one' in mistake(raw)
  (raw / 'x').rename(raw / USERS)
  (raw / VIDEOS).rename(raw / 'x')
  assert 'found 0 files video_features_basic_*.csv' in mistake(raw)
  (raw / 'x').rename(raw / VIDEOS)
  (raw / 'video_features_basic_27k.csv').write_text('x')
  assert f'found 2 files video_features_basic_*.csv ({VIDEOS}, video' in mistake(raw)
  (raw / 'video_features_basic_27k.csv').unlink()
  (raw / USERS).write_text('')
  assert f'{USERS}: the file is empty' in mistake(raw)


def test_headers_of_other_tables(mistake, logs, tmp_path):
  raw = write_folder(tmp_path / 'raw', logs)
  for name, old, new, said in (
    (LATE, 'is_like,is_follow', 'is_follow,is_like', "column 7 'is_follow', expected 'is_like'"),
    (USERS, ',onehot_feat17', ',onehot', 'line 1: its header lacks the column onehot_feat17'),
    (VIDEOS, ',music_type', ',tag', 'line 1: its header lacks the column music_type'),
  ):
    text = (raw / name).read_text()
    (raw / name).write_text(text.replace(old, new, 1))
    line = mistake(raw)
    assert f'{name}: ' in line and said in line
    (raw / name).write_text(text)
  (raw / VIDEOS).write_text(','.join(VIDEO_NAMES) + '\n')
  assert f'{VIDEOS}: no row after the header' in mistake(raw)


BAD_USER_LINES = {
  "is_live_streamer: not an integer: 'yes'": lambda row: row | {'is_live_streamer': 'yes'},
  "onehot_feat3: not an integer: '1.5'": lambda row: row | {'onehot_feat3': '1.5'},
  "user_id: not an integer: ''": lambda row: row | {'user_id': ''},
  "user_id: not an integer: '1e3'": lambda row: row | {'user_id': '1e3'},
  'user_active_degree: not a text of one line': lambda row: row | {'user_active_degree': 'a\tb'},
  'expected 31 comma-separated columns, found 32': lambda row: row | {'user_id': '9,9'},
}


@pytest.mark.parametrize('at', [0, 5, 8])
@pytest.mark.parametrize('lines', [1, 4, 100])
def test_bad_side_rows_are_reported_by_line(mistake, raw, tmp_path, monkeypatch, at, lines):
  monkeypatch.setattr('data_pipelines.datasets.kuairand.side_tables._LINES', lines)
  folder = shutil.copytree(raw, tmp_path / 'raw')
  text = (folder / USERS).read_text().splitlines()
  good = user_rows()[at]
  bad = []
  for reason, spoil in BAD_USER_LINES.items():
    write_table(tmp_path / 'one', USER_NAMES, [spoil(good)])
    line = (tmp_path / 'one').read_text().splitlines()[1]
    bad.append((reason, line.replace('"9,9"', '9,9')))
  bad += [
    ('empty line', ''),
    ('no comma-separated row', text[at + 1] + ',"open'),
    ('no comma-separated row', text[at + 1].replace(',1,', ',"1\n",', 1)),
    ('is there already, in line', text[2 if at == 0 else 1]),
  ]
  for reason, line in bad:
    (folder / USERS).write_text('\n'.join([*text[: at + 1], line, *text[at + 2 :], '']))
    said = mistake(folder)
    # The second of two rows of one user is reported.
    number = 3 if at == 0 and 'already' in reason else at + 2
    assert f'{USERS}: line {number}: ' in said and reason in said, said


def test_side_table_of_other_bytes_or_a_damaged_gzip(mistake, logs, tmp_path):
  raw = write_folder(tmp_path / 'raw', logs)
  data = (raw / VIDEOS).read_bytes()
  (raw / VIDEOS).write_bytes(data.replace('ß'.encode(), b'\xdf', 1))
  assert 'upload_type: not a text of one line in UTF-8' in mistake(raw)
  (raw / VIDEOS).write_bytes(gzip.compress(data)[:-20])
  assert f'{VIDEOS}: truncated or damaged gzip' in mistake(raw)


def test_rows_that_cannot_be_used(mistake, logs, tmp_path):
  rows = logs[EARLY]
  raw = write_folder(tmp_path / 'few', {EARLY: rows[:5], LATE: rows[5:9]})
  assert 'only 9 valid rows; expected at least 10' in mistake(raw)
  raw = write_folder(tmp_path / 'one', {EARLY: rows[:5], LATE: []})
  assert f'{LATE}: no valid row' in mistake(raw)
  cold = [row | dict.fromkeys(FEEDBACK, 0) for row in rows]
  raw = write_folder(tmp_path / 'cold', {EARLY: cold[:100], LATE: cold[100:]})
  assert 'no row has positive feedback' in mistake(raw)
  tied = [row | {'time_ms': START_MS + (i > 90)} for i, row in enumerate(rows[:100])]
  raw = write_folder(tmp_path / 'tied', {EARLY: tied[:50], LATE: tied[50:]})
  line = mistake(raw)
  assert '100 rows cannot be split 8:1:1 by time' in line
  assert 'train 91, validation 0, test 9' in line


def test_wrong_flags(mistake, raw):
  assert '--events=0: expected 1 to' in mistake(raw, '--events=0')
  assert '--min_count=0' in mistake(raw, '--min_count=0')
  assert '--seed=-1' in mistake(raw, '--seed=-1')
  assert '--limit=1' in mistake(raw, '--limit=1')
