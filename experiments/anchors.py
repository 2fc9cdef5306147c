# SPDX-License-Identifier: Apache-2.0
"""LR, FM and DNN, to compare rows, splits and metrics of `baselines.py` to published figures.

The same budget, but three passes for LR, which does not converge in one.

  python -m deres_jax.sweep --config=experiments/anchors.py --out=DIR --config.data.path=DATA

With the --out of the baselines' sweep, `deres_jax.compare` puts them into the same table.
"""

from deres_jax import config

# By path, as `--config` files are: experiments are no package.
BASELINES = config.load(__file__, 'baselines.py')


def get_config(overrides: str = ''):
  return BASELINES.get_config(overrides)


def sweep():
  lr = {
    'model.embed_dim': 1,
    'optim.table_init_std': 0.0,
    'optim.table_lr': 0.05,
    'train.epochs': 3.0,
  }
  return BASELINES.rated(
    [
      {'name': 'LR', 'model.backbone': 'lr', **lr},
      {'name': 'FM', 'model.backbone': 'fm', **BASELINES.FACTORISED},
      {'name': 'DNN', 'model.backbone': 'dnn'},
    ]
  )
