# SPDX-License-Identifier: Apache-2.0
"""The smallest experiment that still has every part."""

EXPERIMENT = """
from deres_jax import config

def get_config(arg=''):
  c = config.base()
  c.data.batch_size = 128
  c.data.eval_batch_size = 512
  c.model.depth = 1
  c.model.dim = 8
  c.model.heads = 2
  c.model.embed_dim = 4
  c.model.dropout = 0.1
  c.deres.block_layers = 1
  c.optim.table_lr = 0.1
  c.train.epochs = 2.0
  c.train.eval_epochs = 0.5
  c.train.checkpoint_steps = 7
  c.train.log_steps = 5
  return config.update(c, arg)
"""
