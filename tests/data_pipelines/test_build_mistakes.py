# SPDX-License-Identifier: Apache-2.0
"""Every user's mistake gives a one-line error and exit code 2."""

import collections
import gzip
import importlib
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from invented_rows import REPOSITORY, criteo_lines, write_lines

from data_pipelines import build, datasets
from data_pipelines.core.workers import Workers
from data_pipelines.doctor import __main__ as doctor
from deres_jax.core.errors import UserError


@pytest.fixture
def mistake(capsys, tmp_path):
  """Runs a build that must fail; returns its one-line error."""

  def run(*flags: str) -> str:
    try:
      code = build.main([f'--out={tmp_path / "out"}', *flags])
    except SystemExit as stop:
      code = stop.code
    error = capsys.readouterr().err
    assert code == 2 and error.startswith('error: ') and error.count('\n') == 1, (code, error)
    assert not list(tmp_path.glob('out*')), 'the failed build left something behind'
    return error

  return run


@pytest.mark.parametrize('name', [None, *datasets.DATASETS])
def test_help_fits_a_screen_and_names_the_flags_of_one_data_set(name, capsys):
  with pytest.raises(SystemExit) as stop:
    build.main([*([f'--dataset={name}'] if name else []), '--help'])
  said = capsys.readouterr().out
  assert stop.value.code == 0 and len(said.splitlines()) <= 40
  assert max(map(len, said.splitlines())) <= 80
  assert ('--rows_train' in said) == (name == 'synthetic')
  for other in datasets.DATASETS:
    assert (f' {other}: ' in said) == (name in (None, other))


def test_raw_file_that_cannot_be_used(mistake, tmp_path):
  raw = tmp_path / 'raw'
  given = ('--dataset=criteo', f'--raw={raw}')
  assert 'no such file' in mistake(*given)
  raw.mkdir()
  assert 'found a folder' in mistake(*given)
  raw.rmdir()
  raw.write_bytes(b'')
  assert 'the file is empty' in mistake(*given)
  raw.write_bytes(gzip.compress(b''))
  assert 'holds no text' in mistake(*given)
  zipped = gzip.compress('\n'.join(criteo_lines(200)).encode())
  raw.write_bytes(zipped[: len(zipped) // 2])
  assert 'truncated or damaged gzip' in mistake(*given)
  raw.write_bytes(zipped[:400] + b'\x55' * 50 + zipped[450:])
  assert 'truncated or damaged gzip' in mistake(*given)
  write_lines(raw, ['label,I1,C1', *['0,1,abc'] * 2000])
  line = mistake(*given)
  assert 'no valid row' in line and 'line 1: expected 40 tab-separated columns, found 1' in line
  write_lines(raw, criteo_lines(9))
  assert 'only 9 valid rows' in mistake(*given)
  raw.write_bytes(b'x' * (20 << 20))
  assert 'longer than' in mistake(*given)


def test_wrong_flags(mistake, tmp_path):
  assert 'choose from criteo, synthetic' in mistake('--dataset=criteoo')
  assert '--dataset' in mistake()
  assert 'needs --raw' in mistake('--dataset=criteo')
  assert 'reads no raw file' in mistake('--dataset=synthetic', '--raw=x')
  assert 'unrecognized arguments: --sed=3' in mistake('--dataset=synthetic', '--sed=3')
  assert 'invalid int value' in mistake('--dataset=synthetic', '--seed=x')
  raw = write_lines(tmp_path / 'raw', criteo_lines(20))
  given = ('--dataset=criteo', f'--raw={raw}')
  assert '--seed=-1' in mistake(*given, '--seed=-1')
  assert '--min_count=0' in mistake(*given, '--min_count=0')
  assert '--limit=3' in mistake(*given, '--limit=3')


@pytest.mark.parametrize(
  'flag, expected',
  [
    ('--rows_test=0', 'rows_test=0'),
    ('--order_shares=0.5,0.5,0.5,0', 'sum to 1'),
    ('--order_shares=1,0', 'four shares'),
    ('--order_shares=a,b', 'invalid comma-separated float value'),
    ('--sets=16,0,0,0', 'a set of order 2'),
    ('--sets=11,6,3,1', 'at most --fields=10'),
    ('--sets=10,46,3,1', 'have only 45'),
    ('--sets=10,6,3,100', 'sets of order 4 asked for, but only'),
    ('--rank=8', '--rank=8'),
    ('--click_rate=1', '--click_rate=1'),
    ('--cardinality_max=3', '--cardinality_max=3'),
    ('--logit_std=-1', '--logit_std=-1'),
  ],
)
def test_teacher_that_cannot_be_planted(mistake, flag, expected):
  assert expected in mistake('--dataset=synthetic', flag)


def test_a_foreign_out_is_never_touched(tmp_path, capsys):
  out = tmp_path / 'out'
  write_lines(tmp_path / 'file', ['precious'])
  for flags in ([], ['--overwrite']):
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    write_lines(out / 'thesis.txt', ['precious'])
    assert build.main(['--dataset=synthetic', f'--out={out}', *flags]) == 2
    assert 'is no prepared data set' in capsys.readouterr().err
    assert (out / 'thesis.txt').read_text() == 'precious\n'
    assert build.main(['--dataset=synthetic', f'--out={tmp_path / "file"}', *flags]) == 2
    assert build.main(['--dataset=synthetic', f'--out={tmp_path / "file/x"}', *flags]) == 2
  assert (tmp_path / 'file').read_text() == 'precious\n'


def test_a_full_disk_keeps_finished_work(mistake, monkeypatch, tmp_path, capsys):
  raw = write_lines(tmp_path / 'raw', criteo_lines(500))
  given = ['--dataset=criteo', f'--raw={raw}', f'--out={tmp_path / "out"}']
  usage = collections.namedtuple('usage', 'total used free')
  with monkeypatch.context() as patch:
    patch.setattr(shutil, 'disk_usage', lambda path: usage(10, 9, 1))
    assert 'MB needed' in mistake(*given[:2])

  class Full:
    def __init__(self, path, options):
      raise RuntimeError('write() failed: No space left on device; writing x')

  with monkeypatch.context() as patch:
    patch.setattr('data_pipelines.prepared.records.ArrayRecordWriter', Full)
    assert build.main(given) == 2
  error = capsys.readouterr().err
  assert error.count('\n') == 1 and 'No space left on device' in error and 'run it again' in error
  assert not (tmp_path / 'out').exists()
  monkeypatch.setattr('data_pipelines.text.ingest.parser.parse', None)  # not parsed a second time
  assert build.main(given) == 0
  assert 'going on with a build that was stopped' in capsys.readouterr().out


STOPPED_AT = (
  *('text.ingest._parse', 'text.encoding._build_field', 'text.encoding._encode_group'),
  'prepared.shards._write',
)


@pytest.mark.parametrize('place', STOPPED_AT)
def test_stopped_build_goes_on_and_ends_in_the_same_bytes(place, tmp_path, monkeypatch, capsys):
  raw = write_lines(tmp_path / 'raw', [*criteo_lines(700), 'bad'])
  given = ['--dataset=criteo', f'--raw={raw}', '--workers=1', '--min_count=1']
  monkeypatch.setattr('data_pipelines.text.ingest.CHUNK_BYTES', 20_000)
  monkeypatch.setattr('data_pipelines.text.encoding._GROUP_ROWS', 200)
  assert build.main([*given, f'--out={tmp_path / "whole"}']) == 0
  module, name = place.rsplit('.', 1)
  module = importlib.import_module(f'data_pipelines.{module}')
  real, calls = getattr(module, name), []

  def stops(task):
    calls.append(task)
    if len(calls) == 3:
      raise KeyboardInterrupt
    return real(task)

  with monkeypatch.context() as patch:
    patch.setattr(module, name, stops)
    assert build.main([*given, f'--out={tmp_path / "out"}']) == 130
  assert 'the same command goes on' in capsys.readouterr().err
  assert not (tmp_path / 'out').exists()
  assert doctor.main([str(tmp_path / 'out.building')]) == 2
  assert 'not a finished prepared data set' in capsys.readouterr().err
  assert build.main([*given, f'--out={tmp_path / "out"}']) == 0
  assert 'going on with a build that was stopped' in capsys.readouterr().out
  one, two = (
    {p.relative_to(tmp_path / n): p.read_bytes() for p in (tmp_path / n).rglob('*') if p.is_file()}
    for n in ('whole', 'out')
  )
  assert one == two


def test_another_plan_starts_again(tmp_path, monkeypatch, capsys):
  raw = write_lines(tmp_path / 'raw', criteo_lines(100))
  given = ['--dataset=criteo', f'--raw={raw}', f'--out={tmp_path / "out"}']

  def stop(task):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr('data_pipelines.prepared.shards._write', stop)
    assert build.main(given) == 130
  work = tmp_path / 'out.building/work'
  assert list(work.iterdir())
  assert build.main([*given, '--seed=3']) == 0
  assert 'going on' not in capsys.readouterr().out
  assert sorted(p.name for p in tmp_path.iterdir()) == ['out', 'raw']


def test_killed_build_leaves_no_schema_and_the_next_goes_on(tmp_path):
  out = tmp_path / 'out'
  command = [sys.executable, '-m', 'data_pipelines.build', '--dataset=synthetic', f'--out={out}']
  process = subprocess.Popen(
    [*command, '--rows_train=20000000'], cwd=REPOSITORY, stdout=subprocess.DEVNULL
  )
  small = ('--rows_train=50', '--rows_validation=50', '--rows_test=50')
  try:
    deadline = time.monotonic() + 30
    while not (tmp_path / 'out.building/plan.json').exists() and time.monotonic() < deadline:
      time.sleep(0.02)
    second = subprocess.run([*command, *small], cwd=REPOSITORY, capture_output=True, text=True)
    assert second.returncode == 2 and 'another build of it is running' in second.stderr
  finally:
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
  assert (tmp_path / 'out.building').exists() and not out.exists()
  third = subprocess.run([*command, *small], cwd=REPOSITORY, capture_output=True, text=True)
  assert third.returncode == 0, third.stderr
  assert [p.name for p in tmp_path.iterdir()] == ['out']


def test_a_killed_worker_gives_a_one_line_error(tmp_path):
  with Workers(2, start_after=0) as workers, pytest.raises(UserError, match='--workers=1'):
    list(workers.map(os._exit, [3, 3, 3]))
