# SPDX-License-Identifier: Apache-2.0
"""`scaling_depth.py` for two cores, on planted data: the sweep behind docs/results/claims.md.

`make claims RAW=train.txt` runs it, the same sweep on a sample of Criteo, and the report. Alone:

  python -m data_pipelines.build --dataset=synthetic --out=DATA --fields=8 \
    --cardinality_max=16 --order_shares=0.2,0.3,0.3,0.2 --rows_train=400000 \
    --rows_validation=50000 --rows_test=100000
  python -m deres_jax.sweep --config=experiments/scaling_depth_cpu.py --out=DIR \
    --config.data.path=DATA

78 runs of one pass over 400,000 rows: width 16, 8 tokens, 0.12 to 1.1 MFLOP a row forward. The
planted logit holds interactions of order 1 to 4, higher ones composed of lower ones.

Two settings were tuned on validation, with seeds 100 and 101, which the sweep does not use: the
rate of the dense part, once for all connectors, on OneTrans and DeRes-P at 8 layers (0.0015, 0.003
or 0.006: 0.003 was best for both, and for OneTrans better than 0.006 at 2 layers and 0.002 at 16),
and batches of 1024 rather than 256.
"""

from deres_jax import config
from deres_jax import sweep as grid

ABLATIONS = [
  {'name': 'recall path alone, SiLU', 'model.connector': 'attnres_pointwise'},
  {'name': 'DeRes-P, matrix residual', 'model.connector': 'deres', 'deres.identity_kind': 'matrix'},
]
SEEDS = (0, 1, 2)


def get_config(overrides: str = ''):
  c = config.variant_of(__file__, 'scaling_depth.py')
  c.data.batch_size = 1024
  c.data.eval_batch_size = 8192
  c.model.dim = 16
  c.model.heads = 2
  c.model.tokenizer = 'field'
  c.model.head = 'mean'
  c.optim.dense_lr = 3e-3
  c.optim.table_init_std = 0.3
  c.optim.schedule = 'cosine'
  c.train.eval_epochs = 0.5
  return config.update(c, overrides)


def sweep():
  depth = config.load(__file__, 'scaling_depth.py')
  curves = [
    x for x in depth.CONNECTORS if x['name'] in ('OneTrans', 'AttnRes', 'DeRes-P', 'DeRes-S')
  ]
  return grid.chain(
    grid.product(curves, grid.param('model.depth', depth.DEPTHS), grid.param('seed', SEEDS)),
    grid.product(ABLATIONS, grid.param('model.depth', [2, 4, 8]), grid.param('seed', SEEDS)),
  )
