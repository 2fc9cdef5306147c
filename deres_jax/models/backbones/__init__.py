# SPDX-License-Identifier: Apache-2.0
"""Token backbones: lists of sub-layers that return their branch only.

A backbone names its sub-layers, how many make a layer and whether it reads event tokens. It may
import config and the layers of models (UniMixer also Sinkhorn's iteration, which mHC shares), and
never knows tokenizer, connector or head.
"""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp

from deres_jax.config.fields import Config
from deres_jax.models.backbones import autoint, hstu, onetrans, rankmixer, unimixer, wukong
from deres_jax.models.facts import Facts
from deres_jax.models.stack import SubLayer


@dataclasses.dataclass(frozen=True)
class Backbone(Facts):
  """A row of TOKEN_BACKBONES.

  Attributes:
    per_layer: sub-layers a layer.
    theirs: the paper's own connector, norm, tokenizer and head, where they are not the defaults.
    sublayers: maps (config, field tokens, event tokens, dtype to compute in) to the sub-layers;
      raises UserError for sizes that the backbone cannot have.
    reads_events: whether its attention reads event tokens. Others read the mean of a history.
    adds_mlp: whether the logit of hidden layers over all embeddings is added.
  """

  per_layer: int
  theirs: str
  sublayers: Callable[[Config, int, int, jnp.dtype], tuple[SubLayer, ...]]
  reads_events: bool = False
  adds_mlp: bool = False


# fmt: off
TOKEN_BACKBONES = {
  'transformer': Backbone(
    'Vaswani et al. 2017', 'softmax attention; GELU feed-forward; shared weights',
    'pre-norm, no biases',
    '(4 + 2 * r) * D**2', '(8 + 4 * r) * T * D**2 + 4 * T**2 * D',
    2, 'prenorm', onetrans.transformer, reads_events=True),
  'onetrans': Backbone(
    '2510.26104',
    'attention with own q, k, v of field tokens, shared ones of events; feed-forward likewise; '
    'pyramid over events',
    'shared output map, GELU, ratio 4, no biases; full attention where there are no events; field '
    'tokens are pooled',
    '(T * (3 + 2 * r) + 1) * D**2', '(8 + 4 * r) * T * D**2 + 4 * T**2 * D',
    2, 'prenorm, autosplit', onetrans.onetrans, reads_events=True),
  'hstu': Backbone(
    '2402.17152', '[u, v, q, k] = SiLU(x W); y = (LN(SiLU(q kᵀ + b) v / T) · u) W_o',
    'by the authors’ code; a free T × T bias; on field tokens an adaptation',
    '5 * D**2 + D + T**2', '10 * T * D**2 + 4 * T**2 * D',
    1, 'prenorm, layer', hstu.hstu, reads_events=True),
  'autoint': Backbone(
    '1810.11921', 'softmax(q kᵀ) v, shared weights, no output map', 'one width for all layers',
    '3 * D**2', '6 * T * D**2 + 4 * T**2 * D',
    1, 'projected, field', autoint.autoint),
  'autoint_plus': Backbone(
    '1810.11921', 'AutoInt, plus the logit of hidden layers over all embeddings',
    'without the optional linear part',
    '3 * D**2', '6 * T * D**2 + 4 * T**2 * D',
    1, 'projected, field', autoint.autoint, adds_mlp=True),
  'hiformer': Backbone(
    '2311.05884',
    '[q₁..q_T] = vec(x) U V and so k, v; softmax; own output matrix; own feed-forward',
    'pre-norm, scaled scores, no pruning of the last layer, rank 64',
    '(6 * hiformer_rank + (1 + 2 * r) * D) * T * D',
    '12 * T * D * hiformer_rank + (2 + 4 * r) * T * D**2 + 4 * T**2 * D',
    2, 'prenorm', autoint.hiformer),
  'wukong': Backbone(
    '2403.02545', 'concat(MLP(LN(X Xᵀ Y)), W_L X)',
    'T stays over depth, so the skip is the identity from the first layer on; ReLU after the MLP',
    '3 * T * wukong_rank + mlp(T * wukong_rank) + (wukong_units + 1) * I * D + (T - I) * T',
    '4 * T * wukong_rank * D + 2 * mlp(T * wukong_rank) + 2 * wukong_units * I * D'
    ' + 2 * (T - I) * T * D',
    1, 'postnorm, layer, head mlp', wukong.wukong),
  'rankmixer': Backbone(
    '2507.15551', 'head mixing without parameters; own feed-forward, GELU, biases',
    'sizes; even slices in the order of fields',
    'T * (2 * r * D**2 + (r + 1) * D)', '4 * r * T * D**2',
    2, 'postnorm, layer, slice', rankmixer.rankmixer),
  'tokenmixer_large': Backbone(
    '2602.06563', 'H = Mix(X); H += SwiGLU(RMS(H)); y = SwiGLU(RMS(Revert(H)))',
    'pre-norm inside; H = T; loss weight 0.1 of the mean auxiliary loss, read after each layer but '
    'the last; linear group maps',
    '2 * D + 2 * T * (3 * r * D**2 + (2 * r + 1) * D)', '12 * r * T * D**2',
    1, 'interval, none, global, head global', rankmixer.tokenmixer),
  'unimixer': Backbone(
    '2604.00590', 'o = RMS(u + W_G [x_i W_i]); y = own SwiGLU(o); all W doubly stochastic',
    'logits start at deviation 1; 5 iterations; τ linear from 1 to 0.05, no restart',
    'N * K**2 + N**2 + D + T * (3 * r * D**2 + (2 * r + 1) * D)',
    '2 * T * D * K + 2 * N**2 * K + 6 * r * T * D**2',
    1, 'siamese, slice', unimixer.unimixer),
  'unimixing_lite': Backbone(
    '2604.00590', 'UniMixer with W_i of 4 shared bases and W_G of rank 16', 'as UniMixer',
    'N * unimixer_bases + unimixer_bases * K**2 + 2 * N * unimixer_rank + D'
    ' + T * (3 * r * D**2 + (2 * r + 1) * D)',
    '2 * T * D * K + 2 * N**2 * K + 6 * r * T * D**2',
    1, 'siamese, slice', unimixer.unimixing_lite),
}
# fmt: on
