# SPDX-License-Identifier: Apache-2.0
"""Every connector under every token backbone: runs, learns everywhere, has the size it should."""

import functools
import math

import formulas
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import normal
from marks import slow

from deres_jax import config, models
from deres_jax.models import CONNECTORS, TOKEN_BACKBONES
from deres_jax.models.inputs import Context
from deres_jax.models.stack import Shape

B, F, E, D, T, DEPTH = 3, 5, 3, 8, 4, 2

# Those that compute what PreNorm does before the first step.
START_AS_PRENORM = (
  'scalar', 'vector', 'matrix', 'denseformer', 'hc', 'attnres', 'attnres_full',
  'attnres_pointwise', 'deres', 'deres_s',
)  # fmt: skip


def block_layers(backbone, connector):
  """HAARES halves blocks, so they have two sub-layers; others have one layer."""
  return 2 if connector == 'haares' and TOKEN_BACKBONES[backbone].per_layer == 1 else 1


def resolve(backbone, connector, dtype='float32'):
  block = block_layers(backbone, connector)
  settings = {
    'model.backbone': backbone,
    'model.connector': connector,
    'model.dtype': dtype,
    'model.depth': DEPTH,
    'model.dim': D,
    'model.heads': 2,
    'model.embed_dim': E,
    'model.tokenizer': 'slice',
    'model.tokens': T,
    'model.ffn_ratio': 2,
    'mlp.units': 6,
    'mlp.layers': 2,
    'mixer.hiformer_rank': 3,
    'mixer.wukong_rank': 3,
    'mixer.wukong_units': 6,
    'mixer.wukong_layers': 2,
    'mixer.unimixer_block': 4,
    'mixer.unimixer_bases': 3,
    'mixer.unimixer_rank': 3,
    'deres.block_layers': block,
    'attnres.block_layers': block,
    'residual.interval_layers': 1,
  }
  overrides = ','.join(f'{name}={value}' for name, value in settings.items())
  return config.resolve(config.base(overrides))


def build(backbone, connector, dtype='float32'):
  return models.build(resolve(backbone, connector, dtype), models.Layout(F), -1.0)


ROWS = np.float32(normal(B, F, E))


def init(module):
  return module.init(jax.random.key(0), ROWS, Context())['params']


def size(tree):
  return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def assert_stated(name, row, got, formula):
  assert got == formula, (
    f'{name}: parameters={row.parameters!r} of its row gives {formula}, the module has {got}: '
    'state the formula of the module'
  )


def pairs():
  """All pairs. The suite has every connector in float32 and every backbone in both types."""
  for j, connector in enumerate(CONNECTORS):
    for i, backbone in enumerate(TOKEN_BACKBONES):
      n = (j - i) % len(TOKEN_BACKBONES)
      for dtype, quick in (('float32', n == 0), ('bfloat16', n == 4 and j % 2 == 0)):
        case = backbone, connector, dtype
        yield case if quick else slow(*case)


@pytest.mark.parametrize(('backbone', 'connector', 'dtype'), list(pairs()))
def test_a_pair_runs_and_every_parameter_learns(backbone, connector, dtype):
  """At random parameters, since some starts are zero on purpose and hide what is behind them."""
  module = build(backbone, connector, dtype)
  params = jax.eval_shape(lambda: init(module))
  c, row = resolve(backbone, connector), TOKEN_BACKBONES[backbone]
  sublayers = {k: v for k, v in params['stack'].items() if k != 'connector'}
  layer = formulas.of_backbone(row.parameters, c, T)
  assert_stated(backbone, row, size(sublayers), DEPTH * layer)
  shape = Shape(row.per_layer * DEPTH, row.per_layer, T, D)
  block = block_layers(backbone, connector) * row.per_layer
  row = CONNECTORS[connector]
  stated = formulas.of_connector(row.parameters, c, shape, block)
  assert_stated(connector, row, size(params['stack']['connector']), stated)
  rng = np.random.default_rng(1)
  params = jax.tree.map(lambda x: np.float32(0.4 * rng.normal(size=x.shape)), params)

  def loss(params, rows):
    return jnp.sum(jnp.sin(module.apply({'params': params}, rows, Context())))

  grad = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
  value, (grads, g_rows) = grad(params, ROWS)
  assert np.isfinite(value) and np.all(np.isfinite(g_rows)) and np.any(g_rows != 0)
  for path, g in jax.tree_util.tree_leaves_with_path(grads):
    name = jax.tree_util.keystr(path)
    assert g.dtype == np.float32 and np.all(np.isfinite(g)), name
    assert np.any(g != 0), name


@functools.cache
def prenorm():
  """The pre-norm model, its initial parameters and its logits."""
  module = build('onetrans', 'prenorm')
  params = init(module)
  return params, module.apply({'params': params}, ROWS, Context())


def at_start(connector):
  """Logits under a connector and under prenorm: the same tokens, sub-layers, norms and head."""
  module, (shared, want) = build('onetrans', connector), prenorm()
  params = jax.jit(lambda: init(module)['stack']['connector'])()
  stack = {**shared['stack'], 'connector': params}
  return module.apply({'params': {**shared, 'stack': stack}}, ROWS, Context()), want


@pytest.mark.parametrize('connector', START_AS_PRENORM)
def test_start_as_prenorm(connector):
  np.testing.assert_allclose(*at_start(connector), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  'connector', ['postnorm', 'siamese', 'interval', 'rezero', 'layerscale', 'highway']
)
def test_the_others_do_not(connector):
  got, want = at_start(connector)
  assert float(jnp.abs(got - want).max()) > 1e-4
