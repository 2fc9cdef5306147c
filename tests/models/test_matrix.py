# SPDX-License-Identifier: Apache-2.0
"""Every connector under every token backbone: runs, learns everywhere, has the size it should."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import normal
from marks import slow

from deres_jax import config, models
from deres_jax.models import backbones
from deres_jax.models.inputs import Context

B, F, E, D, T, DEPTH = 3, 5, 3, 8, 4, 2
RATIO, RANK, UNITS, LAYERS, BASES, K = 2, 3, 6, 2, 3, 4
N = 4  # streams of (m)HC


def connector_sizes(S):
  """Parameters of each connector at S sites by closed formula."""
  norms = (S + 1) * D
  return {
    'prenorm': norms,
    'postnorm': S * D,
    'projected': S * D**2,
    'siamese': norms + S * D,
    'interval': norms,
    'scalar': norms + 2 * S,
    'vector': norms + 2 * S * D,
    'matrix': norms + S * D**2,
    'rezero': D + S,
    'layerscale': norms + S * D,
    'highway': norms + S * (D**2 + D),
    'denseformer': norms + DEPTH * (DEPTH + 3) // 2,
    'hc': norms + S * (2 * D + N * (N + 1) + N + D * (N + 1) + D + 2),
    'mhc': norms + S * ((N * D + 1) * (2 * N + N**2) + 3),
    'mhc_lite': norms + S * ((N * D + 1) * (2 * N + math.factorial(N)) + 3),
    'attnres': 2 * norms,
    'attnres_full': 2 * norms,
    'attnres_pointwise': 2 * norms,
    'haares': 2 * norms + S + 1 - 2,  # blocks of two sub-layers
    'deres': 3 * norms,
    'deres_s': 3 * norms,
  }


def swiglu(tokens):
  return tokens * (3 * RATIO * D**2 + (2 * RATIO + 1) * D)


# Sub-layers a layer and their parameters by closed formula: backbones.md, with biases where the
# paper has them.
BLOCKS = T * D // K
BACKBONES = {
  'transformer': (2, (4 + 2 * RATIO) * D**2),
  'onetrans': (2, T * (3 + 2 * RATIO) * D**2 + D**2),
  'hstu': (1, 5 * D**2 + D + T**2),
  'autoint': (1, 3 * D**2),
  'autoint_plus': (1, 3 * D**2),
  'hiformer': (2, 6 * T * D * RANK + T * D**2 + 2 * RATIO * T * D**2),
  'wukong': (
    1,
    3 * T * RANK
    + (T * RANK + 1) * UNITS
    + (LAYERS - 1) * (UNITS + 1) * UNITS
    + (UNITS + 1) * T // 2 * D
    + T // 2 * T,
  ),
  'rankmixer': (2, T * (2 * RATIO * D**2 + (RATIO + 1) * D)),
  'tokenmixer_large': (1, 2 * D + 2 * swiglu(T)),
  'unimixer': (1, BLOCKS * K**2 + BLOCKS**2 + D + swiglu(T)),
  'unimixing_lite': (1, BLOCKS * BASES + BASES * K**2 + 2 * BLOCKS * RANK + D + swiglu(T)),
}

# Those that compute what PreNorm does before the first step.
START_AS_PRENORM = (
  'scalar', 'vector', 'matrix', 'denseformer', 'hc', 'attnres', 'attnres_full',
  'attnres_pointwise', 'deres', 'deres_s',
)  # fmt: skip


def build(backbone, connector, dtype='float32'):
  # Blocks of two sub-layers, since HAARES halves them; of one where there is no half.
  block = 2 if connector == 'haares' and BACKBONES[backbone][0] == 1 else 1
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
    'model.ffn_ratio': RATIO,
    'mlp.units': UNITS,
    'mlp.layers': LAYERS,
    'mixer.hiformer_rank': RANK,
    'mixer.wukong_rank': RANK,
    'mixer.wukong_units': UNITS,
    'mixer.wukong_layers': LAYERS,
    'mixer.unimixer_block': K,
    'mixer.unimixer_bases': BASES,
    'mixer.unimixer_rank': RANK,
    'deres.block_layers': block,
    'attnres.block_layers': block,
    'residual.interval_layers': 1,
  }
  overrides = ','.join(f'{name}={value}' for name, value in settings.items())
  return models.build(config.resolve(config.base(overrides)), models.Layout(F), -1.0)


ROWS = np.float32(normal(B, F, E))


def init(module):
  return module.init(jax.random.key(0), ROWS, Context())['params']


def size(tree):
  return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def test_everything_has_a_formula():
  assert connector_sizes(2).keys() == models.CONNECTORS.keys()
  assert BACKBONES.keys() == backbones.TOKEN_BACKBONES.keys()


def pairs():
  """All; the suite has every connector under OneTrans, every backbone with DeRes, a tenth more."""
  for i, backbone in enumerate(BACKBONES):
    for j, connector in enumerate(models.CONNECTORS):
      for k, dtype in enumerate(('float32', 'bfloat16')):
        known = dtype == 'float32' and (backbone == 'onetrans' or connector == 'deres')
        case = backbone, connector, dtype
        yield case if known or (i + j + 2 * k) % 10 == 0 else slow(*case)


@pytest.mark.parametrize(('backbone', 'connector', 'dtype'), pairs())
def test_a_pair_runs_and_every_parameter_learns(backbone, connector, dtype):
  """At random parameters, since some starts are zero on purpose and hide what is behind them."""
  module = build(backbone, connector, dtype)
  params = jax.eval_shape(lambda: init(module))
  per_layer, layer_size = BACKBONES[backbone]
  assert size(params['stack']['connector']) == connector_sizes(per_layer * DEPTH)[connector]
  sublayers = {k: v for k, v in params['stack'].items() if k != 'connector'}
  assert size(sublayers) == DEPTH * layer_size
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


@pytest.mark.parametrize('connector', START_AS_PRENORM)
def test_start_as_prenorm(connector):
  """The same tokens, sub-layers, norms and head under both connectors."""
  plain, module = build('onetrans', 'prenorm'), build('onetrans', connector)
  theirs, mine = init(plain), init(module)
  shared = {**theirs['stack'], 'connector': mine['stack']['connector']}
  mine = {**theirs, 'stack': shared}
  want = plain.apply({'params': theirs}, ROWS, Context())
  got = module.apply({'params': mine}, ROWS, Context())
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  'connector', ['postnorm', 'siamese', 'interval', 'rezero', 'layerscale', 'highway']
)
def test_the_others_do_not(connector):
  plain, module = build('onetrans', 'prenorm'), build('onetrans', connector)
  theirs, mine = init(plain), init(module)
  mine = {**theirs, 'stack': {**theirs['stack'], 'connector': mine['stack']['connector']}}
  want = plain.apply({'params': theirs}, ROWS, Context())
  got = module.apply({'params': mine}, ROWS, Context())
  assert float(jnp.abs(got - want).max()) > 1e-4
