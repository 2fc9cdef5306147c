# SPDX-License-Identifier: Apache-2.0
"""Where figures go besides metrics.jsonl: TensorBoard, and Weights & Biases if asked for."""

import hashlib
import importlib
import importlib.util
import pathlib
import sys
from collections.abc import Callable
from typing import Any

from deres_jax import config as config_lib
from deres_jax.config import fields
from deres_jax.core.errors import UserError
from deres_jax.training.logs.metrics_file import Sink
from deres_jax.training.logs.tensorboard import Events


def opened(c: fields.Config, workdir: pathlib.Path, step: int) -> list[Sink]:
  """The sinks of a run that goes on after `step`. To be called in process 0 alone."""
  board = Events(workdir / 'tensorboard', step + 1, config_lib.identity(c))
  return [board, WandB(c, workdir)] if c.train.wandb else [board]


def check(c: fields.Config):
  """Raises UserError for a sink that is asked for and not installed."""
  if c.train.wandb and importlib.util.find_spec('wandb') is None:
    raise UserError(
      f'config train.wandb={c.train.wandb!r}: the package wandb is not installed: '
      'pip install wandb, or leave the field empty'
    )


class WandB:
  """A run of Weights & Biases: the same one again where the run goes on.

  Whatever fails there costs one line and ends the sink, never the run.
  """

  def __init__(self, c: fields.Config, workdir: pathlib.Path):
    self._run, self._done = None, False
    self._run = self._tried(lambda: _wandb_run(c, workdir))

  def write(self, step: int, figures: dict[str, float]):
    """Sends the figures; those of the test split make it a finished run."""
    if self._run:
      self._tried(lambda: self._run.log({**figures, 'step': step}))
      self._done = any(tag.startswith('test/') for tag in figures)

  def close(self):
    """Ends what was sent, as failed where the test figures did not come."""
    if self._run:
      self._tried(lambda: self._run.finish(exit_code=0 if self._done else 1))

  def _tried(self, call: Callable[[], Any]) -> Any:
    try:
      return call()
    # Its network, its account and its code are not ours, and the run must not end by them.
    except Exception as e:
      self._run = None
      said = (str(e).splitlines() or [''])[0]
      _say(f'{type(e).__name__}: {said}: nothing more is sent, the run goes on')


def _say(text: str):
  print(f'wandb: {text}', file=sys.stderr, flush=True)


def _wandb_run(c: fields.Config, workdir: pathlib.Path) -> Any:
  """Opens the run that config and workdir name."""
  wandb = importlib.import_module('wandb')
  config_hash = config_lib.config_hash(c)
  ident = hashlib.sha256(f'{config_hash} {workdir.absolute()}'.encode()).hexdigest()[:16]
  run = wandb.init(
    project=c.train.wandb,
    id=ident,
    resume='allow',
    name=workdir.absolute().name,
    dir=workdir,
    config={'config_hash': config_hash, **config_lib.identity(c)},
    # Figures and config, nothing else: no console, code or repository. What it would print has
    # control characters wherever it goes.
    settings={'console': 'off', 'disable_code': True, 'disable_git': True, 'silent': True},
  )
  run.define_metric('*', step_metric='step')  # steps after a checkpoint may come twice
  _say(f'run {ident} of project {c.train.wandb}')
  return run
