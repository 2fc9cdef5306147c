# SPDX-License-Identifier: Apache-2.0
"""Final tokens [B, T, D] to a logit [B], float32."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from deres_jax.models import inputs, layers


def logit(module: nn.Module, x_BI: jax.Array, prior_logit: float) -> jax.Array:
  """A vector a row to a logit, with `module`'s parameters kernel and bias. [B], float32.

  The kernel starts small and the bias at the training split's log odds, so the first loss is near
  the entropy of the click rate whatever the backbone.
  """
  x = x_BI.astype(jnp.float32)
  kernel = module.param('kernel', nn.initializers.normal(0.02), (x.shape[-1],))
  return x @ kernel + module.param('bias', nn.initializers.constant(prior_logit), ())


class LogitHead(nn.Module):
  """Pools the field tokens and maps them to one logit; event tokens were read on the way.

  pool: mean; concat: all of them side by side; global: the first one alone; mlp: side by side
  through hidden layers.
  """

  pool: str
  prior_logit: float
  tokens: int  # field tokens: the last ones
  mlp: layers.Mlp | None = None

  @nn.compact
  def __call__(self, x_BTD: jax.Array, ctx: inputs.Context) -> jax.Array:
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
