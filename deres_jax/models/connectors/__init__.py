# SPDX-License-Identifier: Apache-2.0
"""Connectors by name: each is made from a config, the shape of the stack and a compute dtype."""

import dataclasses

import flax.linen as nn

from deres_jax.config import fields
from deres_jax.core.errors import UserError
from deres_jax.models.connectors import deres, haares, multi_stream, prenorm, single_stream
from deres_jax.models.stack import Shape


def _prenorm(c: fields.Config, shape: Shape, dtype) -> nn.Module:
  return prenorm.PreNorm(shape, c.model.norm, dtype)


def _postnorm(c: fields.Config, shape: Shape, dtype) -> nn.Module:
  return single_stream.PostNorm(shape, c.model.norm, dtype)


def _projected(c: fields.Config, shape: Shape, dtype) -> nn.Module:
  del c
  return single_stream.Projected(shape, dtype)


def _siamese(c: fields.Config, shape: Shape, dtype) -> nn.Module:
  return single_stream.Siamese(shape, c.model.norm, dtype)


def _interval(c: fields.Config, shape: Shape, dtype) -> nn.Module:
  return single_stream.Interval(shape, c.model.norm, dtype, c.residual.interval_layers)


def _learnable(kind: str):
  def make(c: fields.Config, shape: Shape, dtype) -> nn.Module:
    return single_stream.Learnable(shape, c.model.norm, dtype, kind)

  return make


def _scaled(kind: str):
  def make(c: fields.Config, shape: Shape, dtype) -> nn.Module:
    return single_stream.Scaled(shape, c.model.norm, dtype, kind, c.residual.layerscale_init)

  return make


def _highway(c: fields.Config, shape: Shape, dtype) -> nn.Module:
  return single_stream.Highway(shape, c.model.norm, dtype, c.residual.highway_bias)


def _denseformer(c: fields.Config, shape: Shape, dtype) -> nn.Module:
  return multi_stream.DenseFormer(shape, c.model.norm, dtype)


def _hc(c: fields.Config, shape: Shape, dtype) -> nn.Module:
  return multi_stream.HyperConnections(shape, c.model.norm, dtype, c.hyper.streams)


def _mhc(lite: bool):
  def make(c: fields.Config, shape: Shape, dtype) -> nn.Module:
    h = c.hyper
    return multi_stream.ManifoldHyper(
      shape, c.model.norm, dtype, h.streams, h.sinkhorn_iterations, lite
    )

  return make


def _deres(c: fields.Config, shape: Shape, dtype) -> nn.Module:
  switches = dataclasses.asdict(c.deres)
  block = switches.pop('block_layers') * shape.per_layer
  return deres.DeRes(shape, c.model.norm, dtype, block, **switches)


def _deres_s(c: fields.Config, shape: Shape, dtype) -> nn.Module:
  """DeRes-S: softmax instead of SiLU; the open block is a source, so it starts as PreNorm."""
  softmax = dataclasses.replace(c.deres, score_fn='softmax', include_partial=True)
  return _deres(dataclasses.replace(c, deres=softmax), shape, dtype)


def _attnres(c: fields.Config, shape: Shape, dtype) -> nn.Module:
  block = c.attnres.block_layers * shape.per_layer
  return deres.DeRes(
    shape, c.model.norm, dtype, block, path='attn', score_fn='softmax', include_partial=True
  )


def _attnres_full(c: fields.Config, shape: Shape, dtype) -> nn.Module:
  return deres.DeRes(
    shape, c.model.norm, dtype, 1, path='attn', score_fn='softmax', include_partial=True
  )


def _attnres_pointwise(c: fields.Config, shape: Shape, dtype) -> nn.Module:
  """SiLU(z + tau) with SiLU(tau) = 1: all weights are 1 at the start, so it starts as PreNorm."""
  block = c.attnres.block_layers * shape.per_layer
  return deres.DeRes(
    shape,
    c.model.norm,
    dtype,
    block,
    path='attn',
    score_fn='silu',
    silu_center=1.2784645,
    include_partial=True,
  )


def _haares(c: fields.Config, shape: Shape, dtype) -> nn.Module:
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
