# SPDX-License-Identifier: Apache-2.0
"""Schedules and the dense optimizer against plain arithmetic."""

import jax.numpy as jnp
import numpy as np
import pytest

from deres_jax.config import fields as fields_lib
from deres_jax.training import optimizer


def factors(kind, steps, **fields):
  o = fields_lib.Optim(schedule=kind, **fields)
  factor = optimizer.schedule(o, steps)
  return np.array([float(factor(s)) for s in range(steps)])


def test_constant_with_warmup_rises_to_one_and_stays():
  np.testing.assert_allclose(factors('constant', 10, warmup=0.4), [0.25, 0.5, 0.75] + [1] * 7)
  np.testing.assert_allclose(factors('constant', 5), np.ones(5))


def test_linear_and_cosine_fall_to_zero_over_what_is_left():
  left = np.arange(8) / 8
  np.testing.assert_allclose(factors('linear', 8), 1 - left, atol=1e-6)
  np.testing.assert_allclose(factors('cosine', 8), (1 + np.cos(np.pi * left)) / 2, atol=1e-6)
  np.testing.assert_allclose(factors('linear', 10, warmup=0.2)[2:], 1 - left, atol=1e-6)


def test_wsd_is_stable_and_then_falls_in_its_last_share():
  want = [1.0] * 6 + [1.0, 0.75, 0.5, 0.25]
  np.testing.assert_allclose(factors('wsd', 10, decay=0.4), want, atol=1e-6)
  with_warmup = factors('wsd', 10, decay=0.4, warmup=0.2)
  np.testing.assert_allclose(with_warmup, [0.5, 1.0, *want[2:]], atol=1e-6)
  np.testing.assert_allclose(factors('wsd', 10, decay=0.0), np.ones(10))


PARAMS = {
  'stack': {
    'connector': {'query': jnp.ones(3), 'gate': jnp.ones(3), 'norms': {'scale': jnp.ones(3)}},
    'ffn_0': {'up': {'kernel': jnp.ones((2, 3)), 'bias': jnp.ones(3)}},
  }
}


def test_gates_and_queries_have_rates_of_their_own_and_only_kernels_decay():
  rates = optimizer.rates(PARAMS, 10.0, 2.0)['stack']
  assert (rates['connector']['gate'], rates['connector']['query']) == (10.0, 2.0)
  assert rates['ffn_0']['up']['kernel'] == rates['connector']['norms']['scale'] == 1.0
  decays = optimizer.decays(PARAMS)['stack']
  assert decays['ffn_0']['up'] == {'kernel': True, 'bias': False}
  assert decays['connector'] == {'query': False, 'gate': False, 'norms': {'scale': False}}


@pytest.mark.parametrize('clip', [0.0, 0.5])
def test_one_step_of_adamw(clip):
  """Step 1 of Adam moves every parameter by its rate times the gradient's sign; decay apart."""
  o = fields_lib.Optim(
    dense_lr=0.1, weight_decay=0.01, clip_norm=clip, gate_lr_mult=3.0, query_lr_mult=2.0
  )
  tx = optimizer.dense(o, optimizer.schedule(o, 10), PARAMS)
  grads = {
    'stack': {
      'connector': {
        'query': jnp.full(3, 2.0),
        'gate': jnp.full(3, -2.0),
        'norms': {'scale': jnp.full(3, 5.0)},
      },
      'ffn_0': {'up': {'kernel': jnp.full((2, 3), -1.0), 'bias': jnp.full(3, 1.0)}},
    }
  }
  updates, _ = tx.update(grads, tx.init(PARAMS), PARAMS)
  got = updates['stack']
  np.testing.assert_allclose(got['connector']['query'], -0.1 * 2.0, rtol=1e-5)
  np.testing.assert_allclose(got['connector']['gate'], 0.1 * 3.0, rtol=1e-5)
  np.testing.assert_allclose(got['connector']['norms']['scale'], -0.1, rtol=1e-5)
  np.testing.assert_allclose(got['ffn_0']['up']['kernel'], 0.1 * (1 - 0.01), rtol=1e-5)
  np.testing.assert_allclose(got['ffn_0']['up']['bias'], -0.1, rtol=1e-5)


def test_clipping_bounds_the_global_norm():
  """Adam hides a common factor in its first step but not in its moments."""
  o = fields_lib.Optim(clip_norm=1.0)
  tx = optimizer.dense(o, optimizer.schedule(o, 10), {'kernel': jnp.zeros(4)})
  _, state = tx.update(
    {'kernel': jnp.full(4, 50.0)}, tx.init({'kernel': jnp.zeros(4)}), {'kernel': jnp.zeros(4)}
  )
  mu = next(s.mu for s in state if hasattr(s, 'mu'))
  np.testing.assert_allclose(jnp.linalg.norm(mu['kernel']), 0.1, rtol=1e-5)
