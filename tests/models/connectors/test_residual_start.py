# SPDX-License-Identifier: Apache-2.0
"""Where training starts: as the pre-norm network, and with a gradient for the routing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from driving import (
  DEPTH,
  PER_LAYER,
  TAU,
  B,
  D,
  T,
  assert_close,
  assert_same_run,
  connector,
  embedding,
  in_words,
  initial,
  make_branches,
  randomised,
  resolve,
  run,
)

from deres_jax.core.errors import UserError

# The start of training.


def at_start(c, name='deres', size=1):
  """Inputs and output at the start with random norms, and PreNorm's with the same norms."""
  branches = make_branches(DEPTH * PER_LAYER)
  module, plain = connector(c, name), connector(c, 'prenorm')
  params = initial(module)
  params['norms'] = randomised(module)['norms']
  x_BTD = size * embedding()
  got = run(module, params, branches, x_BTD)
  return got, run(plain, {'norms': params['norms']}, branches, x_BTD)


@pytest.mark.parametrize('norm', ['rms', 'layer'])
@pytest.mark.parametrize('beta_init', [0.0, 2.0, -1.0])
def test_default_starts_as_prenorm(beta_init, norm):
  # The norm's eps sees g^2 of the mean square: 14 times more of it at g = 0.27.
  size = 4 if beta_init < 0 else 1
  assert_same_run(*at_start(resolve({'beta_init': beta_init}, norm=norm), size=size))


@pytest.mark.parametrize(
  'switches',
  [
    {'score_fn': 'softmax', 'include_partial': True},
    {'silu_center': TAU, 'include_partial': True},
    {'silu_center': TAU, 'include_partial': True, 'beta_init': 2.0},
    {'silu_center': TAU, 'include_partial': True, 'silu_norm': 'rms'},
    {'silu_center': TAU, 'include_partial': True, 'path': 'attn'},
    {'score_fn': 'tanh'},
    {'query': 'lowrank_dynamic', 'gate': 'lowrank_dynamic'},
    {'query': 'static_per_token', 'gate': 'dense', 'compress': 'token_mean'},
    {'query': 'shared', 'gate': 'scalar', 'sites': 'layer', 'readout_mix': False},
    {'gate_form': 'additive'},
    {'gate_form': 'additive_gated', 'mix_site': 'stream', 'beta_init': 2.0},
    {'path': 'identity'},
    {'identity_kind': 'scalar'},
    {'identity_kind': 'vector'},
    {'identity_kind': 'matrix'},
  ],
  ids=in_words,
)
def test_starts_as_prenorm(switches):
  assert_same_run(*at_start(resolve(switches)))


def test_attnres_starts_as_prenorm():
  assert_same_run(*at_start(resolve(), 'attnres'))


@pytest.mark.parametrize('beta_init', [0.0, 2.0])
def test_softmax_over_whole_blocks_only_does_not_start_as_prenorm(beta_init):
  """Its uniform mean leaves the unfinished block out, so it is not parallel to the stream."""
  got, plain = at_start(resolve({'score_fn': 'softmax', 'beta_init': beta_init}))
  assert_close(got[0][0], plain[0][0])  # one source: still the embedding
  assert np.max(np.abs(got[1] - plain[1])) > 0.01


def test_silu_without_an_identity_path_is_refused():
  with pytest.raises(UserError, match='silu_center'):
    resolve({'path': 'attn'})
  resolve({'path': 'attn', 'silu_center': TAU, 'include_partial': True})


@pytest.mark.parametrize('query', ['static', 'static_per_token', 'lowrank_dynamic'])
def test_a_gate_forced_open_is_prenorm_whatever_is_recalled(query):
  branches = make_branches(DEPTH * PER_LAYER)
  c = resolve({'query': query})
  module = connector(c)
  params = randomised(module)
  params['gate'] = np.full_like(params['gate'], 40.0)
  plain = run(connector(c, 'prenorm'), {'norms': params['norms']}, branches)
  assert_same_run(run(module, params, branches), plain)


def start_gradients(module):
  """|dL/dp| a row of the queries and of the gates, L a random projection of the output."""
  branches = make_branches(DEPTH * PER_LAYER)
  params = initial(module)
  c_BTD = np.random.default_rng(5).normal(size=(B, T, D))

  def loss(params):
    return jnp.mean(c_BTD * run(module, params, branches)[1])

  grads = jax.jit(jax.grad(loss))(params)
  sizes = {name: np.linalg.norm(grads[name], axis=-1) for name in grads if name != 'norms'}
  assert all(np.all(np.isfinite(size)) for size in sizes.values())
  return sizes


@pytest.mark.parametrize('block_layers', [1, 2, DEPTH])
def test_routing_learns_from_the_first_step(block_layers):
  sizes = start_gradients(connector(resolve({'block_layers': block_layers})))
  assert sizes['query'].shape == sizes['gate'].shape == (DEPTH * PER_LAYER + 1,)
  assert np.all(sizes['query'][1:] > 1e-4) and np.all(sizes['gate'] > 1e-4)
  # Site 0 has one source, parallel to the stream: its length is all that w_0 moves.
  assert sizes['query'][0] < 1e-6


def test_attnres_learns_from_the_first_step():
  sizes = start_gradients(connector(resolve(), 'attnres'))
  assert set(sizes) == {'query'}
  assert np.all(sizes['query'][1:] > 1e-4) and sizes['query'][0] < 1e-6
