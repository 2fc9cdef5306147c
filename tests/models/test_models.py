# SPDX-License-Identifier: Apache-2.0
"""Whole models: composition, parameter counts, noise, remat, mistakes."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from arrays import (
  F32,
  KEY,
  PLAIN,
  B,
  D,
  E,
  F,
  T,
  assert_close,
  double,
  initial,
  leaf_shapes,
  normal,
  randomised,
  row_keys,
)

from deres_jax import config, models
from deres_jax.config import fields as fields_lib
from deres_jax.core.errors import UserError
from deres_jax.models import inputs as inputs_lib
from deres_jax.models import layers
from deres_jax.models.backbones import onetrans

# Whole models.


def resolve(**fields):
  """A small config; fields of config.model."""
  c = config.base()
  c.model.update({'depth': 2, 'dim': D, 'heads': 2, 'ffn_ratio': 2, 'embed_dim': E, **fields})
  return config.resolve(c)


def build(**fields):
  return models.build(resolve(**fields), models.Layout(F), prior_logit=-1.0)


ROWS = np.float32(normal(B, F, E, seed=7))


def shapes_of(module):
  return leaf_shapes(jax.eval_shape(lambda: module.init(KEY, ROWS, PLAIN))['params'])


def count(shapes):
  sizes = jax.tree.leaves(shapes, is_leaf=lambda leaf: isinstance(leaf, tuple))
  return sum(math.prod(shape) for shape in sizes)


@pytest.mark.parametrize('connector', ['prenorm', 'attnres', 'deres'])
@pytest.mark.parametrize('tokenizer_', ['field', 'autosplit'])
@pytest.mark.parametrize('norm', ['rms', 'layer'])
def test_parameters_of_onetrans(connector, tokenizer_, norm):
  L, r, tokens = 3, 4, F if tokenizer_ == 'field' else T
  head = 'mean' if norm == 'rms' else 'concat'
  sizes = {'depth': L, 'ffn_ratio': r, 'tokenizer': tokenizer_, 'tokens': T}
  shapes = shapes_of(build(connector=connector, norm=norm, head=head, **sizes))
  dense = {name: s for name, s in shapes['stack'].items() if name != 'connector'}
  assert count(dense) == L * (tokens * (3 + 2 * r) * D**2 + D**2)
  assert set(dense) == {f'{kind}_{l}' for l in range(L) for kind in ('attention', 'ffn')}
  sites = (2 * L + 1) * D
  norms = sites * (2 if norm == 'layer' else 1)
  routing = {'prenorm': 0, 'attnres': sites, 'deres': 2 * sites}[connector]
  assert count(shapes['stack']['connector']) == norms + routing
  inputs = E if tokenizer_ == 'field' else F * E
  assert count(shapes['tokens']) == tokens * (inputs * D + D) + D
  assert count(shapes['head']) == (D if head == 'mean' else tokens * D) + 1
  assert set(shapes) == {'tokens', 'stack', 'head'}


def test_maps_into_the_stream_start_smaller_with_depth():
  """By sqrt(2 L) in deviation, the output map and the second feed-forward matrix only."""
  depth, width = 8, 32
  subs = onetrans.onetrans(resolve(depth=depth, dim=width, ffn_ratio=4), T, 0, F32)
  x_BTD = jnp.zeros((1, T, width))
  std = {}
  for sub in subs[:2]:
    params = initial(sub.module(**sub.sizes), x_BTD, PLAIN)
    std |= {name: float(np.std(leaf['kernel'])) for name, leaf in params.items()}
  small = math.sqrt(1 / (2 * depth))
  assert std['out'] == pytest.approx(small * math.sqrt(1 / width), rel=0.05)
  assert std['down'] == pytest.approx(small * math.sqrt(2 / (5 * width)), rel=0.05)
  assert std['up'] == pytest.approx(math.sqrt(2 / (5 * width)), rel=0.05)


def numpy_branches(stack, depth, n_heads, causal):
  branches = []
  for l in range(depth):
    attention = stack[f'attention_{l}']
    branches += [
      functools.partial(reference.attention, attention, n_heads, causal),
      functools.partial(reference.feed_forward, stack[f'ffn_{l}']),
    ]
  return branches


@pytest.mark.parametrize(('connector', 'causal'), [('prenorm', False), ('deres', True)])
def test_a_whole_model_is_tokens_stack_and_head_in_order(connector, causal):
  """Logits of OneTrans from its parameters by the loops of reference.py."""
  module = build(connector=connector, causal=causal, depth=3)
  params = randomised(module, ROWS, PLAIN)
  p = double(params)
  x_BTD = reference.token_dense(p['tokens']['map']['kernel'], ROWS, p['tokens']['map']['bias'])
  x_BTD = reference.site_norm(p['tokens']['norm'], 'rms', x_BTD, 0)
  branches = numpy_branches(p['stack'], 3, 2, causal)
  if connector == 'prenorm':
    _, x_BTD = reference.prenorm(p['stack']['connector'], 'rms', x_BTD, branches)
  else:
    switches = dataclasses.asdict(fields_lib.DeRes())
    _, x_BTD = reference.deres(p['stack']['connector'], switches, 'rms', 2, x_BTD, branches)
  want_B = np.mean(x_BTD, axis=1) @ p['head']['kernel'] + p['head']['bias']
  got_B = module.apply({'params': params}, ROWS, PLAIN)
  assert got_B.shape == (B,) and got_B.dtype == F32
  assert_close(got_B, want_B)


def test_remat_changes_neither_parameters_nor_outputs_nor_gradients():
  plain, remat = build(remat=False, depth=1), build(remat=True, depth=1)
  assert shapes_of(plain) == shapes_of(remat)
  params = randomised(plain, ROWS, PLAIN)
  jax.tree.map(
    np.testing.assert_array_equal, initial(plain, ROWS, PLAIN), initial(remat, ROWS, PLAIN)
  )

  def loss(module, params):
    return jnp.sum(jnp.square(module.apply({'params': params}, ROWS, PLAIN)))

  def step(module):
    return jax.value_and_grad(functools.partial(loss, module))

  programs = [str(jax.make_jaxpr(functools.partial(loss, m))(params)) for m in (plain, remat)]
  assert ['remat' in text or 'checkpoint' in text for text in programs] == [False, True]
  got, want = jax.jit(step(remat))(params), jax.jit(step(plain))(params)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, want)


def test_training_noise_belongs_to_rows():
  """With dropout a row's logit depends on its key and not on the rows beside it."""
  module = build(dropout=0.3, embed_dropout=0.2)
  params = randomised(module, ROWS, PLAIN)
  keys_B = row_keys(B)

  def logits(rows, keys):
    return np.asarray(module.apply({'params': params}, ROWS[rows], inputs_lib.Context(keys)))

  whole = logits(np.arange(B), keys_B)
  others = np.array([2, 0, 2])
  np.testing.assert_allclose(logits(others, keys_B[others]), whole[others], rtol=1e-5)
  assert np.all(np.abs(logits(np.arange(B), row_keys(B, seed=4)) - whole) > 1e-4)


@pytest.mark.parametrize('where', ['dropout', 'embed_dropout'])
def test_dropout_falls_on_branches_and_on_table_rows(where):
  """At a rate of nearly 1 nothing but what it falls on is gone."""
  module = build(connector='prenorm', **{where: 0.9999999})
  params = randomised(module, ROWS, PLAIN)
  got_B = module.apply({'params': params}, ROWS, inputs_lib.Context(row_keys(B)))
  if where == 'dropout':
    parts = module.bind({'params': params})
    norms = double(params['stack']['connector']['norms'])
    x_BTD = reference.site_norm(norms, 'rms', np.float64(parts.tokens(ROWS)), 4)
    want_B = np.mean(x_BTD, axis=1) @ params['head']['kernel'] + params['head']['bias']
  else:
    want_B = module.apply({'params': params}, 0 * ROWS, PLAIN)
  assert_close(got_B, want_B)


def test_each_place_that_drops_draws_its_own_noise(monkeypatch):
  """No two calls in one forward pass share a salt."""
  salts, plain = [], layers.dropout

  def spy(x, rate, ctx, salt):
    salts.append(salt)
    return plain(x, rate, ctx, salt)

  monkeypatch.setattr(layers, 'dropout', spy)
  module = build(dropout=0.3, embed_dropout=0.2, depth=3)
  module.apply({'params': randomised(module, ROWS, PLAIN)}, ROWS, PLAIN)
  salts = salts[len(salts) // 2 :]  # shapes were traced first
  assert len(salts) == len(set(salts)) == 2 * 3 + 1


@pytest.mark.parametrize(
  ('fields', 'words'),
  [
    ({'backbone': 'onetran'}, ['onetran', *models.BACKBONES]),
    ({'connector': 'denres'}, ['denres', *models.CONNECTORS]),
    ({'backbone': 'lr', 'connector': 'denres', 'embed_dim': 1}, ['denres', *models.CONNECTORS]),
    ({'backbone': 'lr', 'embed_dim': 16}, ['lr', 'model.embed_dim=1', '16']),
  ],
)
def test_a_model_that_cannot_be_built_says_what_can(fields, words):
  with pytest.raises(UserError) as e:
    build(**fields)
  text = str(e.value)
  assert '\n' not in text and all(word in text for word in words), text


def test_lr_is_built_with_rows_of_one_weight():
  module = build(backbone='lr', embed_dim=1)
  rows_BF1 = ROWS[:, :, :1]
  got_B = module.apply({'params': initial(module, rows_BF1, PLAIN)}, rows_BF1, PLAIN)
  assert_close(got_B, np.sum(rows_BF1, axis=(1, 2)) - 1.0)
