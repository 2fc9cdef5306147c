# SPDX-License-Identifier: Apache-2.0
"""F-profile intervals of the quantities of a fitted law.

The interval of a quantity h (Bates & Watts 1988, ch. 6) is the set of values h with

  RSS(h) - RSS <= F(1, df) s^2,

RSS(h) the sum of squares of the best fit under the constraint. Nothing is linearised. A side is
open if h reaches the bound of its range before RSS(h) reaches the limit.

Shape letters are those of `deres_jax.scaling.laws.family`.
"""

import dataclasses
import math
from typing import Any

import numpy as np
from scipy import special

from deres_jax.scaling.laws import family, fits, least_squares, targets
from deres_jax.scaling.laws.targets import Target

_EXPANSIONS, _REFINEMENTS, _TOLERANCE = 60, 40, 1e-5
_ZERO = 1e-6  # differences of exponents below it count as 0


@dataclasses.dataclass(frozen=True)
class Interval:
  """An estimate with its interval; an open side has the bound of the quantity (0, inf, -inf).

  >>> Interval(1.5, 1.2, math.inf, high_open=True).as_json()
  {'estimate': 1.5, 'low': 1.2, 'high': None, 'low_open': False, 'high_open': True}
  """

  estimate: float
  low: float
  high: float
  low_open: bool = False
  high_open: bool = False

  def as_json(self) -> dict[str, Any]:
    """Returns the fields for JSON; infinite and missing numbers become null."""
    return {k: v if math.isfinite(v) else None for k, v in dataclasses.asdict(self).items()}


class _Profile:
  """Costs of a constraint for 2T problems: low sides, then high sides."""

  def __init__(self, law: fits.Fit, target: Target):
    self.law, self.target, self.count = law, target, len(law.q_TQ)
    self.low_Q = np.delete(law.f.lower_bounds(len(law.p.names)), target.drop)
    self.best_T = np.tile(law.rss_T, 2)
    self.s2_T = np.tile(law.s2_T, 2)

  def cost(self, h_T, start_TQ, from_T, problem_T) -> tuple[np.ndarray, np.ndarray]:
    """Returns sqrt((RSS(h) - RSS) / s^2) and the parameters of the constrained fit.

    The fit starts from start_TQ, the solution for h = from_T.
    """
    all_h_T = np.empty(2 * self.count)
    all_h_T[problem_T] = h_T
    target = self.target
    residuals = family.Residuals(self.law.p, self.law.f, target.drop, target.solve, all_h_T)
    free_TQ, rss_T = least_squares.minimise(residuals, start_TQ, self.low_Q, problem_T)
    if target.pair:
      other_TQ = start_TQ.copy()
      other_TQ[:, 0] = self._scaled_kappa(h_T, start_TQ[:, 0], from_T, problem_T)
      valid = np.flatnonzero(other_TQ[:, 0] > 0)
      other_TQ, other_T = least_squares.minimise(
        residuals, other_TQ[valid], self.low_Q, problem_T[valid]
      )
      better = other_T < rss_T[valid]
      free_TQ[valid[better]], rss_T[valid[better]] = other_TQ[better], other_T[better]
    with np.errstate(invalid='ignore', divide='ignore'):
      excess_T = np.maximum(rss_T - self.best_T[problem_T], 0) / self.s2_T[problem_T]
    return np.sqrt(excess_T), free_TQ

  def _scaled_kappa(self, h_T, kappa_T, from_T, problem_T) -> np.ndarray:
    a, b = self.target.pair
    sigma_TK = self.law.curve_params[2][problem_T % self.count]
    with np.errstate(invalid='ignore', divide='ignore'):
      scaled_T = kappa_T * h_T / from_T
      return np.where(scaled_T > 0, scaled_T, h_T / (sigma_TK[:, a] - sigma_TK[:, b]))


def standard_error(law: fits.Fit, target: Target) -> np.ndarray:
  """Returns the linearised standard error of h_T, sqrt(dh^T Cov dh); nan where there is none.

  The gradient dh takes complex steps, which are exact (Squire & Trapp 1998).

  >>> aucs = [0.7 + 0.01 * i + 1e-4 * (-1) ** i for i in range(8)]
  >>> runs = [family.Observation('A', 2.0**i, auc, 0) for i, auc in enumerate(aucs)]
  >>> p = family.problem(runs)
  >>> law = fits.fit(p, family.form('log_linear', p))
  >>> slope = targets.slope_per_doubling(p, law.f, 0)
  >>> float(round(slope.to_user(standard_error(law, slope)[0]), 6))
  1.7e-05
  """
  slope_TQ = np.empty_like(law.q_TQ)
  num = len(law.p.names)
  with np.errstate(all='ignore'):
    for q in range(law.q_TQ.shape[1]):
      step_TQ = law.q_TQ.astype(complex)
      step_TQ[:, q] += 1e-30j
      slope_TQ[:, q] = np.imag(target.value(*law.f.split(step_TQ, num))) / 1e-30
    slope_TQ = np.where(np.isfinite(slope_TQ), slope_TQ, 0.0)
    se_T = np.sqrt(np.einsum('tq,tqr,tr->t', slope_TQ, law.covariance(), slope_TQ))
  return np.where(se_T > 0, se_T, np.nan)


def profile_bounds(law: fits.Fit, target: Target, level: float = fits.LEVEL):
  """Returns F-profile intervals of every set of AUCs, in units of h.

  Returns:
    h_T, low_T, high_T, low_open_T, high_open_T. Where h does not exist at the fit (a ratio over
    zero) both sides are open.

  >>> aucs = [0.7 + 0.01 * i + 1e-4 * (-1) ** i for i in range(8)]
  >>> runs = [family.Observation('A', 2.0**i, auc, 0) for i, auc in enumerate(aucs)]
  >>> p = family.problem(runs)
  >>> law = fits.fit(p, family.form('saturating', p))
  >>> h_T, low_T, high_T, low_open_T, high_open_T = profile_bounds(law, targets.alpha(p, law.f))
  >>> low_open_T, high_open_T  # the AUC rises evenly: alpha has no upper end
  (array([False]), array([ True]))
  """
  profile, count = _Profile(law, target), len(law.q_TQ)
  at_T = targets.estimate(law.curve_params, target)
  exists_T = np.isfinite(at_T) & (law.df_T > 0) & (law.s2_T > 0)
  at_T = np.where(exists_T, at_T, np.nan)
  root_T = np.sqrt(special.fdtri(1, np.maximum(law.df_T, 1), level))
  se_T = standard_error(law, target)
  room = target.high - target.low
  step_T = np.clip(np.where(np.isfinite(se_T), se_T * root_T, target.step), 1e-9, room / 8)
  # The low side is searched in -h, so that both sides go upwards.
  sign_T = np.repeat([-1.0, 1.0], count)
  limit_T = np.repeat([-target.low, target.high], count)
  root_T, step_T = np.tile(root_T, 2), np.tile(step_T, 2)
  in_T = sign_T * np.tile(at_T, 2)
  free_TQ = np.tile(np.delete(law.q_TQ, target.drop, axis=1), (2, 1))
  live = np.flatnonzero(np.tile(exists_T, 2) & (in_T < limit_T))
  open_T = np.tile(exists_T, 2)  # until bracketed
  in_cost_T, out_cost_T = np.zeros((2, 2 * count))
  out_T = np.full(2 * count, np.nan)
  for _ in range(_EXPANSIONS):
    if not len(live):
      break
    h_T = np.minimum(in_T[live] + step_T[live], limit_T[live])
    cost_T, end_TQ = profile.cost(
      sign_T[live] * h_T, free_TQ[live], sign_T[live] * in_T[live], live
    )
    over = cost_T >= root_T[live]
    done, rest = live[over], live[~over]
    out_T[done], out_cost_T[done], open_T[done] = h_T[over], cost_T[over], False
    in_T[rest], in_cost_T[rest], free_TQ[rest] = h_T[~over], cost_T[~over], end_TQ[~over]
    step_T[live] *= 1.6
    live = rest[in_T[rest] < limit_T[rest]]
  _refine(profile, sign_T, root_T, in_T, in_cost_T, out_T, out_cost_T, free_TQ)
  bound_T = np.where(np.isfinite(out_T), sign_T * in_T, sign_T * limit_T)
  bound_T[~np.tile(exists_T, 2)] = np.nan
  open_T |= ~np.tile(exists_T, 2)
  return at_T, bound_T[:count], bound_T[count:], open_T[:count], open_T[count:]


def _refine(profile, sign_T, root_T, in_T, in_cost_T, out_T, out_cost_T, free_TQ):
  """Closes the brackets [in_T, out_T] on the root by the Illinois rule, in place."""
  live = np.flatnonzero(np.isfinite(out_T))
  # Costs at the ends as the rule weighs them, bounded: an infinite one would stall it.
  low_T, high_T = in_cost_T - root_T, np.minimum(out_cost_T, 6 * root_T) - root_T
  for _ in range(_REFINEMENTS):
    if not len(live):
      return
    width_T = out_T[live] - in_T[live]
    part_T = -low_T[live] / (high_T[live] - low_T[live])
    h_T = in_T[live] + width_T * np.clip(part_T, 0.02, 0.98)
    cost_T, end_TQ = profile.cost(
      sign_T[live] * h_T, free_TQ[live], sign_T[live] * in_T[live], live
    )
    over = cost_T >= root_T[live]
    up, down = live[over], live[~over]
    low_T[up] *= 0.5 + 0.5 * (high_T[up] > 4 * root_T[up])
    high_T[down] *= 0.5
    out_T[up], high_T[up] = h_T[over], np.minimum(cost_T[over], 6 * root_T[up]) - root_T[up]
    in_T[down], low_T[down], free_TQ[down] = h_T[~over], cost_T[~over] - root_T[down], end_TQ[~over]
    near_T = np.abs(cost_T - root_T[live]) <= _TOLERANCE * root_T[live]
    close_T = out_T[live] - in_T[live] <= 1e-7 * (1 + np.abs(in_T[live]))
    hit = live[near_T]
    in_T[hit] = h_T[near_T]
    live = live[~(near_T | close_T)]


def profile(law: fits.Fit, target: Target, level: float = fits.LEVEL) -> Interval:
  """Returns the F-profile interval of the first set of AUCs, in the user's units.

  >>> aucs = [0.7 + 0.01 * i + 1e-4 * (-1) ** i for i in range(8)]
  >>> runs = [family.Observation('A', 2.0**i, auc, 0) for i, auc in enumerate(aucs)]
  >>> p = family.problem(runs)
  >>> law = fits.fit(p, family.form('log_linear', p))
  >>> interval = profile(law, targets.slope_per_doubling(p, law.f, 0))
  >>> round(interval.estimate, 5), round(interval.low, 5), round(interval.high, 5)
  (0.00999, 0.00995, 0.01003)
  """
  first = dataclasses.replace(law, **{
    name: vars(law)[name][:1] for name in ('q_TQ', 'rss_T', 's2_T', 'df_T', 'lack_T')
  })  # fmt: skip
  at, low, high, low_open, high_open = (x[0] for x in profile_bounds(first, target, level))
  if math.isnan(at):
    return Interval(math.nan, -math.inf, math.inf, True, True)
  # As both gammas tend to 0 so does their difference, and the profile jumps there.
  zeros = [target.pair is not None and abs(h) < _ZERO for h in (low, high)]
  low = 0.0 if zeros[0] else target.user_end(float(low), low_open, upper=False)
  high = 0.0 if zeros[1] else target.user_end(float(high), high_open, upper=True)
  low_open, high_open = low_open or zeros[0], high_open or zeros[1]
  return Interval(target.to_user(float(at)), low, high, bool(low_open), bool(high_open))
