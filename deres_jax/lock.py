# SPDX-License-Identifier: Apache-2.0
"""One process at a time works in a workdir.

The lock (flock on workdir/.lock) is the kernel's: it ends with the process, however that ends. The
processes that it starts do not inherit it.
"""

import contextlib
import fcntl
import os
import pathlib
import socket
import sys
import time
from collections.abc import Iterator

from deres_jax import cluster
from deres_jax.errors import UserError

WAIT_SECONDS = 3  # for a predecessor that was killed a moment ago and still frees its memory


@contextlib.contextmanager
def held(workdir: pathlib.Path) -> Iterator[None]:
  """A workdir, made if need be, that no other run takes meanwhile. Of many hosts process 0 has it.

  Raises: UserError where another run has it.
  """
  lock = Lock(workdir)
  cluster.leader(lock.take)
  try:
    yield
  finally:
    lock.release()


class Lock:
  """The right to write in a workdir."""

  def __init__(self, workdir: pathlib.Path):
    self._workdir, self._file = workdir, None

  def take(self):
    """Raises UserError where a live process has it."""
    self._workdir.mkdir(parents=True, exist_ok=True)
    # Not emptied on opening: it says who holds the lock.
    self._file = os.fdopen(os.open(self._workdir / '.lock', os.O_RDWR | os.O_CREAT, 0o666), 'r+')
    until = time.monotonic() + WAIT_SECONDS
    while not self._got():
      if time.monotonic() > until:
        holder = self._file.read().strip() or 'another process'
        self.release()
        raise UserError(
          f'workdir {self._workdir} is in use by {holder}: wait for its end, stop it or take '
          'another --workdir'
        )
      time.sleep(0.05)
    self._file.truncate()
    self._file.write(f'process {os.getpid()} on {socket.gethostname()}\n')
    self._file.flush()

  def _got(self) -> bool:
    try:
      fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      return False
    except OSError as e:  # a file system without locks is still one to work on
      print(
        f'{self._workdir}: no locks here ({e.strerror}): see that no other run takes this workdir',
        file=sys.stderr,
      )
    return True

  def release(self):
    """Others may have it now."""
    if self._file:
      self._file.close()
      self._file = None
