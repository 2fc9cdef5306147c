# SPDX-License-Identifier: Apache-2.0
"""Interaction models outside the token factory; they share tables, loop and metrics."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class LogisticRegression(nn.Module):
  """sum_f w[id_f] + b: the table is one column wide and starts at zero. [B, F, 1] -> [B]."""

  prior_logit: float

  @nn.compact
  def __call__(self, rows_BF1: jax.Array, ctx) -> jax.Array:
    del ctx
    bias = self.param('bias', nn.initializers.constant(self.prior_logit), ())
    return jnp.sum(rows_BF1, axis=(1, 2), dtype=jnp.float32) + bias
