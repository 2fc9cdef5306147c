# SPDX-License-Identifier: Apache-2.0
"""Connectors by name: each is made from a config, the shape of the stack and a compute dtype."""

import dataclasses

import flax.linen as nn

from deres_jax import config as config_lib
from deres_jax.errors import UserError
from deres_jax.models import haares, hyper, residual, single
from deres_jax.models.stack import Shape


def _prenorm(c: config_lib.Config, shape: Shape, dtype) -> nn.Module:
  return residual.PreNorm(shape, c.model.norm, dtype)


def _postnorm(c: config_lib.Config, shape: Shape, dtype) -> nn.Module:
  return single.PostNorm(shape, c.model.norm, dtype)


def _projected(c: config_lib.Config, shape: Shape, dtype) -> nn.Module:
  del c
  return single.Projected(shape, dtype)


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


def _haares(c: config_lib.Config, shape: Shape, dtype) -> nn.Module:
  a = c.attnres
  if a.block_layers * shape.per_layer < 2:
    raise UserError(
      f'connector haares splits a block in halves: attnres.block_layers={a.block_layers} gives '
      f'blocks of one sub-layer under backbone {c.model.backbone}; set it to 2 or more'
    )
  return haares.Haares(shape, c.model.norm, dtype, a.block_layers * shape.per_layer, a.detail_init)


CONNECTORS = {
  'prenorm': _prenorm,
  'postnorm': _postnorm,
  'projected': _projected,
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
  'haares': _haares,
  'attnres_pointwise': _attnres_pointwise,
  'deres': _deres,
  'deres_s': _deres_s,
}
