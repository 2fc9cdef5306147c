# SPDX-License-Identifier: Apache-2.0
"""DeRes, 8 layers (docstring to be filled with measurements)."""

from deres_jax import config


def get_config(arg=''):
  c = config.base()
  c.data.batch_size = 1024
  c.model.tokenizer = 'autosplit'
  return config.update(c, arg)
