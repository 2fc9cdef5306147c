# SPDX-License-Identifier: Apache-2.0
"""A folder that appears under its name only when it is complete.

Work goes into a sibling `NAME.building-<pid>`, locked for as long as the builder lives. A build
that was killed leaves that sibling unlocked, and the next build removes it.
"""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from data_pipelines.errors import UserError
from data_pipelines.schema import SCHEMA_FILE
from data_pipelines.tfds_blocks import Log

_BUILDING = '.building-'
_REPLACED = '.replaced-'


def _siblings(out: Path, mark: str) -> list[Path]:
  return [path for path in out.parent.iterdir() if path.name.startswith(out.name + mark)]


def _lock(folder: Path) -> int | None:
  """Locks a folder for this process: its file descriptor, or None if another one holds it."""
  descriptor = os.open(folder, os.O_RDONLY)
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    os.close(descriptor)
    return None
  return descriptor


def clean_up(out: Path, log: Log) -> None:
  """Removes what earlier builds of `out` left when they were killed.

  Raises:
    UserError: another build of the same folder is running.
  """
  for stale in _siblings(out, _BUILDING):
    descriptor = _lock(stale)
    if descriptor is None:
      raise UserError(f'--out={out}: another build of it is running (in {stale}); wait for it')
    shutil.rmtree(stale)
    os.close(descriptor)
    log(f'removed {stale}, left by a build that did not finish')
  for old in _siblings(out, _REPLACED):
    if out.exists():
      shutil.rmtree(old)
    else:
      os.rename(old, out)  # killed between the two renames: the old data set is still whole


@contextlib.contextmanager
def staging_folder(out: Path) -> Iterator[Path]:
  """Yields a folder to fill; moves it to `out` if the body succeeds, removes it if it does not.

  `out` may be missing, empty, or a prepared folder that is to be replaced.
  """
  folder = out.with_name(f'{out.name}{_BUILDING}{os.getpid()}')
  folder.mkdir()
  descriptor = _lock(folder)
  try:
    yield folder
    _replace(folder, out)
  finally:
    shutil.rmtree(folder, ignore_errors=True)  # after success there is nothing of this name
    if descriptor is not None:
      os.close(descriptor)


def _replace(folder: Path, out: Path) -> None:
  if not (out / SCHEMA_FILE).exists():
    os.rename(folder, out)  # replaces an empty folder, fails on any other
    return
  old = out.with_name(f'{out.name}{_REPLACED}{os.getpid()}')
  os.rename(out, old)
  os.rename(folder, out)
  shutil.rmtree(old)
