# SPDX-License-Identifier: Apache-2.0
"""DeRes on planted data, the run of `make run`.

Data: `python -m data_pipelines.build --dataset=synthetic` (its defaults: 200,000 training rows of
10 fields, interactions of order 1 to 4, a Bayes AUC of 0.8776 on the test split).

  python -m deres_jax.main --config=experiments/quickstart.py --workdir=DIR --config.data.path=DATA

`experiments/quickstart_lr.py` is the logistic regression to compare it to.
"""

from deres_jax import config


def get_config(overrides: str = ''):
  c = config.base()
  c.data.batch_size = 1024
  c.model.depth = 2
  c.model.dim = 32
  c.deres.block_layers = 1
  c.optim.dense_lr = 3e-3
  c.optim.table_lr = 0.1
  c.optim.table_init_std = 0.3
  c.optim.schedule = 'cosine'
  c.optim.warmup = 0.05
  c.train.epochs = 1.5
  c.train.eval_epochs = 0.25
  c.train.log_steps = 49  # with every evaluation
  return config.update(c, overrides)
