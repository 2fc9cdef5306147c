# SPDX-License-Identifier: Apache-2.0
"""The model that a config and a data layout make: any token backbone under any connector."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from deres_jax.config import fields as fields_lib
from deres_jax.core.errors import UserError, choose
from deres_jax.models import classic, heads, inputs, layers, tokenizer
from deres_jax.models.backbones import READS_EVENTS, TOKEN_BACKBONES
from deres_jax.models.connectors import CONNECTORS
from deres_jax.models.inputs import Layout
from deres_jax.models.stack import Shape, Stack


class TokenModel(nn.Module):
  """Table rows -> tokens -> stack -> logit. [B, S, E] -> [B].

  Where `aux_heads` are and the collection 'aux' is mutable, the logit of each inner layer's input
  is put there: TokenMixer-Large's auxiliary losses. The 'deep' part, if any, adds the logit of
  hidden layers over the rows: AutoInt+.
  """

  layout: Layout
  tokens: nn.Module
  events: nn.Module | None
  stack: nn.Module
  head: nn.Module
  aux_heads: tuple[nn.Module, ...]
  deep: nn.Module | None
  embed_dropout: float

  def __call__(self, rows_BSE: jax.Array, ctx: inputs.Context) -> jax.Array:
    rows_BSE = layers.dropout(rows_BSE, self.embed_dropout, ctx, layers.EMBED_SALT)
    if self.events is None:
      rows_BFE = tokenizer.pooled(rows_BSE, self.layout, ctx)
      x_BTD, ctx = self.tokens(rows_BFE), ctx.with_mask(None)
    else:
      rows_BFE = tokenizer.fields_of(rows_BSE, self.layout)
      x_BTD = self.tokens(rows_BFE)
      there_BL = tokenizer.there(rows_BSE, self.layout, ctx)
      ctx = ctx.with_mask(jnp.pad(there_BL, ((0, 0), (0, x_BTD.shape[1])), constant_values=True))
      e_BLD = self.events(tokenizer.events_of(rows_BSE, self.layout))
      x_BTD = jnp.concatenate([e_BLD, x_BTD], axis=1)
    x_BTD, between = self.stack(x_BTD, ctx)
    if self.is_mutable_collection('aux'):
      for head, u_BTD in zip(self.aux_heads, between, strict=False):
        self.sow('aux', 'logits', head(u_BTD, ctx))
    logits_B = self.head(x_BTD, ctx)
    return logits_B if self.deep is None else logits_B + self.deep(rows_BFE, ctx)


class DeepPart(nn.Module):
  """Hidden layers over all rows side by side, to a logit. [B, F, E] -> [B]."""

  mlp: layers.Mlp

  @nn.compact
  def __call__(self, rows_BFE: jax.Array, ctx: inputs.Context) -> jax.Array:
    return heads.logit(self, self.mlp(rows_BFE.reshape(rows_BFE.shape[0], -1), ctx), 0.0)


def _mlp(c: fields_lib.Config) -> dict:
  return dict(units=c.mlp.units, depth=c.mlp.layers, dropout=c.mlp.dropout)


def _token_model(c: fields_lib.Config, layout: Layout, prior_logit: float) -> nn.Module:
  m = c.model
  dtype = jnp.dtype(m.dtype)
  events = layout.events if m.backbone in READS_EVENTS else 0
  fields = layout.fields + (0 if events else layout.event_fields)
  own = fields if m.tokenizer == 'field' else m.tokens
  if m.pyramid_events > events or (m.pyramid_events == 0 and not events):
    raise UserError(
      f'config model.pyramid_events={m.pyramid_events}: the data has a history of {events} events '
      'to shorten; set it lower, or to -1 for no pyramid'
    )
  backbone = TOKEN_BACKBONES[m.backbone](c, own, events, dtype)
  shape = Shape(len(backbone.sublayers), backbone.per_layer, events + own, m.dim)

  def head(salt: int) -> heads.LogitHead:
    mlp = layers.Mlp(**_mlp(c), salt=salt, dtype=dtype) if m.head == 'mlp' else None
    return heads.LogitHead(m.head, prior_logit, own, mlp)

  inner = range(1, m.depth) if m.aux_weight else ()
  deep = layers.Mlp(**_mlp(c), salt=2**17, dtype=dtype)
  return TokenModel(
    layout=layout,
    tokens=tokenizer.TOKENIZERS[m.tokenizer](own, m.dim, dtype),
    events=tokenizer.EventTokens(m.dim, dtype) if events else None,
    stack=Stack(
      backbone.sublayers,
      CONNECTORS[m.connector](c, shape, dtype),
      backbone.per_layer,
      m.dropout,
      m.remat,
    ),
    head=head(2**18),
    aux_heads=tuple(head(2**19 * l) for l in inner),
    deep=DeepPart(deep) if m.backbone == 'autoint_plus' else None,
    embed_dropout=m.embed_dropout,
  )


class OneWidth(nn.Module):
  """Rows of tables of several widths, each mapped to the model's. tuple of [B, S_t, E_t] -> [B].

  Mixed dimension embeddings (Ginart et al. 2019, arXiv 1909.11810): a map a table of narrower rows.
  Linear weights, the last columns, pass as they are.
  """

  model: nn.Module
  column_tables: tuple[int, ...]  # for each id of a row its table
  width: int  # of the model's rows, linear weights included
  linear: int

  @nn.compact
  def __call__(self, rows: tuple[jax.Array, ...], ctx: inputs.Context) -> jax.Array:
    wide = []
    for t, x_BSE in enumerate(rows):
      if x_BSE.shape[-1] != self.width:
        vector, weights = jnp.split(x_BSE, [x_BSE.shape[-1] - self.linear], axis=-1)
        dense = nn.Dense(self.width - self.linear, use_bias=False, name=f'table_{t}')
        x_BSE = jnp.concatenate([dense(vector), weights], axis=-1)
      wide.append(x_BSE)
    # Slots of one table after another, back into the order of the data.
    order = sorted(range(len(self.column_tables)), key=lambda s: self.column_tables[s])
    back = sorted(range(len(order)), key=order.__getitem__)
    return self.model(jnp.concatenate(wide, axis=1)[:, jnp.array(back)], ctx)


# Classic models: the class and its own sizes from the config.
_CLASSICS = {
  'lr': (classic.LogisticRegression, lambda c: {}),
  'fm': (classic.FactorizationMachine, lambda c: {}),
  'dnn': (classic.Dnn, lambda c: {}),
  'deepfm': (classic.DeepFM, lambda c: {}),
  'dcnv2': (
    classic.DCNv2,
    lambda c: dict(depth=c.classic.cross_layers, rank=c.classic.cross_rank),
  ),
  'xdeepfm': (
    classic.XDeepFM,
    lambda c: dict(depth=c.classic.cin_layers, maps=c.classic.cin_maps),
  ),
  'dlrm': (classic.Dlrm, lambda c: {}),
  'masknet': (
    classic.MaskNet,
    lambda c: dict(
      blocks=c.classic.mask_blocks, ratio=c.classic.mask_ratio, units=c.classic.mask_units
    ),
  ),
  'finalmlp': (
    classic.FinalMLP,
    lambda c: dict(
      second_depth=c.classic.fusion_second_layers,
      heads=c.classic.fusion_heads,
      gate_units=c.classic.fusion_gate_units,
    ),
  ),
  'din': (classic.Din, lambda c: dict(attention_units=c.classic.din_units)),
}

# Models whose table rows end in a linear weight, beside the vector of model.embed_dim.
_LINEAR = ('fm', 'deepfm', 'xdeepfm')


def _classic_model(c: fields_lib.Config, layout: Layout, prior_logit: float) -> nn.Module:
  name = c.model.backbone
  if name == 'lr' and c.model.embed_dim != 1:
    raise UserError(
      f'backbone lr has one weight an id: set model.embed_dim=1 (it is {c.model.embed_dim})'
    )
  if name == 'din' and not layout.events:
    raise UserError(
      'backbone din reads behaviour sequences and this data has none: choose dnn, of which it is '
      'the extension, or prepare data with sequences'
    )
  if name == 'din' and not layout.targets:
    raise UserError(
      'backbone din weighs events by the candidate, and no field of this data says of the '
      'candidate what an event says: choose dnn, or prepare the data with such fields'
    )
  if name == 'finalmlp' and c.mlp.units % c.classic.fusion_heads:
    raise UserError(
      f'config mlp.units={c.mlp.units} is not divisible by '
      f'classic.fusion_heads={c.classic.fusion_heads}'
    )
  kind, sizes = _CLASSICS[name]
  return kind(
    layout=layout,
    prior_logit=prior_logit,
    embed_dropout=c.model.embed_dropout,
    mlp=_mlp(c),
    dtype=jnp.dtype(c.model.dtype),
    **sizes(c),
  )


# Each makes a model [B, S, E] -> [B] of (config, layout, log odds of the click rate).
BACKBONES = {
  **dict.fromkeys(_CLASSICS, _classic_model),
  **dict.fromkeys(TOKEN_BACKBONES, _token_model),
}


def connector_of(c: fields_lib.Config) -> str:
  """Name of the connector that the model has; classic models have none."""
  return c.model.connector if c.model.backbone in TOKEN_BACKBONES else 'none'


def is_flat(c: fields_lib.Config) -> bool:
  """Whether the model holds a vector a row, no array of tokens, events or products of fields."""
  return c.model.backbone in _CLASSICS and c.model.backbone not in ('xdeepfm', 'din')


def row_width(c: fields_lib.Config) -> tuple[int, int]:
  """Columns of a table row, and how many of them, the last, are linear weights."""
  linear = 1 if c.model.backbone in _LINEAR else 0
  return c.model.embed_dim + linear, linear


def build(c: fields_lib.Config, layout: Layout, prior_logit: float) -> nn.Module:
  """The Linen module of a config: (rows_BSE, Context) -> logits_B, float32.

  Raises:
    UserError: an unknown backbone or connector, which lists the choices, or a pair or sizes that
      cannot be, which says why.
  """
  choose(c.model.connector, CONNECTORS, 'connector (model.connector)')
  return choose(c.model.backbone, BACKBONES, 'backbone (model.backbone)')(c, layout, prior_logit)
