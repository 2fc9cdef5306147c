# SPDX-License-Identifier: Apache-2.0
"""The command that repeats a run of a sweep.

A sweep does not say which experiment file it was started with, and that file may have changed
since. config.json of a run has every field: those that are not at their default, on top of a file
of one line (`FILE`), are the run, and the same config_hash comes out.
"""

import json
import pathlib
import shlex
from typing import Any

from deres_jax import config as config_lib
from deres_jax.compare import runs
from deres_jax.config import fields as fields_lib
from deres_jax.config import overrides
from deres_jax.core.errors import UserError

FILE = 'base.py'
MAKE_FILE = f"echo 'from deres_jax.config import base as get_config' > {FILE}"
UNKNOWN = 'experiments/EXPERIMENT.py'


def config_file(run: runs.Run) -> pathlib.Path:
  """config.json of a run, whether it is there or not."""
  return pathlib.Path(run.folder) / 'runs' / run.id / 'config.json'


def _flat(node: dict[str, Any], prefix: str = '') -> dict[str, Any]:
  out = {}
  for key, value in node.items():
    out |= _flat(value, f'{prefix}{key}.') if isinstance(value, dict) else {prefix + key: value}
  return out


def fields(run: runs.Run) -> dict[str, Any] | None:
  """Fields of the run's config that are not at their default; None without a config.json.

  Raises UserError for a damaged one.
  """
  file = config_file(run)
  if not file.is_file():
    return None
  try:
    own = _flat(json.loads(file.read_text())['config'])
  except (ValueError, KeyError, TypeError, AttributeError) as e:
    raise UserError(f'{file}: damaged ({e!r}): take the run out of the sweep or run it anew') from e
  base = _flat(config_lib.as_dict(fields_lib.Config()))
  return {k: v for k, v in own.items() if k not in base or base[k] != v}


def arguments(run: runs.Run) -> list[str]:
  """The command as it is typed; on UNKNOWN with the sweep's own fields without a config.json."""
  own = fields(run)
  file = UNKNOWN if own is None else FILE
  own = {**run.overrides, 'seed': run.seed} if own is None else own
  head = ['python', '-m', 'deres_jax.main', f'--config={file}', f'--workdir=again/{run.id}']
  return head + [f'--config.{overrides.written({k: v})}' for k, v in own.items()]


def command(run: runs.Run) -> str:
  """The arguments as one line for a shell."""
  return shlex.join(arguments(run))
