# SPDX-License-Identifier: Apache-2.0
"""A workdir belongs to one live process."""

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys

import pytest

from deres_jax.core import files
from deres_jax.core.errors import UserError
from deres_jax.training import workdir

REPO = pathlib.Path(__file__).resolve().parents[2]
HOLDER = """
import pathlib, subprocess, sys
from deres_jax.training.workdir import locked
with locked(pathlib.Path(sys.argv[1])):
  child = subprocess.Popen(['sleep', '60'])
  print(child.pid, flush=True)
  child.wait()
"""


def test_a_second_process_is_refused_until_the_first_is_dead(tmp_path, monkeypatch):
  monkeypatch.setattr(workdir, 'WAIT_SECONDS', 0.2)
  command = [sys.executable, '-c', HOLDER, str(tmp_path)]
  holder = subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, text=True)
  child = int(holder.stdout.readline())
  try:
    who = re.escape(f'process {holder.pid} on {socket.gethostname()}')
    for _ in range(2):
      with pytest.raises(UserError, match=f'is in use by {who}: wait'), workdir.locked(tmp_path):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    os.kill(child, 0)  # what it started lives, and has not the lock
    with workdir.locked(tmp_path):
      assert (tmp_path / '.lock').read_text().split()[1] == str(os.getpid())
    with workdir.locked(tmp_path):
      pass
  finally:
    os.kill(child, signal.SIGKILL)
    holder.kill()


def test_a_file_system_without_locks_is_reported_and_used(tmp_path, monkeypatch, capsys):
  def no_locks(file, flags):
    raise OSError(95, 'Operation not supported')

  monkeypatch.setattr(files.fcntl, 'flock', no_locks)
  with workdir.locked(tmp_path / 'new'):
    assert 'no locks here (Operation not supported)' in capsys.readouterr().err
