# SPDX-License-Identifier: Apache-2.0
"""Final tokens [B, T, D] to a logit [B], float32."""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from deres_jax.models import inputs, layers


def logit(module: nn.Module, x_BI: Array, prior_logit: float) -> Array:
  """Maps x [B, I] to logits [B], float32, with parameters kernel and bias of `module`.

  The kernel starts small and the bias at the training split's log odds, so the first loss is near
  the entropy of the click rate for any backbone.
  """
  x = x_BI.astype(jnp.float32)
  kernel = module.param('kernel', nn.initializers.normal(0.02), (x.shape[-1],))
  return x @ kernel + module.param('bias', nn.initializers.constant(prior_logit), ())


class LogitHead(nn.Module):
  """Pools the field tokens and maps them to a logit; event tokens are dropped.

  pool mean: their mean; concat: concatenated; global: the first one; mlp: hidden layers over the
  concatenated tokens.
  """

  pool: str
  prior_logit: float
  tokens: int  # field tokens: the last ones
  mlp: layers.Mlp | None = None

  @nn.compact
  def __call__(self, x_BTD: Array, ctx: inputs.Context) -> Array:
    x = x_BTD[:, x_BTD.shape[1] - self.tokens :].astype(jnp.float32)
    if self.pool == 'mean':
      x = jnp.mean(x, axis=1)
    elif self.pool == 'global':
      x = x[:, 0]
    else:
      x = x.reshape(x.shape[0], -1)
    if self.pool == 'mlp':
      x = self.mlp(x, ctx)
    return logit(self, x, self.prior_logit)
