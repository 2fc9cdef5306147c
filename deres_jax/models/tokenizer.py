# SPDX-License-Identifier: Apache-2.0
"""Table rows [B, F, E] to tokens [B, T, D].

A token starts as a learned position (its bias, RMS about 1) plus a map of its rows, so that the
token of a rare id, whose row has hardly moved, stays near its field's own token instead of being
a random direction of full length. A norm at the input keeps the stream's RMS near 1, which the
block connectors need: b_0 is a source whose values are read raw (DeRes, AttnRes).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from deres_jax.models import layers

_position = nn.initializers.normal(1.0)


class FieldTokens(nn.Module):
  """A token a field: its own linear map E -> D. T = F."""

  fields: int
  dim: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, rows_BFE: jax.Array) -> jax.Array:
    x = layers.TokenDense(
      self.dim, self.fields, True, self.dtype, use_bias=True, bias_init=_position, name='map'
    )(rows_BFE)
    return layers.SiteNorms(1, self.dim, 'rms', jnp.float32, name='norm')(x, 0)


class AutoSplit(nn.Module):
  """OneTrans' default: one dense map of all rows to T*D, then a split (arXiv 2510.26104)."""

  tokens: int
  dim: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, rows_BFE: jax.Array) -> jax.Array:
    B = rows_BFE.shape[0]
    x = nn.Dense(
      self.tokens * self.dim,
      dtype=self.dtype,
      kernel_init=nn.initializers.xavier_uniform(),
      bias_init=_position,
      name='map',
    )(rows_BFE.reshape(B, -1))
    x = x.reshape(B, self.tokens, self.dim)
    return layers.SiteNorms(1, self.dim, 'rms', jnp.float32, name='norm')(x, 0)
