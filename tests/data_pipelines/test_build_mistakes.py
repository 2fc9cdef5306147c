# SPDX-License-Identifier: Apache-2.0
"""Every mistake of a user's gets one line on standard error and exit code 2."""

import collections
import gzip
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from invented_rows import REPOSITORY, criteo_lines, write_lines

from data_pipelines import build
from data_pipelines.staging import staging_folder


@pytest.fixture
def mistake(capsys, tmp_path):
  """Runs a build that must fail; returns its one line."""

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


def test_out_that_is_not_ours_is_never_touched(tmp_path, capsys):
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


def test_full_disk(mistake, monkeypatch):
  small = ('--dataset=synthetic', '--rows_train=9000', '--rows_validation=9', '--rows_test=9')
  usage = collections.namedtuple('usage', 'total used free')
  with monkeypatch.context() as patch:
    patch.setattr(shutil, 'disk_usage', lambda path: usage(10, 9, 1))
    assert 'MB needed' in mistake(*small)

  def fail(self, download_dir):
    raise RuntimeError('write() failed: No space left on device; writing x')

  monkeypatch.setattr(build.SYNTHETIC.builder, 'download_and_prepare', fail)
  assert 'No space left on device' in mistake(*small)


def test_killed_build_leaves_no_schema_and_the_next_cleans_up(tmp_path):
  out = tmp_path / 'out'
  command = [
    sys.executable,
    '-m',
    'data_pipelines.build',
    '--dataset=synthetic',
    f'--out={out}',
  ]
  process = subprocess.Popen(
    [*command, '--rows_train=20000000'], cwd=REPOSITORY, stdout=subprocess.DEVNULL
  )
  try:
    deadline = time.monotonic() + 30
    while not list(tmp_path.glob('out.building-*')) and time.monotonic() < deadline:
      time.sleep(0.02)
    small = ('--rows_train=50', '--rows_validation=50', '--rows_test=50')
    second = subprocess.run([*command, *small], cwd=REPOSITORY, capture_output=True, text=True)
    assert second.returncode == 2 and 'another build of it is running' in second.stderr
  finally:
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
  assert list(tmp_path.glob('out.building-*')) and not out.exists()
  third = subprocess.run([*command, *small], cwd=REPOSITORY, capture_output=True, text=True)
  assert third.returncode == 0, third.stderr
  assert 'left by a build that did not finish' in third.stdout
  assert [p.name for p in tmp_path.iterdir()] == ['out']


def test_interrupted_build_leaves_nothing(tmp_path):
  with pytest.raises(KeyboardInterrupt), staging_folder(tmp_path / 'out') as folder:
    (folder / 'half').write_text('x')
    raise KeyboardInterrupt
  assert not list(tmp_path.iterdir())
