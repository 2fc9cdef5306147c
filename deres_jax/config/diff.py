# SPDX-License-Identifier: Apache-2.0
"""The fields of a config that differ from the defaults, as a run prints them at its start."""

from typing import Any

from deres_jax import config as config_lib
from deres_jax.config import fields
from deres_jax.config import fields as fields_lib
from deres_jax.config.overrides import as_flag

_EMPTY = "''"


def text(config: fields.Config, rows: int) -> str:
  """Returns the fields that differ from `config.base()`, aligned, in `rows` lines at most.

  Args:
    rows: lines of the screen, at least 3.
  """
  default = flat(fields.Config())
  changed = {k: v for k, v in flat(config).items() if v != default[k]}
  head = f'config {config_lib.config_hash(config)}: '
  if not changed:
    return f'{head}the defaults'
  name = max(map(len, changed))
  old = {k: as_flag(default[k]) or _EMPTY for k in changed}
  width = max(map(len, old.values()))
  lines = [
    f'  {k:<{name}}  {old[k]:>{width}} -> {as_flag(v) or _EMPTY}' for k, v in changed.items()
  ]
  if len(lines) > rows - 1:
    hidden = len(lines) - (rows - 2)
    lines = [*lines[: rows - 2], f'  ... and {hidden} more, see config.json']
  return '\n'.join([f'{head}{len(changed)} fields are not at their default', *lines])


def flat(config: fields_lib.Config) -> dict[str, Any]:
  """Returns every field by its dotted name."""
  out = {}
  for key, value in config_lib.as_dict(config).items():
    out |= {f'{key}.{k}': v for k, v in value.items()} if isinstance(value, dict) else {key: value}
  return out
