# SPDX-License-Identifier: Apache-2.0
"""Quantities of a law (exponents, ratios, compute to match), also as constraints on its fit.

A target is a function h of the law's parameters. Fixing its value removes one free parameter in
closed form: no penalty, no multiplier.

Shape letters are those of `deres_jax.scaling.laws.family`.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from deres_jax.scaling.laws import family

_LOG_COMPUTE_MARGIN = math.log(1e10)  # how far beyond the budgets compute to match is sought
_LOG_RATIO_LIMIT = math.log(1e4)  # ratios are sought in [1e-4, 1e4]


@dataclasses.dataclass(frozen=True)
class Target:
  """A quantity as a function of (kappa_TK, m_TK, sigma_TK), and its use as a constraint.

  >>> Target(None, 0, None, 0.0, 1.0, 0.1, math.exp, end_high=math.inf).user_end(1.0, True, True)
  inf
  """

  value: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]  # h_T
  drop: int  # the free parameter that h determines ...
  solve: family.Solve  # ... and how, from the others
  low: float  # range of h
  high: float
  step: float  # first step of a search where the fit gives no standard error
  to_user: Callable[[float], float] = float  # h in the user's units
  end_low: float | None = None  # end of an open interval in the user's units; None: to_user(low)
  end_high: float | None = None
  # h = kappa (sigma_a - sigma_b): a constrained fit may start with kappa scaled as h.
  pair: tuple[int, int] | None = None

  def user_end(self, h: float, is_open: bool, upper: bool) -> float:
    """Returns an end of an interval of h in the user's units."""
    end = self.end_high if upper else self.end_low
    return end if is_open and end is not None else float(self.to_user(h))


def _index(p: family.Problem, f: family.Form, kind: str, k: int) -> int:
  """Returns the position of connector k's kappa, m or sigma among the free parameters."""
  if kind == 'kappa':
    return min(k, f.kappas - 1)
  return f.kappas + (len(p.names) if kind == 'sigma' else 0) + k


def gamma(p: family.Problem, f: family.Form, a: int) -> Target:
  """Targets the exponent of connector a: gamma_a = |kappa_a| sigma_a.

  >>> runs = [family.Observation('A', 4.0**i, 0.7 + 0.01 * i, 0) for i in range(4)]
  >>> p = family.problem(runs)
  >>> target = gamma(p, family.form('saturating', p), 0)
  >>> estimate((np.array([[0.5]]), np.array([[0.0]]), np.array([[0.6]])), target)
  array([0.3])
  """

  def solve(kappa, m, sigma, h):
    return h / (sigma[:, a] if f.kappas else abs(f.fixed))

  return Target(
    lambda kappa, m, sigma: _gamma(kappa, sigma, a),
    _index(p, f, 'kappa' if f.kappas else 'sigma', a),
    solve,
    0.0,
    family.MAX_STEEPNESS / p.t_range,
    0.3 / p.t_range,
    end_high=math.inf,
  )


def _sign(kappa_T):
  # Not abs, which has no derivative by complex steps: the sign of kappa is fixed by the form.
  return np.where(kappa_T.real < 0, -1.0, 1.0)


def _gamma(kappa, sigma, k):
  return _sign(kappa[:, k]) * kappa[:, k] * sigma[:, k]


def ratio(p: family.Problem, f: family.Form, a: int, b: int) -> Target:
  """Targets h = ln(gamma_a / gamma_b); for log_linear the ratio of slopes.

  >>> runs = [family.Observation(k, 4.0**i, 0.7 + 0.01 * i, 0) for k in 'AB' for i in range(4)]
  >>> p = family.problem(runs)
  >>> target = ratio(p, family.form('saturating', p), 1, 0)
  >>> h_T = estimate((np.array([[0.5, 0.5]]), np.zeros((1, 2)), np.array([[0.2, 0.3]])), target)
  >>> round(target.to_user(h_T[0]), 4)
  1.5
  """
  if f.kappas > 1:

    def value(kappa, m, sigma):
      return np.log(kappa[:, a] * sigma[:, a]) - np.log(kappa[:, b] * sigma[:, b])

    def solve(kappa, m, sigma, h):
      return np.exp(h) * kappa[:, b] * sigma[:, b] / sigma[:, a]

  else:

    def value(kappa, m, sigma):
      return np.log(sigma[:, a]) - np.log(sigma[:, b])

    def solve(kappa, m, sigma, h):
      return np.exp(h) * sigma[:, b]

  drop = _index(p, f, 'kappa' if f.kappas > 1 else 'sigma', a)
  limit = _LOG_RATIO_LIMIT
  return Target(value, drop, solve, -limit, limit, 0.1, math.exp, end_low=0.0, end_high=math.inf)


def difference(p: family.Problem, f: family.Form, a: int, b: int) -> Target:
  """Targets gamma_a - gamma_b; for log_linear the difference of slopes in ln C.

  >>> runs = [family.Observation(k, 4.0**i, 0.7 + 0.01 * i, 0) for k in 'AB' for i in range(4)]
  >>> p = family.problem(runs)
  >>> target = difference(p, family.form('saturating', p), 1, 0)
  >>> estimate((np.array([[0.5, 0.5]]), np.zeros((1, 2)), np.array([[0.2, 0.3]])), target)
  array([0.05])
  """
  top, unit = family.MAX_STEEPNESS / p.t_range, 1.0

  def value(kappa, m, sigma):
    return _gamma(kappa, sigma, a) - _gamma(kappa, sigma, b)

  if f.name == 'log_linear':
    top, unit = 1e3, p.scale

    def value(kappa, m, sigma):
      return sigma[:, a] - sigma[:, b]

    def solve(kappa, m, sigma, h):
      return sigma[:, b] + h

  elif f.kappas > 1:

    def solve(kappa, m, sigma, h):
      return (kappa[:, b] * sigma[:, b] + h) / sigma[:, a]

  else:

    def solve(kappa, m, sigma, h):
      return sigma[:, b] + _sign(kappa[:, a]) * h / kappa[:, a]

  return Target(
    value,
    _index(p, f, 'kappa' if f.kappas > 1 else 'sigma', a),
    solve,
    -top,
    top,
    0.1 / p.t_range,
    lambda h: h * unit,
    -math.inf,
    math.inf,
    pair=(a, b) if f.kappas == 1 else None,
  )


def alpha(p: family.Problem, f: family.Form, k: int = 0) -> Target:
  """Targets the asymptote of connector k; h = -kappa, which grows with alpha.

  Raises:
    ValueError: for a law whose asymptote is not fitted.

  >>> runs = [family.Observation('A', 4.0**i, 0.7 + 0.01 * i, 0) for i in range(4)]
  >>> p = family.problem(runs)
  >>> target = alpha(p, family.form('saturating', p))
  >>> round(target.to_user(-p.scale / (0.8 - p.centre)), 4)  # kappa = 1 / (alpha - mean AUC)
  0.8
  """
  if not f.kappas:
    raise ValueError(f'{f.name} has no asymptote to fit')

  def to_user(h):
    return p.centre - p.scale / h if h < -family.ON_BOUND_KAPPA else math.inf

  return Target(
    lambda kappa, m, sigma: -kappa[:, k],
    _index(p, f, 'kappa', k),
    lambda kappa, m, sigma, h: -h,
    -1e3,
    0.0,
    0.1,
    to_user,
    end_low=-math.inf,
  )


def compute_to_match(p: family.Problem, f: family.Form, a: int, b: int, compute_b: float) -> Target:
  """Targets the compute at which a reaches the fitted AUC of b at `compute_b`; h = ln(C / C_0).

  >>> runs = [family.Observation(k, 4.0**i, 0.7 + 0.01 * i, 0) for k in 'AB' for i in range(4)]
  >>> p = family.problem(runs)
  >>> target = compute_to_match(p, family.form('log_linear', p), 1, 0, 64.0)
  >>> twice_as_steep = np.zeros((1, 2)), np.zeros((1, 2)), np.array([[1.0, 2.0]])
  >>> [h] = estimate(twice_as_steep, target)
  >>> round(target.to_user(h), 4), round(p.compute0, 4)  # half of the way from C_0 to 64
  (22.6274, 8.0)
  """
  t_b = p.log_compute(compute_b)

  def goal(kappa, m, sigma):
    return family.value(kappa[:, b], m[:, b], sigma[:, b], t_b)

  def value(kappa, m, sigma):
    y, k, s = goal(kappa, m, sigma), kappa[:, a], sigma[:, a]
    # (1 - k y) / (1 - k m) = e^(-k s t); log1p keeps it exact near the line, k = 0.
    u = (y - m[:, a]) / (1 - k * m[:, a])
    small = np.abs(k * u) < 1e-6
    safe = np.where(small, 1.0, k)
    return np.where(small, u * (1 + k * u / 2), -np.log1p(-safe * u) / safe) / s

  def solve(kappa, m, sigma, h):
    st = sigma[:, a] * h
    z = kappa[:, a] * st
    return (goal(kappa, m, sigma) - st * family.phi(z)) * np.exp(z)

  return Target(
    value,
    _index(p, f, 'm', a),
    solve,
    float(p.t_N.min()) - _LOG_COMPUTE_MARGIN,
    float(p.t_N.max()) + _LOG_COMPUTE_MARGIN,
    0.1,
    lambda h: p.compute0 * math.exp(h),
    0.0,
    math.inf,
  )


def slope_per_doubling(p: family.Problem, f: family.Form, k: int) -> Target:
  """Targets dAUC / d log2 C of connector k at C_0, the gain of doubling the compute.

  >>> runs = [family.Observation('A', 2.0**i, 0.7 + 0.01 * i, 0) for i in range(4)]
  >>> p = family.problem(runs)
  >>> target = slope_per_doubling(p, family.form('log_linear', p), 0)
  >>> round(target.to_user(0.01 / p.scale / math.log(2)), 4)
  0.01
  """
  return Target(
    lambda kappa, m, sigma: (1 - kappa[:, k] * m[:, k]) * sigma[:, k],
    _index(p, f, 'sigma', k),
    lambda kappa, m, sigma, h: h / (1 - kappa[:, k] * m[:, k]),
    0.0,
    1e4,
    0.1,
    lambda h: h * p.scale * math.log(2),
    end_high=math.inf,
  )


def estimate(curve_params: tuple[np.ndarray, np.ndarray, np.ndarray], target: Target) -> np.ndarray:
  """Returns h_T at (kappa_TK, m_TK, sigma_TK); nan or infinite where it does not exist.

  >>> runs = [family.Observation('A', 4.0**i, 0.7 + 0.01 * i, 0) for i in range(4)]
  >>> p = family.problem(runs)
  >>> target = alpha(p, family.form('saturating', p))
  >>> estimate((np.array([[2.0]]), np.zeros((1, 1)), np.ones((1, 1))), target)
  array([-2.])
  """
  with np.errstate(all='ignore'):
    return target.value(*curve_params)
