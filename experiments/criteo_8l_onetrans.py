# SPDX-License-Identifier: Apache-2.0
"""OneTrans: `criteo_8l.py` with the plain pre-norm residual; nothing else differs.

Test AUC / LogLoss on the splits of that file: 0.7590/0.4859, 0.7658/0.4818, 0.7659/0.4791.
"""

from deres_jax import config


def get_config(overrides: str = ''):
  c = config.variant_of(__file__, 'criteo_8l.py')
  c.model.connector = 'prenorm'
  return config.update(c, overrides)
