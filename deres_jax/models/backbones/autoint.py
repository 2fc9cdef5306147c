# SPDX-License-Identifier: Apache-2.0
"""AutoInt (arXiv 1810.11921) and HiFormer (2311.05884): attention over features.

Shapes: B examples, T tokens, D width, R rank.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from deres_jax.config.fields import Config
from deres_jax.models import inputs, layers
from deres_jax.models.stack import SubLayer


class InteractingLayer(nn.Module):
  """AutoInt's attention: shared q, k, v, unscaled scores, no output map. [B, T, D] -> [B, T, D].

  The paper's skip is a linear map and a ReLU follows the sum: connector projected.
  """

  heads: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x_BTD: Array, ctx: inputs.Context) -> Array:
    qkv = layers.TokenDense(3 * x_BTD.shape[-1], 0, self.dtype, scale=2.0, name='qkv')(x_BTD)
    q, k, v = layers.split_heads(qkv, 3, self.heads)
    return layers.join_heads(layers.attend(q, k, v, None, 1.0))


def autoint(c: Config, fields: int, events: int, dtype: jnp.dtype) -> tuple[SubLayer, ...]:
  """Returns one sub-layer a layer; there is no feed-forward."""
  sizes = dict(heads=c.model.heads, dtype=dtype)
  return tuple(SubLayer(f'attention_{l}', InteractingLayer, sizes) for l in range(c.model.depth))


class CompositeAttention(nn.Module):
  """HiFormer's attention: q, k, v of each token are low-rank maps of all tokens. [B, T, D].

  [q_1 .. q_T] = vec(X) U V, U in R^{TD x R}, V in R^{R x TD}, and so k and v;
  softmax(q k^T / sqrt(K)) v, then an output matrix a token
  """

  tokens: int
  heads: int
  rank: int
  dtype: jnp.dtype
  out_scale: float

  @nn.compact
  def __call__(self, x_BTD: Array, ctx: inputs.Context) -> Array:
    B, T, D = x_BTD.shape
    init = nn.initializers.variance_scaling(1.0, 'fan_in', 'normal', batch_axis=(0,))
    down = self.param('down', init, (3, T * D, self.rank)).astype(self.dtype)
    up = self.param('up', init, (3, self.rank, T * D)).astype(self.dtype)
    x = x_BTD.astype(self.dtype).reshape(B, -1)
    qkv = jnp.einsum('pbr,prm->pbm', jnp.einsum('bm,pmr->pbr', x, down), up)
    q, k, v = (layers.split_heads(p, 1, self.heads)[0] for p in qkv.reshape(3, B, T, D))
    y = layers.join_heads(layers.attend(q, k, v, None, (D // self.heads) ** -0.5))
    return layers.TokenDense(D, self.tokens, self.dtype, scale=self.out_scale, name='out')(y)


def hiformer(c: Config, fields: int, events: int, dtype: jnp.dtype) -> tuple[SubLayer, ...]:
  """Returns composite attention and a feed-forward with own weights for each layer.

  The last layer is not pruned to task tokens, as it is in the paper.
  """
  m, scale = c.model, 1 / (2 * c.model.depth)
  attention = dict(tokens=fields, heads=m.heads, rank=c.mixer.hiformer_rank)
  attention |= dict(dtype=dtype, out_scale=scale)
  ffn = dict(per_token=fields, ratio=m.ffn_ratio, dtype=dtype, out_scale=scale)
  out = []
  for layer in range(m.depth):
    out.append(SubLayer(f'attention_{layer}', CompositeAttention, attention))
    out.append(SubLayer(f'ffn_{layer}', layers.FeedForward, ffn))
  return tuple(out)
