# SPDX-License-Identifier: Apache-2.0
"""Connectors: what stands between one sub-layer and the next.

A connector owns the skip and the norms and never knows what the sub-layers compute. It may import
kernels, config and the layers and probe of models, but no backbone.

  start(x_BTD) -> h                    state before the first sub-layer
  read(h, site) -> (u_BTD, h)          input of sub-layer `site`, normed where the connector norms
  write(h, y_BTD, site) -> h           state after the sub-layer returned its branch y
  finish(h) -> x_BTD                   input of the head, normed

Sites 0 .. sites-1 are sub-layers and site `sites` is the head's read. `read` returns the state too,
since some connectors store there what `write` needs. Streams, block summaries, scores and gates are
float32, whatever the sub-layers compute in. All arrays of a state are [B, T, ...], so that a
pyramid can drop tokens.
"""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from deres_jax.config.fields import Config, DeRes
from deres_jax.core.errors import UserError
from deres_jax.models.connectors import haares, multi_stream, prenorm, single_stream
from deres_jax.models.connectors.fused_deres import FusedDeRes
from deres_jax.models.facts import Facts
from deres_jax.models.stack import Shape


@dataclasses.dataclass(frozen=True)
class Connector(Facts):
  """A row of CONNECTORS.

  Attributes:
    kind: class, made of (shape, norm, dtype, *sizes(config, shape)).
    sizes: further arguments of the class.
  """

  kind: type[nn.Module]
  sizes: Callable[[Config, Shape], tuple] = lambda c, shape: ()

  def make(self, c: Config, shape: Shape, dtype: jnp.dtype) -> nn.Module:
    """Returns the module of a config for a stack of this shape.

    Raises:
      UserError: sizes that the connector cannot have.
    """
    return self.kind(shape, c.model.norm, dtype, *self.sizes(c, shape))


def _haares(c: Config, shape: Shape) -> tuple:
  a = c.attnres
  if a.block_layers * shape.per_layer < 2:
    raise UserError(
      f'connector haares splits a block in halves: attnres.block_layers={a.block_layers} gives '
      f'blocks of one sub-layer under backbone {c.model.backbone}; set it to 2 or more'
    )
  return a.block_layers * shape.per_layer, a.detail_init


def _deres(c: Config, shape: Shape) -> tuple:
  return c.deres.block_layers * shape.per_layer, c.deres


def _deres_s(c: Config, shape: Shape) -> tuple:
  switches = dataclasses.replace(c.deres, score_fn='softmax', include_partial=True)
  return c.deres.block_layers * shape.per_layer, switches


_ATTNRES = DeRes(path='attn', score_fn='softmax', include_partial=True)
_POINTWISE = dataclasses.replace(_ATTNRES, score_fn='silu', silu_center=1.2784645)  # SiLU(tau) = 1


def _attnres(switches: DeRes) -> Callable[[Config, Shape], tuple]:
  return lambda c, shape: (c.attnres.block_layers * shape.per_layer, switches)


# `FusedDeRes` is `DeRes` through the CPU's kernels where they are on.
# fmt: off
CONNECTORS = {
  'prenorm': Connector(
    'Xiong et al. 2020', 'u = Norm(x); x ← x + y', '',
    'norms', '4 * norms + S * D', prenorm.PreNorm),
  'postnorm': Connector(
    'Vaswani et al. 2017', 'u = x; x ← Norm(x + y)', '',
    'S * D', '5 * S * D', single_stream.PostNorm),
  'projected': Connector(
    '1810.11921', 'u = x; x ← ReLU(x W + y)', '',
    'S * D**2', 'S * (2 * D**2 + 2 * D)', single_stream.Projected),
  'siamese': Connector(
    'SiameseNorm, Li et al. 2026', 'u = X + Norm(Y); X ← Norm(X + y); Y ← Y + y', 'at second hand',
    'norms + S * D', '5 * norms + 6 * S * D', single_stream.Siamese),
  'interval': Connector(
    '2602.06563', 'pre-norm, and x^(l+s) += x^(l) but at the last layer', 'at second hand; s = 2',
    'norms', '4 * norms + S * D + (L - 1) // interval_layers * D',
    single_stream.Interval, lambda c, shape: (c.residual.interval_layers,)),
  'scalar': Connector(
    'DeRes’s ablation', 'x ← λ x + μ y, numbers λ and μ start at 1', 'the form of "learnable"',
    'norms + 2 * S', '4 * norms + 3 * S * D',
    single_stream.Learnable, lambda c, shape: ('scalar',)),
  'vector': Connector(
    'DeRes’s ablation', 'x ← λ x + μ y, vectors λ and μ start at 1', 'the form of "learnable"',
    'norms + 2 * S * D', '4 * norms + 3 * S * D',
    single_stream.Learnable, lambda c, shape: ('vector',)),
  'matrix': Connector(
    'DeRes’s ablation', 'x ← x W + y, W starts at I', 'the form of "learnable"',
    'norms + S * D**2', '4 * norms + S * (2 * D**2 + D)',
    single_stream.Learnable, lambda c, shape: ('matrix',)),
  'rezero': Connector(
    '2003.04887', 'u = x; x ← x + a y, a starts at 0', 'the head reads Norm(x)',
    'D + S', '4 * D + 2 * S * D',
    single_stream.Scaled, lambda c, shape: ('rezero', c.residual.layerscale_init)),
  'layerscale': Connector(
    '2103.17239', 'x ← x + γ · y, γ starts at 0.1', '',
    'norms + S * D', '4 * norms + 2 * S * D',
    single_stream.Scaled, lambda c, shape: ('layerscale', c.residual.layerscale_init)),
  'highway': Connector(
    '1505.00387', 'x ← (1 − g) x + g y, g = σ(RMS(x) W + b)', 'RMS(x); W starts at 0, b at −2',
    'norms + S * (D**2 + D)', '4 * norms + S * (2 * D**2 + 8 * D)',
    single_stream.Highway, lambda c, shape: (c.residual.highway_bias,)),
  'denseformer': Connector(
    '2402.02622', 'after layer l: x ← Σ_j a_lj x_j', 'by the authors’ code; no dilation, period 1',
    'norms + L * (L + 3) // 2', '4 * norms + S * D + D * L * (L + 3)', multi_stream.DenseFormer),
  'hc': Connector(
    '2409.19606', 'N streams; read, write and mixing maps of tanh', 'by the code of three ports',
    'norms + S * (D * (N + 4) + N * (N + 2) + 2)', '4 * norms + N * D + S * N * D * (4 * N + 15)',
    multi_stream.HyperConnections, lambda c, shape: (c.hyper.streams,)),
  'mhc': Connector(
    '2512.24880', 'HC with σ, 2σ and a doubly stochastic mixing map (Sinkhorn, float32)',
    'biases start as a plain residual',
    'norms + S * ((N * D + 1) * (2 * N + N**2) + 3)',
    '4 * norms + N * D + S * N * D * (2 * N**2 + 6 * N + 7)'
    ' + 12 * S * N**2 * sinkhorn_iterations',
    multi_stream.ManifoldHyper,
    lambda c, shape: (c.hyper.streams, c.hyper.sinkhorn_iterations, False)),
  'mhc_lite': Connector(
    '2601.05732', 'mHC with a softmax over all permutations as its mixing map', 'at second hand',
    'norms + S * ((N * D + 1) * (2 * N + factorial(N)) + 3)',
    '4 * norms + N * D + S * N * D * (6 * N + 7) + 2 * S * factorial(N) * N * (D + N)',
    multi_stream.ManifoldHyper,
    lambda c, shape: (c.hyper.streams, c.hyper.sinkhorn_iterations, True)),
  'attnres': Connector(
    '2603.15031', 'u = Σ_i softmax_i(⟨w_s, b_i/RMS⟩) b_i over block sums and the open block', '',
    '2 * norms', '6 * norms + D * (2 * S - S // B + 4 * P)',
    FusedDeRes, _attnres(_ATTNRES)),
  'attnres_full': Connector(
    '2603.15031', 'AttnRes over all sub-layer outputs', '',
    '2 * norms', '6 * norms + D * (S + 2 * (S + 1) * (S + 2))',
    FusedDeRes, lambda c, shape: (1, _ATTNRES)),
  'attnres_pointwise': Connector(
    '2606.07980', 'AttnRes with SiLU(z + τ) for the softmax',
    'τ with SiLU(τ) = 1: all weights start at 1, which is pre-norm',
    '2 * norms', '6 * norms + D * (2 * S - S // B + 4 * P)',
    FusedDeRes, _attnres(_POINTWISE)),
  'haares': Connector(
    '2606.06564',
    'AttnRes with two zero-sum details a block: attention − feed-forward, early − late half',
    'a learned logit a site for details, starts at −2; only complete blocks have details',
    '2 * norms + S + 1 - B',
    '6 * norms + D * (4 * P + 8 * (R - S - 1) + S // B * (5 * B + 12)'
    ' + sum(s % B for s in range(S + 1)))',
    haares.Haares, _haares),
  'deres': Connector(
    '2606.07980', 'u = g · x + (1 − g) · Σ_i SiLU(⟨w_s, b_i/RMS⟩) b_i',
    'what the abstract leaves open: every switch of `config.DeRes`',
    '3 * norms', '7 * norms + D * (2 * S + 4 * R + S // B + 2)', FusedDeRes, _deres),
  'deres_s': Connector(
    '2606.07980', 'DeRes with a softmax for SiLU',
    'the open block is a source, so that it starts as pre-norm',
    '3 * norms', '9 * norms + D * (2 * S - S // B + 4 * P)', FusedDeRes, _deres_s),
}
# fmt: on
