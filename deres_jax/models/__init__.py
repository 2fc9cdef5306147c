# SPDX-License-Identifier: Apache-2.0
"""Models: `build` makes the one of a config, any token backbone under any connector or a classic.

Maps embeddings to logits. May import core, kernels and config. Never knows tables, files, devices
or the training loop: noise and masks come in a `Context`.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from deres_jax.config import fields
from deres_jax.core.errors import UserError, choose
from deres_jax.models import classic, heads, inputs, layers, tokenizer
from deres_jax.models.backbones import TOKEN_BACKBONES
from deres_jax.models.connectors import CONNECTORS
from deres_jax.models.inputs import Layout
from deres_jax.models.stack import Shape, Stack


class TokenModel(nn.Module):
  """Embeddings -> tokens -> stack -> logit. [B, S, E] -> [B].

  `aux_heads` write the logit of each inner layer's input to the collection 'aux', if that is
  mutable: TokenMixer-Large's auxiliary losses. `deep` adds the logit of hidden layers over the
  embeddings: AutoInt+.
  """

  layout: Layout
  tokens: nn.Module
  events: nn.Module | None
  stack: nn.Module
  head: nn.Module
  aux_heads: tuple[nn.Module, ...]
  deep: nn.Module | None
  embed_dropout: float

  def __call__(self, e_BSE: Array, ctx: inputs.Context) -> Array:
    e_BSE = layers.dropout(e_BSE, self.embed_dropout, ctx, layers.EMBED_SALT)
    if self.events is None:
      e_BFE = tokenizer.pooled(e_BSE, self.layout, ctx)
      x_BTD, ctx = self.tokens(e_BFE), ctx.with_mask(None)
    else:
      e_BFE = tokenizer.fields_of(e_BSE, self.layout)
      x_BTD = self.tokens(e_BFE)
      mask_BL = tokenizer.event_mask(e_BSE, self.layout, ctx)
      ctx = ctx.with_mask(jnp.pad(mask_BL, ((0, 0), (0, x_BTD.shape[1])), constant_values=True))
      history_BLD = self.events(tokenizer.events_of(e_BSE, self.layout))
      x_BTD = jnp.concatenate([history_BLD, x_BTD], axis=1)
    x_BTD, between = self.stack(x_BTD, ctx)
    if self.is_mutable_collection('aux'):
      for head, u_BTD in zip(self.aux_heads, between, strict=False):
        self.sow('aux', 'logits', head(u_BTD, ctx))
    logits_B = self.head(x_BTD, ctx)
    return logits_B if self.deep is None else logits_B + self.deep(e_BFE, ctx)


class DeepPart(nn.Module):
  """Hidden layers over the concatenated embeddings, to a logit. [B, F, E] -> [B]."""

  mlp: layers.Mlp

  @nn.compact
  def __call__(self, e_BFE: Array, ctx: inputs.Context) -> Array:
    return heads.logit(self, self.mlp(e_BFE.reshape(e_BFE.shape[0], -1), ctx), 0.0)


def _token_model(c: fields.Config, layout: Layout, prior_logit: float) -> nn.Module:
  m = c.model
  dtype = jnp.dtype(m.dtype)
  backbone = TOKEN_BACKBONES[m.backbone]
  events = layout.events if backbone.reads_events else 0
  columns = layout.fields + (0 if events else layout.event_fields)
  tokens = columns if m.tokenizer == 'field' else m.tokens
  if m.pyramid_events > events or (m.pyramid_events == 0 and not events):
    raise UserError(
      f'config model.pyramid_events={m.pyramid_events}: the data has a history of {events} events '
      'to shorten; set it lower, or to -1 for no pyramid'
    )
  sublayers = backbone.sublayers(c, tokens, events, dtype)
  shape = Shape(len(sublayers), backbone.per_layer, events + tokens, m.dim)

  def mlp(salt: int) -> layers.Mlp:
    return layers.Mlp(c.mlp.units, c.mlp.layers, c.mlp.dropout, salt, dtype)

  def head(salt: int) -> heads.LogitHead:
    return heads.LogitHead(m.head, prior_logit, tokens, mlp(salt) if m.head == 'mlp' else None)

  inner = range(1, m.depth) if m.aux_weight else ()
  return TokenModel(
    layout=layout,
    tokens=tokenizer.TOKENIZERS[m.tokenizer](tokens, m.dim, dtype),
    events=tokenizer.EventTokens(m.dim, dtype) if events else None,
    stack=Stack(
      sublayers,
      CONNECTORS[m.connector].make(c, shape, dtype),
      backbone.per_layer,
      m.dropout,
      m.remat,
    ),
    head=head(2**18),
    aux_heads=tuple(head(2**19 * l) for l in inner),
    deep=DeepPart(mlp(2**17)) if backbone.adds_mlp else None,
    embed_dropout=m.embed_dropout,
  )


class OneWidth(nn.Module):
  """A model of embeddings from tables of several widths. Tuple of [B, S_t, E_t] -> [B].

  Mixed dimension embeddings (Ginart et al. 2019, arXiv 1909.11810): a linear map for each table of
  narrower embeddings. Linear weights, the last columns, are not mapped.
  """

  model: nn.Module
  column_tables: tuple[int, ...]  # for each id column its table
  width: int  # of the model's embeddings, linear weights included
  linear: int

  @nn.compact
  def __call__(self, embeddings: tuple[Array, ...], ctx: inputs.Context) -> Array:
    wide = []
    for t, x_BSE in enumerate(embeddings):
      if x_BSE.shape[-1] != self.width:
        vector, weights = jnp.split(x_BSE, [x_BSE.shape[-1] - self.linear], axis=-1)
        dense = nn.Dense(self.width - self.linear, use_bias=False, name=f'table_{t}')
        x_BSE = jnp.concatenate([dense(vector), weights], axis=-1)
      wide.append(x_BSE)
    # From columns ordered by table back to the order of the data.
    order = sorted(range(len(self.column_tables)), key=lambda s: self.column_tables[s])
    back = sorted(range(len(order)), key=order.__getitem__)
    return self.model(jnp.concatenate(wide, axis=1)[:, jnp.array(back)], ctx)


BACKBONES = {**classic.CLASSICS, **TOKEN_BACKBONES}


def connector_name(m: fields.Model) -> str:
  """Returns the name of the model's connector; a classic model has none."""
  return m.connector if m.backbone in TOKEN_BACKBONES else 'none'


def is_flat(m: fields.Model) -> bool:
  """Returns whether the model's largest array is a vector an example."""
  return m.backbone in classic.CLASSICS and classic.CLASSICS[m.backbone].flat


def embedding_width(m: fields.Model) -> tuple[int, int]:
  """Returns an embedding's columns, and how many of them, the last ones, are linear weights."""
  linear = int(m.backbone in classic.CLASSICS and classic.CLASSICS[m.backbone].linear)
  return m.embed_dim + linear, linear


def build(c: fields.Config, layout: Layout, prior_logit: float) -> nn.Module:
  """Returns the model of a config: (embeddings [B, S, E], Context) -> logits [B], float32.

  Raises:
    UserError: an unknown backbone or connector, or a pair or sizes that cannot be combined.
  """
  choose(c.model.connector, CONNECTORS, 'connector (model.connector)')
  choose(c.model.backbone, BACKBONES, 'backbone (model.backbone)')
  make = classic.build if c.model.backbone in classic.CLASSICS else _token_model
  return make(c, layout, prior_logit)
