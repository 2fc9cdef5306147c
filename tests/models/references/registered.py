# SPDX-License-Identifier: Apache-2.0
"""The NumPy reference of every registered connector and backbone, found by its name.

A reference is a function in any file of this folder:

  connector_NAME(params, c, per_layer, x0_BTD, branches) -> (inputs of all sub-layers, head's input)
  backbone_NAME(c) -> a loop (params, x_BTD) -> y_BTD for each sub-layer of a layer

`params` are float64 arrays by name and `c` is the config.
"""

import dataclasses
import importlib
import pathlib

import pytest
import reference
import reference_mixers as mixers
import reference_streams as streams

HERE = pathlib.Path(__file__).parent


def find(name):
  """Returns the reference of this name, or fails and says what to add."""
  for path in sorted(HERE.glob('*.py')):
    module = importlib.import_module(path.stem)
    if name in vars(module):
      return vars(module)[name]
  return pytest.fail(
    f'no NumPy reference: write the equation of the paper as a function {name} in a file of '
    'tests/models/references (its signature stands in registered.py there)'
  )


def connector_prenorm(params, c, per_layer, x0_BTD, branches):
  return reference.prenorm(params, c.model.norm, x0_BTD, branches)


def connector_postnorm(params, c, per_layer, x0_BTD, branches):
  return streams.post_norm(params, c.model.norm, x0_BTD, branches)


def connector_projected(params, c, per_layer, x0_BTD, branches):
  return mixers.projected(params, x0_BTD, branches)


def connector_siamese(params, c, per_layer, x0_BTD, branches):
  return streams.siamese(params, c.model.norm, x0_BTD, branches)


def connector_interval(params, c, per_layer, x0_BTD, branches):
  every = c.residual.interval_layers
  return streams.interval(params, c.model.norm, x0_BTD, branches, per_layer, every)


def connector_scalar(params, c, per_layer, x0_BTD, branches):
  return streams.learnable(params, c.model.norm, x0_BTD, branches, 'scalar')


def connector_vector(params, c, per_layer, x0_BTD, branches):
  return streams.learnable(params, c.model.norm, x0_BTD, branches, 'vector')


def connector_matrix(params, c, per_layer, x0_BTD, branches):
  return streams.learnable(params, c.model.norm, x0_BTD, branches, 'matrix')


def connector_rezero(params, c, per_layer, x0_BTD, branches):
  return streams.rezero(params, c.model.norm, x0_BTD, branches)


def connector_layerscale(params, c, per_layer, x0_BTD, branches):
  return streams.layer_scale(params, c.model.norm, x0_BTD, branches)


def connector_highway(params, c, per_layer, x0_BTD, branches):
  return streams.highway(params, c.model.norm, x0_BTD, branches)


def connector_denseformer(params, c, per_layer, x0_BTD, branches):
  return streams.dense_former(params, c.model.norm, x0_BTD, branches, per_layer)


def connector_hc(params, c, per_layer, x0_BTD, branches):
  return streams.hyper(params, c.model.norm, x0_BTD, branches, c.hyper.streams)


def connector_mhc(params, c, per_layer, x0_BTD, branches):
  h = c.hyper
  sizes = h.streams, h.sinkhorn_iterations, False
  return streams.manifold(params, c.model.norm, x0_BTD, branches, *sizes)


def connector_mhc_lite(params, c, per_layer, x0_BTD, branches):
  return streams.manifold(params, c.model.norm, x0_BTD, branches, c.hyper.streams, 0, True)


def connector_attnres(params, c, per_layer, x0_BTD, branches):
  block = c.attnres.block_layers * per_layer
  return reference.block_attnres(params, c.model.norm, block, x0_BTD, branches)


def connector_attnres_full(params, c, per_layer, x0_BTD, branches):
  return reference.full_attnres(params, c.model.norm, x0_BTD, branches)


def connector_attnres_pointwise(params, c, per_layer, x0_BTD, branches):
  pointwise = {'path': 'attn', 'silu_center': 1.2784645, 'include_partial': True}
  pointwise |= {'block_layers': c.attnres.block_layers}
  return _deres(params, c, per_layer, x0_BTD, branches, pointwise)


def connector_haares(params, c, per_layer, x0_BTD, branches):
  block = c.attnres.block_layers * per_layer
  return mixers.haares(params, c.model.norm, block, per_layer, x0_BTD, branches)


def connector_deres(params, c, per_layer, x0_BTD, branches):
  return _deres(params, c, per_layer, x0_BTD, branches, {})


def connector_deres_s(params, c, per_layer, x0_BTD, branches):
  softmax = {'score_fn': 'softmax', 'include_partial': True}
  return _deres(params, c, per_layer, x0_BTD, branches, softmax)


def _deres(params, c, per_layer, x0_BTD, branches, changes):
  switches = dataclasses.asdict(c.deres) | changes
  return reference.deres(params, switches, c.model.norm, per_layer, x0_BTD, branches)


def backbone_transformer(c):
  m = c.model
  return (
    lambda p, x: mixers.mixed_attention(p, 0, m.heads, m.causal, x),
    lambda p, x: mixers.mixed_feed_forward(p, 0, x),
  )


def backbone_onetrans(c):
  m = c.model
  return (
    lambda p, x: mixers.mixed_attention(p, x.shape[1], m.heads, m.causal, x),
    lambda p, x: mixers.mixed_feed_forward(p, x.shape[1], x),
  )


def backbone_hstu(c):
  return (lambda p, x: mixers.hstu(p, c.model.heads, c.model.causal, x),)


def backbone_autoint(c):
  return (lambda p, x: mixers.interacting(p, c.model.heads, x),)


backbone_autoint_plus = backbone_autoint  # its hidden layers are not in the stack


def backbone_hiformer(c):
  return (
    lambda p, x: mixers.composite_attention(p, c.model.heads, x),
    lambda p, x: mixers.mixed_feed_forward(p, x.shape[1], x),
  )


def backbone_wukong(c):
  return (lambda p, x: mixers.wukong(p, x.shape[1] // 2, x),)


def backbone_rankmixer(c):
  return (
    lambda p, x: mixers.head_mix(x, x.shape[1]),
    lambda p, x: mixers.mixed_feed_forward(p, x.shape[1], x),
  )


def backbone_tokenmixer_large(c):
  return (mixers.mix_and_revert,)


def backbone_unimixer(c):
  x = c.mixer
  tau, iterations = x.unimixer_tau_end, x.unimixer_iterations  # the context is that of evaluation
  return (lambda p, x: mixers.unimixer_block(p, x, tau, iterations),)


backbone_unimixing_lite = backbone_unimixer
