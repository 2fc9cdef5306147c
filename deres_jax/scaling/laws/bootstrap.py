# SPDX-License-Identifier: Apache-2.0
"""Bootstrap intervals of a fitted law, a check of its F-profiles.

Shape letters are those of `deres_jax.scaling.laws.family`; B replicates.
"""

import math

import numpy as np

from deres_jax.scaling.laws import fits, targets
from deres_jax.scaling.laws.fits import LEVEL, Fit


def bootstrap(law: Fit, kind: str, count: int, seed: int) -> Fit:
  """Fits `count` resampled sets of AUCs: fitted curve plus resampled residuals.

  Args:
    kind: 'residual' draws from the residuals of all runs, scaled by sqrt(runs / df) (Efron &
      Tibshirani 1993, ch. 9). 'seeds' draws within each cell from its runs' deviations from their
      mean, scaled by sqrt(n / (n - 1)): it trusts no curve, but few seeds make it too narrow, and
      cells of one run do not vary.

  >>> from deres_jax.scaling.laws import family
  >>> aucs = [0.7 + 0.01 * i + 1e-4 * (-1) ** i for i in range(8)]
  >>> runs = [family.Observation('A', 2.0**i, auc, 0) for i, auc in enumerate(aucs)]
  >>> p = family.problem(runs)
  >>> law = fits.fit(p, family.form('log_linear', p))
  >>> replicates = bootstrap(law, 'residual', 200, seed=0)
  >>> replicates.curve_params[2].shape  # slopes
  (200, 1)
  """
  p, rng = law.p, np.random.default_rng(seed)
  curve_N = law.predict(p.connector_N, p.t_N)[0]
  mean_N = p.centre + p.scale * p.y_TN[0]
  if kind == 'residual':
    e_R = p.auc_R - curve_N[p.cell_R]
    df = max(len(e_R) - law.q_TQ.shape[1], 1)
    e_BR = rng.choice(e_R - e_R.mean(), (count, len(e_R))) * math.sqrt(len(e_R) / df)
  elif kind == 'seeds':
    n_R = p.runs_N[p.cell_R]
    e_R = (p.auc_R - mean_N[p.cell_R]) * np.sqrt(n_R / np.maximum(n_R - 1, 1))
    e_BR = np.empty((count, len(e_R)))
    for n in range(len(p.t_N)):
      runs = np.flatnonzero(p.cell_R == n)
      e_BR[:, runs] = rng.choice(e_R[runs], (count, len(runs)))
  else:
    raise ValueError(f'bootstrap {kind!r}: choose residual or seeds')
  mean_BN = np.stack([e_BR[:, p.cell_R == n].mean(axis=1) for n in range(len(p.t_N))], axis=1)
  pure_B = ((e_BR - mean_BN[:, p.cell_R]) ** 2).sum(axis=1)
  return fits.refit(law, p.with_auc(curve_N + mean_BN, pure_B))


def percentile(
  replicates: Fit, target: targets.Target, level: float = LEVEL
) -> tuple[float, float]:
  """Returns the percentile interval of a target over bootstrap fits, in the user's units.

  >>> from deres_jax.scaling.laws import family
  >>> aucs = [0.7 + 0.01 * i + 1e-4 * (-1) ** i for i in range(8)]
  >>> runs = [family.Observation('A', 2.0**i, auc, 0) for i, auc in enumerate(aucs)]
  >>> p = family.problem(runs)
  >>> law = fits.fit(p, family.form('log_linear', p))
  >>> slope = targets.slope_per_doubling(p, law.f, 0)
  >>> low, high = percentile(bootstrap(law, 'residual', 200, seed=0), slope)
  >>> low < 0.01 < high < low + 2e-4
  True
  """
  h_T = targets.estimate(replicates.curve_params, target)
  h_T = h_T[~np.isnan(h_T)]
  if not len(h_T):
    return math.nan, math.nan
  low, high = np.quantile(h_T, [(1 - level) / 2, (1 + level) / 2], method='inverted_cdf')
  low, high = (target.user_end(float(h), math.isinf(h), h > 0) for h in (low, high))
  return low, high
