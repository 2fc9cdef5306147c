# SPDX-License-Identifier: Apache-2.0
"""Least-squares fits of `deres_jax.scaling.laws.family` and what speaks against them.

Variable projection finds the start: for a grid of (alpha, gamma_k) each beta_k has a closed form
and, alpha given, connectors are apart, so the best of the whole grid costs a table look-up each
(Golub & Pereyra 1973). Levenberg-Marquardt starts at the best of each of four bands of alpha and at
the line in ln C; the lowest sum of squares is the fit.

Shape letters are those of `deres_jax.scaling.laws.family`; A alphas and G gammas of the grid.
"""

import dataclasses
import math
from typing import Any

import numpy as np
from scipy import special

from deres_jax.scaling.laws import family as family_lib
from deres_jax.scaling.laws import least_squares

LEVEL = 0.95
_LACK = 0.05  # lack of fit is significant below this p
_ALPHA_GAPS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # alpha over the highest y, in ranges
_GAMMAS = np.geomspace(0.02, 20.0, 36)  # times the range of t


@dataclasses.dataclass(frozen=True)
class Fit:
  """A law fitted to T sets of AUCs.

  Attributes:
    q_TQ: free parameters (laws.Form). rss_T: weighted sum of squares of the cells about the curve.
    s2_T: variance of a run, scaled; df_T: its degrees of freedom. Both are of all residuals, or,
      where lack of fit is significant (F test, p < 0.05), of the cells about the curve alone.
    lack_T: p of lack of fit; nan without replicates or with as many parameters as cells.
  """

  p: family_lib.Problem
  f: family_lib.Form
  q_TQ: np.ndarray
  rss_T: np.ndarray
  s2_T: np.ndarray
  df_T: np.ndarray
  lack_T: np.ndarray

  @property
  def parts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """kappa_TK, m_TK, sigma_TK in scaled units."""
    return self.f.split(self.q_TQ, len(self.p.names))

  @property
  def gamma_TK(self) -> np.ndarray:
    """Exponents, of C whatever its unit; of the gain for power_gain; nan for log_linear."""
    kappa_TK, _, sigma_TK = self.parts
    gamma_TK = np.abs(kappa_TK) * sigma_TK
    return np.full_like(gamma_TK, np.nan) if self.f.name == 'log_linear' else gamma_TK

  @property
  def alpha_TK(self) -> np.ndarray:
    """Asymptotic AUC (of power_gain: the baseline); inf on the bound and for log_linear."""
    kappa_TK = self.parts[0]
    bound_TK = np.abs(kappa_TK) < family_lib.ON_BOUND_KAPPA
    alpha_TK = self.p.centre + self.p.scale / np.where(bound_TK, 1.0, kappa_TK)
    return np.where(bound_TK, np.inf, alpha_TK)

  def predict(self, which: np.ndarray, t: np.ndarray) -> np.ndarray:
    """AUC_TM of M connectors (indices) at M values of ln(C / C_0)."""
    kappa_TM, m_TM, sigma_TM = (x[:, which] for x in self.parts)
    return self.p.centre + self.p.scale * family_lib.value(kappa_TM, m_TM, sigma_TM, t)

  def auc(self, k: int, compute: float) -> float:
    """AUC of connector k at `compute` FLOPs, of the first set."""
    return float(self.predict(np.array([k]), np.array([self.p.time(compute)]))[0, 0])

  def notes(self, t: int = 0) -> list[str]:
    """Bounds that set t's fit stands on, as plain sentences."""
    kappa_K, _, sigma_K = (x[t] for x in self.parts)
    out = []
    if self.f.kappas == 1 and kappa_K[0] < family_lib.ON_BOUND_KAPPA:
      out.append(
        'the fit is at the boundary alpha = infinity, gamma = 0: the data show no saturation, and '
        'only ratios of slopes in ln C are left of the exponents'
      )
    for k, name in enumerate(self.p.names):
      if sigma_K[k] < family_lib.ON_BOUND_SIGMA:
        out.append(f'{name} is at the boundary beta = 0: its AUC does not rise with compute')
      elif self.f.kappas > 1 and kappa_K[k] < family_lib.ON_BOUND_KAPPA:
        out.append(f'{name} is at the boundary alpha = infinity, gamma = 0: it does not saturate')
      elif kappa_K[k] * sigma_K[k] * self.p.range > 0.5 * family_lib.STEEPEST:
        out.append(f'{name} is all saturated: the smallest budget alone decides its gamma')
    return out

  def information(self) -> np.ndarray:
    """J^T J of the free parameters, TQQ, scaled."""
    family = family_lib.Family(self.p, self.f)
    _, j_TNQ = family.residuals()(self.q_TQ, np.arange(len(self.q_TQ)))
    return np.matmul(j_TNQ.transpose(0, 2, 1), j_TNQ)

  def covariance(self) -> np.ndarray:
    """Covariance of the free parameters at the linearised fit, TQQ, scaled."""
    return self.s2_T[:, None, None] * np.linalg.pinv(self.information(), hermitian=True)


def fit(p: family_lib.Problem, f: family_lib.Form) -> Fit:
  """The weighted least-squares fit of every set of AUCs."""
  return _judged(p, f, *_apart(p, f, None))


def refit(old: Fit, p: family_lib.Problem) -> Fit:
  """A fit of other AUCs of the same cells, also from where `old` (one set) ended."""
  return _judged(p, old.f, *_apart(p, old.f, old.q_TQ[:1]))


def _apart(p: family_lib.Problem, f: family_lib.Form, old_1Q) -> tuple[np.ndarray, np.ndarray]:
  """`_together` for each connector alone where none shares a parameter: no optimum is missed."""
  if f.kappas == 1 or len(p.names) == 1:
    return _together(p, f, old_1Q)
  alone, num = dataclasses.replace(f, kappas=min(f.kappas, 1)), len(p.names)
  columns = np.arange(f.size(num)).reshape(-1, num)  # [kappa], m, sigma of each connector
  q_TQ, rss_T = np.empty((len(p.y_TN), f.size(num))), np.zeros(len(p.y_TN))
  for k in range(num):
    part = dataclasses.replace(p.subset(p.which_N == k), names=p.names[k : k + 1])
    part = dataclasses.replace(part, which_N=np.zeros_like(part.which_N))
    start_1Q = None if old_1Q is None else old_1Q[:, columns[:, k]]
    q_TQ[:, columns[:, k]], own_T = _together(part, alone, start_1Q)
    rss_T += own_T
  return q_TQ, rss_T


def _together(p: family_lib.Problem, f: family_lib.Form, old_1Q) -> tuple[np.ndarray, np.ndarray]:
  """The lowest sum of squares from all starts, and its parameters."""
  starts = [_from_line(p, f)]
  if f.name != 'log_linear':
    bands = np.reshape(_ALPHA_GAPS, (-1, 2)) if f.kappas else [_ALPHA_GAPS]
    starts += [_from_grid(p, f, gaps) for gaps in bands]
  if old_1Q is not None:
    starts.append(np.repeat(old_1Q, len(p.y_TN), axis=0))
  run, low_Q = family_lib.Family(p, f).residuals(), f.low(len(p.names))
  best_TQ, best_T = least_squares.minimise(run, starts[0], low_Q, np.arange(len(p.y_TN)))
  for start_TQ in starts[1:]:
    q_TQ, rss_T = least_squares.minimise(run, start_TQ, low_Q, np.arange(len(p.y_TN)))
    better_T = rss_T < best_T
    best_TQ[better_T], best_T[better_T] = q_TQ[better_T], rss_T[better_T]
  return best_TQ, best_T


def _judged(p: family_lib.Problem, f: family_lib.Form, q_TQ: np.ndarray, rss_T: np.ndarray) -> Fit:
  df_fit = len(p.t_N) - f.size(len(p.names))
  df_all = df_fit + p.df_pure
  with np.errstate(divide='ignore', invalid='ignore'):
    s2_T = (rss_T + p.pure_T) / df_all if df_all > 0 else np.full_like(rss_T, np.nan)
    lack_T = np.full_like(rss_T, np.nan)
    if df_fit > 0 and p.df_pure > 0:
      lack_T = special.fdtrc(df_fit, p.df_pure, (rss_T / df_fit) / (p.pure_T / p.df_pure))
  lacks_T = lack_T < _LACK
  s2_T = np.where(lacks_T, rss_T / max(df_fit, 1), s2_T)
  df_T = np.where(lacks_T, df_fit, max(df_all, 0))
  return Fit(p, f, q_TQ, rss_T, s2_T, df_T, lack_T)


def _lines(p: family_lib.Problem) -> tuple[np.ndarray, np.ndarray]:
  """Level at t = 0 and slope of each connector's weighted line in ln C."""
  m_TK = np.empty((len(p.y_TN), len(p.names)))
  b_TK = np.empty_like(m_TK)
  for k in range(len(p.names)):
    own = p.which_N == k
    t, w, y_TN = p.t_N[own], p.runs_N[own] / p.runs_N[own].sum(), p.y_TN[:, own]
    dt = t - w @ t
    b_TK[:, k] = (y_TN @ (w * dt)) / (w @ dt**2)
    m_TK[:, k] = y_TN @ w - b_TK[:, k] * (w @ t)
  return m_TK, np.maximum(b_TK, 1e-3)


def _from_line(p: family_lib.Problem, f: family_lib.Form) -> np.ndarray:
  m_TK, b_TK = _lines(p)
  # A tenth of the kappa at which the highest level is the asymptote: allowed, and not on the bound.
  kappa_T1 = 0.1 / np.maximum(np.abs(m_TK).max(axis=1, keepdims=True), 1.0)
  kappa_TQ = np.repeat(kappa_T1, f.kappas, axis=1)
  used_T1 = kappa_T1 if f.kappas else f.fixed
  if f.fixed < 0:  # levels stay above the baseline
    m_TK = np.maximum(m_TK, 1 / f.fixed + 1e-3 * abs(1 / f.fixed))
  return np.concatenate([kappa_TQ, m_TK, b_TK / (1 - used_T1 * m_TK)], axis=1)


def _from_grid(p: family_lib.Problem, f: family_lib.Form, gaps) -> np.ndarray:
  """The best of all (alpha, gamma), beta in closed form; alpha is that far over the highest y."""
  num, sign = len(p.names), -1.0 if f.fixed < 0 else 1.0
  gamma_G = _GAMMAS / p.range
  top_T1 = p.y_TN.max(axis=1, keepdims=True)
  alpha_TA = top_T1 + np.ptp(p.y_TN, axis=1, keepdims=True) * np.array(gaps)
  alpha_TA = np.maximum(alpha_TA, 0.05)  # kappa > 0
  if not f.kappas:
    alpha_TA = np.full((len(p.y_TN), 1), 1 / f.fixed)
  rss_TKA = np.empty((len(p.y_TN), num, alpha_TA.shape[1]))
  best_TKA = np.empty(rss_TKA.shape, int)
  beta_TKA = np.empty_like(rss_TKA)
  for k in range(num):
    own = p.which_N == k
    w, y_TN = p.runs_N[own], p.y_TN[:, own]
    z_GN = np.exp(-sign * gamma_G[:, None] * p.t_N[own])
    zz_G, z_G, zy_TG = z_GN**2 @ w, z_GN @ w, (y_TN * w) @ z_GN.T
    # sum w (alpha - y) z and sum w (alpha - y)^2
    cross_TAG = alpha_TA[:, :, None] * z_G - zy_TG[:, None, :]
    whole_TA = alpha_TA**2 * w.sum() - 2 * alpha_TA * (y_TN @ w)[:, None] + (y_TN**2 @ w)[:, None]
    beta_TAG = cross_TAG / zz_G
    rss_TAG = whole_TA[:, :, None] - beta_TAG * cross_TAG
    rss_TAG = np.where(sign * beta_TAG > 0, rss_TAG, np.inf)
    best_TKA[:, k] = rss_TAG.argmin(axis=2)
    pick = best_TKA[:, k][:, :, None]
    rss_TKA[:, k] = np.take_along_axis(rss_TAG, pick, 2)[:, :, 0]
    beta_TKA[:, k] = np.take_along_axis(beta_TAG, pick, 2)[:, :, 0]
  if f.kappas <= 1:
    rss_TKA = np.repeat(rss_TKA.sum(axis=1, keepdims=True), num, axis=1)
  pick_TK1 = rss_TKA.argmin(axis=2)[:, :, None]
  alpha_TK = np.take_along_axis(alpha_TA[:, None, :], pick_TK1, 2)[:, :, 0]
  gamma_TK = gamma_G[np.take_along_axis(best_TKA, pick_TK1, 2)[:, :, 0]]
  m_TK = alpha_TK - np.take_along_axis(beta_TKA, pick_TK1, 2)[:, :, 0]
  return np.concatenate([(1 / alpha_TK)[:, : f.kappas], m_TK, gamma_TK * np.abs(alpha_TK)], axis=1)


# What speaks against a fit.


def aicc(found: Fit, t: int = 0) -> float | None:
  """Small-sample Akaike criterion over runs (Hurvich & Tsai 1989); None with too few runs."""
  n, k = found.p.runs, found.q_TQ.shape[1] + 1
  total = float(found.rss_T[t] + found.p.pure_T[t])
  if n - k - 1 <= 0 or total <= 0:
    return None
  return n * math.log(total / n) + 2 * k + 2 * k * (k + 1) / (n - k - 1)


def shared_alpha_p(shared: Fit, free: Fit, t: int = 0) -> float | None:
  """p of the F test that one alpha serves all connectors; None where it cannot be tested."""
  extra = free.f.kappas - 1
  df = len(free.p.t_N) - free.q_TQ.shape[1] + free.p.df_pure
  whole = float(free.rss_T[t] + free.p.pure_T[t])
  if extra < 1 or df < 1 or whole <= 0:
    return None
  gain = max(float(shared.rss_T[t] - free.rss_T[t]), 0.0)
  return float(special.fdtrc(extra, df, gain / extra / (whole / df)))


def leave_largest(found: Fit) -> list[dict[str, Any]] | None:
  """Errors of AUCs predicted at each connector's largest budget by a fit without them.

  `error` is measured less predicted; `standard_errors` divides it by the root of the prediction's
  variance (linearised) and the mean's. None where too few cells are left for the parameters.
  """
  p = found.p
  last_N = np.zeros(len(p.t_N), bool)
  for k in range(len(p.names)):
    own = np.flatnonzero(p.which_N == k)
    last_N[own[p.t_N[own].argmax()]] = True
  rest = p.subset(~last_N)
  if len(rest.t_N) < found.q_TQ.shape[1] or len(rest.t_N) + p.df_pure <= found.q_TQ.shape[1]:
    return None
  less = fit(rest, found.f)
  family = family_lib.Family(p.subset(last_N), found.f)
  _, j_TNQ = family.residuals()(less.q_TQ, np.zeros(1, int))
  j_NQ = j_TNQ[0] / np.sqrt(p.runs_N[last_N])[:, None]
  variance_N = np.einsum('nq,qr,nr->n', j_NQ, less.covariance()[0], j_NQ)
  variance_N += less.s2_T[0] / p.runs_N[last_N]
  which, t = p.which_N[last_N], p.t_N[last_N]
  predicted = less.predict(which, t)[0]
  measured = p.centre + p.scale * p.y_TN[0, last_N]
  return [
    {
      'connector': p.names[k],
      'compute': p.compute0 * math.exp(t[i]),
      'auc': float(measured[i]),
      'predicted': float(predicted[i]),
      'error': float(measured[i] - predicted[i]),
      'standard_errors': float((measured[i] - predicted[i]) / (p.scale * variance_N[i] ** 0.5)),
    }
    for i, k in enumerate(which)
  ]
