# SPDX-License-Identifier: Apache-2.0
"""AUC against compute: six connectors at five depths and two widths, for an accelerator.

  python -m data_pipelines.build --dataset=criteo --raw=train.txt --out=DATA --seed=1
  python -m deres_jax.sweep --config=experiments/scaling_depth.py --out=DIR \
    --config.data.path=DATA
  python -m deres_jax.scaling --sweep=DIR --out=DIR/scaling

The grid of DeRes's law (arXiv 2606.07980: 2, 4, 8, 12 and 16 layers; the paper does not give its
widths, 64 and 128 are ours) for six connectors on OneTrans: 300 runs, 4.7 to 125 MFLOP a row
forward. `--shard=i/n` distributes them; `--mode=plan` of deres_jax.main gives the cost of one.
`python -m deres_jax.scaling --power` tells whether seeds and budgets suffice.

This sweep was not run. Before it, tune the rates on validation, at one size and a seed that the
sweep does not use: --config.seed=100 --config.optim.dense_lr=... --config.model....
`scaling_depth_cpu.py` is a version for two cores, which was run.
"""

from deres_jax import config
from deres_jax import sweep as grid

CONNECTORS = [
  {'name': 'OneTrans', 'model.connector': 'prenorm'},
  {'name': 'DenseFormer', 'model.connector': 'denseformer'},
  {'name': 'AttnRes', 'model.connector': 'attnres'},
  {'name': 'mHC', 'model.connector': 'mhc'},
  {'name': 'DeRes-P', 'model.connector': 'deres'},
  {'name': 'DeRes-S', 'model.connector': 'deres_s'},
]
DEPTHS = (2, 4, 8, 12, 16)


def get_config(overrides: str = ''):
  c = config.variant_of(__file__, 'criteo_8l.py')
  c.data.batch_size = 8192
  c.data.eval_batch_size = 32768
  return config.update(c, overrides)


def sweep():
  return grid.product(
    CONNECTORS,
    grid.param('model.depth', DEPTHS),
    grid.param('model.dim', [64, 128]),
    grid.param('seed', range(5)),
  )
