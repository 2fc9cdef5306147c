# SPDX-License-Identifier: Apache-2.0
"""Building blocks of every backbone: norm, dense maps, attention, feed-forward, dropout.

Shapes: B rows, T tokens, D width, H heads, K head width, O outputs, F fields, E table-row width.
"""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
  """What a sub-layer may know besides its input.

  Attributes:
    keys_B: a PRNG key a row, or None outside training. Noise is a function of a row's key and of
      the place that draws it, so it does not depend on micro-batches or on the mesh.
  """

  keys_B: Array | None = None

  @property
  def train(self) -> bool:
    return self.keys_B is not None


def dropout(x: Array, rate: float, ctx: Context, salt: int) -> Array:
  """Inverted dropout on x [B, ...]; `salt` tells one place in the network from another."""
  if rate == 0 or not ctx.train:
    return x

  def keep(key):
    return jax.random.bernoulli(jax.random.fold_in(key, salt), 1 - rate, x.shape[1:])

  return jnp.where(jax.vmap(keep)(ctx.keys_B), x / (1 - rate), 0).astype(x.dtype)


def rms(x: Array, eps: float = 1e-6) -> Array:
  """x over its root mean square along the last axis, in float32, without a gain."""
  x = x.astype(jnp.float32)
  return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps)


class SiteNorms(nn.Module):
  """One norm a site of a connector, in one module. [B, T, D] float32 -> [B, T, D] dtype.

  kind rms: RMSNorm (Zhang & Sennrich 2019); layer: LayerNorm with gain and bias.
  """

  sites: int
  dim: int
  kind: str
  dtype: jnp.dtype

  def setup(self):
    self.scale = self.param('scale', nn.initializers.ones, (self.sites, self.dim))
    if self.kind == 'layer':
      self.bias = self.param('bias', nn.initializers.zeros, (self.sites, self.dim))

  def __call__(self, x: Array, site: int) -> Array:
    if self.kind == 'layer':
      x = x.astype(jnp.float32)
      x = rms(x - jnp.mean(x, axis=-1, keepdims=True)) * self.scale[site] + self.bias[site]
    else:
      x = rms(x) * self.scale[site]
    return x.astype(self.dtype)


class TokenDense(nn.Module):
  """Linear map of every token. [B, T, D] -> [B, T, features].

  per_token gives each of `tokens` positions its own matrix, kernel [T, D, O], as OneTrans does
  for non-sequence tokens (arXiv 2510.26104); else all share one, kernel [D, O]. The token axis is
  a batch axis for the initialiser: a plain Xavier on [T, D, O] would take T for a fan.
  """

  features: int
  tokens: int
  per_token: bool
  dtype: jnp.dtype
  use_bias: bool = False
  scale: float = 1.0
  bias_init: Callable = nn.initializers.zeros

  @nn.compact
  def __call__(self, x: Array) -> Array:
    lead = (self.tokens,) if self.per_token else ()
    init = nn.initializers.variance_scaling(
      self.scale, 'fan_avg', 'uniform', batch_axis=(0,) if self.per_token else ()
    )
    kernel = self.param('kernel', init, (*lead, x.shape[-1], self.features)).astype(self.dtype)
    x = x.astype(self.dtype)
    if self.per_token:
      # Tokens first: a batched product whose batch axis leads is 2-3 times faster on XLA's CPU.
      y = jnp.einsum('tbd,tdo->tbo', x.swapaxes(0, 1), kernel).swapaxes(0, 1)
    else:
      y = jnp.einsum('btd,do->bto', x, kernel)
    if self.use_bias:
      bias = self.param('bias', self.bias_init, (*lead, self.features))
      y = y + bias.astype(self.dtype)
    return y


class Attention(nn.Module):
  """Multi-head softmax attention over tokens; returns the branch only. [B, T, D] -> [B, T, D].

  q, k, v maps are per token if `per_token` (OneTrans' mixed attention over non-sequence tokens);
  the output map is shared. Softmax in float32.
  """

  tokens: int
  heads: int
  per_token: bool
  causal: bool
  dtype: jnp.dtype
  out_scale: float

  @nn.compact
  def __call__(self, x_BTD: Array, ctx: Context) -> Array:
    del ctx
    B, T, D = x_BTD.shape
    K = D // self.heads
    # Scale 2: q, k and v share a kernel [D, 3D] but start with the variance of one of [D, D].
    qkv = TokenDense(3 * D, self.tokens, self.per_token, self.dtype, scale=2.0, name='qkv')(x_BTD)
    # [B, H, T, K] is the layout in which XLA's CPU products are fastest.
    qkv = qkv.reshape(B, T, 3, self.heads, K).transpose(2, 0, 3, 1, 4)
    q_BHTK, k_BHTK, v_BHTK = qkv[0], qkv[1], qkv[2]
    z = jnp.einsum('bhqk,bhtk->bhqt', q_BHTK, k_BHTK, preferred_element_type=jnp.float32)
    z = z * K**-0.5
    if self.causal:
      z = jnp.where(jnp.tril(jnp.ones((T, T), bool)), z, -jnp.inf)
    a = jax.nn.softmax(z, axis=-1).astype(self.dtype)
    y = jnp.einsum('bhqt,bhtk->bhqk', a, v_BHTK)
    y = y.transpose(0, 2, 1, 3).reshape(B, T, D)
    return TokenDense(D, T, False, self.dtype, scale=self.out_scale, name='out')(y)


class FeedForward(nn.Module):
  """W2 gelu(W1 x), shared or per token; returns the branch only. [B, T, D] -> [B, T, D]."""

  tokens: int
  ratio: int
  per_token: bool
  dtype: jnp.dtype
  out_scale: float

  @nn.compact
  def __call__(self, x_BTD: Array, ctx: Context) -> Array:
    del ctx
    D = x_BTD.shape[-1]
    h = TokenDense(self.ratio * D, self.tokens, self.per_token, self.dtype, name='up')(x_BTD)
    down = TokenDense(D, self.tokens, self.per_token, self.dtype, scale=self.out_scale, name='down')
    return down(jax.nn.gelu(h))
