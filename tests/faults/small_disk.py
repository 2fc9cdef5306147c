# SPDX-License-Identifier: Apache-2.0
"""A run on a disk that fills up, then is read-only, then is well again.

  unshare --user --map-root-user --mount python tests/faults/small_disk.py DATA MOUNTPOINT OUT

The disk is a tmpfs of this process alone. Copies what the run has written at its end to OUT, and
prints a JSON list: the message, exit code and checkpoints of each start.
"""

import contextlib
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys

if __name__ == '__main__':  # before jax is imported
  sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / 'helpers'))
  import quick

  os.environ['XLA_FLAGS'] = quick.XLA_FLAGS

from test_runs import settings

from deres_jax.core import cli
from deres_jax.training import loop
from deres_jax.training.checkpoints import store


def mount(*options: str):
  subprocess.run(
    ['mount', '-t', 'tmpfs', '-o', ','.join(options), 'tmpfs', sys.argv[2]], check=True
  )


def started(c, workdir: pathlib.Path) -> list:
  said = io.StringIO()
  with contextlib.redirect_stderr(said):
    try:
      loop.train(c, workdir)
      code = 0
    except Exception as e:
      code = cli.code_of(e)
      if code is None:
        raise
  kept = sorted(p.name for p in (workdir / 'checkpoints').iterdir() if p.name.isdigit())
  return [said.getvalue().splitlines()[-1], code, kept]


def main():
  data, disk, out = map(pathlib.Path, sys.argv[1:])
  c, workdir = settings(data), disk / 'w'
  mount('size=64m')
  save = store.Checkpoints.save

  def filling(self, step, *args):
    self.wait()
    if step == 16:  # all but the last half of what a checkpoint takes
      left = shutil.disk_usage(disk).free
      (disk / 'filler').write_bytes(bytes(left - 40_000))
    save(self, step, *args)

  store.Checkpoints.save = filling
  ends = [started(c, workdir)]
  store.Checkpoints.save = save
  ends.append(started(c, workdir))  # still full
  mount('remount', 'ro')
  ends.append(started(c, workdir))
  mount('remount', 'rw')
  (disk / 'filler').unlink()
  ends.append(started(c, workdir))
  shutil.copytree(workdir, out)
  print(json.dumps(ends))


if __name__ == '__main__':
  main()
