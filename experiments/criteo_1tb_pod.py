# SPDX-License-Identifier: Apache-2.0
"""DeRes, 8 layers, on the Criteo 1TB logs, on a pod: `criteo_8l.py` with large tables and batches.

  python -m data_pipelines.build --dataset=criteo_1tb --raw=DAYS --out=DATA
  python -m deres_jax.main --config=experiments/criteo_1tb_pod.py --workdir=DIR \
    --config.data.path=DATA          # on every host: docs/pods.md
  python -m deres_jax.main --config=experiments/criteo_1tb_pod.py --config.data.path=DATA \
    --mode=plan --config.mesh.topology=v5p-128

Not measured: the plan gives its memory and an upper bound on its speed. The learning rates are
those of `criteo_8l.py` for batches of 512 rows: tune them again on validation.
"""

from deres_jax import config


def get_config(overrides: str = ''):
  c = config.variant_of(__file__, 'criteo_8l.py')
  c.data.batch_size = 65_536
  c.data.eval_batch_size = 65_536
  c.model.embed_dim = 32  # of columns of up to 40M ids; on TPUs up to 56, or a multiple of 128
  c.model.embed_dim_of_few = '1000:8/100000:16'
  c.train.eval_epochs = 0.05
  c.train.checkpoint_steps = 2000
  return config.update(c, overrides)
