# SPDX-License-Identifier: Apache-2.0
"""Bootstraps of a fitted law: what checks its F-profiles.

Shape letters are those of `deres_jax.scaling.laws.family`; B replicates.
"""

import math

import numpy as np

from deres_jax.scaling.laws import family, fits, targets
from deres_jax.scaling.laws.fits import LEVEL, Fit


def bootstrap(found: Fit, data: family.Points, kind: str, count: int, seed: int) -> Fit:
  """Fits of AUCs drawn anew about the fitted curve.

  'residual': residuals of all runs, blown up by sqrt(runs / df), drawn with replacement (Efron &
  Tibshirani 1993, ch. 9). 'seeds': runs of each cell about their mean, blown up by
  sqrt(n / (n - 1)), drawn within the cell: no curve is trusted, but few seeds make it narrow.
  Cells of one run have no such residuals and do not move.
  """
  p, rng = found.p, np.random.default_rng(seed)
  cell_R = np.unique(data.cell_R, return_inverse=True)[1]
  curve_N = found.predict(p.which_N, p.t_N)[0]
  mean_N = p.centre + p.scale * p.y_TN[0]
  if kind == 'residual':
    e_R = data.auc_R - curve_N[cell_R]
    df = max(len(e_R) - found.q_TQ.shape[1], 1)
    e_BR = rng.choice(e_R - e_R.mean(), (count, len(e_R))) * math.sqrt(len(e_R) / df)
  elif kind == 'seeds':
    n_R = p.runs_N[cell_R]
    e_R = (data.auc_R - mean_N[cell_R]) * np.sqrt(n_R / np.maximum(n_R - 1, 1))
    e_BR = np.empty((count, len(e_R)))
    for n in range(len(p.t_N)):
      own = np.flatnonzero(cell_R == n)
      e_BR[:, own] = rng.choice(e_R[own], (count, len(own)))
  else:
    raise ValueError(f'bootstrap {kind!r}: choose residual or seeds')
  mean_BN = np.stack([e_BR[:, cell_R == n].mean(axis=1) for n in range(len(p.t_N))], axis=1)
  pure_B = ((e_BR - mean_BN[:, cell_R]) ** 2).sum(axis=1)
  return fits.refit(found, p.with_auc(curve_N + mean_BN, pure_B))


def percentile(drawn: Fit, target: targets.Target, level: float = LEVEL) -> tuple[float, float]:
  """Percentile interval of a target over bootstrap fits, in the user's units."""
  h_T = targets.estimate(drawn.parts, target)
  h_T = h_T[~np.isnan(h_T)]
  if not len(h_T):
    return math.nan, math.nan
  low, high = np.quantile(h_T, [(1 - level) / 2, (1 + level) / 2], method='inverted_cdf')
  return _shown(target, float(low)), _shown(target, float(high))


def _shown(target: targets.Target, h: float) -> float:
  if math.isfinite(h):
    return target.show(h)
  bound = target.high_shown if h > 0 else target.low_shown
  return h if bound is None else bound
