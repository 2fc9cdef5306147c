# SPDX-License-Identifier: Apache-2.0
"""Paired comparisons against brute force and closed forms."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from deres_jax.metrics import exact as exact_lib
from deres_jax.metrics import paired

rng = np.random.default_rng(0)


@pytest.mark.parametrize('n', [1, 2, 5, 8])
def test_sign_flip_p_counts_all_flips(n):
  gaps = (0.3 + rng.standard_normal(n)).tolist()
  sums = [
    abs(sum(s * g for s, g in zip(signs, gaps, strict=True)))
    for signs in itertools.product((-1, 1), repeat=n)
  ]
  expected = sum(s >= abs(sum(gaps)) - 1e-12 for s in sums) / len(sums)
  assert paired.sign_flip_p(gaps) == pytest.approx(expected, abs=1e-15)


def test_sign_flip_p_of_one_sign_is_the_smallest():
  assert paired.sign_flip_p([0.1] * 5) == 2 / 32  # all are ties of rounding: 0.1 five times
  assert paired.sign_flip_p([]) is None and paired.sign_flip_p([0.0, 0.0]) == 1.0
  gaps = (0.5 + rng.standard_normal(24)).tolist()
  exact = stats.permutation_test(
    (gaps,), np.mean, permutation_type='samples', n_resamples=20000, rng=np.random.default_rng(1)
  ).pvalue
  assert paired.sign_flip_p(gaps) == pytest.approx(exact, abs=0.01)
  assert paired.sign_flip_p(gaps) == paired.sign_flip_p(gaps)


def brute_holm(p_values):
  """Holm 1979: rejects at level a while p <= a / (number of remaining tests)."""
  out = []
  for i in range(len(p_values)):
    for level in sorted({min(1.0, p * n) for p in p_values for n in range(1, len(p_values) + 1)}):
      order = sorted(range(len(p_values)), key=lambda j: p_values[j])
      rejected = []
      for rank, j in enumerate(order):
        if p_values[j] * (len(order) - rank) > level:
          break
        rejected.append(j)
      if i in rejected:
        out.append(level)
        break
    else:
      out.append(1.0)
  return out


@pytest.mark.parametrize('n', [1, 2, 3, 6])
def test_holm_equals_its_definition(n):
  for _ in range(20):
    p_values = (rng.random(n) ** 3).round(4).tolist()
    assert paired.holm(p_values) == pytest.approx(brute_holm(p_values))


def test_holm_keeps_order_and_skips_none():
  assert paired.holm([0.04, None, 0.01]) == pytest.approx([0.04, None, 0.02])
  assert paired.holm([0.02, 0.01, 0.03]) == pytest.approx([0.04, 0.03, 0.04])
  assert paired.holm([]) == [] and paired.holm([0.6, 0.9]) == [1.0, 1.0]


def test_t_interval_and_p_equal_scipy():
  gaps = (1 + rng.standard_normal(7)).tolist()
  mean, half = paired.t_interval(gaps)
  expected = stats.ttest_1samp(gaps, 0.0)
  assert (mean - half, mean + half) == pytest.approx(tuple(expected.confidence_interval(0.95)))
  assert paired.t_p(gaps) == pytest.approx(expected.pvalue)
  assert paired.t_interval([]) == (None, None) and paired.t_interval([0.5]) == (0.5, None)
  assert paired.t_p([0.5]) is None and paired.t_p([0.0, 0.0]) == 1.0 and paired.t_p([1, 1]) == 0.0


def test_compare_pairs_by_key():
  mine, base = {1: 0.71, 2: 0.73, 9: 0.5}, {2: 0.72, 1: 0.70, 3: 0.9}
  got = paired.compare(mine, base)
  assert (got['pairs'], got['difference']) == (2, pytest.approx(0.01))
  assert got['rela_impr_percent'] == pytest.approx(100 * (0.22 / 0.21 - 1))
  nothing = paired.compare({1: 0.7}, {2: 0.7})
  assert nothing == dict.fromkeys(nothing, None) | {'pairs': 0}
  assert paired.compare({1: 0.7}, {1: 0.5})['rela_impr_percent'] is None


def test_delong_agrees_with_the_covariance_and_the_bootstrap():
  labels_N = rng.random(3000) < 0.3
  base_N = labels_N + 1.5 * rng.standard_normal(3000)
  mine_N = base_N + 0.5 * rng.standard_normal(3000)
  got = paired.delong(labels_N, mine_N, base_N)
  assert got['difference'] == pytest.approx(
    exact_lib.auc(labels_N, mine_N) - exact_lib.auc(labels_N, base_N)
  )
  gaps = []
  for _ in range(300):
    rows = rng.integers(0, 3000, 3000)
    gaps.append(
      exact_lib.auc(labels_N[rows], mine_N[rows]) - exact_lib.auc(labels_N[rows], base_N[rows])
    )
  assert got['se'] == pytest.approx(np.std(gaps), rel=0.15)
  assert got['interval'] == pytest.approx(1.959964 * got['se'], rel=1e-6)
  assert got['p'] == pytest.approx(math.erfc(abs(got['difference']) / got['se'] / 2**0.5))
  same = paired.delong(labels_N, base_N, base_N)
  assert same['difference'] == 0 and same['p'] == 1.0
