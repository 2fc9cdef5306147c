# SPDX-License-Identifier: Apache-2.0
"""Values of the closed formulas that registered models state: the symbols of docs/models.md."""

import dataclasses
import math

# Symbol -> its meaning, for docs/models.md.
SYMBOLS = {
  'S': 'sub-layers of the stack (sites)',
  'L': 'layers; of `din` events',
  'T': 'tokens',
  'D': 'width of a token',
  'r': '`model.ffn_ratio`',
  'norms': '(S + 1) D, a norm for each site and the head',
  'B': 'sub-layers a block',
  'R': 'sources that all reads together have: the tokens and the completed blocks',
  'P': 'the same with the open block',
  'N': 'streams (`hyper.streams`); of `unimixer` blocks, T D / K',
  'K': '`mixer.unimixer_block`',
  'I': 'tokens that `wukong`’s interactions make',
  'F': 'fields, an attribute of a history counts as one',
  'E': '`model.embed_dim`',
  'X': 'F E',
  'U': '`mlp.units`',
  'mlp(n)': 'parameters of the hidden layers over n inputs',
  'W': 'hidden width of a mask of `masknet`',
  'G': '`classic.fusion_gate_units`',
  'Q': 'numbers of the candidate that `din` compares',
  'A': 'attributes of an event',
}


def _mlp(units, layers):
  def parameters(inputs, depth=layers):
    return inputs * units + units + (depth - 1) * (units**2 + units)

  return parameters


def _value(formula, symbols):
  return eval(formula, {'factorial': math.factorial} | symbols)


def of_connector(formula, c, shape, block):
  """Value for a stack of this shape with `block` sub-layers a block."""
  S, D = shape.sites, shape.dim
  complete = [s // block for s in range(S + 1)]
  symbols = dict(S=S, D=D, B=block, L=S // shape.per_layer, norms=(S + 1) * D, N=c.hyper.streams)
  symbols |= dict(R=sum(1 + n for n in complete))
  symbols |= dict(P=sum(1 + n + (s % block > 0) for s, n in enumerate(complete)))
  sizes = dataclasses.asdict(c.residual) | dataclasses.asdict(c.hyper)
  return _value(formula, symbols | sizes)


def of_backbone(formula, c, tokens):
  """Value for one layer over these tokens."""
  D, K = c.model.dim, c.mixer.unimixer_block
  symbols = dict(T=tokens, D=D, r=c.model.ffn_ratio, K=K, N=tokens * D // K)
  symbols |= dict(I=c.mixer.wukong_interactions or tokens // 2)
  symbols |= dict(mlp=_mlp(c.mixer.wukong_units, c.mixer.wukong_layers))
  return _value(formula, symbols | dataclasses.asdict(c.mixer))


def of_classic(formula, c, layout):
  """Value for data of this layout."""
  F, E = layout.fields + layout.event_fields, c.model.embed_dim
  symbols = dict(F=F, E=E, X=F * E, U=c.mlp.units, mlp=_mlp(c.mlp.units, c.mlp.layers))
  symbols |= dict(W=max(1, round(c.classic.mask_ratio * F * E)), G=c.classic.fusion_gate_units)
  symbols |= dict(L=layout.events, A=layout.event_fields, Q=len(layout.targets) * E)
  return _value(formula, symbols | dataclasses.asdict(c.classic))
