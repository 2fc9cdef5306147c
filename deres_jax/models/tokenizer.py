# SPDX-License-Identifier: Apache-2.0
"""Embeddings [B, S, E] to tokens [B, T, D].

A token starts as a learned position (its bias, RMS about 1) plus a map of its embeddings. So the
token of a rare id, whose embedding has hardly moved, stays near its field's mean token instead of
being a random direction of full length. A norm at the input keeps the stream's RMS near 1, which
block connectors need: b_0 is a source whose values are read raw (DeRes, AttnRes).

Shapes: B examples, F fields, L events, G attributes of an event, E embedding width, T tokens,
D width.
"""

import math

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from deres_jax.models import inputs, layers

_position = nn.initializers.normal(1.0)


def fields_of(e_BSE: Array, layout: inputs.Layout) -> Array:
  """Returns the embeddings of single-valued fields. [B, F, E]."""
  return e_BSE[:, : layout.fields]


def events_of(e_BSE: Array, layout: inputs.Layout) -> Array:
  """Returns the embeddings of the behaviour sequence. [B, L, G, E]."""
  e = e_BSE[:, layout.fields :]
  return e.reshape(e.shape[0], layout.events, layout.event_fields, e.shape[-1])


def event_mask(e_BSE: Array, layout: inputs.Layout, ctx: inputs.Context) -> Array:
  """Returns which events are not padding, [B, L] bool: all if the context has no mask."""
  if ctx.mask_BT is None:
    return jnp.ones((e_BSE.shape[0], layout.events), bool)
  return ctx.mask_BT


def pooled(e_BSE: Array, layout: inputs.Layout, ctx: inputs.Context) -> Array:
  """Appends the mean over events of each attribute to the fields. [B, F + G, E].

  For models that do not read sequences; an example without events gets zeros.
  """
  if not layout.events:
    return e_BSE
  mask_BL11 = event_mask(e_BSE, layout, ctx)[:, :, None, None]
  total_BGE = jnp.sum(jnp.where(mask_BL11, events_of(e_BSE, layout), 0), axis=1)
  count_B11 = jnp.maximum(jnp.sum(mask_BL11, axis=1), 1)
  return jnp.concatenate([fields_of(e_BSE, layout), total_BGE / count_B11], axis=1)


def _normed(x_BTD: Array) -> Array:
  """Norms tokens to RMS 1, float32; the calling compact method's module holds the gain."""
  return layers.SiteNorms(1, x_BTD.shape[-1], 'rms', jnp.float32, name='norm')(x_BTD, 0)


def _dense(name: str, features: int, dtype: jnp.dtype) -> nn.Dense:
  return nn.Dense(
    features,
    dtype=dtype,
    kernel_init=nn.initializers.xavier_uniform(),
    bias_init=_position,
    name=name,
  )


def _per_token(name: str, features: int, tokens: int, dtype: jnp.dtype) -> layers.TokenDense:
  return layers.TokenDense(features, tokens, dtype, use_bias=True, bias_init=_position, name=name)


class FieldTokens(nn.Module):
  """A token for each field, by its own linear map E -> D. T = F."""

  tokens: int
  dim: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, e_BFE: Array) -> Array:
    return _normed(_per_token('map', self.dim, self.tokens, self.dtype)(e_BFE))


class AutoSplit(nn.Module):
  """OneTrans's default: one dense map of all embeddings to T * D, then a split (2510.26104)."""

  tokens: int
  dim: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, e_BFE: Array) -> Array:
    B = e_BFE.shape[0]
    x = _dense('map', self.tokens * self.dim, self.dtype)(e_BFE.reshape(B, -1))
    return _normed(x.reshape(B, self.tokens, self.dim))


def slices(e_BFE: Array, tokens: int) -> Array:
  """Cuts the concatenated embeddings into even slices, padded with zeros. [B, T, W]."""
  B, F, E = e_BFE.shape
  width = math.ceil(F * E / tokens)
  x = jnp.pad(e_BFE.reshape(B, -1), ((0, 0), (0, tokens * width - F * E)))
  return x.reshape(B, tokens, width)


class Slices(nn.Module):
  """RankMixer's: T even slices of the concatenated embeddings, a linear map each (2507.15551)."""

  tokens: int
  dim: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, e_BFE: Array) -> Array:
    x = _per_token('map', self.dim, self.tokens, self.dtype)(slices(e_BFE, self.tokens))
    return _normed(x)


class GlobalAndSlices(nn.Module):
  """TokenMixer-Large's: a global token of all embeddings, then T - 1 groups (2602.06563).

  The paper groups features by meaning and gives each an MLP; even slices in the order of the
  fields and one linear map each are our reading.
  """

  tokens: int
  dim: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, e_BFE: Array) -> Array:
    B = e_BFE.shape[0]
    first = _dense('global_map', self.dim, self.dtype)(e_BFE.reshape(B, -1))[:, None]
    groups = self.tokens - 1
    rest = _per_token('map', self.dim, groups, self.dtype)(slices(e_BFE, groups))
    return _normed(jnp.concatenate([first, rest], axis=1))


TOKENIZERS = {
  'field': FieldTokens,
  'autosplit': AutoSplit,
  'slice': Slices,
  'global': GlobalAndSlices,
}


class EventTokens(nn.Module):
  """OneTrans's sequence side: one linear map of an event's attributes, shared (2510.26104).

  One sequence, merged by time; the kind of an event is an attribute. Positions are learned, counted
  from the oldest event. [B, L, G, E] -> [B, L, D].
  """

  dim: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, e_BLGE: Array) -> Array:
    B, L = e_BLGE.shape[:2]
    x = layers.TokenDense(self.dim, 0, self.dtype, name='map')(e_BLGE.reshape(B, L, -1))
    position = self.param('position', _position, (L, self.dim))
    return _normed(x + position.astype(self.dtype))
