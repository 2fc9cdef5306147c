# SPDX-License-Identifier: Apache-2.0
"""Which run a workdir belongs to: config.json, and what a later start is compared with."""

import contextlib
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

from deres_jax import config as config_lib
from deres_jax.config import fields
from deres_jax.core import files, run_files
from deres_jax.core.errors import UserError
from deres_jax.data.schema import Schema
from deres_jax.pod import processes
from deres_jax.training.logs import wandb


def bind_workdir(c: fields.Config, schema: Schema, workdir: pathlib.Path) -> dict[str, Any] | None:
  """Makes a workdir this run's own: writes config.json, or compares with the one that is there.

  Returns: the content of result.json, where the run is finished.
  Raises: UserError for another run's workdir; nothing in it is touched then.
  """
  wandb.check(c.train.wandb)
  workdir.mkdir(parents=True, exist_ok=True)
  file = workdir / 'config.json'
  mine = {
    'config_hash': config_lib.config_hash(c),
    'data_content': schema.content,
    'config': config_lib.as_dict(c),
    'identity': config_lib.identity(c),
  }
  old = run_files.read_config(workdir, 'take another --workdir, or put the file back')
  if old is not None:
    now = mine['identity']
    changed = [
      f'{k}: {old.identity.get(k)!r} -> {now.get(k)!r}'
      for k in sorted({*old.identity, *now})
      if old.identity.get(k) != now.get(k)
      # Under stop nothing was ever skipped: the run is what it would be had it begun as it goes on.
      and not (k == 'train.on_nan' and k not in old.identity)
    ]
    if changed:
      raise UserError(
        f'workdir {workdir} belongs to a run of another config ({"; ".join(changed)}): '
        'take another --workdir or the old config'
      )
    if old.data_content != schema.content:
      raise UserError(
        f'workdir {workdir} was started on other data than {schema.path}: '
        'take another --workdir or the old data'
      )
  files.write_json(file, mine)
  advice = 'delete it: the same command finishes the run from its last checkpoint'
  if run_files.read_result(workdir, advice) is None:  # checks its fields
    return None
  return files.read_json(workdir / 'result.json', dict, advice)


WAIT_SECONDS = 3  # for a predecessor that was killed a moment ago and still frees its memory


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
  """Makes a workdir if need be and keeps other runs out of it. Of many hosts process 0 locks it.

  Raises: UserError where another run has it.
  """
  lock = files.Lock(workdir / '.lock')
  processes.on_process_0(lambda: _take(workdir, lock))
  try:
    yield
  finally:
    lock.close()


def _take(workdir: pathlib.Path, lock: files.Lock):
  workdir.mkdir(parents=True, exist_ok=True)
  try:
    if lock.take(WAIT_SECONDS):
      return
  except OSError as e:
    if not lock.is_open():
      raise
    # A file system without locks is still one to work on.
    print(
      f'{workdir}: no locks here ({e.strerror}): see that no other run takes this workdir',
      file=sys.stderr,
    )
    return
  raise UserError(
    f'workdir {workdir} is in use by {lock.holder()}: wait for its end, stop it or take another '
    '--workdir'
  )
