# SPDX-License-Identifier: Apache-2.0
"""HAARES and AutoInt's projected skip against reference_mixers.py.

Shapes: B rows, T tokens, D width.
"""

import math

import driving
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import reference_mixers as mixers
from driving import (
  B,
  D,
  T,
  assert_close,
  assert_same_run,
  double,
  embedding,
  initial,
  make_branches,
  randomised,
  run,
)

from deres_jax import config
from deres_jax.models.connectors import haares, single_stream
from deres_jax.models.stack import Shape

# Sub-layers a layer, layers a block, layers: a last block that is short, whole, the only one; none.
CASES = [(1, 2, 5), (1, 2, 4), (1, 3, 5), (2, 1, 3), (2, 2, 5), (2, 3, 5), (2, 3, 3), (2, 3, 2)]


def build(per_layer, block_layers, depth, norm='rms', dtype=jnp.float32):
  shape = Shape(depth * per_layer, per_layer, T, D)
  return haares.Haares(shape, norm, dtype, block_layers * per_layer, detail_init=-2.0)


def blocks_of(module, outputs, details):
  """Complete blocks' sums, or details, recomputed from all outputs."""
  size, out = module.block, []
  for first in range(0, len(outputs) - size + 1, size):
    own = outputs[first : first + size]
    out += mixers.block_details(own, module.shape.per_layer) if details else [sum(own)]
  return out


@pytest.mark.parametrize('norm', ['rms', 'layer'])
@pytest.mark.parametrize('case', CASES)
def test_against_the_loop(case, norm):
  module = build(*case, norm)
  params, branches = randomised(module), make_branches(module.shape.sites)
  want = mixers.haares(
    double(params), norm, module.block, module.shape.per_layer, embedding(), branches
  )
  assert_same_run(run(module, params, branches), want)


@pytest.mark.parametrize('case', CASES)
def test_without_its_details_it_is_block_attnres(case):
  module = build(*case)
  params, branches = randomised(module), make_branches(module.shape.sites)
  if 'detail' in params:
    params['detail'] = np.full_like(params['detail'], -1e9)
  want = reference.block_attnres(double(params), 'rms', module.block, embedding(), branches)
  assert_same_run(run(module, params, branches), want)


@pytest.mark.parametrize('norm', ['rms', 'layer'])
@pytest.mark.parametrize('case', CASES)
def test_parameters(case, norm):
  """A query and a norm a read; a logit for those that follow a complete block."""
  module = build(*case, norm)
  sites, late = module.shape.sites, max(0, module.shape.sites + 1 - module.block)
  params = initial(module)
  norms = (sites + 1) * D * (2 if norm == 'layer' else 1)
  assert sum(p.size for p in jax.tree.leaves(params)) == norms + (sites + 1) * D + late
  np.testing.assert_array_equal(params['query'], 0)
  np.testing.assert_array_equal(params.get('detail', -2), -2)


def test_no_parameter_is_empty():
  """Where no block is ever complete; a checkpoint cannot hold an array without numbers."""
  module = build(2, 3, 2)
  assert all(p.size for p in jax.tree.leaves(initial(module)))


def test_a_config_builds_it():
  c = config.base('attnres.block_layers=3,attnres.detail_init=-1.0,model.norm=layer')
  module = driving.connector(config.resolve(c), 'haares', depth=4, per_layer=2)
  assert (module.block, module.detail_init, module.norm) == (6, -1.0, 'layer')


@pytest.mark.parametrize('case', CASES)
def test_starts_with_details_at_e_to_the_minus_2_of_a_sum_s_weight(case):
  module = build(*case)
  branches = make_branches(module.shape.sites)
  inputs, out_BTD, _ = run(module, initial(module), branches)
  outputs = [branch(np.float64(u)) for branch, u in zip(branches, inputs, strict=True)]
  small = math.exp(-2)
  for site, got_BTD in enumerate([*inputs, out_BTD]):
    done = outputs[:site]
    sums, details = ([*blocks_of(module, done, details)] for details in (False, True))
    rest = done[len(sums) * module.block :]
    sums = [embedding(), *sums, *([sum(rest)] if rest else [])]
    read_BTD = (sum(sums) + small * sum(details)) / (len(sums) + small * len(details))
    scale = {'scale': np.ones((1, D))}
    assert_close(got_BTD, reference.site_norm(scale, 'rms', read_BTD, 0))


# Details.


@pytest.mark.parametrize(
  ('case', 'kinds'),
  [((1, 2, 5), 1), ((1, 3, 3), 1), ((2, 1, 3), 1), ((2, 2, 5), 2), ((2, 3, 3), 2)],
)
def test_details_are_as_large_as_their_block_s_sum(case, kinds):
  module = build(*case)
  branches = make_branches(module.shape.sites)
  params = randomised(module)
  last = run(module, params, branches)[2][-1]
  sums = [source.value for source in last.sums[1:]]
  assert len(last.details) == kinds * (module.shape.sites // module.block) == kinds * len(sums)
  for i, source in enumerate(last.details):
    got, want = (np.mean(np.square(v), axis=-1) for v in (source.value, sums[i // kinds]))
    np.testing.assert_allclose(got, want, rtol=1e-3)


@pytest.mark.parametrize('case', [(1, 2, 4), (2, 1, 2), (2, 2, 2), (2, 3, 3), (1, 4, 4)])
def test_patterns_sum_to_zero(case):
  """Branches that are all the same leave nothing, which must not be divided by."""
  module = build(*case)
  params, sites = randomised(module), module.shape.sites
  # Steps of 1/16: sums of some are exact.
  y_BTD = np.round(16 * np.random.default_rng(3).normal(size=(B, T, D))) / 16
  same_SBTD = np.float32([y_BTD] * sites)

  def last(y_SBTD):
    _, out_BTD, states = run(module, params, [lambda u, xp, y=y: y for y in y_SBTD])
    return jnp.sum(jnp.sin(out_BTD)), [source.value for source in states[-1].details]

  grads, details = jax.jit(jax.grad(last, has_aux=True))(same_SBTD)
  assert details and all((d_BTD == 0).all() for d_BTD in details)
  assert np.all(np.isfinite(grads))
  assert all(np.isfinite(d_BTD).all() for d_BTD in last(0 * same_SBTD)[1])


def test_sizes_are_matched_without_a_gradient():
  """d = s (y_1 - y_2): by y_1 and y_2 its gradient is s and -s."""
  module = build(2, 1, 1)
  y1_BTD, y2_BTD = np.float32(np.random.default_rng(4).normal(size=(2, B, T, D)))

  def detail(y1_BTD, y2_BTD):
    branches = [lambda u, xp: y1_BTD, lambda u, xp: y2_BTD]
    return run(module, params, branches)[2][-1].details[0].value

  params = randomised(module)
  d_BTD, pull = jax.vjp(detail, y1_BTD, y2_BTD)
  c_BTD = np.float32(np.random.default_rng(5).normal(size=(B, T, D)))
  s_BTD = np.asarray(d_BTD) / (y1_BTD - y2_BTD)
  for got_BTD, sign in zip(pull(c_BTD), (1, -1), strict=True):
    assert_close(got_BTD, sign * s_BTD * c_BTD, 1e-4)


@pytest.mark.parametrize('case', [(1, 2, 4), (2, 2, 3)])
def test_every_read_has_gradients(case):
  module = build(*case, norm='layer')
  params = jax.tree.map(jnp.asarray, randomised(module))
  branches = make_branches(module.shape.sites)
  c_BTD = np.random.default_rng(5).normal(size=(B, T, D))
  grads = jax.jit(jax.grad(lambda p: jnp.sum(c_BTD * run(module, p, branches)[1])))(params)
  for path, grad in jax.tree_util.tree_leaves_with_path(grads):
    sizes = np.max(np.abs(np.reshape(grad, (len(grad), -1))), axis=1)
    # A softmax over the tokens alone does not ask its query.
    idle = [0] if path[-1].key == 'query' else []
    assert [i for i, size in enumerate(sizes) if not size > 1e-6] == idle, (path, sizes)


def test_bfloat16_is_what_sublayers_see_and_float32_what_is_kept():
  low, full = build(2, 2, 5, dtype=jnp.bfloat16), build(2, 2, 5)
  params, branches = randomised(low), make_branches(10)
  inputs, out_BTD, states = run(low, params, branches)
  assert {u_BTD.dtype for u_BTD in [*inputs, out_BTD]} == {jnp.dtype(jnp.bfloat16)}
  assert {leaf.dtype for leaf in jax.tree.leaves(states)} == {jnp.dtype(jnp.float32)}
  assert_close(inputs[1], run(full, params, branches)[0][1], 0.03)


# The projected skip.


def projected(sites=3, dtype=jnp.float32):
  return single_stream.Projected(Shape(sites, 1, T, D), 'rms', dtype)


def test_projected_starts_with_xavier_s_variance_at_every_site():
  module = single_stream.Projected(Shape(4, 1, T, 64), 'rms', jnp.float32)
  kernel_SDD = module.init(jax.random.key(0), jnp.zeros((1, T, 64)), method='start')['params']
  kernel_SDD = np.asarray(kernel_SDD['kernel'])
  assert kernel_SDD.shape == (4, 64, 64)
  assert np.std(kernel_SDD, axis=(1, 2)) == pytest.approx(1 / 8, rel=0.05)
  assert np.abs(np.corrcoef(kernel_SDD.reshape(4, -1)) - np.eye(4)).max() < 0.1


def test_projected_in_bfloat16():
  params, branches = randomised(projected()), make_branches(3)
  inputs, out_BTD, states = run(projected(dtype=jnp.bfloat16), params, branches)
  assert {u_BTD.dtype for u_BTD in [*inputs, out_BTD]} == {jnp.dtype(jnp.bfloat16)}
  assert {leaf.dtype for leaf in jax.tree.leaves(states)} == {jnp.dtype(jnp.float32)}
  assert_close(out_BTD, run(projected(), params, branches)[1], 0.03)
