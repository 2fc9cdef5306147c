# SPDX-License-Identifier: Apache-2.0
"""DeRes on planted data (placeholder docstring)."""

from deres_jax import config


def get_config(arg=''):
  c = config.base()
  c.data.batch_size = 1024
  c.model.depth = 2
  c.model.dim = 32
  c.train.epochs = 1.0
  return config.update(c, arg)
