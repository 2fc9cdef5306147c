# SPDX-License-Identifier: Apache-2.0
"""Backbones and connectors by name, and the model that a config and a schema make."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from deres_jax import config as config_lib
from deres_jax.errors import UserError, choose
from deres_jax.models import classic, heads, layers, onetrans, residual, tokenizer
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


def _prenorm(c: config_lib.Config, shape: Shape, dtype) -> nn.Module:
  return residual.PreNorm(shape, c.model.norm, dtype)


def _deres(c: config_lib.Config, shape: Shape, dtype) -> nn.Module:
  switches = dataclasses.asdict(c.deres)
  block = switches.pop('block_layers') * shape.per_layer
  return residual.DeRes(shape, c.model.norm, dtype, block, **switches)


def _attnres(c: config_lib.Config, shape: Shape, dtype) -> nn.Module:
  block = c.attnres.block_layers * shape.per_layer
  return residual.DeRes(
    shape, c.model.norm, dtype, block, path='attn', score_fn='softmax', include_partial=True
  )


# Each makes a connector of (config, shape of the stack, compute dtype).
CONNECTORS = {'prenorm': _prenorm, 'attnres': _attnres, 'deres': _deres}


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
