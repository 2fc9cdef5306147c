# SPDX-License-Identifier: Apache-2.0
"""Quantities that a law gives, and how each can be held at a value while the rest is fitted.

A target is a function h of the law's parameters. Held at a value it takes one free parameter away,
in closed form: no penalty, no multiplier.

Shape letters are those of `deres_jax.scaling.laws.family`.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from deres_jax.scaling.laws import family

_FAR = math.log(1e10)  # compute to match is looked for this far beyond the budgets
_ROOM = math.log(1e4)  # ratios are looked for in [1e-4, 1e4]

Fill = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Target:
  """A quantity as a function of (kappa_TK, m_TK, sigma_TK), and its use as a constraint."""

  value: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]  # h_T
  drop: int  # the free parameter that h decides ...
  fill: Fill  # ... and how, from the others
  low: float  # what h can be at all
  high: float
  step: float  # a first step where the fit gives no standard error
  show: Callable[[float], float] = float  # h in the user's units
  low_shown: float | None = None  # the bound to show for an open side; None: show(low)
  high_shown: float | None = None
  # h = kappa (sigma_a - sigma_b): a constrained fit may start with kappa grown as h has.
  pair: tuple[int, int] | None = None


def _index(f: family.Form, num: int, kind: str, k: int) -> int:
  """Where kappa, m or sigma of connector k stands among the free parameters."""
  if kind == 'kappa':
    return min(k, f.kappas - 1)
  return f.kappas + (num if kind == 'sigma' else 0) + k


def gamma(p: family.Problem, f: family.Form, a: int) -> Target:
  """The exponent of connector a."""

  def value(kappa, m, sigma):
    return _gamma(kappa, sigma, a)

  if f.kappas:

    def fill(kappa, m, sigma, h):
      return h / sigma[:, a]

    drop = _index(f, len(p.names), 'kappa', a)
  else:

    def fill(kappa, m, sigma, h):
      return h / abs(f.fixed)

    drop = _index(f, len(p.names), 'sigma', a)
  top = family.STEEPEST / p.range
  return Target(value, drop, fill, 0.0, top, 0.3 / p.range, high_shown=math.inf)


def _gamma(kappa, sigma, k):
  # Without abs, which complex steps cannot pass: the sign of kappa is that of a form.
  sign = np.where(kappa[:, k].real < 0, -1.0, 1.0)
  return sign * kappa[:, k] * sigma[:, k]


def ratio(p: family.Problem, f: family.Form, a: int, b: int) -> Target:
  """gamma_a / gamma_b; of log_linear: the ratio of slopes. h is its logarithm."""
  if f.kappas > 1:

    def value(kappa, m, sigma):
      return np.log(kappa[:, a] * sigma[:, a]) - np.log(kappa[:, b] * sigma[:, b])

    def fill(kappa, m, sigma, h):
      return np.exp(h) * kappa[:, b] * sigma[:, b] / sigma[:, a]

    drop = _index(f, len(p.names), 'kappa', a)
  else:

    def value(kappa, m, sigma):
      return np.log(sigma[:, a]) - np.log(sigma[:, b])

    def fill(kappa, m, sigma, h):
      return np.exp(h) * sigma[:, b]

    drop = _index(f, len(p.names), 'sigma', a)
  return Target(value, drop, fill, -_ROOM, _ROOM, 0.1, math.exp, low_shown=0.0, high_shown=math.inf)


def difference(p: family.Problem, f: family.Form, a: int, b: int) -> Target:
  """gamma_a - gamma_b; of log_linear: the difference of slopes, in AUC a factor e of compute."""
  top, unit = family.STEEPEST / p.range, 1.0
  if f.name == 'log_linear':
    top, unit = 1e3, p.scale

    def value(kappa, m, sigma):
      return sigma[:, a] - sigma[:, b]

    def fill(kappa, m, sigma, h):
      return sigma[:, b] + h

  else:

    def value(kappa, m, sigma):
      return _gamma(kappa, sigma, a) - _gamma(kappa, sigma, b)

    if f.kappas > 1:

      def fill(kappa, m, sigma, h):
        return (kappa[:, b] * sigma[:, b] + h) / sigma[:, a]

    else:

      def fill(kappa, m, sigma, h):
        sign = np.where(kappa[:, a].real < 0, -1.0, 1.0)
        return sigma[:, b] + sign * h / kappa[:, a]

  kind = 'kappa' if f.kappas > 1 else 'sigma'
  drop = _index(f, len(p.names), kind, a)
  return Target(
    value,
    drop,
    fill,
    -top,
    top,
    0.1 / p.range,
    lambda h: h * unit,
    -math.inf,
    math.inf,
    pair=(a, b) if f.kappas == 1 else None,
  )


def alpha(p: family.Problem, f: family.Form, k: int = 0) -> Target:
  """The asymptote; h is -kappa, so that both grow. Raises ValueError where it is not fitted."""
  if not f.kappas:
    raise ValueError(f'{f.name} has no asymptote to fit')

  def show(h):
    return p.centre - p.scale / h if h < -family.ON_BOUND_KAPPA else math.inf

  return Target(
    lambda kappa, m, sigma: -kappa[:, k],
    _index(f, len(p.names), 'kappa', k),
    lambda kappa, m, sigma, h: -h,
    -1e3,
    0.0,
    0.1,
    show,
    low_shown=-math.inf,
  )


def match(p: family.Problem, f: family.Form, a: int, b: int, compute_b: float) -> Target:
  """Compute of a that gives the fitted AUC of b at `compute_b`; h is its ln(C / C_0)."""
  t_b = p.time(compute_b)

  def level(kappa, m, sigma):
    return family.value(kappa[:, b], m[:, b], sigma[:, b], t_b)

  def value(kappa, m, sigma):
    y, k, s = level(kappa, m, sigma), kappa[:, a], sigma[:, a]
    # (1 - k y) / (1 - k m) = e^(-k s t); log1p keeps it exact near the line, k = 0.
    u = (y - m[:, a]) / (1 - k * m[:, a])
    small = np.abs(k * u) < 1e-6
    safe = np.where(small, 1.0, k)
    return np.where(small, u * (1 + k * u / 2), -np.log1p(-safe * u) / safe) / s

  def fill(kappa, m, sigma, h):
    st = sigma[:, a] * h
    z = kappa[:, a] * st
    return (level(kappa, m, sigma) - st * family.phi(z)) * np.exp(z)

  drop = _index(f, len(p.names), 'm', a)
  low, high = float(p.t_N.min()) - _FAR, float(p.t_N.max()) + _FAR
  show = lambda h: p.compute0 * math.exp(h)  # noqa: E731
  return Target(value, drop, fill, low, high, 0.1, show, 0.0, math.inf)


def slope(p: family.Problem, f: family.Form, k: int) -> Target:
  """Local slope at C_0: dAUC / d log2 C, the gain of a doubling (`Problem.moved`: elsewhere)."""
  return Target(
    lambda kappa, m, sigma: (1 - kappa[:, k] * m[:, k]) * sigma[:, k],
    _index(f, len(p.names), 'sigma', k),
    lambda kappa, m, sigma, h: h / (1 - kappa[:, k] * m[:, k]),
    0.0,
    1e4,
    0.1,
    lambda h: h * p.scale * math.log(2),
    high_shown=math.inf,
  )


def estimate(parts: tuple[np.ndarray, np.ndarray, np.ndarray], target: Target) -> np.ndarray:
  """h_T at (kappa_TK, m_TK, sigma_TK); nan or infinite where it does not exist."""
  with np.errstate(all='ignore'):
    return target.value(*parts)
