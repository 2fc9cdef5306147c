# SPDX-License-Identifier: Apache-2.0
"""The command that repeats a run of a sweep.

The experiment file of a sweep may have changed since, but config.json of a run has every field. The
command sets those that are not at their default, on top of a file of one line (`FILE`), and gives
the same config_hash.
"""

import shlex
from typing import Any

from deres_jax import config as config_lib
from deres_jax.compare import runs
from deres_jax.config import fields as fields_lib
from deres_jax.config import overrides

FILE = 'base.py'
MAKE_FILE = f"echo 'from deres_jax.config import base as get_config' > {FILE}"
UNKNOWN = 'experiments/EXPERIMENT.py'


def _flat(node: dict[str, Any], prefix: str = '') -> dict[str, Any]:
  out = {}
  for key, value in node.items():
    out |= _flat(value, f'{prefix}{key}.') if isinstance(value, dict) else {prefix + key: value}
  return out


def fields(run: runs.Run) -> dict[str, Any] | None:
  """Returns the fields of a run's config that are not at their default; None without any."""
  stored = run.config()
  if stored is None:
    return None
  default = _flat(config_lib.as_dict(fields_lib.Config()))
  values = _flat(stored.config)
  return {k: v for k, v in values.items() if k not in default or default[k] != v}


def arguments(run: runs.Run) -> list[str]:
  """Returns the arguments of the command that repeats a run.

  Without config.json it sets what the sweep varied, on top of UNKNOWN.
  """
  values, file = fields(run), FILE
  if values is None:
    values, file = {**run.overrides, 'seed': run.seed}, UNKNOWN
  head = ['python', '-m', 'deres_jax.main', f'--config={file}', f'--workdir=again/{run.id}']
  return head + [f'--config.{overrides.as_text({k: v})}' for k, v in values.items()]


def command(run: runs.Run) -> str:
  """Returns the arguments as one line for a shell."""
  return shlex.join(arguments(run))
