# SPDX-License-Identifier: Apache-2.0
"""RankMixer (arXiv 2507.15551) and TokenMixer-Large (2602.06563): mixing without parameters.

Shapes: B examples, T tokens, D width, H heads of width K = D / H.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from deres_jax.config.fields import Config
from deres_jax.core.errors import UserError
from deres_jax.models import inputs, layers
from deres_jax.models.stack import SubLayer


def mix(x_BTD: Array, heads: int) -> Array:
  """Concatenates head h of all tokens into new token h. [B, T, D] -> [B, H, T * K].

  RankMixer's multi-head token mixing; with H = T it is its own inverse.
  """
  B, T, D = x_BTD.shape
  return x_BTD.reshape(B, T, heads, D // heads).swapaxes(1, 2).reshape(B, heads, -1)


def revert(x_BHM: Array, tokens: int) -> Array:
  """Inverts `mix`. [B, H, T * K] -> [B, T, H * K]."""
  return mix(x_BHM, tokens)


class HeadMix(nn.Module):
  """RankMixer's mixer: as many heads as tokens, no parameters. [B, T, D] -> [B, T, D]."""

  @nn.compact
  def __call__(self, x_BTD: Array, ctx: inputs.Context) -> Array:
    return mix(x_BTD, x_BTD.shape[1])


def _check_heads(c: Config, tokens: int):
  if c.model.dim % tokens:
    raise UserError(
      f'backbone {c.model.backbone} mixes with as many heads as tokens: model.dim={c.model.dim} is '
      f'not divisible by {tokens} tokens; change model.dim, or model.tokenizer and model.tokens'
    )


def rankmixer(c: Config, fields: int, events: int, dtype: jnp.dtype) -> tuple[SubLayer, ...]:
  """Returns head mixing and a feed-forward with own weights and biases for each layer.

  The paper's norms are LayerNorms after the skip: connector postnorm, norm layer.
  """
  _check_heads(c, fields)
  ffn = dict(per_token=fields, ratio=c.model.ffn_ratio, dtype=dtype, out_scale=1.0, use_bias=True)
  out = []
  for layer in range(c.model.depth):
    out.append(SubLayer(f'mix_{layer}', HeadMix, {}))
    out.append(SubLayer(f'ffn_{layer}', layers.FeedForward, ffn))
  return tuple(out)


class MixAndRevert(nn.Module):
  """TokenMixer-Large's block without its outer skip. [B, T, D] -> [B, T, D].

    H = Mix(X);  H' = H + pSwiGLU(RMS(H));  R = Revert(H');  y = pSwiGLU(RMS(R))

  As many heads as tokens. The norms stand inside, so the paper's block has no norm before it:
  connector interval, norm none.
  """

  tokens: int
  ratio: int
  dtype: jnp.dtype
  down_scale: float

  @nn.compact
  def __call__(self, x_BTD: Array, ctx: inputs.Context) -> Array:
    norms = layers.SiteNorms(2, x_BTD.shape[-1], 'rms', self.dtype, name='norms')
    swiglu = dict(
      per_token=self.tokens, ratio=self.ratio, dtype=self.dtype, out_scale=self.down_scale
    )
    h = mix(x_BTD, self.tokens)
    h = h + layers.SwiGLU(name='mixed', **swiglu)(norms(h, 0))
    return layers.SwiGLU(name='reverted', **swiglu)(norms(revert(h, self.tokens), 1))


def tokenmixer(c: Config, fields: int, events: int, dtype: jnp.dtype) -> tuple[SubLayer, ...]:
  """Returns one composite sub-layer a layer. W_down starts with deviation 0.01, as in the paper."""
  _check_heads(c, fields)
  ratio, dim = c.model.ffn_ratio, c.model.dim
  # Xavier's variance is 2 / (fan_in + fan_out).
  down_scale = 0.01**2 * (ratio * dim + dim) / 2
  sizes = dict(tokens=fields, ratio=ratio, dtype=dtype, down_scale=down_scale)
  return tuple(SubLayer(f'block_{l}', MixAndRevert, sizes) for l in range(c.model.depth))
