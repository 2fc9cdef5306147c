# SPDX-License-Identifier: Apache-2.0
"""Final tokens [B, T, D] to a logit [B], float32."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class LogitHead(nn.Module):
  """Pools the tokens (mean, or all of them side by side) and maps them to one logit.

  The kernel starts small and the bias at the training split's log odds, so the first loss is near
  the entropy of the click rate whatever the backbone.
  """

  pool: str
  prior_logit: float

  @nn.compact
  def __call__(self, x_BTD: jax.Array) -> jax.Array:
    x = x_BTD.astype(jnp.float32)
    x = jnp.mean(x, axis=1) if self.pool == 'mean' else x.reshape(x.shape[0], -1)
    kernel = self.param('kernel', nn.initializers.normal(0.02), (x.shape[-1],))
    bias = self.param('bias', nn.initializers.constant(self.prior_logit), ())
    return x @ kernel + bias
