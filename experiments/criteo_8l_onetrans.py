# SPDX-License-Identifier: Apache-2.0
"""OneTrans: `criteo_8l.py` with the plain pre-norm residual; nothing else differs."""

from deres_jax import config


def get_config(overrides: str = ''):
  c = config.variant_of(__file__, 'criteo_8l.py')
  c.model.connector = 'prenorm'
  return config.update(c, overrides)
