# SPDX-License-Identifier: Apache-2.0
"""Backbones and connectors by name, and the model that a config and a schema make."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from deres_jax import config as config_lib
from deres_jax.errors import UserError, choose
from deres_jax.models import (
  classic,
  heads,
  hyper,
  layers,
  onetrans,
  residual,
  single,
  tokenizer,
)
from deres_jax.models.stack import Shape, Stack


class TokenModel(nn.Module):
  """Table rows -> tokens -> stack -> logit. [B, F, E] -> [B]."""

  tokens: nn.Module
  stack: nn.Module
  head: nn.Module
  embed_dropout: float

  def __call__(self, rows_BFE: jax.Array, ctx: layers.Context) -> jax.Array:
    # Sub-layers salt their noise by their site, counted from 0.
    rows_BFE = layers.dropout(rows_BFE, self.embed_dropout, ctx, salt=2**16)
    return self.head(self.stack(self.tokens(rows_BFE), ctx))


# Connectors of (config, shape of the stack, compute dtype).


def _prenorm(c: config_lib.Config, shape: Shape, dtype) -> nn.Module:
  return residual.PreNorm(shape, c.model.norm, dtype)


def _postnorm(c: config_lib.Config, shape: Shape, dtype) -> nn.Module:
  return single.PostNorm(shape, c.model.norm, dtype)


def _siamese(c: config_lib.Config, shape: Shape, dtype) -> nn.Module:
  return single.Siamese(shape, c.model.norm, dtype)


def _interval(c: config_lib.Config, shape: Shape, dtype) -> nn.Module:
  return single.Interval(shape, c.model.norm, dtype, c.residual.interval_layers)


def _learnable(kind: str):
  def make(c: config_lib.Config, shape: Shape, dtype) -> nn.Module:
    return single.Learnable(shape, c.model.norm, dtype, kind)

  return make


def _scaled(kind: str):
  def make(c: config_lib.Config, shape: Shape, dtype) -> nn.Module:
    return single.Scaled(shape, c.model.norm, dtype, kind, c.residual.layerscale_init)

  return make


def _highway(c: config_lib.Config, shape: Shape, dtype) -> nn.Module:
  return single.Highway(shape, c.model.norm, dtype, c.residual.highway_bias)


def _denseformer(c: config_lib.Config, shape: Shape, dtype) -> nn.Module:
  return hyper.DenseFormer(shape, c.model.norm, dtype)


def _hc(c: config_lib.Config, shape: Shape, dtype) -> nn.Module:
  return hyper.HyperConnections(shape, c.model.norm, dtype, c.hyper.streams)


def _mhc(lite: bool):
  def make(c: config_lib.Config, shape: Shape, dtype) -> nn.Module:
    h = c.hyper
    return hyper.ManifoldHyper(shape, c.model.norm, dtype, h.streams, h.sinkhorn_iterations, lite)

  return make


def _deres(c: config_lib.Config, shape: Shape, dtype) -> nn.Module:
  switches = dataclasses.asdict(c.deres)
  block = switches.pop('block_layers') * shape.per_layer
  return residual.DeRes(shape, c.model.norm, dtype, block, **switches)


def _deres_s(c: config_lib.Config, shape: Shape, dtype) -> nn.Module:
  """DeRes-S: softmax instead of SiLU; the open block is a source, so it starts as PreNorm."""
  softmax = dataclasses.replace(c.deres, score_fn='softmax', include_partial=True)
  return _deres(dataclasses.replace(c, deres=softmax), shape, dtype)


def _attnres(c: config_lib.Config, shape: Shape, dtype) -> nn.Module:
  block = c.attnres.block_layers * shape.per_layer
  return residual.DeRes(
    shape, c.model.norm, dtype, block, path='attn', score_fn='softmax', include_partial=True
  )


def _attnres_full(c: config_lib.Config, shape: Shape, dtype) -> nn.Module:
  return residual.DeRes(
    shape, c.model.norm, dtype, 1, path='attn', score_fn='softmax', include_partial=True
  )


def _attnres_pointwise(c: config_lib.Config, shape: Shape, dtype) -> nn.Module:
  """SiLU(z + tau) with SiLU(tau) = 1: all weights are 1 at the start, so it starts as PreNorm."""
  block = c.attnres.block_layers * shape.per_layer
  return residual.DeRes(
    shape,
    c.model.norm,
    dtype,
    block,
    path='attn',
    score_fn='silu',
    silu_center=1.2784645,
    include_partial=True,
  )


CONNECTORS = {
  'prenorm': _prenorm,
  'postnorm': _postnorm,
  'siamese': _siamese,
  'interval': _interval,
  'scalar': _learnable('scalar'),
  'vector': _learnable('vector'),
  'matrix': _learnable('matrix'),
  'rezero': _scaled('rezero'),
  'layerscale': _scaled('layerscale'),
  'highway': _highway,
  'denseformer': _denseformer,
  'hc': _hc,
  'mhc': _mhc(lite=False),
  'mhc_lite': _mhc(lite=True),
  'attnres': _attnres,
  'attnres_full': _attnres_full,
  'attnres_pointwise': _attnres_pointwise,
  'deres': _deres,
  'deres_s': _deres_s,
}


def _onetrans(c: config_lib.Config, fields: int, prior_logit: float) -> nn.Module:
  m = c.model
  dtype = jnp.dtype(m.dtype)
  if m.tokenizer == 'field':
    tokens, make = fields, tokenizer.FieldTokens(fields, m.dim, dtype)
  else:
    tokens, make = m.tokens, tokenizer.AutoSplit(m.tokens, m.dim, dtype)
  subs = onetrans.sublayers(m.depth, tokens, m.heads, m.ffn_ratio, m.causal, dtype)
  shape = Shape(sites=len(subs), per_layer=2, tokens=tokens, dim=m.dim)
  connector = choose(m.connector, CONNECTORS, 'connector (model.connector)')(c, shape, dtype)
  return TokenModel(
    make,
    Stack(subs, connector, m.dropout, m.remat),
    heads.LogitHead(m.head, prior_logit),
    m.embed_dropout,
  )


def _lr(c: config_lib.Config, fields: int, prior_logit: float) -> nn.Module:
  del fields
  if c.model.embed_dim != 1:
    raise UserError(
      f'backbone lr has one weight an id: set model.embed_dim=1 (it is {c.model.embed_dim})'
    )
  return classic.LogisticRegression(prior_logit)


# Each makes a model [B, F, E] -> [B] of (config, number of fields, log odds of the click rate).
BACKBONES = {'lr': _lr, 'onetrans': _onetrans}


def build(c: config_lib.Config, fields: int, prior_logit: float) -> nn.Module:
  """The Linen module of a config: (rows_BFE, Context) -> logits_B, float32.

  Raises:
    UserError: an unknown backbone or connector; the message lists the choices.
  """
  choose(c.model.connector, CONNECTORS, 'connector (model.connector)')
  return choose(c.model.backbone, BACKBONES, 'backbone (model.backbone)')(c, fields, prior_logit)
