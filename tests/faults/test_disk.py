# SPDX-License-Identifier: Apache-2.0
"""A disk that cannot be written costs a line and code 2, and no checkpoint."""

import errno
import json
import os
import pathlib
import subprocess
import sys

import pytest
from kills import end_of
from test_runs import settings

from deres_jax.core import files
from deres_jax.core.errors import UserError
from deres_jax.training import loop

HERE = pathlib.Path(__file__).resolve().parent
ALONE = ['unshare', '--user', '--map-root-user', '--mount']


def test_a_full_and_a_read_only_disk(planted, tmp_path):
  try:
    probe = subprocess.run([*ALONE, 'mount', '-t', 'tmpfs', 'x', str(tmp_path)], check=False)
  except FileNotFoundError:
    pytest.skip('no unshare here: a disk of our own cannot be made')
  if probe.returncode:
    pytest.skip('this user may not mount a disk of its own')
  place, out = tmp_path / 'disk', tmp_path / 'out'
  place.mkdir()
  done = subprocess.run(
    [*ALONE, sys.executable, str(HERE / 'small_disk.py'), str(planted), str(place), str(out)],
    env={**os.environ, 'PYTHONPATH': f'{HERE.parents[1]}'},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  full, still, locked, well = json.loads(done.stdout.splitlines()[-1])
  for line, code, kept in (full, still):
    assert line.startswith('error: ') and 'No space left on device: free some space' in line
    assert code == 2 and kept == ['12', '8']
  assert 'Read-only file system: mount it for writing' in locked[0]
  assert locked[1:] == [2, ['12', '8']]
  assert well[1] == 0
  loop.train(settings(planted), tmp_path / 'whole')
  assert end_of(out) == end_of(tmp_path / 'whole')


@pytest.mark.parametrize('name', ['ENOSPC', 'EDQUOT', 'EFBIG', 'EROFS', 'EACCES', 'EPERM'])
def test_mendable_errors_are_one_line_that_names_the_file(name, tmp_path):
  number = getattr(errno, name)
  with pytest.raises(UserError, match=rf'^/a/b: {os.strerror(number)}: '), files.faults(tmp_path):
    raise OSError(number, os.strerror(number), '/a/b')


def test_other_errors_stay_what_they_are(tmp_path):
  for error in (OSError(errno.EBADF, 'bad'), ValueError('Permission denied?'), KeyError('x')):
    with pytest.raises(type(error)) as caught, files.faults(tmp_path):
      raise error
    assert caught.value is error
  with pytest.raises(UserError, match=f'^{tmp_path}: No space'), files.faults(tmp_path):
    raise ValueError('RESOURCE_EXHAUSTED: writing x: [OS error 28: No space left on device]')
