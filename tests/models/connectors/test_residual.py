# SPDX-License-Identifier: Apache-2.0
"""Connectors against the loops of reference.py, and their invariants."""

import dataclasses
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from driving import (
  ALONE,
  DEPTH,
  PER_LAYER,
  SMALL,
  TAU,
  D,
  T,
  assert_close,
  assert_same_run,
  check_deres,
  connector,
  double,
  embedding,
  in_words,
  initial,
  make_branches,
  randomised,
  resolve,
  run,
)

from deres_jax import config
from deres_jax.config import fields as fields_lib
from deres_jax.core.errors import UserError
from deres_jax.models.connectors import deres
from deres_jax.models.stack import Shape

# Against the equations.


@pytest.mark.parametrize(
  ('name', 'value'), [(name, value) for name, values in ALONE.items() for value in values]
)
def test_each_value_of_each_switch(name, value):
  needs = {'silu_center': TAU, 'include_partial': True} if value == 'rms' else {}
  check_deres({name: value, **needs})


def test_no_switch_is_forgotten():
  """A new field of config.DeRes, or a new word in an old one's comment, belongs in ALONE."""
  fields = {field.name for field in dataclasses.fields(fields_lib.DeRes)}
  assert fields == {*ALONE, *SMALL, 'beta_init'}
  for name, values in ALONE.items():
    if isinstance(values[0], str):
      with pytest.raises(UserError) as e:
        resolve({name: 'nonsense'})
      assert str(e.value).endswith(f'choose one of {", ".join(values)}')


@pytest.mark.parametrize(
  'switches',
  [
    {'compress': 'token_mean', 'include_partial': True},
    {'compress': 'mean', 'include_partial': True},
    {'compress': 'last', 'include_partial': True, 'mix_site': 'stream'},
    {'compress': 'lowrank_key', 'query': 'lowrank_dynamic', 'score_scale': 0.5},
    {'compress': 'token_mean', 'query': 'static_per_token'},
    {'compress': 'token_mean', 'query': 'lowrank_dynamic', 'block_layers': 1},
    {'sites': 'layer', 'query': 'lowrank_dynamic', 'gate': 'lowrank_dynamic'},
    {'sites': 'layer', 'mix_site': 'stream', 'include_partial': True, 'block_layers': 3},
    {'sites': 'layer', 'query': 'shared', 'readout_mix': False, 'include_partial': True},
    {'path': 'attn', 'score_fn': 'softmax1', 'include_partial': True, 'readout_mix': False},
    {'path': 'attn', 'mix_site': 'stream', 'silu_center': TAU, 'include_partial': True},
    {'gate': 'dense', 'gate_form': 'additive_gated', 'mix_site': 'stream'},
  ],
  ids=in_words,
)
def test_switches_that_meet(switches):
  check_deres(switches)


def random_combinations(count):
  """Settings of all switches at once that config.resolve takes."""
  rng = random.Random(3)
  combinations = []
  while len(combinations) < count:
    switches = {name: rng.choice(values) for name, values in ALONE.items()}
    if switches['path'] == 'identity':  # every other switch but one is idle
      continue
    # With one source silu_norm=rms gives r = x, or -x where its weight is negative, or 0 / 0
    # where it is zero: u may then be nothing but rounding.
    if switches['silu_norm'] == 'rms' and switches['score_fn'] in (
      'silu', 'tanh', 'relu', 'silu_clipped'
    ):  # fmt: skip
      continue
    try:
      resolve({**SMALL, **switches})
    except UserError:
      continue
    combinations.append(switches)
  return combinations


@pytest.mark.parametrize('index', range(20))
def test_random_combinations(index):
  check_deres(random_combinations(20)[index], norm=['rms', 'layer'][index % 2])


@pytest.mark.parametrize('per_layer', [1, 3])
@pytest.mark.parametrize('sites', ['sublayer', 'layer'])
def test_layers_of_another_number_of_sublayers(per_layer, sites):
  check_deres({'sites': sites}, norm='layer', per_layer=per_layer)


def attnres(block_layers, per_layer):
  c = config.base('model.dim=8,model.heads=2').unlock()
  c.attnres.block_layers = block_layers
  return connector(config.resolve(c), 'attnres', per_layer=per_layer)


@pytest.mark.parametrize('block_layers', [1, 2, 3, DEPTH], ids=lambda n: f'block_layers={n}')
def test_block_attnres(block_layers):
  branches = make_branches(DEPTH * PER_LAYER)
  module = attnres(block_layers, PER_LAYER)
  params = randomised(module)
  block = block_layers * PER_LAYER
  want = reference.block_attnres(double(params), 'rms', block, embedding(), branches)
  assert_same_run(run(module, params, branches), want)


def test_attnres_with_blocks_of_one_sublayer_is_full_attnres():
  branches = make_branches(DEPTH)
  module = attnres(1, 1)
  params = randomised(module)
  want = reference.full_attnres(double(params), 'rms', embedding(), branches)
  assert_same_run(run(module, params, branches), want)


# Invariants.


@pytest.mark.parametrize('include_partial', [False, True])
@pytest.mark.parametrize('block_layers', [1, 2, 3, DEPTH])
def test_sources_and_partial_add_up_to_the_stream(block_layers, include_partial):
  c = resolve({'block_layers': block_layers, 'include_partial': include_partial})
  branches = make_branches(DEPTH * PER_LAYER)
  module = connector(c)
  states = run(module, randomised(module), branches)[2]
  block = block_layers * PER_LAYER
  for done, h in enumerate(states):
    assert len(h.sources) == 1 + done // block
    assert (h.partial is None) == (done % block == 0)
    partial = 0 if h.partial is None else h.partial
    assert_close(sum(h.sources) + partial, h.x, 1e-6)


def test_finish_closes_an_unfinished_block():
  """With the gate shut the head reads the recall alone: four sources, the last of them short."""
  branches = make_branches(DEPTH * PER_LAYER)
  module = connector(resolve({'block_layers': 2}))
  params = randomised(module)
  params['gate'][-1] = -40.0
  _, out_BTD, states = run(module, params, branches)
  h = states[-1]
  assert len(h.sources) == 3 and h.partial is not None
  r_BTD = 0
  for b_BTD in np.float64([*h.sources, h.partial]):
    k_BTD = b_BTD / np.sqrt(np.mean(b_BTD**2, axis=-1, keepdims=True) + 1e-6)
    z_BT = k_BTD @ params['query'][-1]
    r_BTD = r_BTD + (z_BT / (1 + np.exp(-z_BT)))[..., None] * b_BTD
  norms = double(params['norms'])
  assert_close(out_BTD, reference.site_norm(norms, 'rms', r_BTD, DEPTH * PER_LAYER))


@pytest.mark.parametrize(
  ('switches', 'apart'),
  [
    ({}, True),
    ({'include_partial': True, 'score_fn': 'softmax'}, True),
    ({'query': 'static_per_token', 'compress': 'last'}, True),
    ({'query': 'lowrank_dynamic', 'gate': 'lowrank_dynamic', 'silu_norm': 'n_src'}, True),
    ({'compress': 'lowrank_key', 'gate': 'dense', 'identity_kind': 'matrix'}, True),
    ({'compress': 'token_mean'}, False),
  ],
  ids=in_words,
)
def test_tokens_meet_in_sublayers_only(switches, apart):
  """A connector moves nothing between tokens, save a block compressed to its mean token."""
  branches = make_branches(DEPTH * PER_LAYER, mixes=False)
  module = connector(resolve({**SMALL, **switches}))
  params = randomised(module)
  x_BTD = embedding()
  before = run(module, params, branches, x_BTD)[1]
  x_BTD[:, 0] = embedding(seed=9)[:, 0]
  after = run(module, params, branches, x_BTD)[1]
  assert np.max(np.abs(after[:, 0] - before[:, 0])) > 0.01
  assert (np.max(np.abs(after[:, 1:] - before[:, 1:])) < 1e-6) == apart


@pytest.mark.parametrize('name', ['prenorm', 'attnres', 'deres'])
def test_bfloat16_is_what_sublayers_see_and_float32_what_is_kept(name):
  branches = make_branches(DEPTH * PER_LAYER)
  c = resolve({'gate': 'lowrank_dynamic', 'query': 'lowrank_dynamic'})
  low, full = connector(c, name, dtype=jnp.bfloat16), connector(c, name)
  params = randomised(low)
  assert all(p.dtype == np.float32 for p in jax.tree.leaves(params))
  inputs, out_BTD, states = run(low, params, branches)
  assert {u_BTD.dtype for u_BTD in [*inputs, out_BTD]} == {jnp.dtype(jnp.bfloat16)}
  assert {leaf.dtype for leaf in jax.tree.leaves(states)} == {jnp.dtype(jnp.float32)}
  assert_close(inputs[1], run(full, params, branches)[0][1], 0.02)


# Sizes.


@pytest.mark.parametrize('depth', [3, DEPTH])
def test_parameter_counts(depth):
  """Queries and gates 2 (2L + 1) D beside the (2L + 1) D of the norms; AttnRes has no gates."""

  def count(name, **model):
    params = initial(connector(resolve(**model), name, depth=depth))
    return sum(p.size for p in jax.tree.leaves(params))

  rows = (2 * depth + 1) * D
  assert count('prenorm') == rows
  assert count('deres') == 3 * rows
  assert count('attnres') == 2 * rows
  assert count('deres', norm='layer') == 4 * rows


def test_constructed_directly_the_block_counts_sublayers():
  """`block` is the paper's S; config counts layers."""
  shape = Shape(sites=6, per_layer=2, tokens=T, dim=D)
  branches = make_branches(6)
  module = deres.DeRes(shape, 'rms', jnp.float32, block=4)
  states = run(module, initial(module), branches)[2]
  assert [len(h.sources) for h in states] == [1, 1, 1, 1, 2, 2, 2]
