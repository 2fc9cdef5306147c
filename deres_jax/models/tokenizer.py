# SPDX-License-Identifier: Apache-2.0
"""Table rows [B, S, E] to tokens [B, T, D].

A token starts as a learned position (its bias, RMS about 1) plus a map of its rows, so that the
token of a rare id, whose row has hardly moved, stays near its field's own token instead of being
a random direction of full length. A norm at the input keeps the stream's RMS near 1, which the
block connectors need: b_0 is a source whose values are read raw (DeRes, AttnRes).

Shapes: B rows, F fields, L events, G attributes of an event, E row width, T tokens, D width.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from deres_jax.models import inputs, layers

Array = jax.Array

_position = nn.initializers.normal(1.0)


def fields_of(rows_BSE: Array, layout: inputs.Layout) -> Array:
  """The single-valued fields. [B, F, E]."""
  return rows_BSE[:, : layout.fields]


def events_of(rows_BSE: Array, layout: inputs.Layout) -> Array:
  """The behaviour sequence. [B, L, G, E]."""
  rows = rows_BSE[:, layout.fields :]
  return rows.reshape(rows.shape[0], layout.events, layout.event_fields, rows.shape[-1])


def there(rows_BSE: Array, layout: inputs.Layout, ctx: inputs.Context) -> Array:
  """Which events are there [B, L] bool: all of them where the context has no mask."""
  if ctx.mask_BT is None:
    return jnp.ones((rows_BSE.shape[0], layout.events), bool)
  return ctx.mask_BT


def pooled(rows_BSE: Array, layout: inputs.Layout, ctx: inputs.Context) -> Array:
  """Fields, and the mean over events of each attribute as further ones. [B, F + G, E].

  For models that do not read sequences; a row without events gets zeros.
  """
  if not layout.events:
    return rows_BSE
  there_BL11 = there(rows_BSE, layout, ctx)[:, :, None, None]
  total_BGE = jnp.sum(jnp.where(there_BL11, events_of(rows_BSE, layout), 0), axis=1)
  count_B11 = jnp.maximum(jnp.sum(there_BL11, axis=1), 1)
  return jnp.concatenate([fields_of(rows_BSE, layout), total_BGE / count_B11], axis=1)


def _normed(x_BTD: Array) -> Array:
  """Tokens of RMS 1, float32. To be called in a compact method, whose module has the gain."""
  return layers.SiteNorms(1, x_BTD.shape[-1], 'rms', jnp.float32, name='norm')(x_BTD, 0)


def _dense(name: str, features: int, dtype: jnp.dtype) -> nn.Dense:
  return nn.Dense(
    features,
    dtype=dtype,
    kernel_init=nn.initializers.xavier_uniform(),
    bias_init=_position,
    name=name,
  )


def _own(name: str, features: int, tokens: int, dtype: jnp.dtype) -> layers.TokenDense:
  return layers.TokenDense(features, tokens, dtype, use_bias=True, bias_init=_position, name=name)


class FieldTokens(nn.Module):
  """A token a field: its own linear map E -> D. T = F."""

  tokens: int
  dim: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, rows_BFE: Array) -> Array:
    return _normed(_own('map', self.dim, self.tokens, self.dtype)(rows_BFE))


class AutoSplit(nn.Module):
  """OneTrans' default: one dense map of all rows to T*D, then a split (arXiv 2510.26104)."""

  tokens: int
  dim: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, rows_BFE: Array) -> Array:
    B = rows_BFE.shape[0]
    x = _dense('map', self.tokens * self.dim, self.dtype)(rows_BFE.reshape(B, -1))
    return _normed(x.reshape(B, self.tokens, self.dim))


def slices(rows_BFE: Array, tokens: int) -> Array:
  """All rows side by side, cut into even slices; the end is padded with zeros. [B, T, W]."""
  B, F, E = rows_BFE.shape
  width = math.ceil(F * E / tokens)
  x = jnp.pad(rows_BFE.reshape(B, -1), ((0, 0), (0, tokens * width - F * E)))
  return x.reshape(B, tokens, width)


class Slices(nn.Module):
  """RankMixer's: all rows side by side, cut into T even slices, a linear map each (2507.15551)."""

  tokens: int
  dim: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, rows_BFE: Array) -> Array:
    x = _own('map', self.dim, self.tokens, self.dtype)(slices(rows_BFE, self.tokens))
    return _normed(x)


class GlobalAndSlices(nn.Module):
  """TokenMixer-Large's: a global token of all rows first, then T - 1 groups (2602.06563).

  The paper groups features by meaning and gives each an MLP; even slices in the order of the
  fields and one linear map each are our reading.
  """

  tokens: int
  dim: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, rows_BFE: Array) -> Array:
    B = rows_BFE.shape[0]
    first = _dense('global_map', self.dim, self.dtype)(rows_BFE.reshape(B, -1))[:, None]
    groups = self.tokens - 1
    rest = _own('map', self.dim, groups, self.dtype)(slices(rows_BFE, groups))
    return _normed(jnp.concatenate([first, rest], axis=1))


TOKENIZERS = {
  'field': FieldTokens,
  'autosplit': AutoSplit,
  'slice': Slices,
  'global': GlobalAndSlices,
}


class EventTokens(nn.Module):
  """OneTrans' sequence side (arXiv 2510.26104): one shared linear map of an event's attributes.

  One sequence, merged by time; its kinds of event are an attribute. A position is learned for
  each place, counted from the oldest. [B, L, G, E] -> [B, L, D].
  """

  dim: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, rows_BLGE: Array) -> Array:
    B, L = rows_BLGE.shape[:2]
    x = layers.TokenDense(self.dim, 0, self.dtype, name='map')(rows_BLGE.reshape(B, L, -1))
    position = self.param('position', _position, (L, self.dim))
    return _normed(x + position.astype(self.dtype))
