# SPDX-License-Identifier: Apache-2.0
"""DeRes and twelve baselines: one sweep, one table.

  python -m deres_jax.sweep --config=experiments/baselines.py --out=DIR --config.data.path=DATA
  python -m deres_jax.compare --sweeps=DIR --out=TABLE.md --reference=OneTrans

DeRes's paper compares itself to twelve models and names five; the other seven are our choice. All
have the same budget: one pass over the training rows in batches of 512, embeddings of width 16, 4
layers of width 32 over 8 tokens where a model has tokens, and one learning-rate axis: the rates of
the network and of the table, both times 1/3, 1 and 3. `compare` chooses by validation AUC. Norms,
skips and heads follow each paper. For several data sets or seeds, give each a folder, with
--config.data.path and --config.seed, and list all of them in --sweeps.

`experiments/anchors.py` adds LR, FM and DNN. On the Criteo sample: docs/results/criteo_sample.md,
147 runs in an hour or two on 2 cores (`make criteo-sample`).
"""

from deres_jax import config
from deres_jax import sweep as grid

SCALES = (1 / 3, 1.0, 3.0)

# A factorised term squares the rows: they start small and take Adam's steps, not Adagrad's.
FACTORISED = {
  'optim.table': 'lazy_adam',
  'optim.table_init_std': 0.01,
  'optim.table_lr': 1e-3,
}


def get_config(overrides: str = ''):
  c = config.base()
  c.data.batch_size = 512
  c.model.connector = 'prenorm'
  c.model.depth = 4
  c.model.dim = 32
  c.model.tokenizer = 'autosplit'
  c.model.tokens = 8
  c.model.head = 'concat'
  c.mlp.units = 400
  c.mlp.layers = 3
  c.mlp.dropout = 0.2
  c.mixer.wukong_units = 128
  c.deres.block_layers = 1
  c.attnres.block_layers = 1
  c.optim.dense_lr = 1e-3
  c.optim.table_lr = 0.1
  c.optim.table_init_std = 0.1
  c.optim.schedule = 'wsd'
  c.optim.warmup = 0.05
  c.optim.decay = 0.25
  c.train.epochs = 1.0
  c.train.eval_epochs = 0.125
  return config.update(c, overrides)


def rated(models: list[dict]) -> list[dict]:
  """Every model at every scale of its learning rates."""
  points = []
  for model in models:
    table = model.get('optim.table_lr', 0.1)
    rates = grid.zipped(
      grid.param('optim.dense_lr', [1e-3 * s for s in SCALES]),
      grid.param('optim.table_lr', [table * s for s in SCALES]),
    )
    plain = {name: value for name, value in model.items() if name != 'optim.table_lr'}
    points += grid.product([plain], rates)
  return points


def sweep():
  post_layer_norm = {'model.connector': 'postnorm', 'model.norm': 'layer'}
  return rated(
    [
      {'name': 'DeepFM', 'model.backbone': 'deepfm', **FACTORISED},
      {'name': 'DCNv2', 'model.backbone': 'dcnv2'},
      {
        'name': 'AutoInt+',
        'model.backbone': 'autoint_plus',
        'model.connector': 'projected',
        'model.tokenizer': 'field',
      },
      {
        'name': 'Wukong',
        'model.backbone': 'wukong',
        'model.head': 'mlp',
        'mlp.layers': 1,
        **post_layer_norm,
      },
      {'name': 'HSTU', 'model.backbone': 'hstu', 'model.norm': 'layer'},
      {
        'name': 'RankMixer',
        'model.backbone': 'rankmixer',
        'model.tokenizer': 'slice',
        'model.head': 'mean',
        **post_layer_norm,
      },
      {
        'name': 'TokenMixer-Large',
        'model.backbone': 'tokenmixer_large',
        'model.tokenizer': 'global',
        'model.connector': 'interval',
        'model.norm': 'none',
        'model.head': 'global',
        'model.aux_weight': 0.1,
      },
      {
        'name': 'UniMixing-Lite',
        'model.backbone': 'unimixing_lite',
        'model.tokenizer': 'slice',
        'model.connector': 'siamese',
        'model.head': 'mean',
      },
      {'name': 'OneTrans', 'model.connector': 'prenorm'},
      {'name': 'DenseFormer', 'model.connector': 'denseformer'},
      {'name': 'mHC', 'model.connector': 'mhc'},
      {'name': 'AttnRes', 'model.connector': 'attnres'},
      {'name': 'DeRes', 'model.connector': 'deres'},
    ]
  )
