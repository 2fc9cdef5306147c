# SPDX-License-Identifier: Apache-2.0
"""Loads the best checkpoint of a run onto one device, for commands that inspect or export it.

The run may still be in progress: nothing in its folder is changed.
"""

import dataclasses
import pathlib
from typing import Any

import jax

from deres_jax import config as config_lib
from deres_jax.config import fields
from deres_jax.core import run_files
from deres_jax.core.errors import Retry, UserError
from deres_jax.data.schema import Schema, load_schema
from deres_jax.pod import mesh as mesh_lib
from deres_jax.training import run, step
from deres_jax.training.checkpoints import store
from deres_jax.training.step_spec import StepSpec, make_step_spec


@dataclasses.dataclass(frozen=True)
class Trained:
  """The best state of a run."""

  config: fields.Config
  schema: Schema
  spec: StepSpec
  params: Any
  tables: tuple[jax.Array, ...]
  at: int  # step of the checkpoint
  auc: float | None  # on the validation split; None: never evaluated


def config_of(workdir: pathlib.Path) -> tuple[fields.Config, dict[str, Any]]:
  """Reads the config of a run, in plain JAX forms, which every platform computes; and of its data.

  Raises: UserError.
  """
  stored = run_files.read_config(workdir, 'give the folder of a run')
  if stored is None:
    raise UserError(f'--workdir={workdir}: holds no config.json, so no run: give the folder of one')
  try:
    c = config_lib.resolve(stored.config)
  except UserError as e:
    raise UserError(f'{workdir / "config.json"}: {e}') from e
  c = dataclasses.replace(c, train=dataclasses.replace(c.train, kernels='off'))
  return c, stored.data_content


def load(workdir: pathlib.Path, data: str | None = None) -> Trained:
  """Loads a run's checkpoint with the best validation AUC; the latest if none was evaluated.

  Args:
    data: the prepared folder; None: the one in config.json.

  Raises:
    UserError: no run, no checkpoint, no data, or other data than the run's.
    Retry: the run replaced the checkpoint by a better one meanwhile.
  """
  c, content = config_of(workdir)
  folder = pathlib.Path(c.data.path if data is None else data)
  if not folder.is_dir():
    raise UserError(
      f'the prepared folder {folder} of the run is not here: put it back; to export, '
      'say where it is (--data=DIR)'
    )
  schema = load_schema(str(folder))
  if schema.content != content:
    raise UserError(f'{folder} holds other data than {workdir} was trained on: put the old back')
  spec = make_step_spec(c, schema, mesh_lib.make_mesh(1), run.steps_of(c, schema))
  home = workdir / 'checkpoints'
  checkpoints = store.Checkpoints(home, writes=False)
  try:
    at, auc = checkpoints.best() or (checkpoints.latest(), None)
    if at is None:
      raise UserError(f'--workdir={workdir}: holds no finished checkpoint: train on (--mode=train)')
    try:
      params, tables = checkpoints.restore_params(at, step.abstract_state(spec))
    except (UserError, FileNotFoundError) as e:
      if (home / str(at)).is_dir():
        raise
      raise Retry(f'checkpoint {at} of {workdir} was replaced by the run meanwhile') from e
  finally:
    checkpoints.close()
  return Trained(c, schema, spec, params, tables, at, auc)
