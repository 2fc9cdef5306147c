# SPDX-License-Identifier: Apache-2.0
"""A workdir belongs to one run, by config.json, and to one process at a time, by .lock.

The lock is the kernel's: it ends with the process, however that ends.
"""

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
  """Binds a workdir to a run: writes config.json, or compares with the one that is there.

  Takes the whole config, because config.json holds it. Returns the content of result.json if the
  run is finished. Raises UserError if the workdir is another run's; nothing was changed then.
  """
  wandb.check(c.train.wandb)
  workdir.mkdir(parents=True, exist_ok=True)
  identity = config_lib.identity(c)
  old = run_files.read_config(workdir, 'take another --workdir, or put the file back')
  if old is not None:
    changed = [
      f'{k}: {old.identity.get(k)!r} -> {identity.get(k)!r}'
      for k in sorted({*old.identity, *identity})
      if old.identity.get(k) != identity.get(k)
      # With on_nan=stop, its default, nothing was skipped yet: another value changes no past step.
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
  content = {
    'config_hash': config_lib.config_hash(c),
    'data_content': schema.content,
    'config': config_lib.as_dict(c),
    'identity': identity,
  }
  files.write_json(workdir / 'config.json', content)
  advice = 'delete it: the same command finishes the run from its last checkpoint'
  if run_files.read_result(workdir, advice) is None:  # checks its fields
    return None
  return files.read_json(workdir / 'result.json', dict, advice)


WAIT_SECONDS = 3  # a process that was just killed may still be freeing its memory


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
  """Locks a workdir, made if needed, for all processes of a run; UserError if another has it."""
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
    # The file system has no locks: the run works there all the same.
    print(
      f'{workdir}: no locks here ({e.strerror}): see that no other run takes this workdir',
      file=sys.stderr,
    )
    return
  raise UserError(
    f'workdir {workdir} is in use by {lock.holder()}: wait for its end, stop it or take another '
    '--workdir'
  )
