# SPDX-License-Identifier: Apache-2.0
"""Layers, tokenizers and heads against loops and formulas.

Shapes: B rows, T tokens, D width, O outputs, F fields, E table-row width.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from arrays import (
  F32,
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

from deres_jax.models import heads, inputs, layers, tokenizer

# Dense maps, attention, feed-forward, norms.


@pytest.mark.parametrize('per_token', [False, True])
@pytest.mark.parametrize('use_bias', [False, True])
def test_token_dense(per_token, use_bias):
  module = layers.TokenDense(6, T if per_token else 0, F32, use_bias=use_bias)
  x_BTD = np.float32(normal(B, T, D))
  params = randomised(module, x_BTD)
  lead = (T,) if per_token else ()
  want = {'kernel': (*lead, D, 6)} | ({'bias': (*lead, 6)} if use_bias else {})
  assert leaf_shapes(params) == want
  want_BTO = reference.token_dense(
    double(params)['kernel'], np.float64(x_BTD), double(params).get('bias')
  )
  assert_close(module.apply({'params': params}, x_BTD), want_BTO)


@pytest.mark.parametrize('scale', [1.0, 0.25])
@pytest.mark.parametrize('per_token', [False, True])
def test_a_token_s_own_matrix_starts_with_the_fans_of_one_matrix(per_token, scale):
  """Xavier: variance 2 / (D + O). Counting tokens in a fan would shrink it T times."""
  tokens, width, outputs = 6, 64, 96
  module = layers.TokenDense(outputs, tokens if per_token else 0, F32, scale=scale)
  kernel = np.asarray(initial(module, jnp.zeros((1, tokens, width)))['kernel'])
  std = math.sqrt(scale * 2 / (width + outputs))
  for matrix_DO in kernel.reshape(-1, width, outputs):
    # 6,144 uniform draws: the standard error of their deviation is 0.6 %.
    assert np.std(matrix_DO) == pytest.approx(std, rel=0.03)
    assert np.max(np.abs(matrix_DO)) <= std * math.sqrt(3) * 1.001
  if per_token:
    assert np.abs(np.corrcoef(kernel.reshape(tokens, -1)) - np.eye(tokens)).max() < 0.1


@pytest.mark.parametrize('causal', [False, True])
@pytest.mark.parametrize('per_token', [False, True])
@pytest.mark.parametrize('n_heads', [1, 2, 4])
def test_attention(per_token, causal, n_heads):
  module = layers.Attention(T if per_token else 0, n_heads, causal, T, F32, out_scale=1.0)
  x_BTD = np.float32(normal(B, T, D))
  params = randomised(module, x_BTD, PLAIN)
  lead = (T,) if per_token else ()
  assert leaf_shapes(params) == {'qkv': {'kernel': (*lead, D, 3 * D)}, 'out': {'kernel': (D, D)}}
  want_BTD = reference.attention(double(params), n_heads, causal, np.float64(x_BTD))
  assert_close(module.apply({'params': params}, x_BTD, PLAIN), want_BTD)


@pytest.mark.parametrize('causal', [False, True])
def test_only_causal_attention_is_blind_to_later_tokens(causal):
  module = layers.Attention(T, 2, causal, T, F32, out_scale=1.0)
  x_BTD = np.float32(normal(B, T, D))
  params = randomised(module, x_BTD, PLAIN)
  before = module.apply({'params': params}, x_BTD, PLAIN)
  x_BTD[:, 2] += 1.0
  moved = np.max(np.abs(module.apply({'params': params}, x_BTD, PLAIN) - before), axis=(0, 2))
  assert (moved[:2] == 0).all() if causal else (moved[:2] > 1e-3).all()
  assert (moved[2:] > 1e-3).all()


@pytest.mark.parametrize('per_token', [False, True])
def test_shared_attention_does_not_know_the_order_of_tokens(per_token):
  module = layers.Attention(T if per_token else 0, 2, False, T, F32, out_scale=1.0)
  x_BTD, order = np.float32(normal(B, T, D)), np.array([2, 0, 3, 1])
  params = randomised(module, x_BTD, PLAIN)
  y_BTD = module.apply({'params': params}, x_BTD, PLAIN)
  error = np.max(np.abs(module.apply({'params': params}, x_BTD[:, order], PLAIN) - y_BTD[:, order]))
  assert error > 0.01 if per_token else error < 1e-6


@pytest.mark.parametrize('ratio', [1, 4])
@pytest.mark.parametrize('per_token', [False, True])
def test_feed_forward(per_token, ratio):
  module = layers.FeedForward(T if per_token else 0, ratio, F32, out_scale=1.0)
  x_BTD = np.float32(normal(B, T, D))
  params = randomised(module, x_BTD, PLAIN)
  lead, M = ((T,) if per_token else ()), ratio * D
  assert leaf_shapes(params) == {'up': {'kernel': (*lead, D, M)}, 'down': {'kernel': (*lead, M, D)}}
  want_BTD = reference.feed_forward(double(params), np.float64(x_BTD))
  assert_close(module.apply({'params': params}, x_BTD, PLAIN), want_BTD)


@pytest.mark.parametrize('kind', ['rms', 'layer'])
def test_site_norms(kind):
  sites = 3
  module = layers.SiteNorms(sites, D, kind, F32)
  x_BTD = 5 * normal(B, T, D) + 2
  x_BTD[0, 0] = 0  # eps, and not a NaN
  start = initial(module, jnp.float32(x_BTD), 0)
  want = {'scale': np.ones((sites, D))} | (
    {'bias': np.zeros((sites, D))} if kind == 'layer' else {}
  )
  jax.tree.map(np.testing.assert_array_equal, start, want)
  params = randomised(module, jnp.float32(x_BTD), 0)
  for site in range(sites):
    got = module.apply({'params': params}, jnp.float32(x_BTD), site)
    assert_close(got, reference.site_norm(double(params), kind, x_BTD, site))


@pytest.mark.parametrize('kind', ['rms', 'layer'])
def test_site_norms_reckon_in_float32_and_answer_in_dtype(kind):
  module = layers.SiteNorms(1, D, kind, jnp.bfloat16)
  x_BTD = np.float32(300 + normal(B, T, D))  # bfloat16 has steps of 2 here
  params = {'scale': np.ones((1, D), np.float32)}
  if kind == 'layer':
    params['bias'] = np.zeros((1, D), np.float32)
  got = module.apply({'params': params}, x_BTD, 0)
  assert got.dtype == jnp.bfloat16
  assert_close(got, reference.site_norm(double(params), kind, np.float64(x_BTD), 0), 0.01)


@pytest.mark.parametrize(
  'module',
  [
    layers.Attention(T, 2, True, T, jnp.bfloat16, out_scale=1.0),
    layers.FeedForward(T, 2, jnp.bfloat16, out_scale=1.0),
  ],
  ids=['attention', 'feed_forward'],
)
def test_sublayers_compute_in_bfloat16_from_float32_parameters(module):
  x_BTD = np.float32(normal(B, T, D))
  params = randomised(module, x_BTD, PLAIN)
  low = module.apply({'params': params}, x_BTD, PLAIN)
  full = dataclasses.replace(module, dtype=F32).apply({'params': params}, x_BTD, PLAIN)
  assert (low.dtype, full.dtype) == (jnp.bfloat16, F32)
  assert 1e-4 < np.max(np.abs(low - full)) / np.max(np.abs(full)) < 0.05


# Dropout.


def test_dropout_is_off_at_rate_0_and_without_keys():
  x_BTD = jnp.asarray(normal(B, T, D), F32)
  ctx = inputs.Context(row_keys(B))
  assert ctx.train and not PLAIN.train
  np.testing.assert_array_equal(layers.dropout(x_BTD, 0.0, ctx, 1), x_BTD)
  np.testing.assert_array_equal(layers.dropout(x_BTD, 0.5, PLAIN, 1), x_BTD)


def test_dropout_is_a_function_of_the_row_s_key_and_the_place():
  """Not of the batch around the row, so neither micro-batches nor the mesh change it."""
  x_BTD, keys_B = jnp.ones((8, T, D)), row_keys(8)

  def drop(rows, salt=1):
    return np.asarray(layers.dropout(x_BTD[rows], 0.5, inputs.Context(keys_B[rows]), salt))

  whole = drop(np.arange(8))
  np.testing.assert_array_equal(whole, drop(np.arange(8)))
  some = np.array([6, 1, 5, 5, 0, 7, 1, 2])
  np.testing.assert_array_equal(drop(some), whole[some])
  assert len({row.tobytes() for row in whole}) == 8  # each row draws its own
  assert np.mean(drop(np.arange(8), salt=2) == whole) == pytest.approx(0.5, abs=0.2)


@pytest.mark.parametrize('rate', [0.1, 0.75])
def test_dropout_keeps_the_mean(rate):
  rows, width = 50, 400
  ctx = inputs.Context(row_keys(rows))
  out = np.asarray(layers.dropout(jnp.full((rows, width), 3.0), rate, ctx, salt=0))
  np.testing.assert_allclose(np.unique(out), [0.0, 3 / (1 - rate)], rtol=1e-6)
  # 20,000 draws: five standard errors.
  error = 5 * math.sqrt(rate * (1 - rate) / out.size)
  assert np.mean(out == 0) == pytest.approx(rate, abs=error)
  assert np.mean(out) == pytest.approx(3.0, abs=3 * error / (1 - rate))
  assert layers.dropout(jnp.ones((rows, 4), jnp.bfloat16), rate, ctx, 0).dtype == jnp.bfloat16


# Tokenizers and heads.


def test_field_tokens_are_a_map_of_each_field_s_row_then_a_norm():
  module = tokenizer.FieldTokens(F, D, F32)
  rows_BFE = np.float32(normal(B, F, E))
  params = randomised(module, rows_BFE)
  assert leaf_shapes(params) == {
    'map': {'kernel': (F, E, D), 'bias': (F, D)},
    'norm': {'scale': (1, D)},
  }
  p = double(params)
  x_BTD = reference.token_dense(p['map']['kernel'], np.float64(rows_BFE), p['map']['bias'])
  want_BTD = reference.site_norm(p['norm'], 'rms', x_BTD, 0)
  assert_close(module.apply({'params': params}, rows_BFE), want_BTD)


def test_autosplit_is_one_map_of_all_rows_cut_into_tokens():
  module = tokenizer.AutoSplit(T, D, F32)
  rows_BFE = np.float32(normal(B, F, E))
  params = randomised(module, rows_BFE)
  assert leaf_shapes(params) == {
    'map': {'kernel': (F * E, T * D), 'bias': (T * D,)},
    'norm': {'scale': (1, D)},
  }
  p = double(params)
  x_BTD = np.zeros((B, T, D))
  for b, t, d in np.ndindex(B, T, D):
    column = p['map']['kernel'][:, t * D + d].reshape(F, E)
    x_BTD[b, t, d] = np.sum(rows_BFE[b] * column) + p['map']['bias'][t * D + d]
  want_BTD = reference.site_norm(p['norm'], 'rms', x_BTD, 0)
  assert_close(module.apply({'params': params}, rows_BFE), want_BTD)


@pytest.mark.parametrize('make', [tokenizer.FieldTokens, tokenizer.AutoSplit])
@pytest.mark.parametrize('size', [0.0, 0.01, 1.0])
def test_tokens_start_at_rms_1_whatever_the_size_of_rows(make, size):
  tokens, width = 20, 32
  module = make(tokens, width, F32)
  rows_BFE = jnp.asarray(size * normal(B, tokens, E), F32)
  params = initial(module, rows_BFE)
  assert np.std(params['map']['bias']) == pytest.approx(1.0, abs=0.15)
  x_BTD = module.apply({'params': params}, rows_BFE)
  assert x_BTD.shape == (B, tokens, width) and x_BTD.dtype == F32
  np.testing.assert_allclose(np.sqrt(np.mean(np.square(x_BTD), axis=-1)), 1.0, rtol=1e-3)
  # Positions tell tokens apart, and small rows move them little.
  assert np.max(np.abs(np.corrcoef(x_BTD[0]) - np.eye(tokens))) < 0.95
  assert (np.max(np.abs(x_BTD[0] - x_BTD[1])) < 0.1) == (size < 1)


@pytest.mark.parametrize('pool', ['mean', 'concat'])
def test_logit_head(pool):
  module = heads.LogitHead(pool, prior_logit=-1.5, tokens=T)
  x_BTD = np.float32(normal(B, T, D))
  params = randomised(module, x_BTD, PLAIN)
  assert leaf_shapes(params) == {'kernel': (D if pool == 'mean' else T * D,), 'bias': ()}
  p = double(params)
  kernel_TD = np.tile(p['kernel'] / T, (T, 1)) if pool == 'mean' else p['kernel'].reshape(T, D)
  want_B = [np.sum(np.float64(x_BTD[b]) * kernel_TD) + p['bias'] for b in range(B)]
  assert_close(module.apply({'params': params}, x_BTD, PLAIN), want_B)
  start = initial(module, x_BTD, PLAIN)
  assert start['bias'] == -1.5 and 0 < np.std(start['kernel']) < 0.04
  assert module.apply({'params': start}, x_BTD.astype(jnp.bfloat16), PLAIN).dtype == F32
