# SPDX-License-Identifier: Apache-2.0
"""A folder that appears under its name only when it is complete.

A build fills a sibling `NAME.building` and locks it while it runs. A stopped build leaves the
sibling behind, and the same command goes on with the contents of its `work/`; another command, or a
user's mistake, removes it.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from data_pipelines.core.progress import Log
from data_pipelines.prepared.schema import SCHEMA_FILE
from deres_jax.core import files
from deres_jax.core.errors import UserError

_BUILDING = '.building'
_REPLACED = '.replaced-'
_PLAN = 'plan.json'
WORK = 'work'


def _put_back(out: Path) -> None:
  """Restores what a build replaced that was killed between its two renames."""
  for old in out.parent.glob(f'{out.name}{_REPLACED}*'):
    if out.exists():
      shutil.rmtree(old)
    else:
      os.rename(old, out)  # the old data set is complete


def _clear(folder: Path, keep: str | None) -> None:
  for path in folder.iterdir():
    if path.name == keep:
      continue
    if path.is_dir():
      shutil.rmtree(path)
    else:
      path.unlink()


def _same_plan(folder: Path, plan: dict) -> bool:
  try:
    return files.read_json(folder / _PLAN, dict, '') == plan
  except UserError:  # none, or written in part
    return False


def prepare_parent(out: Path) -> None:
  """Makes the folder above `out` and restores what an earlier build replaced."""
  out.parent.mkdir(parents=True, exist_ok=True)
  _put_back(out)


@contextlib.contextmanager
def staging_folder(out: Path, plan: dict, log: Log) -> Iterator[Path]:
  """Yields a folder to fill; it becomes `out` if the body succeeds.

  `out` may be missing, empty, or a prepared folder to replace. The yielded folder has a subfolder
  `work` with the intermediate files of a stopped build of the same plan; it is removed in the end.
  After a UserError nothing is left.

  Args:
    plan: all settings that determine the content, as JSON.

  Raises:
    UserError: another build of the same folder is running.
  """
  folder = out.with_name(out.name + _BUILDING)
  folder.mkdir(exist_ok=True)
  descriptor = os.open(folder, os.O_RDONLY)
  if not files.try_lock(descriptor):
    os.close(descriptor)
    raise UserError(f'--out={out}: another build of it is running (in {folder}); wait for it')
  try:
    same = _same_plan(folder, plan)
    _clear(folder, WORK if same else None)
    if same:
      log(f'going on with a build that was stopped ({folder / WORK})')
    (folder / WORK).mkdir(exist_ok=True)
    (folder / _PLAN).write_text(json.dumps(plan))
    yield folder
    shutil.rmtree(folder / WORK)
    (folder / _PLAN).unlink()
    _replace(folder, out)
  except UserError:
    shutil.rmtree(folder)
    raise
  finally:
    os.close(descriptor)


def _replace(folder: Path, out: Path) -> None:
  if not (out / SCHEMA_FILE).exists():
    os.rename(folder, out)  # replaces an empty folder, fails on any other
    return
  old = out.with_name(f'{out.name}{_REPLACED}{os.getpid()}')
  os.rename(out, old)
  os.rename(folder, out)
  shutil.rmtree(old)
