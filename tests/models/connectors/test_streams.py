# SPDX-License-Identifier: Apache-2.0
"""Single-stream and many-stream connectors against reference_streams.py; starts, sizes, gradients.

Shapes: B rows, T tokens, D width, N streams.
"""

import itertools
import math

import driving
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import reference_streams as streams
from driving import B, D, T, assert_close, assert_same_run, double, embedding, loop, make_branches

from deres_jax.models.connectors import multi_stream, single_stream
from deres_jax.models.connectors import prenorm as prenorm_lib
from deres_jax.models.stack import Shape

DEPTH, PER_LAYER, N = 3, 2, 3
SITES = DEPTH * PER_LAYER
# Few iterations leave columns off 1, so that the order of rows and columns shows.
MHC = {'streams': N, 'iterations': 3, 'lite': False}
LITE = {**MHC, 'lite': True}

# Name -> the connector, its reference, the fields of both, and fields of the code's alone.
CASES = {
  'postnorm': (single_stream.PostNorm, streams.post_norm, {}, {}),
  'siamese': (single_stream.Siamese, streams.siamese, {}, {}),
  'interval': (single_stream.Interval, streams.interval, {'every': 1}, {}),
  'scalar': (single_stream.Learnable, streams.learnable, {'kind': 'scalar'}, {}),
  'vector': (single_stream.Learnable, streams.learnable, {'kind': 'vector'}, {}),
  'matrix': (single_stream.Learnable, streams.learnable, {'kind': 'matrix'}, {}),
  'rezero': (single_stream.Scaled, streams.rezero, {}, {'kind': 'rezero', 'initial': 0.1}),
  'layerscale': (
    single_stream.Scaled,
    streams.layer_scale,
    {},
    {'kind': 'layerscale', 'initial': 0.1},
  ),
  'highway': (single_stream.Highway, streams.highway, {}, {'bias': -2.0}),
  'denseformer': (multi_stream.DenseFormer, streams.dense_former, {}, {}),
  'hyper': (multi_stream.HyperConnections, streams.hyper, {'streams': N}, {}),
  'mhc': (multi_stream.ManifoldHyper, streams.manifold, MHC, {}),
  'mhc_lite': (multi_stream.ManifoldHyper, streams.manifold, LITE, {}),
}
BY_LAYER = ('interval', 'denseformer')  # their references ask for per_layer


def build(name, norm='rms', dtype=jnp.float32, per_layer=PER_LAYER, **fields):
  kind, _, both, own = CASES[name]
  return kind(Shape(SITES, per_layer, T, D), norm, dtype, **{**both, **own, **fields})


def prenorm(norm='rms'):
  return prenorm_lib.PreNorm(Shape(SITES, PER_LAYER, T, D), norm, jnp.float32)


def initial(module):
  """All parameters: a norm's are made where it is first called, which may be the last write."""
  branches = make_branches(module.shape.sites)
  make = nn.init(lambda m, x: loop(m, x, branches)[1], module)
  return jax.jit(make)(jax.random.key(0), jnp.ones((B, T, D)))['params']


def randomised(module, seed=2):
  """Every parameter off its start and of a size that shows in the output."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda p: np.float32(0.5 + 0.5 * rng.normal(size=p.shape)), shapes(module))


def shapes(module):
  return jax.eval_shape(lambda: initial(module))


def run(module, params):
  return driving.run(module, params, make_branches(SITES))


def pairs(got, want):
  """Inputs and output of one run beside those of another."""
  return zip([*got[0], got[1]], [*want[0], want[1]], strict=True)


def check(name, norm='rms', per_layer=PER_LAYER, **fields):
  module = build(name, norm, per_layer=per_layer, **fields)
  params = randomised(module)
  _, refer, both, _ = CASES[name]
  fields = {**both, **fields, **({'per_layer': per_layer} if name in BY_LAYER else {})}
  want = refer(double(params), norm, embedding(), make_branches(SITES), **fields)
  assert_same_run(run(module, params), want)


# Against the equations.


@pytest.mark.parametrize(('per_layer', 'every'), [(1, 2), (1, 4), (2, 2), (2, 3), (3, 1)])
def test_interval_lengths(per_layer, every):
  """Ends that fall on the last layer (1, 2), past it, and nowhere but there (2, 3)."""
  check('interval', per_layer=per_layer, every=every)


@pytest.mark.parametrize('per_layer', [1, 3])
def test_denseformer_averages_after_whole_layers(per_layer):
  check('denseformer', per_layer=per_layer)


@pytest.mark.parametrize('name', ['hyper', 'mhc', 'mhc_lite'])
def test_two_streams(name):
  check(name, streams=2)


# The start of training.


def at_start(name, norm='rms', changes=None, **fields):
  """Inputs and output with random norms, and PreNorm's with the same."""
  module, plain = build(name, norm, **fields), prenorm(norm)
  params = {**initial(module), **(changes or {})}
  params['norms'] = randomised(plain)['norms']
  return run(module, params), run(plain, {'norms': params['norms']})


@pytest.mark.parametrize('norm', ['rms', 'layer'])
@pytest.mark.parametrize('name', ['scalar', 'vector', 'matrix', 'denseformer'])
def test_starts_as_prenorm_bit_for_bit(name, norm):
  for got_BTD, want_BTD in pairs(*at_start(name, norm)):
    np.testing.assert_array_equal(got_BTD, want_BTD)


@pytest.mark.parametrize('norm', ['rms', 'layer'])
@pytest.mark.parametrize('count', [2, 3, 4])
def test_hyper_starts_as_copies_of_prenorm(count, norm):
  """The inputs are PreNorm's bit for bit; the norm of N x differs by its eps at the head."""
  got, want = at_start('hyper', norm, streams=count)
  for got_BTD, want_BTD in zip(got[0], want[0], strict=True):
    np.testing.assert_array_equal(got_BTD, want_BTD)
  assert_close(got[1], want[1], 2e-6)
  static_SNK = initial(build('hyper', norm, streams=count))['mix_static']
  for site, column in enumerate(static_SNK[:, :, 0]):
    np.testing.assert_array_equal(column, np.eye(count)[site % count])


def forced(name, pre, count=4):
  """Maps without their dynamic part: H_pre as named, H_post = 1, H_res = I."""
  home = np.arange(count) == np.arange(SITES)[:, None] % count
  # Sigmoid takes +-40 to 1 and nearly 0, and -log(N - 1) to 1 / N.
  bias = np.where(home, 40.0, -40.0) if pre == 'home' else -math.log(count - 1) + 0.0 * home
  first = np.arange(math.factorial(count)) == 0
  res = 60.0 * first if name == 'mhc_lite' else (80.0 * np.eye(count) - 40).ravel()
  return {
    'map_scale': np.zeros((SITES, 3), np.float32),
    'pre_bias': np.float32(bias),
    'post_bias': np.zeros((SITES, count), np.float32),
    'res_bias': np.float32(np.tile(res, (SITES, 1))),
  }


@pytest.mark.parametrize('norm', ['rms', 'layer'])
@pytest.mark.parametrize('pre', ['home', 'mean'])
@pytest.mark.parametrize('name', ['mhc', 'mhc_lite'])
def test_mhc_with_forced_maps_is_prenorm(name, pre, norm):
  for got_BTD, want_BTD in pairs(*at_start(name, norm, forced(name, pre), streams=4)):
    assert_close(got_BTD, want_BTD, 2e-6)


@pytest.mark.parametrize('name', ['mhc', 'mhc_lite'])
def test_mhc_starts_near_prenorm(name):
  """Off by its small dynamic parts only: all streams stay nearly the same."""
  runs = pairs(*at_start(name, streams=4, iterations=20))
  errors = [np.max(np.abs(a - b)) / np.max(np.abs(b)) for a, b in runs]
  assert 2e-6 < max(errors) < 2e-3


@pytest.mark.parametrize('name', ['mhc', 'mhc_lite'])
def test_mhc_starts_at_the_static_maps_of_the_paper(name):
  params = double(initial(build(name, streams=4, iterations=20)))
  assert np.all(np.abs(params['map_scale'] - 0.01) < 1e-8)
  v_ND = np.random.default_rng(0).normal(size=(4, D))
  for site in range(SITES):
    still = {**params, 'map_scale': np.zeros((SITES, 3))}
    pre, post, res = streams.manifold_maps(still, site, v_ND, 20, name == 'mhc_lite')
    home = reference.sigmoid(3.0)
    assert_close(pre, [home if n == site % 4 else 1 - home for n in range(4)], 1e-6)
    assert_close(post, np.ones(4), 1e-12)
    assert np.all(np.diag(res) > 0.9) and np.all(res > 0)


def test_rezero_starts_as_the_identity():
  module = build('rezero')
  inputs, out_BTD, states = run(module, initial(module))
  for state in [*inputs, *states]:
    np.testing.assert_array_equal(state, np.float32(embedding()))
  assert_close(out_BTD, embedding())  # of RMS 1: the head's norm leaves it


def test_layerscale_starts_with_a_tenth_of_each_branch():
  module = build('layerscale')
  inputs, _, states = run(module, initial(module))
  want_BTD = embedding()
  for u_BTD, branch in zip(inputs, make_branches(SITES), strict=True):
    want_BTD = want_BTD + 0.1 * branch(np.float64(u_BTD))
  assert_close(states[-1], want_BTD)


def test_highway_starts_with_one_gate_everywhere():
  module = build('highway')
  inputs, _, states = run(module, initial(module))
  g = reference.sigmoid(-2.0)
  y_BTD = make_branches(SITES)[0](np.float64(inputs[0]))
  assert_close(states[1], (1 - g) * embedding() + g * y_BTD)


@pytest.mark.parametrize('name', ['interval', 'siamese', 'postnorm'])
def test_does_not_start_as_prenorm(name):
  """Tokens of RMS 1 hide post-norm for two reads; `interval` departs where a window closes."""
  module = build(name)
  got, want = run(module, initial(module)), run(prenorm(), initial(prenorm()))
  apart = [np.max(np.abs(a - b)) > 1e-3 for a, b in zip(got[0], want[0], strict=True)]
  first = {'interval': PER_LAYER, 'siamese': 0, 'postnorm': 2}[name]
  assert apart == [False] * first + [True] * (SITES - first)


# Doubly stochastic maps.


LOGITS = np.float32(np.random.default_rng(4).normal(size=(20, 4, 4)))


@pytest.mark.parametrize('iterations', [1, 3, 20])
def test_sinkhorn_against_the_loop(iterations):
  """Rows last, so their sums are exact from the first; columns converge."""
  m = np.float64(multi_stream.sinkhorn(jnp.asarray(LOGITS), iterations))
  assert_close(m, [streams.sinkhorn(np.float64(z), iterations) for z in LOGITS])
  assert np.max(np.abs(m.sum(-1) - 1)) < 1e-6
  assert (np.max(np.abs(m.sum(-2) - 1)) < 1e-3) == (iterations == 20)


@pytest.mark.parametrize('iterations', [1, 20])
def test_sinkhorn_does_not_see_constants(iterations):
  """A constant for a column or for all; for a row too once the iterations have converged."""
  z = jnp.asarray(LOGITS)
  base = multi_stream.sinkhorn(z, iterations)
  column = np.float32([3.0, -7.0, 0.5, 20.0])
  assert_close(multi_stream.sinkhorn(z + column, iterations), base)
  assert_close(multi_stream.sinkhorn(z + 50, iterations), base)
  row = np.max(np.abs(multi_stream.sinkhorn(z + column[:, None] / 10, iterations) - base))
  assert row < 1e-3 if iterations == 20 else row > 1e-2


@pytest.mark.parametrize('size', [30.0, 80.0])
def test_sinkhorn_of_large_logits(size):
  """Every pattern of signs, value and gradient: a row far below all others must not vanish."""
  z = np.float32(list(itertools.product([-size, size], repeat=9))).reshape(-1, 3, 3)
  c = np.random.default_rng(0).normal(size=(3, 3))
  got = np.float64(multi_stream.sinkhorn(jnp.asarray(z), 20))
  assert np.all(np.isfinite(got))
  assert_close(got[::7], [streams.sinkhorn(np.float64(m), 20) for m in z[::7]], 1e-4)
  grads = jax.jit(jax.grad(lambda z: jnp.sum(c * multi_stream.sinkhorn(z, 20))))(z)
  assert np.all(np.isfinite(grads))


def test_sinkhorn_of_bfloat16_is_computed_in_float32():
  z = jnp.asarray(LOGITS).astype(jnp.bfloat16)
  m = multi_stream.sinkhorn(z, 20)
  assert m.dtype == jnp.float32
  np.testing.assert_array_equal(m, multi_stream.sinkhorn(z.astype(jnp.float32), 20))


@pytest.mark.parametrize('count', [2, 3, 4])
def test_lite_mixing_is_doubly_stochastic(count):
  module = build('mhc_lite', streams=count)
  width = math.factorial(count)
  z = 3 * np.random.default_rng(5).normal(size=(B, T, width))
  z[0, 0] = np.where(np.arange(width) == 0, 80.0, -80.0)  # all on the first: the identity
  mix = nn.apply(lambda m, z: (m.start(jnp.ones((B, T, D))), m._mixing(z))[1], module)
  m = np.float64(mix({'params': initial(module)}, jnp.float32(z)))
  assert np.all(m >= 0)
  assert np.max(np.abs(m.sum(-1) - 1)) < 1e-6 and np.max(np.abs(m.sum(-2) - 1)) < 1e-6
  np.testing.assert_array_equal(m[0, 0], np.eye(count))


# Sizes, gradients, number formats.


def own_parameters(name, L, S):
  """Beside the norms."""
  return {
    'scalar': 2 * S,
    'vector': 2 * S * D,
    'matrix': S * D**2,
    'rezero': S,
    'layerscale': S * D,
    'highway': S * (D**2 + D),
    'denseformer': L * (L + 3) // 2,
    'hyper': S * (2 * D + N * (N + 1) + N + D * (N + 2) + 2),
    'mhc': S * ((N * D + 1) * (2 * N + N * N) + 3),
    'mhc_lite': S * ((N * D + 1) * (2 * N + math.factorial(N)) + 3),
  }.get(name, 0)


@pytest.mark.parametrize('norm', ['rms', 'layer'])
@pytest.mark.parametrize('name', CASES)
def test_parameter_counts(name, norm):
  norms = {'postnorm': SITES, 'siamese': 2 * SITES + 1, 'rezero': 1}.get(name, SITES + 1)
  want = norms * D * (2 if norm == 'layer' else 1) + own_parameters(name, DEPTH, SITES)
  assert sum(p.size for p in jax.tree.leaves(shapes(build(name, norm)))) == want


def test_denseformer_weighs_the_tokens_and_all_layers_so_far():
  sizes = {name: p.shape for name, p in shapes(build('denseformer')).items() if name != 'norms'}
  assert sizes == {f'weights_{l}': (l + 2,) for l in range(DEPTH)}


# Sites whose H_res moves nothing: streams start equal, which a mix with row sums of 1 leaves, and
# the head's sum does not see one with column sums of 1 (after 3 iterations they are near 1 only).
# H_pre of site 0 moves little more: the norm takes the size of its input away, but for eps.
IDLE = {'mhc': [0], 'mhc_lite': [0, SITES - 1]}


@pytest.mark.parametrize('name', CASES)
def test_every_parameter_of_every_site_has_a_gradient(name):
  module = build(name, norm='layer')
  params = jax.tree.map(jnp.asarray, randomised(module))
  c_BTD = np.random.default_rng(5).normal(size=(B, T, D))
  grads = jax.jit(jax.grad(lambda p: jnp.sum(c_BTD * run(module, p)[1])))(params)
  for path, grad in jax.tree_util.tree_leaves_with_path(grads):
    assert np.all(np.isfinite(grad)) and np.any(np.abs(grad) > 1e-5), path
    idle = IDLE[name] if path[-1].key in ('res_map', 'res_bias') else []
    if not path[-1].key.startswith('weights'):  # of which each layer has its own
      sizes = np.max(np.abs(np.reshape(grad, (len(grad), -1))), axis=1)
      assert [site for site, size in enumerate(sizes) if size < 1e-5] == idle, (path, sizes)


@pytest.mark.parametrize('name', CASES)
def test_bfloat16_is_what_sublayers_see_and_float32_what_is_kept(name):
  low, full = build(name, dtype=jnp.bfloat16), build(name)
  params = randomised(low)
  assert {p.dtype for p in jax.tree.leaves(shapes(low))} == {jnp.dtype(jnp.float32)}
  inputs, out_BTD, states = run(low, params)
  assert {u_BTD.dtype for u_BTD in [*inputs, out_BTD]} == {jnp.dtype(jnp.bfloat16)}
  assert {leaf.dtype for leaf in jax.tree.leaves(states)} == {jnp.dtype(jnp.float32)}
  assert_close(inputs[1], run(full, params)[0][1], 0.03)
  started = low.apply({'params': params}, jnp.ones((B, T, D), jnp.bfloat16), method='start')
  assert {leaf.dtype for leaf in jax.tree.leaves(started)} == {jnp.dtype(jnp.float32)}
