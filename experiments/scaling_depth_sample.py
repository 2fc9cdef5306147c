# SPDX-License-Identifier: Apache-2.0
"""`scaling_depth_cpu.py` on a small real sample of Criteo: the exploratory part of claims.md.

  python -m data_pipelines.build --dataset=criteo --raw=train.txt --out=DATA --seed=1
  python -m deres_jax.sweep --config=experiments/scaling_depth_sample.py --out=DIR \
    --config.data.path=DATA

The same 78 points with the settings of `baselines.py` at scale 1, the best there on validation for
OneTrans, AttnRes and DeRes on the same rows, but with width 16. A sample of 0.3 % has too few rows
for depth to pay off: it tests the commands on real data and cannot rank models.
"""

from deres_jax import config


def get_config(overrides: str = ''):
  c = config.variant_of(__file__, 'baselines.py')
  c.model.dim = 16
  c.model.heads = 2
  # As in scaling_depth.py: sources are sums over two layers.
  c.deres.block_layers = 2
  c.attnres.block_layers = 2
  c.train.eval_epochs = 0.5
  return config.update(c, overrides)


def sweep():
  return config.load(__file__, 'scaling_depth_cpu.py').sweep()
