# SPDX-License-Identifier: Apache-2.0
"""The sweep of docs/tutorial.md: the plain residual and DeRes at four depths, two seeds each.

  python -m deres_jax.sweep --config=experiments/tutorial.py --out=DIR --config.data.path=DATA

A demonstration that takes a minute on two cores, too small for conclusions: 16 runs of width 16.
"""

from deres_jax import config
from deres_jax import sweep as grid


def get_config(overrides: str = ''):
  c = config.variant_of(__file__, 'quickstart.py')
  c.data.batch_size = 256
  c.model.dim = 16
  c.model.heads = 2
  c.train.epochs = 0.0
  c.train.steps = 200
  c.train.eval_epochs = 0.0
  c.train.eval_steps = 100
  return config.update(c, overrides)


def sweep():
  connectors = [
    {'name': 'OneTrans', 'model.connector': 'prenorm'},
    {'name': 'DeRes', 'model.connector': 'deres'},
  ]
  return grid.product(
    connectors, grid.param('model.depth', [1, 2, 3, 4]), grid.param('seed', [0, 1])
  )
