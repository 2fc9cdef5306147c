# SPDX-License-Identifier: Apache-2.0
"""Files that outlive a crash, and what a disk that cannot be written costs: one line.

A file is replaced in one piece: its new content reaches the disk before its name does. Where the
power fails there is the old content or the new one, never a part.
"""

import contextlib
import errno
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from deres_jax.core.errors import UserError, shown

# What a user can mend. Others are faults of ours, or of the machine.
_MEND = {
  errno.ENOSPC: 'free some space',
  errno.EDQUOT: 'free some space or ask for a larger quota',
  errno.EFBIG: 'raise the limit of file sizes (ulimit -f)',
  errno.EROFS: 'mount it for writing or take another --workdir',
  errno.EACCES: 'give this user the right to it or take another --workdir',
  errno.EPERM: 'give this user the right to it or take another --workdir',
}


# Wording that means nothing else, wherever it is quoted.
_QUOTED = errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS


def sync(path: pathlib.Path):
  """Returns when the content of a file, or the names in a folder, are on the disk."""
  number = os.open(path, os.O_RDONLY)
  try:
    os.fsync(number)
  finally:
    os.close(number)


def replace(path: pathlib.Path, text: str):
  """Writes the whole file, or leaves the old one; on the disk when it returns."""
  partial = path.with_name(path.name + '.partial')
  partial.write_text(text)
  sync(partial)
  os.replace(partial, path)
  sync(path.parent)


@contextlib.contextmanager
def faults(folder: pathlib.Path) -> Iterator[None]:
  """Turns what a full, read-only or forbidden disk raises inside into a UserError of one line.

  Args:
    folder: to be named where the error names no file.
  """
  try:
    yield
  # TensorStore, which writes the arrays of a checkpoint, quotes the system in a ValueError.
  except (OSError, ValueError, RuntimeError) as e:
    number = _number(e)
    if number is None:
      raise
    file = e.filename if isinstance(e, OSError) and e.filename else folder
    raise UserError(
      f'{file}: {os.strerror(number)}: {_MEND[number]}, then the same command goes on from the '
      'last checkpoint'
    ) from e


def _number(e: BaseException) -> int | None:
  """The errno behind an exception, of those a user can mend."""
  if isinstance(e, OSError) and e.errno in _MEND:
    return e.errno
  return next((n for n in _QUOTED if os.strerror(n) in str(e)), None)


def write_json(path: pathlib.Path, value: Any):
  """Writes the whole file or leaves the old one."""
  replace(path, json.dumps(value, indent=1) + '\n')


def read(file: pathlib.Path, kind: type, then: str) -> Any:
  """What a JSON file holds; raises UserError where it is damaged or not of the kind.

  Args:
    kind: dict or list.
    then: what the user is to do about it.
  """
  try:
    value = json.loads(file.read_text(encoding='utf-8'))
    json.dumps(value, ensure_ascii=False).encode()  # halves of characters, which no file can hold
  # Of text that is no JSON, of bytes that are no text, of brackets without end.
  except (ValueError, RecursionError) as e:
    raise UserError(f'{file}: not valid JSON ({shown(e)}): {then}') from e
  if not isinstance(value, kind):
    names = {dict: 'an object', list: 'a list'}
    raise UserError(f'{file}: holds {type(value).__name__}, expected {names[kind]}: {then}')
  return value
