# SPDX-License-Identifier: Apache-2.0
"""Logistic regression on the rows of `criteo_8l.py`: the baseline that a deep model must reach.

Test AUC / LogLoss on the splits of that file: 0.7595/0.4857, 0.7666/0.4809, 0.7652/0.4785.
Learning rate and L2 are the best of five on the validation splits.
"""

from deres_jax import config


def get_config(overrides: str = ''):
  c = config.base()
  c.data.batch_size = 1024
  c.model.backbone = 'lr'
  c.model.embed_dim = 1
  c.optim.table_init_std = 0.0
  c.optim.table_lr = 0.05
  c.optim.table_l2 = 1e-4
  c.optim.schedule = 'cosine'
  c.train.epochs = 5.0
  return config.update(c, overrides)
