# SPDX-License-Identifier: Apache-2.0
"""Logistic regression on the rows of `experiments/quickstart.py`."""

from deres_jax import config


def get_config(overrides: str = ''):
  c = config.variant_of(__file__, 'quickstart.py')
  c.model.backbone = 'lr'
  c.model.embed_dim = 1
  c.optim.table_init_std = 0.0
  c.train.epochs = 5.0
  c.train.eval_epochs = 1.0
  return config.update(c, overrides)
