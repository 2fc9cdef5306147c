# SPDX-License-Identifier: Apache-2.0
"""F-profile intervals of what a fitted law says.

The profile of a quantity h (Bates & Watts 1988, ch. 6) holds every value h at which the best fit
under that constraint costs at most F(1, df) s^2 more than the best fit: nothing is linearised.
A side on which the bound of the parameter comes before that cost is open.

Shape letters are those of `deres_jax.scaling.laws.family`.
"""

import dataclasses
import math
from typing import Any

import numpy as np
from scipy import special

from deres_jax.scaling.laws import family, least_squares
from deres_jax.scaling.laws.fits import LEVEL, Fit
from deres_jax.scaling.laws.targets import Target, estimate

_EXPANSIONS, _REFINEMENTS, _TOLERANCE = 60, 40, 1e-5
_NOTHING = 1e-6  # a difference of exponents below it is 0


@dataclasses.dataclass(frozen=True)
class Interval:
  """An estimate with its interval; an open side has the bound of the parameter (0, inf, -inf)."""

  estimate: float
  low: float
  high: float
  low_open: bool = False
  high_open: bool = False

  def as_json(self) -> dict[str, Any]:
    """Infinities and what does not exist as null."""
    return {k: v if math.isfinite(v) else None for k, v in dataclasses.asdict(self).items()}

  def holds(self, value: float) -> bool:
    """Whether the interval holds a value."""
    return self.low <= value <= self.high

  @property
  def width(self) -> float:
    return self.high - self.low


# Profiles.


class _Profile:
  """Signed roots of the cost of a constraint, for 2T problems: low sides, then high sides."""

  def __init__(self, found: Fit, target: Target):
    num = len(found.p.names)
    self.found, self.target, self.count = found, target, len(found.q_TQ)
    self.family = family.Family(found.p, found.f, target.drop, target.fill)
    self.low_Q = np.delete(found.f.low(num), target.drop)
    self.best_T = np.tile(found.rss_T, 2)
    self.s2_T = np.tile(found.s2_T, 2)

  def cost(self, h_T, start_TQ, from_T, problem_T) -> tuple[np.ndarray, np.ndarray]:
    """sqrt((RSS(h) - RSS) / s^2) and where the constrained fit ended.

    It starts from start_TQ, which solved the problem for h = from_T.
    """
    whole_T = np.empty(2 * self.count)
    whole_T[problem_T] = h_T
    run = self.family.residuals(whole_T)
    free_TQ, rss_T = least_squares.minimise(run, start_TQ, self.low_Q, problem_T)
    if self.target.pair:
      other_TQ = start_TQ.copy()
      other_TQ[:, 0] = self._grown(h_T, start_TQ[:, 0], from_T, problem_T)
      some = np.flatnonzero(other_TQ[:, 0] > 0)
      other_TQ, other_T = least_squares.minimise(run, other_TQ[some], self.low_Q, problem_T[some])
      better = other_T < rss_T[some]
      free_TQ[some[better]], rss_T[some[better]] = other_TQ[better], other_T[better]
    with np.errstate(invalid='ignore', divide='ignore'):
      over_T = np.maximum(rss_T - self.best_T[problem_T], 0) / self.s2_T[problem_T]
    return np.sqrt(over_T), free_TQ

  def _grown(self, h_T, kappa_T, from_T, problem_T) -> np.ndarray:
    a, b = self.target.pair
    sigma_TK = self.found.parts[2][problem_T % self.count]
    with np.errstate(invalid='ignore', divide='ignore'):
      grown_T = kappa_T * h_T / from_T
      return np.where(grown_T > 0, grown_T, h_T / (sigma_TK[:, a] - sigma_TK[:, b]))


def standard_error(found: Fit, target: Target) -> np.ndarray:
  """Linearised standard error of h_T; nan where there is none."""
  slope_TQ = np.empty_like(found.q_TQ)
  num = len(found.p.names)
  with np.errstate(all='ignore'):
    for q in range(found.q_TQ.shape[1]):
      moved_TQ = found.q_TQ.astype(complex)
      moved_TQ[:, q] += 1e-30j
      slope_TQ[:, q] = np.imag(target.value(*found.f.split(moved_TQ, num))) / 1e-30
    slope_TQ = np.where(np.isfinite(slope_TQ), slope_TQ, 0.0)
    se_T = np.sqrt(np.einsum('tq,tqr,tr->t', slope_TQ, found.covariance(), slope_TQ))
  return np.where(se_T > 0, se_T, np.nan)


def profile_bounds(found: Fit, target: Target, level: float = LEVEL):
  """h_T, low_T, high_T, low_open_T, high_open_T in units of h.

  Where h does not exist at the fit (a ratio over zero) both sides are open.
  """
  profile, count = _Profile(found, target), len(found.q_TQ)
  at_T = estimate(found.parts, target)
  exists_T = np.isfinite(at_T) & (found.df_T > 0) & (found.s2_T > 0)
  at_T = np.where(exists_T, at_T, np.nan)
  root_T = np.sqrt(special.fdtri(1, np.maximum(found.df_T, 1), level))
  se_T = standard_error(found, target)
  room = target.high - target.low
  step_T = np.clip(np.where(np.isfinite(se_T), se_T * root_T, target.step), 1e-9, room / 8)
  # The low side is searched in -h: both sides then go upwards.
  sign_T = np.repeat([-1.0, 1.0], count)
  limit_T = np.repeat([-target.low, target.high], count)
  root_T, step_T = np.tile(root_T, 2), np.tile(step_T, 2)
  in_T = sign_T * np.tile(at_T, 2)
  free_TQ = np.tile(np.delete(found.q_TQ, target.drop, axis=1), (2, 1))
  live = np.flatnonzero(np.tile(exists_T, 2) & (in_T < limit_T))
  open_T = np.tile(exists_T, 2)  # until a bracket is found
  in_cost_T, out_T, out_cost_T = (
    np.zeros(2 * count),
    np.full(2 * count, np.nan),
    np.zeros(2 * count),
  )
  for _ in range(_EXPANSIONS):
    if not len(live):
      break
    h_T = np.minimum(in_T[live] + step_T[live], limit_T[live])
    cost_T, end_TQ = profile.cost(
      sign_T[live] * h_T, free_TQ[live], sign_T[live] * in_T[live], live
    )
    over = cost_T >= root_T[live]
    done, go = live[over], live[~over]
    out_T[done], out_cost_T[done], open_T[done] = h_T[over], cost_T[over], False
    in_T[go], in_cost_T[go], free_TQ[go] = h_T[~over], cost_T[~over], end_TQ[~over]
    step_T[live] *= 1.6
    live = go[in_T[go] < limit_T[go]]
  _refine(profile, sign_T, root_T, in_T, in_cost_T, out_T, out_cost_T, free_TQ)
  # An open side: what was searched says nothing of the rest.
  bound_T = np.where(np.isfinite(out_T), sign_T * in_T, sign_T * limit_T)
  bound_T[~np.tile(exists_T, 2)] = np.nan
  open_T |= ~np.tile(exists_T, 2)
  return at_T, bound_T[:count], bound_T[count:], open_T[:count], open_T[count:]


def _refine(profile, sign_T, root_T, in_T, in_cost_T, out_T, out_cost_T, free_TQ):
  """Closes the brackets [in_T, out_T] on the root by the Illinois rule, in place."""
  live = np.flatnonzero(np.isfinite(out_T))
  # Costs at the ends as the rule weighs them; one that is infinite would stop it.
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


def profile(found: Fit, target: Target, level: float = LEVEL) -> Interval:
  """The F-profile interval of the first set of AUCs, in the user's units."""
  one = dataclasses.replace(found, **{
    name: vars(found)[name][:1] for name in ('q_TQ', 'rss_T', 's2_T', 'df_T', 'lack_T')
  })  # fmt: skip
  at, low, high, low_open, high_open = (x[0] for x in profile_bounds(one, target, level))
  if math.isnan(at):
    return Interval(math.nan, -math.inf, math.inf, True, True)
  # Where both gammas go to 0 their difference does, and the profile ends there in a jump.
  zeros = [target.pair is not None and abs(h) < _NOTHING for h in (low, high)]
  low = 0.0 if zeros[0] else _shown(target, low, low_open, False)
  high = 0.0 if zeros[1] else _shown(target, high, high_open, True)
  low_open, high_open = low_open or zeros[0], high_open or zeros[1]
  return Interval(target.show(float(at)), low, high, bool(low_open), bool(high_open))


def _shown(target: Target, h: float, is_open: bool, upper: bool) -> float:
  bound = target.high_shown if upper else target.low_shown
  return bound if is_open and bound is not None else float(target.show(float(h)))


def constraint_p(found: Fit, target: Target, h: float) -> np.ndarray:
  """p_T of the F test that the target is h (in units of h: of ratios the logarithm)."""
  count = len(found.q_TQ)
  free_TQ = np.delete(found.q_TQ, target.drop, axis=1)
  at_T = estimate(found.parts, target)
  cost_T, _ = _Profile(found, target).cost(np.full(count, h), free_TQ, at_T, np.arange(count))
  return special.fdtrc(1, found.df_T, cost_T**2)
