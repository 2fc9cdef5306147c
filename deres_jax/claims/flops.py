# SPDX-License-Identifier: Apache-2.0
"""FLOPs of a run's model at other widths and depths: counted, nothing is trained."""

from collections.abc import Sequence
from typing import Any

import jax

from deres_jax import config as config_lib
from deres_jax.compare import runs
from deres_jax.core.errors import UserError
from deres_jax.data.schema import load_schema
from deres_jax.pod import mesh as mesh_lib
from deres_jax.training.plan import counts
from deres_jax.training.step_spec import make_step_spec


def counted(
  run: runs.Run, data: str, depths: Sequence[int], widths: Sequence[int]
) -> list[dict[str, Any]]:
  """Counts forward FLOPs a row of the plain network, and the connector's share over them.

  Args:
    run: the run whose config is taken, at each depth and width.
    data: its prepared folder, whose fields set the number of tokens.

  Raises:
    UserError: the config does not allow a width, or config.json is damaged.
  """
  schema = load_schema(data)
  try:
    fields = config_lib.as_dict(config_lib.resolve(run.config().config))
  except UserError as e:
    raise UserError(f'{run.config_file}: {e}') from e
  mesh = mesh_lib.mesh_of(jax.devices()[:1])
  out = []
  for width in widths:
    for depth in depths:
      try:
        c = config_lib.resolve(
          {**fields, 'model': fields['model'] | {'depth': depth, 'dim': width}}
        )
      except UserError as e:
        raise UserError(f'--widths: {width} does not go with the runs of {run.folder}: {e}') from e
      total, plain = counts.forward_flops(c, make_step_spec(c, schema, mesh, 1))
      out.append({'depth': depth, 'dim': width, 'flops': plain, 'extra_flops': total / plain - 1})
  return out
