# SPDX-License-Identifier: Apache-2.0
"""Intervals of scaling laws: coverage on planted curves, brute-force profiles, open sides."""

import dataclasses
import math

import numpy as np
import pytest
from marks import slow
from scipy import optimize, special
from test_laws import ALPHA, BUDGETS, TRUTH, columns, curve, fitted, made

from deres_jax.scaling.laws import bootstrap, family, fits, intervals, targets

TRIALS = 500
GAMMA_A, GAMMA_B = (TRUTH[name][0] for name in 'AB')


def simulated(noise, seeds, law, trials=TRIALS, seed=7):
  """Fits of many sweeps over the planted curves."""
  p = family.problem(made(0.0, seeds))
  rng = np.random.default_rng(seed)
  auc_N = p.centre + p.scale * p.y_TN[0]
  auc_TN = auc_N + noise / seeds**0.5 * rng.standard_normal((trials, len(auc_N)))
  pure_T = noise**2 * rng.chisquare(p.df_pure, trials) if p.df_pure else np.zeros(trials)
  p = p.with_auc(auc_TN, pure_T)
  return fits.fit(p, family.form(law, p))


def truths(found):
  """Returns targets and their true values in units of h."""
  p, f = found.p, found.f
  goal = curve(*TRUTH['A'], BUDGETS[-1])
  matching = BUDGETS[0] * ((ALPHA - goal) / TRUTH['B'][1]) ** (-1 / GAMMA_B)
  slope = TRUTH['B'][1] * (p.compute0 / BUDGETS[0]) ** -GAMMA_B * GAMMA_B
  return {
    'gamma A': (targets.gamma(p, f, 0), GAMMA_A),
    'gamma B': (targets.gamma(p, f, 1), GAMMA_B),
    'ratio': (targets.ratio(p, f, 1, 0), math.log(GAMMA_B / GAMMA_A)),
    'difference': (targets.difference(p, f, 1, 0), GAMMA_B - GAMMA_A),
    'alpha': (targets.alpha(p, f), -p.scale / (ALPHA - p.centre)),
    'match': (targets.compute_to_match(p, f, 1, 0, BUDGETS[-1]), math.log(matching / p.compute0)),
    'slope': (targets.slope_per_doubling(p, f, 1), slope / p.scale),
  }


@pytest.mark.parametrize(
  ('law', 'noise', 'seeds'),
  [
    ('saturating', 1e-4, 5),
    ('saturating', 3e-4, 3),
    slow('saturating', 3e-4, 1),
    ('saturating_free', 1e-4, 3),
  ],
)
def test_95_percent_profiles_cover_planted_values(law, noise, seeds):
  """92 to 98 % of 500 sweeps: within three standard errors of 95 %."""
  found = simulated(noise, seeds, law)
  for name, (target, true) in truths(found).items():
    _, low_T, high_T, _, _ = intervals.profile_bounds(found, target)
    share = ((low_T <= true) & (true <= high_T)).mean()
    assert 0.92 <= share <= 0.98, (name, share)


@pytest.mark.slow
@pytest.mark.parametrize(
  ('law', 'noise'),
  [('saturating', 1e-4), ('saturating', 3e-4), ('saturating', 1e-3), ('saturating_free', 1e-4)],
)
def test_95_percent_profiles_cover_planted_values_closely(law, noise):
  """5,000 sweeps: 93.5 to 97.5 %, above 95 where the bound alpha = infinity opens a side."""
  found = simulated(noise, 3, law, 5000)
  for name, (target, true) in truths(found).items():
    at_T, low_T, high_T, _, _ = intervals.profile_bounds(found, target)
    share = ((low_T <= true) & (true <= high_T) | np.isnan(at_T)).mean()
    assert 0.935 <= share <= 0.975, (name, share)


def test_true_hypotheses_are_rejected_one_time_in_twenty():
  shared, free = (simulated(3e-4, 3, law, 2000) for law in ('saturating', 'saturating_free'))
  assert 0.03 <= (shared.lack_T < 0.05).mean() <= 0.07
  p = [fits.shared_alpha_p(shared, free, t) for t in range(2000)]
  assert 0.03 <= (np.array(p) < 0.05).mean() <= 0.07


def test_90_percent_intervals_are_narrower_and_cover_less():
  found = simulated(3e-4, 3, 'saturating')
  target, true = truths(found)['ratio']
  _, low_T, high_T, _, _ = intervals.profile_bounds(found, target, 0.9)
  _, wide_low_T, wide_high_T, _, _ = intervals.profile_bounds(found, target)
  assert (wide_low_T < low_T).all() and (high_T < wide_high_T).all()
  assert 0.86 <= ((low_T <= true) & (true <= high_T)).mean() <= 0.94


def test_a_shared_alpha_recovers_the_ratio_where_free_ones_do_not():
  shared, free = (simulated(1e-4, 3, law) for law in ('saturating', 'saturating_free'))
  spread = []
  for found in (shared, free):
    ratio_T = np.exp(targets.estimate(found.curve_params, targets.ratio(found.p, found.f, 1, 0)))
    low, middle, high = np.quantile(ratio_T, [0.1, 0.5, 0.9])
    assert middle == pytest.approx(GAMMA_B / GAMMA_A, rel=0.03)
    spread.append(high - low)
  assert spread[0] < 0.06 and spread[1] > 10 * spread[0]
  one = fitted(made(1e-4, seeds=3, seed=11))
  got = intervals.profile(one, targets.ratio(one.p, one.f, 1, 0))
  assert 1 < got.low <= GAMMA_B / GAMMA_A <= got.high < got.low + 0.15


# Profiles against an independent search.


def brute_force(rows, found, held, h):
  """Minimises the sum of squares under a constraint by SLSQP from many starts."""
  _, connector_R, compute_R, auc_R = columns(rows)
  t_R = np.log(compute_R / found.p.compute0)

  def unpack(q):
    return q[0], np.exp(q[1:3]), np.exp(q[3:5])

  def cost(q):
    alpha, beta, gamma = unpack(q)
    r = alpha - beta[connector_R] * np.exp(-np.minimum(gamma, 9)[connector_R] * t_R) - auc_R
    return float(r @ r) / found.p.scale**2

  best = math.inf
  for factor in (0.6, 0.8, 1.0, 1.2, 1.5):
    start = [found.alpha_TK[0, 0]]
    start += [math.log(start[0] - found.auc(k, found.p.compute0)) for k in range(2)]
    start += np.log(found.gamma_TK[0] * factor).tolist()
    got = optimize.minimize(
      cost, start, method='SLSQP', options={'ftol': 1e-15, 'maxiter': 1000},
      constraints={'type': 'eq', 'fun': lambda q: held(*unpack(q)) - h},
    )  # fmt: skip
    # SLSQP may stop in its line search at the optimum: check the constraint instead.
    if abs(held(*unpack(got.x)) - h) < 1e-8:
      best = min(best, got.fun)
  return best


@pytest.mark.parametrize(
  ('make', 'held', 'unit'),
  [
    (lambda p, f: targets.gamma(p, f, 1), lambda a, b, g: g[1], float),
    (lambda p, f: targets.ratio(p, f, 1, 0), lambda a, b, g: math.log(g[1] / g[0]), math.log),
    slow(lambda p, f: targets.difference(p, f, 1, 0), lambda a, b, g: g[1] - g[0], float),
    (lambda p, f: targets.alpha(p, f), lambda a, b, g: a, float),
  ],
)
def test_profiles_end_where_the_cost_is_f(make, held, unit):
  rows = made(3e-4, seeds=3, seed=5)
  found = fitted(rows)
  got = intervals.profile(found, make(found.p, found.f))
  df = int(found.df_T[0])
  best = float(found.rss_T[0] + found.p.pure_T[0])
  for end in (got.low, got.high):
    over = brute_force(rows, found, held, unit(end)) - best
    assert over / (best / df) == pytest.approx(special.fdtri(1, df, 0.95), rel=2e-3)


def test_profile_of_a_line_is_its_t_interval():
  """Linear in its parameters: the profile is the textbook interval of a slope."""
  rows = made(3e-4, truth={'A': TRUTH['A']})
  found = fitted(rows, 'log_linear')
  _, _, compute_R, auc_R = columns(rows)
  got = intervals.profile(found, targets.slope_per_doubling(found.p, found.f, 0))
  x = np.log2(compute_R)
  (b, a), n = np.polyfit(x, auc_R, 1), len(x)
  lack = found.lack_T[0]
  assert lack > 0.05
  s = math.sqrt(((auc_R - a - b * x) ** 2).sum() / (n - 2))
  half = special.stdtrit(n - 2, 0.975) * s / math.sqrt(((x - x.mean()) ** 2).sum())
  assert got.estimate == pytest.approx(b, rel=1e-8)
  assert (got.low, got.high) == pytest.approx((b - half, b + half), rel=1e-5)


def test_slope_at_another_compute_equals_the_curves_slope():
  found = fitted(made(1e-4))
  for compute in (BUDGETS[0], BUDGETS[-1]):
    t_N = found.p.t_N - found.p.log_compute(compute)
    p = dataclasses.replace(found.p, t_N=t_N, compute0=compute)
    moved = fits.fit(p, found.f)
    got = intervals.profile(moved, targets.slope_per_doubling(p, found.f, 1))
    step = 1e-4
    there = [found.auc(1, compute * 2 ** (s * step)) for s in (-1, 1)]
    assert got.estimate == pytest.approx((there[1] - there[0]) / (2 * step), rel=1e-4)
    assert moved.gamma_TK == pytest.approx(found.gamma_TK, rel=1e-6)


def test_compute_to_match_meets_the_reference_and_itself():
  found = fitted(made(2e-4))
  got = intervals.profile(found, targets.compute_to_match(found.p, found.f, 1, 0, BUDGETS[-1]))
  assert found.auc(1, got.estimate) == pytest.approx(found.auc(0, BUDGETS[-1]), abs=1e-9)
  assert got.low < got.estimate < got.high < BUDGETS[-1]
  same = intervals.profile(found, targets.compute_to_match(found.p, found.f, 0, 0, BUDGETS[-1]))
  assert same.estimate == pytest.approx(BUDGETS[-1], rel=1e-9)


# Open sides.


def test_noise_opens_unbounded_sides():
  found = fitted(made(3e-3, seeds=2, seed=1))
  p, f = found.p, found.f
  gamma = intervals.profile(found, targets.gamma(p, f, 0))
  assert gamma.low_open and gamma.low == 0.0
  alpha = intervals.profile(found, targets.alpha(p, f))
  assert alpha.high_open and alpha.high == math.inf and alpha.low > p.centre
  assert alpha.as_json()['high'] is None and alpha.as_json()['high_open'] is True
  # The line is not excluded, and it is the limit of small gammas.
  line = fitted(made(3e-3, seeds=2, seed=1), 'log_linear')
  assert (line.rss_T[0] - found.rss_T[0]) / found.s2_T[0] < special.fdtri(1, found.df_T[0], 0.95)


def test_difference_may_vanish_if_both_exponents_may():
  found = fitted(made(2e-3, seeds=4, seed=3))
  gammas = [intervals.profile(found, targets.gamma(found.p, found.f, k)) for k in (0, 1)]
  assert all(x.low_open for x in gammas)
  got = intervals.profile(found, targets.difference(found.p, found.f, 1, 0))
  assert got.low == 0.0 and got.low_open
  ratio = intervals.profile(found, targets.ratio(found.p, found.f, 1, 0))
  assert ratio.low > 1 and not ratio.low_open  # the slopes differ nevertheless


def test_ratio_to_a_zero_exponent_is_open_on_both_sides():
  rows = [
    family.Observation(name, c, 0.75 + sign * 0.003 * math.log(c / BUDGETS[0]) - 1e-4 * (i % 2), 0)
    for name, sign in (('up', 1), ('down', -1))
    for i, c in enumerate(BUDGETS[::2])
  ]
  found = fitted(rows)
  got = intervals.profile(found, targets.ratio(found.p, found.f, 0, 1))
  assert got.low_open and got.high_open and got.as_json()['estimate'] is None


def test_auc_above_the_asymptote_is_never_matched():
  rows = made(2e-5, seeds=5, truth={'A': (0.3, 0.05), 'B': TRUTH['B']}, alphas={'A': 0.76})
  found = fitted(rows, 'saturating_free')
  assert found.auc(1, BUDGETS[-1]) > found.alpha_TK[0, 0]
  got = intervals.profile(found, targets.compute_to_match(found.p, found.f, 0, 1, BUDGETS[-1]))
  assert math.isnan(got.estimate) and got.high_open and got.high == math.inf


# Tests and bootstraps.


def test_constraints_are_rejected_outside_the_profile():
  found = simulated(3e-4, 3, 'saturating', 40)
  ratio = targets.ratio(found.p, found.f, 1, 0)
  _, low_T, high_T, _, _ = intervals.profile_bounds(found, ratio)
  for h in (0.4, 0.45, 0.5, 0.6):
    free_TQ = np.delete(found.q_TQ, ratio.drop, axis=1)
    at_T, index_T = targets.estimate(found.curve_params, ratio), np.arange(len(free_TQ))
    cost_T, _ = intervals._Profile(found, ratio).cost(
      np.full(len(free_TQ), h), free_TQ, at_T, index_T
    )
    p_T = special.fdtrc(1, found.df_T, cost_T**2)
    assert ((p_T > 0.05) == ((low_T <= h) & (h <= high_T))).all()


def test_bootstraps_agree_with_the_profile_and_are_seeded():
  found = fitted(made(2e-4, seeds=8, seed=3))
  ratio = targets.ratio(found.p, found.f, 1, 0)
  got = intervals.profile(found, ratio)
  width = got.high - got.low
  for kind in ('residual', 'seeds'):
    low, high = bootstrap.percentile(bootstrap.bootstrap(found, kind, 1000, 0), ratio)
    assert 0.75 < (high - low) / width < 1.25, kind
    assert abs(low - got.low) < 0.25 * width and abs(high - got.high) < 0.25 * width
    again = bootstrap.percentile(bootstrap.bootstrap(found, kind, 1000, 0), ratio)
    other = bootstrap.percentile(bootstrap.bootstrap(found, kind, 1000, 1), ratio)
    assert again == (low, high) != other


def test_bootstrap_at_the_bound_gives_infinity():
  found = fitted(made(3e-3, seeds=3, seed=1))
  drawn = bootstrap.bootstrap(found, 'residual', 200, 0)
  assert bootstrap.percentile(drawn, targets.alpha(found.p, found.f))[1] == math.inf


def test_bootstrap_draws_have_the_variance_of_the_runs():
  found = fitted(made(3e-4, seeds=3, seed=3))
  seeds, residual = (
    bootstrap.bootstrap(found, kind, 4000, 0).p.pure_T.mean() for kind in ('seeds', 'residual')
  )
  assert seeds == pytest.approx(found.p.pure_T[0], rel=0.03)
  assert residual == pytest.approx(found.s2_T[0] * found.p.df_pure, rel=0.03)


def test_fit_at_the_boundary_bounds_the_difference_from_above():
  found = simulated(1e-3, 3, 'saturating', 150)
  bound_T = found.curve_params[0][:, 0] < family.ON_BOUND_KAPPA
  at_T, low_T, high_T, _, _ = intervals.profile_bounds(
    found, targets.difference(found.p, found.f, 1, 0)
  )
  assert bound_T.sum() >= 3 and (at_T[bound_T] == 0).all()
  assert (np.abs(low_T[bound_T]) < 1e-6).all() and (high_T[bound_T] > 0.01).all()
