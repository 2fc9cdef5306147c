# SPDX-License-Identifier: Apache-2.0
"""Token backbones by name: each is a list of sub-layers made from a config.

The token contract: a backbone names its sub-layers, how many make a layer and whether it reads
event tokens; tokenizer, connector and head are the config's.
"""

import dataclasses

from deres_jax.config import fields as fields_lib
from deres_jax.core.errors import UserError
from deres_jax.models.backbones import autoint, hstu, onetrans, rankmixer, unimixer, wukong
from deres_jax.models.stack import SubLayer


@dataclasses.dataclass(frozen=True)
class Backbone:
  """Sub-layers, how many of them make a layer, and where the backbone needs certain sizes."""

  sublayers: tuple[SubLayer, ...]
  per_layer: int


def _onetrans(c: fields_lib.Config, fields: int, events: int, dtype) -> Backbone:
  m = c.model
  stay = onetrans.pyramid(m.depth, events, m.pyramid_events)
  return Backbone(
    onetrans.sublayers(m.depth, fields, fields, stay, m.heads, m.ffn_ratio, m.causal, dtype), 2
  )


def _transformer(c: fields_lib.Config, fields: int, events: int, dtype) -> Backbone:
  m = c.model
  stay = onetrans.pyramid(m.depth, events, m.pyramid_events)
  return Backbone(
    onetrans.sublayers(m.depth, 0, fields, stay, m.heads, m.ffn_ratio, m.causal, dtype), 2
  )


def _hstu(c: fields_lib.Config, fields: int, events: int, dtype) -> Backbone:
  del fields, events
  return Backbone(hstu.sublayers(c.model.depth, c.model.heads, c.model.causal, dtype), 1)


def _autoint(c: fields_lib.Config, fields: int, events: int, dtype) -> Backbone:
  del fields, events
  return Backbone(autoint.autoint(c.model.depth, c.model.heads, dtype), 1)


def _hiformer(c: fields_lib.Config, fields: int, events: int, dtype) -> Backbone:
  del events
  m, rank = c.model, c.mixer.hiformer_rank
  return Backbone(autoint.hiformer(m.depth, fields, m.heads, m.ffn_ratio, rank, dtype), 2)


def _heads_are_tokens(c: fields_lib.Config, tokens: int):
  if c.model.dim % tokens:
    raise UserError(
      f'backbone {c.model.backbone} mixes with as many heads as tokens: model.dim={c.model.dim} is '
      f'not divisible by {tokens} tokens; change model.dim, or model.tokenizer and model.tokens'
    )


def _rankmixer(c: fields_lib.Config, fields: int, events: int, dtype) -> Backbone:
  del events
  _heads_are_tokens(c, fields)
  return Backbone(rankmixer.rankmixer(c.model.depth, fields, c.model.ffn_ratio, dtype), 2)


def _tokenmixer(c: fields_lib.Config, fields: int, events: int, dtype) -> Backbone:
  del events
  _heads_are_tokens(c, fields)
  m = c.model
  return Backbone(rankmixer.tokenmixer(m.depth, fields, m.dim, m.ffn_ratio, dtype), 1)


def _unimixer(lite: bool):
  def make(c: fields_lib.Config, fields: int, events: int, dtype) -> Backbone:
    del events
    m, x = c.model, c.mixer
    if fields * m.dim % x.unimixer_block:
      raise UserError(
        f'config mixer.unimixer_block={x.unimixer_block} does not divide the '
        f'{fields} x {m.dim} = {fields * m.dim} numbers of all tokens'
      )
    mixing = dict(
      block=x.unimixer_block,
      bases=x.unimixer_bases if lite else 0,
      rank=x.unimixer_rank,
      iterations=x.unimixer_iterations,
      tau_start=x.unimixer_tau_start,
      tau_end=x.unimixer_tau_end,
    )
    return Backbone(unimixer.sublayers(m.depth, fields, m.ffn_ratio, mixing, dtype), 1)

  return make


def _wukong(c: fields_lib.Config, fields: int, events: int, dtype) -> Backbone:
  del events
  interactions = c.mixer.wukong_interactions or fields // 2
  if not 0 < interactions < fields:
    raise UserError(
      f'config mixer.wukong_interactions={interactions}: expected 1 to {fields - 1}, so that the '
      f'{fields} tokens hold some of both kinds'
    )
  x = c.mixer
  return Backbone(
    wukong.sublayers(
      c.model.depth, interactions, x.wukong_rank, x.wukong_units, x.wukong_layers, dtype
    ),
    1,
  )


# Makers of (config, field tokens, event tokens, compute dtype).
TOKEN_BACKBONES = {
  'transformer': _transformer,
  'onetrans': _onetrans,
  'hstu': _hstu,
  'autoint': _autoint,
  'autoint_plus': _autoint,
  'hiformer': _hiformer,
  'wukong': _wukong,
  'rankmixer': _rankmixer,
  'tokenmixer_large': _tokenmixer,
  'unimixer': _unimixer(lite=False),
  'unimixing_lite': _unimixer(lite=True),
}

# Those whose attention reads event tokens; to the others a history is the mean of its events.
READS_EVENTS = ('transformer', 'onetrans', 'hstu')
