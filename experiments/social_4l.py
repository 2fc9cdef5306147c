# SPDX-License-Identifier: Apache-2.0
from deres_jax import config


def get_config(overrides: str = ''):
  c = config.base()
  c.data.batch_size = 1024
  c.model.depth = 4
  c.model.dim = 32
  c.deres.block_layers = 1
  c.optim.dense_lr = 3e-3
  c.optim.table_lr = 0.1
  c.optim.table_init_std = 0.1
  c.optim.schedule = 'cosine'
  c.optim.warmup = 0.05
  c.train.epochs = 1.0
  c.train.eval_epochs = 0.25
  c.train.log_steps = 49
  return config.update(c, overrides)
