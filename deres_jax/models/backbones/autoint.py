# SPDX-License-Identifier: Apache-2.0
"""AutoInt (arXiv 1810.11921) and HiFormer (2311.05884): attention over features.

Shapes: B rows, T tokens, D width, R rank.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from deres_jax.models import inputs, layers
from deres_jax.models.stack import SubLayer

Array = jax.Array


class InteractingLayer(nn.Module):
  """AutoInt's attention: shared q, k, v, unscaled scores, no output map. [B, T, D] -> [B, T, D].

  The paper's skip is a linear map and a ReLU follows the sum: connector projected.
  """

  heads: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x_BTD: Array, ctx: inputs.Context) -> Array:
    del ctx
    qkv = layers.TokenDense(3 * x_BTD.shape[-1], 0, self.dtype, scale=2.0, name='qkv')(x_BTD)
    q, k, v = layers.split_heads(qkv, 3, self.heads)
    return layers.join_heads(layers.attend(q, k, v, None, 1.0))


def autoint(depth: int, heads: int, dtype: jnp.dtype) -> tuple[SubLayer, ...]:
  """One sub-layer a layer; no feed-forward."""
  sizes = dict(heads=heads, dtype=dtype)
  return tuple(SubLayer(f'attention_{l}', InteractingLayer, sizes) for l in range(depth))


class CompositeAttention(nn.Module):
  """HiFormer's: q, k, v of every token see the whole row, by a map of low rank. [B, T, D].

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
    del ctx
    B, T, D = x_BTD.shape
    init = nn.initializers.variance_scaling(1.0, 'fan_in', 'normal', batch_axis=(0,))
    down = self.param('down', init, (3, T * D, self.rank)).astype(self.dtype)
    up = self.param('up', init, (3, self.rank, T * D)).astype(self.dtype)
    x = x_BTD.astype(self.dtype).reshape(B, -1)
    qkv = jnp.einsum('pbr,prm->pbm', jnp.einsum('bm,pmr->pbr', x, down), up)
    q, k, v = (layers.split_heads(p, 1, self.heads)[0] for p in qkv.reshape(3, B, T, D))
    y = layers.join_heads(layers.attend(q, k, v, None, (D // self.heads) ** -0.5))
    return layers.TokenDense(D, self.tokens, self.dtype, scale=self.out_scale, name='out')(y)


def hiformer(
  depth: int, tokens: int, heads: int, ratio: int, rank: int, dtype: jnp.dtype
) -> tuple[SubLayer, ...]:
  """Composite attention, then a feed-forward a token; 2 * depth sub-layers.

  Without the paper's pruning of the last layer to task tokens.
  """
  scale = 1 / (2 * depth)
  attention = dict(tokens=tokens, heads=heads, rank=rank, dtype=dtype, out_scale=scale)
  ffn = dict(own=tokens, ratio=ratio, dtype=dtype, out_scale=scale)
  out = []
  for layer in range(depth):
    out.append(SubLayer(f'attention_{layer}', CompositeAttention, attention))
    out.append(SubLayer(f'ffn_{layer}', layers.FeedForward, ffn))
  return tuple(out)
