# SPDX-License-Identifier: Apache-2.0
"""What a run changes of the defaults, for its first lines."""

from deres_jax import config as config_lib
from deres_jax.points import as_flag, flat

_EMPTY = "''"


def text(config: config_lib.Config, rows: int) -> str:
  """The fields that differ from `config.base()`, aligned, in so many lines at most.

  Args:
    rows: lines of the screen, at least 3.
  """
  default = flat(config_lib.Config())
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
