# SPDX-License-Identifier: Apache-2.0
"""Every connector under every token backbone: runs, learns everywhere, has the size it should."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import normal

from deres_jax import config, models
from deres_jax.models.layers import Context

B, F, E, D, DEPTH = 3, 5, 3, 8, 2
S = 2 * DEPTH  # sub-layers
N = 4  # streams of (m)HC

NORMS = (S + 1) * D

# Parameters of each connector by closed formula; S sites, D wide.
SIZES = {
  'prenorm': NORMS,
  'postnorm': S * D,
  'siamese': NORMS + S * D,
  'interval': NORMS,
  'scalar': NORMS + 2 * S,
  'vector': NORMS + 2 * S * D,
  'matrix': NORMS + S * D**2,
  'rezero': D + S,
  'layerscale': NORMS + S * D,
  'highway': NORMS + S * (D**2 + D),
  'denseformer': NORMS + DEPTH * (DEPTH + 3) // 2,
  'hc': NORMS + S * (2 * D + N * (N + 1) + N + D * (N + 1) + D + 2),
  'mhc': NORMS + S * ((N * D + 1) * (2 * N + N**2) + 3),
  'mhc_lite': NORMS + S * ((N * D + 1) * (2 * N + math.factorial(N)) + 3),
  'attnres': 2 * NORMS,
  'attnres_full': 2 * NORMS,
  'attnres_pointwise': 2 * NORMS,
  'deres': 3 * NORMS,
  'deres_s': 3 * NORMS,
}

# Those that compute what PreNorm does before the first step.
START_AS_PRENORM = (
  'scalar', 'vector', 'matrix', 'denseformer', 'hc', 'attnres', 'attnres_full',
  'attnres_pointwise', 'deres', 'deres_s',
)  # fmt: skip


def build(connector, dtype='float32'):
  overrides = f'model.depth={DEPTH},model.dim={D},model.heads=2,model.embed_dim={E}'
  overrides += f',model.connector={connector},model.dtype={dtype},deres.block_layers=1'
  overrides += ',residual.interval_layers=1'
  c = config.resolve(config.base(f'{overrides},attnres.block_layers=1,model.ffn_ratio=2'))
  return models.build(c, models.Layout(F), -1.0)


ROWS = np.float32(normal(B, F, E))


def init(module):
  return module.init(jax.random.key(0), ROWS, Context())['params']


def size(tree):
  return sum(x.size for x in jax.tree.leaves(tree))


def test_every_connector_has_a_formula():
  assert SIZES.keys() == models.CONNECTORS.keys()


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('connector', SIZES)
def test_a_pair_runs_and_every_parameter_learns(connector, dtype):
  """At random parameters, since some starts are zero on purpose and hide what is behind them."""
  module = build(connector, dtype)
  params = init(module)
  assert size(params['stack']['connector']) == SIZES[connector]
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(1), len(leaves))
  leaves = [x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]

  def loss(params, rows):
    return jnp.sum(jnp.sin(module.apply({'params': params}, rows, Context())))

  value, (grads, g_rows) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(
    jax.tree.unflatten(tree, leaves), ROWS
  )
  assert jnp.isfinite(value) and jnp.all(jnp.isfinite(g_rows)) and jnp.any(g_rows != 0)
  for path, g in jax.tree_util.tree_leaves_with_path(grads):
    name = jax.tree_util.keystr(path)
    assert g.dtype == jnp.float32 and jnp.all(jnp.isfinite(g)), name
    assert jnp.any(g != 0), name


@pytest.mark.parametrize('connector', START_AS_PRENORM)
def test_start_as_prenorm(connector):
  """The same tokens, sub-layers, norms and head under both connectors."""
  plain, module = build('prenorm'), build(connector)
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
  plain, module = build('prenorm'), build(connector)
  theirs, mine = init(plain), init(module)
  mine = {**theirs, 'stack': {**theirs['stack'], 'connector': mine['stack']['connector']}}
  want = plain.apply({'params': theirs}, ROWS, Context())
  got = module.apply({'params': mine}, ROWS, Context())
  assert float(jnp.abs(got - want).max()) > 1e-4
