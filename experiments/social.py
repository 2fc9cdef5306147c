# SPDX-License-Identifier: Apache-2.0
"""Behaviour sequences: models that use the history in different ways, compared.

  python -m data_pipelines.build --dataset=synthetic_social --out=DATA
  python -m deres_jax.main --config=experiments/social.py --workdir=DIR --config.data.path=DATA
  python -m deres_jax.sweep --config=experiments/social.py --out=DIR --config.data.path=DATA
  python -m deres_jax.compare --sweeps=DIR --out=TABLE.md --reference=OneTrans

The config is DeRes on OneTrans with a token for each event of the history and for each field. The
sweep adds the plain residual, HSTU, DIN, a DNN and a logistic regression, each with two learning
rates of the table; DNN and logistic regression take the history as the mean of its events.
`compare` chooses by validation AUC.
"""

from deres_jax import config
from deres_jax import sweep as grid


def get_config(overrides: str = ''):
  c = config.base()
  c.data.batch_size = 1024
  c.model.depth = 2
  c.model.dim = 32
  c.deres.block_layers = 1
  c.mlp.units = 128
  c.mlp.layers = 2
  c.optim.dense_lr = 3e-3
  c.optim.table_lr = 1.0
  c.optim.table_init_std = 0.3
  c.optim.schedule = 'cosine'
  c.optim.warmup = 0.05
  c.train.epochs = 2.0
  c.train.eval_epochs = 0.5
  return config.update(c, overrides)


def sweep():
  lr = {'model.backbone': 'lr', 'model.embed_dim': 1, 'optim.table_init_std': 0.0}
  models = [
    {'name': 'LR', **lr},
    {'name': 'DNN', 'model.backbone': 'dnn'},
    {'name': 'DIN', 'model.backbone': 'din'},
    {'name': 'HSTU', 'model.backbone': 'hstu', 'model.connector': 'prenorm'},
    {'name': 'OneTrans', 'model.connector': 'prenorm'},
    {'name': 'DeRes', 'model.connector': 'deres'},
  ]
  return grid.product(models, grid.param('optim.table_lr', [0.3, 1.0]))
