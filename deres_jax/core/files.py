# SPDX-License-Identifier: Apache-2.0
"""Reads and writes files so that neither damage nor a crash goes unnoticed.

A file is replaced in one piece: its new content reaches the disk before its name does, so after a
power failure it holds the old content or the new one, never a part. A damaged file that is read and
a place that cannot be written give a one-line error.
"""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import socket
import time
import uuid
from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec

from deres_jax.core.errors import UserError, excerpt

T = TypeVar('T')

# Errors that a user can mend. Others are our faults, or the machine's.
_MEND = {
  errno.ENOSPC: 'free some space',
  errno.EDQUOT: 'free some space or ask for a larger quota',
  errno.EFBIG: 'raise the limit of file sizes (ulimit -f)',
  errno.EROFS: 'mount it for writing or choose another folder',
  errno.EACCES: 'get the right to it or choose another folder',
  errno.EPERM: 'get the right to it or choose another folder',
  errno.ENOTDIR: 'choose another folder',
  errno.EISDIR: 'choose another name',
  errno.EEXIST: 'choose another name',
  errno.ENOTEMPTY: 'choose another name',
  errno.ENAMETOOLONG: 'choose a shorter name',
  errno.ELOOP: 'mend the links or choose another name',
}
# TensorStore, which writes the arrays of a checkpoint, quotes the system in a ValueError. These
# texts mean nothing else, wherever they are quoted.
_QUOTED = errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS


# Reading.


def read_json(path: pathlib.Path, kind: type[T], advice: str) -> T:
  """Reads a JSON file as a value of a type, by the rules of msgspec.

  Args:
    kind: a msgspec.Struct, whose fields are checked and whose unknown fields are ignored, or any
      other type that msgspec decodes, such as `dict` or `list[int]`.
    advice: what the user can do about a damaged file.

  Raises:
    UserError: '{path}: `$.rows`: expected `int`, got `str`: {advice}'; also for a file that is not
      there.
  """
  return decode_json(read_bytes(path, advice), kind, path, advice)


def read_bytes(path: pathlib.Path, advice: str) -> bytes:
  """Reads a file that must be there; raises UserError where it cannot be read."""
  try:
    return path.read_bytes()
  except OSError as e:
    raise UserError(f'{path}: {e.strerror}: {advice}') from e


def decode_json(data: bytes | str, kind: type[T], where: Any, advice: str) -> T:
  """Decodes JSON as `read_json` does; `where` names it in errors, such as 'FILE line 3'."""
  try:
    try:
      return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError:
      raise
    except msgspec.DecodeError:
      # Python writes NaN for a figure that is not defined: it counts as null.
      value = json.loads(data, parse_constant=lambda _: None)
      return msgspec.json.decode(msgspec.json.encode(value), type=kind)
  except msgspec.ValidationError as e:
    problem, _, place = str(e).partition(' - at ')
    problem = problem[0].lower() + problem[1:]
    raise UserError(f'{where}: {place or "`$`"}: {problem}: {advice}') from e
  # Text that is no JSON, bytes that are no text, brackets without end.
  except (ValueError, RecursionError) as e:
    raise UserError(f'{where}: not valid JSON ({excerpt(e)}): {advice}') from e


# Writing.


def sync(path: pathlib.Path):
  """Waits until the content of a file, or the names in a folder, are on the disk."""
  number = os.open(path, os.O_RDONLY)
  try:
    os.fsync(number)
  finally:
    os.close(number)


@contextlib.contextmanager
def replacing(path: pathlib.Path, durable: bool = True) -> Iterator[pathlib.Path]:
  """Yields a temporary path; what is written there takes the place of `path` at the end.

  The name is unique, so that several processes may replace one file. If the body raises, `path`
  stays as it was.

  Args:
    durable: whether to wait until the file is on the disk.
  """
  partial = path.with_name(f'{path.name}.{uuid.uuid4().hex}.partial')
  try:
    yield partial
    if durable:
      sync(partial)
    os.replace(partial, path)
    if durable:
      sync(path.parent)
  finally:
    partial.unlink(missing_ok=True)


def write(path: pathlib.Path, text: str):
  """Replaces a file by this text."""
  with replacing(path) as partial:
    partial.write_text(text, encoding='utf-8')


def write_json(path: pathlib.Path, value: Any):
  """Replaces a file by a value as JSON."""
  write(path, json.dumps(value, indent=1) + '\n')


def output_file(text: str, suffix: str = '', flag: str = '--out') -> pathlib.Path:
  """Returns the path of a file to write, or raises UserError if it cannot be written.

  Commands call it before they compute anything.
  """
  path = pathlib.Path(text)
  if path.is_dir() or not path.parent.is_dir() or not path.name.endswith(suffix):
    problem = f'there is no folder {path.parent}'
    if path.is_dir() or path.parent.is_dir():
      problem = 'is a folder' if path.is_dir() else 'has another ending'
    ending = f' that ends in {suffix}' if suffix else ''
    raise UserError(f'{flag}={text}: {problem}: give a file{ending} in an existing folder')
  _check_writable(path.parent, f'{flag}={text}')
  return path


def output_folder(text: str, flag: str = '--out') -> pathlib.Path:
  """Returns the path of a folder to write in, or raises UserError if it cannot be made or written.

  The folder need not exist yet; nothing is created.
  """
  path = pathlib.Path(text)
  existing = next(p for p in (path, *path.absolute().parents) if os.path.lexists(p))
  if not existing.is_dir():
    raise UserError(f'{flag}={text}: {existing} is a file: give a folder')
  _check_writable(existing, f'{flag}={text}')
  return path


def _check_writable(folder: pathlib.Path, setting: str):
  if not os.access(folder, os.W_OK | os.X_OK):
    raise UserError(f'{setting}: {folder} cannot be written: {_MEND[errno.EACCES]}')


def mendable(e: BaseException) -> str | None:
  """Says in one line what a user can do about an error of the file system; None: nothing.

  Finds it behind errors of libraries too, which quote the system.
  """
  number = e.errno if isinstance(e, OSError) else None
  if number not in _MEND:
    number = next((n for n in _QUOTED if os.strerror(n) in str(e)), None)
  if number is None:
    return None
  file = f'{e.filename}: ' if isinstance(e, OSError) and e.filename else ''
  return f'{file}{os.strerror(number)}: {_MEND[number]}'


@contextlib.contextmanager
def faults(folder: pathlib.Path) -> Iterator[None]:
  """Turns errors of a full, read-only or forbidden disk into a one-line UserError.

  Args:
    folder: the folder to name where the error names no file.
  """
  try:
    yield
  except (OSError, ValueError, RuntimeError) as e:
    text = mendable(e)
    if text is None:
      raise
    place = '' if isinstance(e, OSError) and e.filename else f'{folder}: '
    raise UserError(f'{place}{text}, then the same command goes on from the last checkpoint') from e


# Locks.


class Lock:
  """A lock on a file, which says who holds it. It ends with the process, however that ends.

  A child process shares it only if it is given the lock's `fileno()`.
  """

  def __init__(self, path: pathlib.Path):
    self.path, self._number = path, None

  def take(self, wait_seconds: float = 0) -> bool:
    """Takes the lock, or returns False where another process holds it.

    Raises:
      OSError: the file system has no locks (the file is open then), or the file cannot be opened.
    """
    if self._number is None:  # not emptied on opening: it says who holds the lock
      self._number = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
    end = time.monotonic() + wait_seconds
    while not try_lock(self._number):
      if time.monotonic() >= end:
        self.close()
        return False
      time.sleep(0.05)
    os.ftruncate(self._number, 0)
    os.pwrite(self._number, f'process {os.getpid()} on {socket.gethostname()}\n'.encode(), 0)
    return True

  def holder(self) -> str:
    """Returns who holds the lock, such as 'process 7 on host'."""
    text = self.path.read_text(errors='replace').strip()
    return text or 'another process'

  def is_open(self) -> bool:
    """Returns whether the file is open: the lock was taken, or there are no locks here."""
    return self._number is not None

  def fileno(self) -> int:
    """Returns the file descriptor of a lock that was taken."""
    return self._number

  def close(self):
    """Lets other processes take the lock."""
    if self._number is not None:
      os.close(self._number)
      self._number = None


def is_locked(path: pathlib.Path) -> bool:
  """Returns whether a process holds the `Lock` of this path; writes nothing."""
  if not path.is_file():
    return False
  with path.open() as file:
    return not try_lock(file.fileno(), shared=True)


def try_lock(number: int, shared: bool = False) -> bool:
  """Locks an open file or folder by its descriptor; returns False where another process has it.

  Raises:
    OSError: the file system has no locks.
  """
  try:
    fcntl.flock(number, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
  except BlockingIOError:
    return False
  return True
