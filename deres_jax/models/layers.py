# SPDX-License-Identifier: Apache-2.0
"""Building blocks of every backbone: norm, dense maps, attention, feed-forward, dropout.

Shapes: B examples, T tokens, D width, H heads, K head width, O outputs.

Tokens are events, oldest first (sequence data only), then fields: OneTrans's [S; NS]. The last
`per_token` tokens each have weights of their own: T gives every token its own, 0 lets all share,
and the number of field tokens is OneTrans's mixed case.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from deres_jax.kernels import library, ops
from deres_jax.models import inputs

# Each place that draws noise has its own salt; the salt of a sub-layer is its site, from 0.
EMBED_SALT = 2**16


def dropout(x: Array, rate: float, ctx: inputs.Context, salt: int) -> Array:
  """Applies inverted dropout to x [B, ...] with the noise of `salt`, a place in the network."""
  if rate == 0 or not ctx.train:
    return x

  def keep(key):
    return jax.random.bernoulli(jax.random.fold_in(key, salt), 1 - rate, x.shape[1:])

  return jnp.where(jax.vmap(keep)(ctx.keys_B), x / (1 - rate), 0).astype(x.dtype)


def rms(x: Array, eps: float = 1e-6) -> Array:
  """Returns x / RMS(x) along the last axis, float32, without a gain."""
  x = x.astype(jnp.float32)
  return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps)


class SiteNorms(nn.Module):
  """The norms of all sites of a connector. [B, T, D] float32 -> [B, T, D] dtype.

  kind rms: RMSNorm (Zhang & Sennrich 2019); layer: LayerNorm with gain and bias; none: a cast.
  """

  sites: int
  dim: int
  kind: str
  dtype: jnp.dtype

  def setup(self):
    if self.kind == 'none':
      return
    self.scale = self.param('scale', nn.initializers.ones, (self.sites, self.dim))
    if self.kind == 'layer':
      self.bias = self.param('bias', nn.initializers.zeros, (self.sites, self.dim))

  def __call__(self, x: Array, site: int | slice) -> Array:
    """Norms x with the gain of a site, or [..., sites, D] with those of a slice of sites."""
    if isinstance(site, int) and self.fuses(x):
      return ops.norm(x, self.scale[site])
    if self.kind == 'layer':
      x = x.astype(jnp.float32)
      x = rms(x - jnp.mean(x, axis=-1, keepdims=True)) * self.scale[site] + self.bias[site]
    elif self.kind == 'rms':
      x = rms(x) * self.scale[site]
    return x.astype(self.dtype)

  def fuses(self, *arrays: Array) -> bool:
    """Returns whether `of_mix` takes these arrays and kernels are on."""
    return library.on() and self.kind == 'rms' and self.dtype == jnp.float32 and ops.fits(*arrays)

  def of_mix(self, site: int, x: Array, *mixed) -> Array:
    """Norms gx x + gr sum_i a_i b_i in one pass over memory; arguments as `ops.read`."""
    return ops.read(x, *mixed, self.scale[site])


def tiled_eye(key: Array, shape: tuple[int, ...]) -> Array:
  """Initialises maps [..., D, D] as identities."""
  return jnp.broadcast_to(jnp.eye(shape[-1]), shape)


def _xavier(scale: float, batch_axis: tuple[int, ...]) -> Callable:
  return nn.initializers.variance_scaling(scale, 'fan_avg', 'uniform', batch_axis=batch_axis)


class TokenDense(nn.Module):
  """Linear map of every token. [B, T, D] -> [B, T, features].

  The last `per_token` tokens have a matrix each, kernel [per_token, D, O], like OneTrans's
  non-sequence tokens (arXiv 2510.26104); the tokens before them share kernel_shared [D, O]. With
  per_token=0 all share `kernel` [D, O]. The token axis is a batch axis for the initialiser: a plain
  Xavier on [T, D, O] would count T as a fan.
  """

  features: int
  per_token: int
  dtype: jnp.dtype
  use_bias: bool = False
  scale: float = 1.0
  bias_init: Callable = nn.initializers.zeros

  @nn.compact
  def __call__(self, x: Array) -> Array:
    T = x.shape[1]
    x = x.astype(self.dtype)
    if self.per_token == 0:
      return self._map(x, '', ())
    if self.per_token == T:
      return self._map(x, '', (T,))
    # Also if a pyramid has left no event: parameters do not depend on the data's shape.
    shared = self._map(x[:, : T - self.per_token], '_shared', ())
    last = self._map(x[:, T - self.per_token :], '', (self.per_token,))
    return jnp.concatenate([shared, last], axis=1)

  def _map(self, x: Array, suffix: str, lead: tuple[int, ...]) -> Array:
    """Maps x by one kernel, or with lead = (T,) by a kernel for each token."""
    init = _xavier(self.scale, (0,) if lead else ())
    w = self.param(f'kernel{suffix}', init, (*lead, x.shape[-1], self.features))
    if library.on() and ops.maps(x, w):
      y = ops.dense(x, w if lead else w[None])
    elif lead:
      # Tokens first: a batched product whose batch axis leads is 2-3 times faster on XLA's CPU.
      y = jnp.einsum('tbd,tdo->tbo', x.swapaxes(0, 1), w.astype(self.dtype)).swapaxes(0, 1)
    else:
      y = jnp.einsum('btd,do->bto', x, w.astype(self.dtype))
    if self.use_bias:
      bias = self.param(f'bias{suffix}', self.bias_init, (*lead, self.features))
      y = y + bias.astype(self.dtype)
    return y


class TokenKernel(nn.Module):
  """The kernel of a `TokenDense` of this name, per_token 0 or T. D -> [1 or T, D, features]."""

  features: int
  per_token: int
  scale: float = 1.0

  @nn.compact
  def __call__(self, dim: int) -> Array:
    if self.per_token:
      return self.param('kernel', _xavier(self.scale, (0,)), (self.per_token, dim, self.features))
    return self.param('kernel', _xavier(self.scale, ()), (dim, self.features))[None]


def split_heads(x_BTM: Array, parts: int, heads: int) -> Array:
  """Reshapes [B, T, parts * heads * K] to [parts, B, heads, T, K], XLA's fastest for products."""
  B, T, M = x_BTM.shape
  return x_BTM.reshape(B, T, parts, heads, M // (parts * heads)).transpose(2, 0, 3, 1, 4)


def join_heads(x_BHTK: Array) -> Array:
  """Reshapes [B, H, T, K] to [B, T, H * K]."""
  B, H, T, K = x_BHTK.shape
  return x_BHTK.transpose(0, 2, 1, 3).reshape(B, T, H * K)


def visible(queries: int, keys: int, causal: bool, ctx: inputs.Context) -> Array | None:
  """Returns which keys a query may see, [B or 1, 1, queries, keys], or None for all.

  Queries are the last `queries` of the keys' tokens.
  """
  see = None
  if causal:
    see = jnp.tril(jnp.ones((keys, keys), bool))[None, None, keys - queries :]
  if ctx.mask_BT is not None:
    present = ctx.mask_BT[:, None, None, :]
    see = present if see is None else see & present
  return see


# Score of a masked key: finite, so that a padded query that sees no key gives no NaN.
UNSEEN = -1e30


def attend(q_BHQK: Array, k_BHTK: Array, v_BHTK: Array, see: Array | None, scale: float) -> Array:
  """Returns softmax(scale q k^T) v, [B, H, Q, K], softmax in float32."""
  z = jnp.einsum('bhqk,bhtk->bhqt', q_BHQK, k_BHTK, preferred_element_type=jnp.float32) * scale
  if see is not None:
    z = jnp.where(see, z, UNSEEN)
  a = jax.nn.softmax(z, axis=-1).astype(v_BHTK.dtype)
  return jnp.einsum('bhqt,bhtk->bhqk', a, v_BHTK)


class Attention(nn.Module):
  """Multi-head softmax attention over tokens, without the skip. [B, T, D] -> [B, Q, D].

  q, k, v maps are mixed (see TokenDense), the output map is shared. With `queries` below T only the
  last tokens are queries and stay: OneTrans's pyramid.
  """

  per_token: int
  heads: int
  causal: bool
  queries: int
  dtype: jnp.dtype
  out_scale: float

  @nn.compact
  def __call__(self, x_BTD: Array, ctx: inputs.Context) -> Array:
    T, D = x_BTD.shape[1:]
    scale = (D // self.heads) ** -0.5
    # The scales let maps that share a kernel start with the variance of one of [D, D].
    if self.queries == T:
      qkv = TokenDense(3 * D, self.per_token, self.dtype, scale=2.0, name='qkv')(x_BTD)
      if library.on() and self.dtype == jnp.float32 and T <= ops.MOST_TOKENS:
        return self._out(ops.attend(qkv, ctx.mask_BT, self.heads, scale, self.causal))
      q, k, v = split_heads(qkv, 3, self.heads)
    else:
      last = x_BTD[:, T - self.queries :]
      q = TokenDense(D, self.per_token, self.dtype, name='q')(last)
      kv = TokenDense(2 * D, self.per_token, self.dtype, scale=1.5, name='kv')(x_BTD)
      (q,), (k, v) = split_heads(q, 1, self.heads), split_heads(kv, 2, self.heads)
    see = visible(self.queries, T, self.causal, ctx)
    return self._out(join_heads(attend(q, k, v, see, scale)))

  def _out(self, y_BQD: Array) -> Array:
    return TokenDense(y_BQD.shape[-1], 0, self.dtype, scale=self.out_scale, name='out')(y_BQD)


class FeedForward(nn.Module):
  """W2 gelu(W1 x), without the skip. [B, T, D] -> [B, T, D]."""

  per_token: int
  ratio: int
  dtype: jnp.dtype
  out_scale: float
  use_bias: bool = False

  @nn.compact
  def __call__(self, x_BTD: Array, ctx: inputs.Context) -> Array:
    T, D = x_BTD.shape[1:]
    if not self.use_bias and self.per_token in (0, T) and library.on() and ops.fits(x_BTD):
      w1 = TokenKernel(self.ratio * D, self.per_token, name='up')(D)
      w2 = TokenKernel(D, self.per_token, scale=self.out_scale, name='down')(self.ratio * D)
      return ops.feed(x_BTD, w1, w2)
    up = TokenDense(self.ratio * D, self.per_token, self.dtype, use_bias=self.use_bias, name='up')
    down = TokenDense(
      D, self.per_token, self.dtype, use_bias=self.use_bias, scale=self.out_scale, name='down'
    )
    return down(jax.nn.gelu(up(x_BTD)))


class SwiGLU(nn.Module):
  """W_down (swish(W_gate x + b) * (W_up x + b)) + b (Shazeer 2020). [B, T, D] -> [B, T, D].

  The gate and the up map share a kernel, the gate's outputs first.
  """

  per_token: int
  ratio: int
  dtype: jnp.dtype
  out_scale: float

  @nn.compact
  def __call__(self, x_BTD: Array) -> Array:
    D = x_BTD.shape[-1]
    M = self.ratio * D
    # Scale: Xavier's variance for two maps [D, M] that share a kernel [D, 2 M].
    both = TokenDense(
      2 * M, self.per_token, self.dtype, use_bias=True, scale=(D + 2 * M) / (D + M), name='up'
    )(x_BTD)
    down = TokenDense(
      D, self.per_token, self.dtype, use_bias=True, scale=self.out_scale, name='down'
    )
    return down(jax.nn.silu(both[..., :M]) * both[..., M:])


class Mlp(nn.Module):
  """ReLU layers of equal width with dropout, the last one too. [B, I] -> [B, units].

  Layer i draws its noise with salt + i.
  """

  units: int
  depth: int
  dropout: float
  salt: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x_BI: Array, ctx: inputs.Context) -> Array:
    for i in range(self.depth):
      dense = nn.Dense(
        self.units,
        dtype=self.dtype,
        kernel_init=nn.initializers.xavier_uniform(),
        name=f'layer_{i}',
      )
      x_BI = dropout(jax.nn.relu(dense(x_BI)), self.dropout, ctx, self.salt + i)
    return x_BI
