# SPDX-License-Identifier: Apache-2.0
"""Runs in which the loss of some batches is infinite: what `train.on_nan` is tested on.

  python tests/helpers/faulty.py DATA WORKDIR ON_NAN KILL_AT

trains in a process of its own, which kills itself (SIGKILL) after so many steps.
"""

import os
import pathlib
import signal
import sys

import jax.numpy as jnp

from deres_jax import config
from deres_jax.data import batches as batches_lib
from deres_jax.training import loop
from deres_jax.training import step as step_lib
from deres_jax.training.logs import progress

MARK = 7  # a label that no data set has
ROW = 5  # of a batch, the one that is marked
BATCHES = (9, 20, 21)  # from 0
SIZES = 'model.backbone=dnn,mlp.units=4,mlp.layers=1,model.embed_dim=2,data.batch_size=256'
LENGTH = 'train.epochs=2,train.eval_epochs=0.6,train.checkpoint_steps=6,train.log_steps=4'

_examples, _bce_sum = batches_lib.Batches.examples, step_lib.bce_sum


def examples_of(bad):
  """In place of `Batches.examples`: one row of some batches of training has the label MARK."""

  def examples(self, index):
    out = _examples(self, index)
    if self.batch_size == 256 and index in bad:
      out.labels[ROW] = MARK
    return out

  return examples


def bce_sum(logits_B, labels_B, weights_B):
  """In place of `losses.bce_sum`: infinite, as its gradient, where a label is MARK."""
  marked = labels_B == MARK
  wrong = (jnp.where(marked, logits_B, 0.0) * jnp.where(marked, jnp.inf, 0.0)).sum()
  return _bce_sum(logits_B, jnp.where(marked, 0.0, labels_B), weights_B) + wrong


def configured(folder, on_nan, more=''):
  overrides = f'data.path={folder},{SIZES},{LENGTH},train.on_nan={on_nan},mesh.devices=1'
  return config.resolve(config.base(','.join(filter(None, (overrides, more)))))


def main(folder, workdir, on_nan, kill_at):
  batches_lib.Batches.examples, step_lib.bce_sum = examples_of(BATCHES), bce_sum
  shown = progress.Progress.step

  def show(self, step, text=''):
    shown(self, step, text)
    if step == int(kill_at):
      os.kill(os.getpid(), signal.SIGKILL)

  progress.Progress.step = show
  loop.train(configured(folder, on_nan), pathlib.Path(workdir))


if __name__ == '__main__':
  main(*sys.argv[1:])
