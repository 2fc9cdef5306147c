# SPDX-License-Identifier: Apache-2.0
"""Fits of scaling laws against closed forms, other optimisers and known truths."""

import math

import numpy as np
import pytest
from scipy import optimize

from deres_jax.core.errors import UserError
from deres_jax.scaling.laws import bootstrap, family, fits, least_squares, targets

BUDGETS = np.outer([2, 4, 8, 12, 16], [1.0, 3.7]).ravel() * 1e6  # 5 depths x 2 widths
ALPHA = 0.8
TRUTH = {'A': (0.071, 0.046), 'B': (0.118, 0.043)}  # gamma, alpha - AUC at the smallest budget


def curve(gamma, gap, compute=BUDGETS, alpha=ALPHA):
  return alpha - gap * (compute / BUDGETS[0]) ** -gamma


def made(noise, seeds=3, seed=0, truth=TRUTH, alphas=None):
  """Observations of curves with known exponents."""
  rng = np.random.default_rng(seed)
  return [
    family.Observation(name, c, auc + noise * rng.standard_normal(), s, str(i))
    for name, (gamma, gap) in truth.items()
    for i, (c, auc) in enumerate(
      zip(BUDGETS, curve(gamma, gap, alpha=(alphas or {}).get(name, ALPHA)), strict=True)
    )
    for s in range(seeds)
  ]


def columns(rows):
  """Returns the names of the connectors, and connector index, compute and AUC of each run."""
  names = list(dict.fromkeys(row.connector for row in rows))
  connector_R = np.array([names.index(row.connector) for row in rows])
  return names, connector_R, *np.array([(row.compute, row.auc) for row in rows]).T


def fitted(rows, law='saturating', baseline=None):
  p = family.problem(rows)
  return fits.fit(p, family.form(law, p, baseline))


# Known curves.


@pytest.mark.parametrize('law', ['saturating', 'saturating_free'])
def test_fits_recover_curves_without_noise(law):
  found = fitted(made(0.0), law)
  gammas, gaps = zip(*TRUTH.values(), strict=True)
  assert found.gamma_TK[0] == pytest.approx(gammas, rel=1e-6)
  assert found.alpha_TK[0] == pytest.approx([ALPHA] * 2, rel=1e-6)
  for k, gap in enumerate(gaps):
    assert found.auc(k, BUDGETS[0]) == pytest.approx(ALPHA - gap, abs=1e-9)
    far = 1e12
    assert found.auc(k, far) == pytest.approx(curve(gammas[k], gap, far), abs=1e-6)


def test_power_gain_recovers_its_parameters():
  rows = [
    family.Observation(name, c, 0.7 + a * (c / 1e6) ** gamma, 0)
    for name, a, gamma in (('A', 0.01, 0.116), ('B', 0.012, 0.142))
    for c in BUDGETS[[0, 2, 4, 6, 8]]
  ]
  found = fitted(rows, 'power_gain', 0.7)
  assert found.gamma_TK[0] == pytest.approx([0.116, 0.142], rel=1e-8)
  assert found.alpha_TK[0] == pytest.approx([0.7, 0.7])
  assert found.auc(0, 1e6) == pytest.approx(0.71, abs=1e-9)


def test_log_linear_equals_polyfit():
  rows = made(3e-4)
  _, connector_R, compute_R, auc_R = columns(rows)
  found = fitted(rows, 'log_linear')
  assert np.isnan(found.gamma_TK).all() and np.isinf(found.alpha_TK).all()
  for k in range(2):
    runs = connector_R == k
    b, a = np.polyfit(np.log(compute_R[runs]), auc_R[runs], 1)
    assert found.p.scale * found.curve_params[2][0, k] == pytest.approx(b, rel=1e-9)
    assert found.auc(k, 1e7) == pytest.approx(a + b * math.log(1e7), abs=1e-10)
  rss = found.p.scale**2 * float(found.rss_T[0] + found.p.pure_T[0])
  n, k = len(rows), 5
  expected = n * math.log(rss / n / found.p.scale**2) + 2 * k + 2 * k * (k + 1) / (n - k - 1)
  assert fits.aicc(found) == pytest.approx(expected)


# Against other optimisers.


def scipy_fit(rows, shared):
  """Fits single runs by the law as the paper writes it, from many starts."""
  names, connector_R, compute_R, auc_R = columns(rows)
  x_R = compute_R / np.exp(np.log(compute_R).mean())
  num = len(names)

  def residuals(q):
    alpha = q[:1] if shared else q[:num]
    beta, gamma = np.exp(q[-2 * num : -num]), np.exp(q[-num:])
    of_R = np.broadcast_to(alpha, num)[connector_R]
    return (of_R - beta[connector_R] * x_R ** -gamma[connector_R] - auc_R) * 1e3

  best = None
  for gamma in (0.03, 0.1, 0.3):
    for gap in (0.01, 0.05):
      start = [[auc_R.max() + gap] * (1 if shared else num)]
      start += [[math.log(gap)] * num, [math.log(gamma)] * num]
      got = optimize.least_squares(
        residuals, np.concatenate(start), xtol=1e-15, ftol=1e-15, gtol=1e-15, x_scale='jac',
        max_nfev=2000,
      )  # fmt: skip
      best = got if best is None or got.cost < best.cost else best
  return best.x[0], np.exp(best.x[-num:]), 2 * best.cost / 1e6


@pytest.mark.parametrize('shared', [True, False])
@pytest.mark.parametrize('seed', [1, 2, 3])
def test_fit_equals_an_independent_multi_start_fit(shared, seed):
  rows = made(1e-4, seed=seed)
  found = fitted(rows, 'saturating' if shared else 'saturating_free')
  alpha, gammas, rss = scipy_fit(rows, shared)
  assert found.gamma_TK[0] == pytest.approx(gammas, rel=1e-6, abs=1e-6)
  assert found.alpha_TK[0, 0] == pytest.approx(alpha, abs=1e-6)
  mine = found.p.scale**2 * float(found.rss_T[0] + found.p.pure_T[0])
  assert mine == pytest.approx(rss, rel=1e-9)


@pytest.mark.parametrize('law', ['saturating', 'saturating_free', 'power_gain'])
def test_random_starts_find_no_better_fit(law):
  """Three decades, exponents from 0.02 to 0.6, noise from 1e-6 to 1e-3, ten random starts each.

  One fit in fifty may miss a second optimum by a little, where noise makes two.
  """
  rng = np.random.default_rng(0)
  compute, missed, total = np.geomspace(1, 1e3, 6), 0, 0
  for _ in range(25):
    gamma_K, gap_K = np.exp(rng.uniform(np.log(0.02), np.log(0.6), 3)), rng.uniform(0.002, 0.1, 3)
    auc_N = np.concatenate([0.8 - b * compute**-g for g, b in zip(gamma_K, gap_K, strict=True)])
    rows = [family.Observation('ABC'[i // 6], compute[i % 6], a, 0) for i, a in enumerate(auc_N)]
    p = family.problem(rows)
    noise = 10 ** rng.uniform(-6, -3)
    p = p.with_auc(auc_N + noise * rng.standard_normal((2, 18)), np.zeros(2))
    f = family.form(law, p, 0.55)
    found = fits.fit(p, f)
    for _ in range(10):
      kappa = np.full(3, -f.fixed)
      if f.kappas:
        kappa[:] = p.scale / (0.8 + rng.exponential(0.05) - p.centre)
      m = np.minimum([p.y_TN[0, 6 * k : 6 * k + 6].mean() for k in range(3)], 0.9 / kappa)
      sigma = np.exp(rng.uniform(np.log(0.01), 0, 3)) / kappa
      start_TQ = np.tile(np.concatenate([kappa[: f.kappas], m, sigma]), (2, 1))
      _, rss_T = least_squares.minimise(
        family.Residuals(p, f), start_TQ, f.lower_bounds(3), np.arange(2)
      )
      assert (found.rss_T <= 1.1 * rss_T + 1e-16).all()
      missed += (found.rss_T > (1 + 1e-5) * rss_T + 1e-16).any() / 10
    total += 1
  assert missed <= 0.02 * total, missed


def test_cells_weigh_by_their_runs():
  rows = made(3e-4, seed=6)
  keep = np.random.default_rng(0).random(len(rows)) < 0.6
  rows = [row for row, kept in zip(rows, keep, strict=True) if kept]
  found = fitted(rows)
  assert len(set(found.p.runs_N.tolist())) > 1
  _, gammas, _ = scipy_fit(rows, True)
  assert found.gamma_TK[0] == pytest.approx(gammas, rel=1e-5)
  pure_df = len(rows) - len(found.p.runs_N)
  assert found.p.df_pure == pure_df and int(found.df_T[0]) == len(rows) - 5


def test_fit_ignores_units_and_row_order():
  rows = made(3e-4)
  found = fitted(rows)
  permuted = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
  other = fitted([row._replace(compute=1e9 * row.compute) for row in permuted])
  order = [other.p.names.index(name) for name in found.p.names]
  assert other.gamma_TK[:, order] == pytest.approx(found.gamma_TK, rel=1e-8)
  assert other.alpha_TK[:, order] == pytest.approx(found.alpha_TK, rel=1e-8)


@pytest.mark.parametrize('law', ['saturating', 'saturating_free', 'log_linear'])
def test_batched_fits_equal_single_ones(law):
  p = family.problem(made(3e-4))
  rng = np.random.default_rng(5)
  auc_TN = p.centre + p.scale * p.y_TN + 3e-4 * rng.standard_normal((20, len(p.t_N)))
  many = fits.fit(p.with_auc(auc_TN, np.zeros(20)), family.form(law, p))
  for t in range(0, 20, 7):
    one = fits.fit(p.with_auc(auc_TN[t : t + 1], np.zeros(1)), family.form(law, p))
    assert one.rss_T[0] == pytest.approx(many.rss_T[t], rel=1e-9)


# Bounds and checks of a fit.


def test_straight_and_convex_curves_end_at_the_boundary_with_a_note():
  x = np.log(BUDGETS / BUDGETS[0])
  for bend in (0.0, 2e-4):
    rows = [
      family.Observation(name, c, 0.74 + slope * t + bend * t**2, 0)
      for name, slope in (('A', 0.002), ('B', 0.004))
      for c, t in zip(BUDGETS[::2], x[::2], strict=True)
    ]
    found = fitted(rows)
    assert 'boundary alpha = infinity' in ' '.join(found.notes()), bend
    assert np.isinf(found.alpha_TK).all() or found.alpha_TK.min() > 100
    assert found.rss_T[0] == pytest.approx(fitted(rows, 'log_linear').rss_T[0])
    both = fitted(rows, 'saturating_free').notes()
    assert [note.split(' is at')[0] for note in both] == ['A', 'B']
  # Only the ratio of the slopes is identified.
  p = family.problem(rows)
  slopes = fits.fit(p, family.form('log_linear', p)).curve_params[2][0]
  assert math.exp(targets.estimate(found.curve_params, targets.ratio(p, found.f, 1, 0))[0]) == (
    pytest.approx(slopes[1] / slopes[0], rel=1e-4)
  )


def test_falling_auc_ends_at_the_boundary_beta_0():
  rows = [
    family.Observation(name, c, 0.75 + sign * 0.003 * math.log(c / BUDGETS[0]) - 1e-4 * (i % 2), 0)
    for name, sign in (('up', 1), ('down', -1))
    for i, c in enumerate(BUDGETS[::2])
  ]
  for law in ('saturating', 'saturating_free', 'log_linear'):
    found = fitted(rows, law)
    assert found.gamma_TK[0, 1] == 0 or law == 'log_linear'
    assert any(note.startswith('down is at the boundary beta = 0') for note in found.notes()), law


def test_lack_of_fit_widens_the_variance():
  rows = made(1e-4, seeds=5)
  right = fitted(rows)
  assert right.lack_T[0] > 0.05 and right.p.scale * right.s2_T[0] ** 0.5 < 1.3e-4
  shift_N = 5e-4 * np.random.default_rng(0).standard_normal(len(right.p.t_N))
  shift_R = shift_N[right.p.cell_R]
  wrong = fitted([row._replace(auc=row.auc + x) for row, x in zip(rows, shift_R, strict=True)])
  assert wrong.lack_T[0] < 1e-6 and wrong.p.scale * wrong.s2_T[0] ** 0.5 > 8e-4  # sqrt(5) x 5e-4
  assert int(wrong.df_T[0]) == 20 - 5 and int(right.df_T[0]) == 100 - 5
  assert math.isnan(fitted(made(1e-4, seeds=1)).lack_T[0])


def test_two_asymptotes_reject_a_shared_alpha():
  for alphas, rejected in ((None, False), ({'B': 0.785}, True)):
    rows = made(1e-4, seeds=5, alphas=alphas)
    p = fits.shared_alpha_p(fitted(rows), fitted(rows, 'saturating_free'))
    assert (p < 0.01) == rejected


def test_holdout_predicts_the_largest():
  found = fitted(made(1e-4, seeds=3))
  lines = fits.holdout_largest(found)
  assert [x['connector'] for x in lines] == ['A', 'B']
  assert all(x['compute'] == pytest.approx(BUDGETS.max()) for x in lines)
  assert all(abs(x['error']) < 4e-4 and abs(x['standard_errors']) < 3 for x in lines)
  for x in lines:
    assert x['error'] == pytest.approx(x['auc'] - x['predicted'])
  # A line in ln C overshoots a saturating curve.
  assert all(x['error'] < 0 for x in fits.holdout_largest(fitted(made(0.0), 'log_linear')))
  # By hand: the line without its last point.
  rows = made(2e-4, seeds=2, truth={'A': TRUTH['A']})
  [x] = fits.holdout_largest(fitted(rows, 'log_linear'))
  _, _, compute_R, auc_R = columns(rows)
  rest = compute_R < BUDGETS.max()
  b, a = np.polyfit(np.log(compute_R[rest]), auc_R[rest], 1)
  assert x['predicted'] == pytest.approx(a + b * math.log(BUDGETS.max()), abs=1e-9)


def test_holdout_errors_match_their_standard_errors():
  p = family.problem(made(0.0))
  rng, noise = np.random.default_rng(2), 2e-4
  auc_N, form = p.centre + p.scale * p.y_TN[0], family.form('saturating', p)
  z = []
  for _ in range(60):
    e_N = noise / 3**0.5 * rng.standard_normal(len(auc_N))
    pure = noise**2 * rng.chisquare(p.df_pure, 1)
    z += [x['standard_errors'] for x in fits.holdout_largest(
      fits.fit(p.with_auc(auc_N + e_N[None], pure), form))]  # fmt: skip
  assert 0.75 < np.std(z) < 1.3 and abs(np.mean(z)) < 0.4


# Errors.


@pytest.mark.parametrize(
  ('rows', 'words'),
  [
    ([('A', 1.0, 0.7), ('A', 2.0, 0.7), ('A', 3.0, 0.7)], ['A has 3 budgets', 'at least 4']),
    ([('A', 0.0, 0.7)] * 4, ['FLOPs > 0']),
    ([('A', math.nan, 0.7)] * 4, ['FLOPs > 0']),
    ([('A', 1.0, 1.7)] * 4, ['AUC 1.7']),
    ([('A', 1.0, 0.7)] * 2, ['seed 0 twice']),
  ],
)
def test_invalid_observations_raise(rows, words):
  with pytest.raises(UserError) as e:
    family.problem([family.Observation(*row, 0) for row in rows])
  assert all(word in str(e.value) for word in words), e.value


def test_invalid_laws_raise():
  p = family.problem(made(1e-4))
  for baseline in (None, 0.79):
    with pytest.raises(UserError, match='baseline below every AUC'):
      family.form('power_gain', p, baseline)
  with pytest.raises(UserError, match='choose one of'):
    family.form('cubic', p)
  with pytest.raises(ValueError, match='no asymptote'):
    targets.alpha(p, family.form('log_linear', p))
  with pytest.raises(ValueError, match='residual or seeds'):
    bootstrap.bootstrap(fitted(made(1e-4)), 'other', 10, 0)
