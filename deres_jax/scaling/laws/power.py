# SPDX-License-Identifier: Apache-2.0
"""Simulates how many seeds, budgets and decades of compute distinguish two exponents.

Two connectors start from one AUC at the smallest budget and rise to one alpha, each with its own
gamma; the AUCs of runs are normal about the curves with one standard deviation. Each simulated
sweep is fitted as `deres_jax.scaling` would, and power is the share of sweeps whose 95 % F-profile
of the ratio excludes 1.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from deres_jax.core.errors import UserError
from deres_jax.scaling.laws import family, fits, intervals, targets

_ALPHA = 0.8  # of the simulated curves; nothing depends on it


@dataclasses.dataclass(frozen=True)
class Truth:
  """The simulated curves, AUC = alpha - gap C^-gamma with C in smallest budgets, and their noise.

  >>> Truth((0.1, 0.2), gap=0.04).curves(budgets=2, decades=1.0)[1].round(4)
  array([0.76  , 0.7682, 0.76  , 0.7748])
  """

  gammas: tuple[float, float] = (0.071, 0.118)  # of the reference, of the other curve
  noise_sd: float = 3e-4  # of a run's AUC over seeds
  gap: float = 0.046  # alpha less the AUC at the smallest budget

  def check(self):
    """Raises UserError for numbers that are not positive or a gap that is too wide."""
    numbers = {'gammas': min(self.gammas), 'noise_sd': self.noise_sd, 'gap': self.gap}
    for name, number in numbers.items():
      if not (math.isfinite(number) and number > 0):
        raise UserError(f'power: {name} {vars(self)[name]}: expected finite and above 0')
    if self.gap > _ALPHA - 0.5:
      raise UserError(f'power: gap {self.gap}: expected an AUC gap of at most {_ALPHA - 0.5}')

  def curves(self, budgets: int, decades: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns compute_N (from 1) and AUC_N of both connectors, one after the other."""
    compute = np.logspace(0.0, decades, budgets)
    auc = [_ALPHA - self.gap * compute**-gamma for gamma in self.gammas]
    return np.tile(compute, 2), np.concatenate(auc)


def simulate(
  truth: Truth, seeds: int, budgets: int, decades: float, trials: int, seed: int, law: str
) -> dict[str, Any]:
  """Simulates sweeps of one size and fits each.

  Returns:
    seeds, budgets, decades, runs (of both connectors); power: share of trials whose interval of the
    ratio excludes 1; ratio_low, ratio_high: medians of the interval's ends, None for infinite;
    at_boundary: share of trials that show no saturation.

  >>> simulate(Truth(noise_sd=1e-6), 2, 6, 1.5, trials=10, seed=0, law='saturating')['power']
  1.0
  """
  compute_N, auc_N = truth.curves(budgets, decades)
  runs = [
    family.Observation('AB'[i // budgets], c, a, s)
    for i, (c, a) in enumerate(zip(compute_N, auc_N, strict=True))
    for s in range(seeds)
  ]
  # One random stream: more seeds extend the draws of fewer.
  rng = np.random.default_rng([seed, budgets])
  draws_STN = np.stack([rng.standard_normal((trials, len(auc_N))) for _ in range(seeds)])
  e_STN = truth.noise_sd * draws_STN
  pure_T = ((e_STN - e_STN.mean(axis=0)) ** 2).sum(axis=(0, 2))
  p = family.problem(runs).with_auc(auc_N + e_STN.mean(axis=0), pure_T)
  fitted = fits.fit(p, family.form(law, p))
  ratio = targets.ratio(p, fitted.f, 1, 0)
  at_T, low_T, high_T, low_open_T, high_open_T = intervals.profile_bounds(fitted, ratio)
  excludes_1_T = (~low_open_T & (low_T > 0)) | (~high_open_T & (high_T < 0))
  low, high = (
    float(np.median(np.where(np.isnan(at_T) | open_T, edge, x_T)))
    for x_T, open_T, edge in ((low_T, low_open_T, -np.inf), (high_T, high_open_T, np.inf))
  )
  kappa_TK = fitted.curve_params[0]
  return {
    'seeds': seeds,
    'budgets': budgets,
    'decades': decades,
    'runs': len(runs),
    'power': float(excludes_1_T.mean()),
    'ratio_low': math.exp(low),
    'ratio_high': math.exp(high) if math.isfinite(high) else None,
    'at_boundary': float((kappa_TK.min(axis=1) < family.ON_BOUND_KAPPA).mean()),
  }


def power_table(
  truth: Truth,
  seeds: Sequence[int],
  budgets: Sequence[int],
  decades: Sequence[float],
  trials: int = 300,
  seed: int = 0,
  law: str = 'saturating',
) -> list[dict[str, Any]]:
  """Simulates every combination of decades, budgets and seeds.

  Raises:
    UserError: for sizes that cannot be fitted.

  >>> lines = power_table(Truth(noise_sd=1e-6), [1, 2], [6], [1.5], trials=10)
  >>> [(line['seeds'], line['runs'], line['power']) for line in lines]
  [(1, 12, 1.0), (2, 24, 1.0)]
  """
  truth.check()
  if min(budgets) < family.MIN_BUDGETS:
    raise UserError(f'power: {min(budgets)} budgets: a law needs at least {family.MIN_BUDGETS}')
  if min(seeds) < 1 or min(decades) <= 0 or trials < 1:
    raise UserError('power: seeds and trials of at least 1 and decades above 0 are expected')
  if law not in ('saturating', 'saturating_free'):
    raise UserError(f'power: law {law!r}: choose saturating or saturating_free')
  return [
    simulate(truth, s, b, d, trials, seed, law)
    for d, b, s in itertools.product(decades, budgets, seeds)
  ]


def cheapest(lines: list[dict[str, Any]], min_power: float = 0.8) -> dict[str, Any] | None:
  """Returns the line with the fewest runs, then decades, among those with enough power.

  >>> few, many = dict(runs=12, decades=1, power=0.4), dict(runs=48, decades=1, power=0.9)
  >>> cheapest([few, many])['runs']
  48
  """
  enough = [line for line in lines if line['power'] >= min_power]
  return min(enough, key=lambda line: (line['runs'], line['decades'])) if enough else None
