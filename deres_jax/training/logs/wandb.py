# SPDX-License-Identifier: Apache-2.0
"""Where figures go besides metrics.jsonl: TensorBoard, and Weights & Biases if asked for."""

import hashlib
import importlib
import importlib.util
import pathlib
import sys
from collections.abc import Callable
from typing import Any

from deres_jax.core.errors import UserError
from deres_jax.training.logs.metrics_file import Sink
from deres_jax.training.logs.tensorboard import Events


def open_sinks(
  project: str, config_hash: str, identity: dict[str, Any], workdir: pathlib.Path, step: int
) -> list[Sink]:
  """Opens the sinks of a run that continues after `step`. Call it in process 0 only.

  Args:
    project: of Weights & Biases; empty: nothing is sent there.
    config_hash, identity: of the run's config, as deres_jax.config returns them.
  """
  board = Events(workdir / 'tensorboard', step + 1, identity)
  return [board, WandB(project, config_hash, identity, workdir)] if project else [board]


def check(project: str):
  """Raises UserError if there is a project and the package is not installed."""
  if project and importlib.util.find_spec('wandb') is None:
    raise UserError(
      f'config train.wandb={project!r}: the package wandb is not installed: '
      'pip install wandb, or leave the field empty'
    )


class WandB:
  """A run of Weights & Biases, the same one whenever the run is resumed.

  A failure in Weights & Biases prints one line and ends the sink. It never stops training.
  """

  def __init__(
    self, project: str, config_hash: str, identity: dict[str, Any], workdir: pathlib.Path
  ):
    folder, self._done = workdir.absolute(), False
    ident = hashlib.sha256(f'{config_hash} {folder}'.encode()).hexdigest()[:16]

    def init() -> Any:
      run = importlib.import_module('wandb').init(
        project=project,
        id=ident,
        resume='allow',
        name=folder.name,
        dir=workdir,
        config={'config_hash': config_hash, **identity},
        # Figures and config, nothing else: no console, code or repository. It prints control
        # characters wherever its output goes, so it is silent.
        settings={'console': 'off', 'disable_code': True, 'disable_git': True, 'silent': True},
      )
      run.define_metric('*', step_metric='step')  # steps after a checkpoint may come twice
      _print(f'run {ident} of project {project}')
      return run

    self._run = self._try(init)

  def write(self, step: int, figures: dict[str, float]):
    """Sends the figures; those of the test split make it a finished run."""
    if self._run:
      self._try(lambda: self._run.log({**figures, 'step': step}))
      self._done = any(tag.startswith('test/') for tag in figures)

  def close(self):
    """Ends the run there, as failed if no test figures were sent."""
    if self._run:
      self._try(lambda: self._run.finish(exit_code=0 if self._done else 1))

  def _try(self, call: Callable[[], Any]) -> Any:
    try:
      return call()
    except Exception as e:  # its network, account or code may fail in any way
      self._run = None
      message = (str(e).splitlines() or [''])[0]
      _print(f'{type(e).__name__}: {message}: nothing more is sent, the run goes on')


def _print(text: str):
  print(f'wandb: {text}', file=sys.stderr, flush=True)
