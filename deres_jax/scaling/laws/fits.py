# SPDX-License-Identifier: Apache-2.0
"""Least-squares fits of the laws in `deres_jax.scaling.laws.family`, and checks of these fits.

Starting points come from variable projection (Golub & Pereyra 1973): on a grid of (alpha, gamma_k)
each beta_k has a closed form, and given alpha the connectors are independent, so the best point of
the grid is one table look-up per connector. Levenberg-Marquardt starts from the best point of each
of four bands of alpha and from the line in ln C; the fit is the lowest sum of squares.

Shape letters are those of `deres_jax.scaling.laws.family`; A alphas and G gammas of the grid.
"""

import dataclasses
import math
from typing import Any

import numpy as np
from scipy import special

from deres_jax.scaling.laws import family, least_squares

LEVEL = 0.95
_LACK = 0.05  # lack of fit is significant below this p
_ALPHA_GAPS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # alpha over the highest y, in ranges
_GAMMAS = np.geomspace(0.02, 20.0, 36)  # times the range of t


@dataclasses.dataclass(frozen=True)
class Fit:
  """A law fitted to T sets of AUCs.

  Attributes:
    q_TQ: free parameters (`family.Form`).
    rss_T: weighted sum of squares of the cells about the curve.
    s2_T, df_T: variance of a run, scaled, and its degrees of freedom: of all residuals, or, where
      lack of fit is significant (F test, p < 0.05), of the cells about the curve alone.
    lack_T: p of lack of fit; nan without replicates or with as many parameters as cells.

  >>> runs = [family.Observation('A', 4.0**i, 0.8 - 0.05 * 4.0 ** (-0.3 * i), 0) for i in range(6)]
  >>> p = family.problem(runs)
  >>> saturating = fit(p, family.form('saturating', p))
  >>> saturating.alpha_TK.round(4), saturating.gamma_TK.round(4)
  (array([[0.8]]), array([[0.3]]))
  >>> round(saturating.auc(0, 1e6), 4)
  0.7992
  """

  p: family.Problem
  f: family.Form
  q_TQ: np.ndarray
  rss_T: np.ndarray
  s2_T: np.ndarray
  df_T: np.ndarray
  lack_T: np.ndarray

  @property
  def curve_params(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns kappa_TK, m_TK, sigma_TK in scaled units."""
    return self.f.split(self.q_TQ, len(self.p.names))

  @property
  def gamma_TK(self) -> np.ndarray:
    """Exponents of C (of power_gain: of the gain); nan for log_linear."""
    kappa_TK, _, sigma_TK = self.curve_params
    gamma_TK = np.abs(kappa_TK) * sigma_TK
    return np.full_like(gamma_TK, np.nan) if self.f.name == 'log_linear' else gamma_TK

  @property
  def alpha_TK(self) -> np.ndarray:
    """Asymptotic AUC (of power_gain: the baseline); inf on the bound and for log_linear."""
    kappa_TK = self.curve_params[0]
    bound_TK = np.abs(kappa_TK) < family.ON_BOUND_KAPPA
    alpha_TK = self.p.centre + self.p.scale / np.where(bound_TK, 1.0, kappa_TK)
    return np.where(bound_TK, np.inf, alpha_TK)

  def predict(self, connector_M: np.ndarray, t_M: np.ndarray) -> np.ndarray:
    """Returns AUC_TM of M connectors (indices) at M values of t = ln(C / C_0)."""
    kappa_TM, m_TM, sigma_TM = (x[:, connector_M] for x in self.curve_params)
    return self.p.centre + self.p.scale * family.value(kappa_TM, m_TM, sigma_TM, t_M)

  def auc(self, k: int, compute: float) -> float:
    """Returns the AUC of connector k at `compute` FLOPs, of the first set."""
    return float(self.predict(np.array([k]), np.array([self.p.log_compute(compute)]))[0, 0])

  def notes(self, t: int = 0) -> list[str]:
    """Describes the bounds that the fit of set t lies on."""
    kappa_K, _, sigma_K = (x[t] for x in self.curve_params)
    out = []
    if self.f.kappas == 1 and kappa_K[0] < family.ON_BOUND_KAPPA:
      out.append(
        'the fit is at the boundary alpha = infinity, gamma = 0: the data show no saturation, and '
        'only ratios of slopes in ln C are left of the exponents'
      )
    for k, name in enumerate(self.p.names):
      if sigma_K[k] < family.ON_BOUND_SIGMA:
        out.append(f'{name} is at the boundary beta = 0: its AUC does not rise with compute')
      elif self.f.kappas > 1 and kappa_K[k] < family.ON_BOUND_KAPPA:
        out.append(f'{name} is at the boundary alpha = infinity, gamma = 0: it does not saturate')
      elif kappa_K[k] * sigma_K[k] * self.p.t_range > 0.5 * family.MAX_STEEPNESS:
        out.append(f'{name} is all saturated: the smallest budget alone decides its gamma')
    return out

  def covariance(self) -> np.ndarray:
    """Returns s^2 (J^T J)^-1 of the free parameters at the linearised fit, [T, Q, Q], scaled."""
    _, j_TNQ = family.Residuals(self.p, self.f)(self.q_TQ, np.arange(len(self.q_TQ)))
    information_TQQ = np.matmul(j_TNQ.transpose(0, 2, 1), j_TNQ)
    return self.s2_T[:, None, None] * np.linalg.pinv(information_TQQ, hermitian=True)


def fit(p: family.Problem, f: family.Form) -> Fit:
  """Fits a law to every set of AUCs by weighted least squares: min sum_n runs_n (y_n - curve)^2.

  >>> runs = [family.Observation('A', math.exp(i), 0.7 + 0.002 * i, 0) for i in range(6)]
  >>> p = family.problem(runs)
  >>> line = fit(p, family.form('log_linear', p))
  >>> float(round(p.scale * line.curve_params[2][0, 0], 4))  # slope in ln C
  0.002
  """
  return _with_variance(p, f, *_minimise(p, f, None))


def refit(old: Fit, p: family.Problem) -> Fit:
  """Fits other AUCs of the same cells, with the parameters of `old` (one set) as one more start.

  >>> runs = [family.Observation('A', 4.0**i, 0.8 - 0.05 * 4.0 ** (-0.3 * i), 0) for i in range(6)]
  >>> p = family.problem(runs)
  >>> old = fit(p, family.form('saturating', p))
  >>> steeper = p.with_auc(0.8 - 0.05 * 4.0 ** (-0.4 * np.arange(6)[None]), np.zeros(1))
  >>> refit(old, steeper).gamma_TK.round(4)
  array([[0.4]])
  """
  return _with_variance(p, old.f, *_minimise(p, old.f, old.q_TQ[:1]))


def _minimise(p: family.Problem, f: family.Form, old_1Q) -> tuple[np.ndarray, np.ndarray]:
  """Returns parameters and sums of squares, each connector fitted alone if none is shared."""
  if f.kappas == 1 or len(p.names) == 1:
    return _minimise_jointly(p, f, old_1Q)
  alone, num = dataclasses.replace(f, kappas=min(f.kappas, 1)), len(p.names)
  columns = np.arange(f.num_params(num)).reshape(-1, num)  # [kappa], m, sigma of each connector
  q_TQ, rss_T = np.empty((len(p.y_TN), f.num_params(num))), np.zeros(len(p.y_TN))
  for k in range(num):
    part = dataclasses.replace(p.subset(p.connector_N == k), names=p.names[k : k + 1])
    part = dataclasses.replace(part, connector_N=np.zeros_like(part.connector_N))
    start_1Q = None if old_1Q is None else old_1Q[:, columns[:, k]]
    q_TQ[:, columns[:, k]], part_rss_T = _minimise_jointly(part, alone, start_1Q)
    rss_T += part_rss_T
  return q_TQ, rss_T


def _minimise_jointly(p: family.Problem, f: family.Form, old_1Q) -> tuple[np.ndarray, np.ndarray]:
  """Returns the parameters with the lowest sum of squares from all starts, and the sum."""
  starts = [_start_at_line(p, f)]
  if f.name != 'log_linear':
    bands = np.reshape(_ALPHA_GAPS, (-1, 2)) if f.kappas else [_ALPHA_GAPS]
    starts += [_start_at_grid(p, f, gaps) for gaps in bands]
  if old_1Q is not None:
    starts.append(np.repeat(old_1Q, len(p.y_TN), axis=0))
  residuals, low_Q = family.Residuals(p, f), f.lower_bounds(len(p.names))
  best_TQ, best_T = least_squares.minimise(residuals, starts[0], low_Q, np.arange(len(p.y_TN)))
  for start_TQ in starts[1:]:
    q_TQ, rss_T = least_squares.minimise(residuals, start_TQ, low_Q, np.arange(len(p.y_TN)))
    better_T = rss_T < best_T
    best_TQ[better_T], best_T[better_T] = q_TQ[better_T], rss_T[better_T]
  return best_TQ, best_T


def _with_variance(p: family.Problem, f: family.Form, q_TQ, rss_T: np.ndarray) -> Fit:
  df_fit = len(p.t_N) - f.num_params(len(p.names))
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


def _lines(p: family.Problem) -> tuple[np.ndarray, np.ndarray]:
  """Returns level at t = 0 and slope of each connector's weighted line in ln C."""
  m_TK = np.empty((len(p.y_TN), len(p.names)))
  b_TK = np.empty_like(m_TK)
  for k in range(len(p.names)):
    cells = p.connector_N == k
    t, w, y_TN = p.t_N[cells], p.runs_N[cells] / p.runs_N[cells].sum(), p.y_TN[:, cells]
    dt = t - w @ t
    b_TK[:, k] = (y_TN @ (w * dt)) / (w @ dt**2)
    m_TK[:, k] = y_TN @ w - b_TK[:, k] * (w @ t)
  return m_TK, np.maximum(b_TK, 1e-3)


def _start_at_line(p: family.Problem, f: family.Form) -> np.ndarray:
  m_TK, b_TK = _lines(p)
  # A tenth of the kappa whose asymptote is the highest level: within the bounds, and not on one.
  kappa_T1 = 0.1 / np.maximum(np.abs(m_TK).max(axis=1, keepdims=True), 1.0)
  kappa_TQ = np.repeat(kappa_T1, f.kappas, axis=1)
  kappa_or_fixed_T1 = kappa_T1 if f.kappas else f.fixed
  if f.fixed < 0:  # levels stay above the baseline
    m_TK = np.maximum(m_TK, 1 / f.fixed + 1e-3 * abs(1 / f.fixed))
  return np.concatenate([kappa_TQ, m_TK, b_TK / (1 - kappa_or_fixed_T1 * m_TK)], axis=1)


def _start_at_grid(p: family.Problem, f: family.Form, gaps) -> np.ndarray:
  """Returns the best point of a grid of (alpha, gamma), beta in closed form.

  `gaps`: distances of alpha from the highest y, in ranges of y.
  """
  num, sign = len(p.names), -1.0 if f.fixed < 0 else 1.0
  gamma_G = _GAMMAS / p.t_range
  top_T1 = p.y_TN.max(axis=1, keepdims=True)
  alpha_TA = top_T1 + np.ptp(p.y_TN, axis=1, keepdims=True) * np.array(gaps)
  alpha_TA = np.maximum(alpha_TA, 0.05)  # kappa > 0
  if not f.kappas:
    alpha_TA = np.full((len(p.y_TN), 1), 1 / f.fixed)
  rss_TKA = np.empty((len(p.y_TN), num, alpha_TA.shape[1]))
  best_TKA = np.empty(rss_TKA.shape, int)
  beta_TKA = np.empty_like(rss_TKA)
  for k in range(num):
    cells = p.connector_N == k
    w, y_TN = p.runs_N[cells], p.y_TN[:, cells]
    z_GN = np.exp(-sign * gamma_G[:, None] * p.t_N[cells])
    zz_G, z_G, zy_TG = z_GN**2 @ w, z_GN @ w, (y_TN * w) @ z_GN.T
    # sum w (alpha - y) z and sum w (alpha - y)^2
    cross_TAG = alpha_TA[:, :, None] * z_G - zy_TG[:, None, :]
    total_TA = alpha_TA**2 * w.sum() - 2 * alpha_TA * (y_TN @ w)[:, None] + (y_TN**2 @ w)[:, None]
    beta_TAG = cross_TAG / zz_G
    rss_TAG = total_TA[:, :, None] - beta_TAG * cross_TAG
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


# Checks of a fit.


def aicc(law: Fit, t: int = 0) -> float | None:
  """Returns the small-sample Akaike criterion over runs (Hurvich & Tsai 1989).

    AICc = n ln(RSS / n) + 2 k + 2 k (k + 1) / (n - k - 1)

  for n runs and k parameters, the variance among them; None with too few runs.

  >>> aucs = [0.8 - 0.05 * 4.0 ** (-0.3 * i) + 1e-5 * (-1) ** i for i in range(8)]
  >>> runs = [family.Observation('A', 4.0**i, auc, 0) for i, auc in enumerate(aucs)]
  >>> p = family.problem(runs)
  >>> aicc(fit(p, family.form('saturating', p))) < aicc(fit(p, family.form('log_linear', p)))
  True
  """
  n, k = law.p.runs, law.q_TQ.shape[1] + 1
  total = float(law.rss_T[t] + law.p.pure_T[t])
  if n - k - 1 <= 0 or total <= 0:
    return None
  return n * math.log(total / n) + 2 * k + 2 * k * (k + 1) / (n - k - 1)


def shared_alpha_p(shared: Fit, free: Fit, t: int = 0) -> float | None:
  """Returns p of the F test that all connectors share one alpha; None if it cannot be tested.

    F = ((RSS_shared - RSS_free) / (K - 1)) / (RSS_free / df_free)

  >>> asymptotes = {'A': 0.8, 'B': 0.81}
  >>> runs = [
  ...   family.Observation(name, 4.0**i, alpha - 0.05 * 4.0 ** (-0.3 * i) + 1e-5 * (-1) ** i, 0)
  ...   for name, alpha in asymptotes.items()
  ...   for i in range(6)
  ... ]
  >>> p = family.problem(runs)
  >>> shared, free = (fit(p, family.form(x, p)) for x in ('saturating', 'saturating_free'))
  >>> shared_alpha_p(shared, free) < 1e-3
  True
  """
  extra = free.f.kappas - 1
  df = len(free.p.t_N) - free.q_TQ.shape[1] + free.p.df_pure
  rss = float(free.rss_T[t] + free.p.pure_T[t])
  if extra < 1 or df < 1 or rss <= 0:
    return None
  gain = max(float(shared.rss_T[t] - free.rss_T[t]), 0.0)
  return float(special.fdtrc(extra, df, gain / extra / (rss / df)))


def holdout_largest(law: Fit) -> list[dict[str, Any]] | None:
  """Predicts the AUC at each connector's largest budget by a fit to all other budgets.

  Returns:
    A line a connector: `error` is measured less predicted; `standard_errors` divides it by the root
    of the prediction's variance (linearised) plus that of the cell's mean. None where too few cells
    remain for the parameters.

  >>> runs = [family.Observation('A', 4.0**i, 0.8 - 0.05 * 4.0 ** (-0.3 * i), 0) for i in range(6)]
  >>> p = family.problem(runs)
  >>> [line] = holdout_largest(fit(p, family.form('log_linear', p)))
  >>> round(line['error'], 4)  # the line overshoots a curve that saturates
  -0.0104
  """
  p = law.p
  last_N = np.zeros(len(p.t_N), bool)
  for k in range(len(p.names)):
    cells = np.flatnonzero(p.connector_N == k)
    last_N[cells[p.t_N[cells].argmax()]] = True
  rest = p.subset(~last_N)
  params = law.q_TQ.shape[1]
  if len(rest.t_N) < params or len(rest.t_N) + p.df_pure <= params:
    return None
  law_of_rest = fit(rest, law.f)
  _, j_TNQ = family.Residuals(p.subset(last_N), law.f)(law_of_rest.q_TQ, np.zeros(1, int))
  j_NQ = j_TNQ[0] / np.sqrt(p.runs_N[last_N])[:, None]
  variance_N = np.einsum('nq,qr,nr->n', j_NQ, law_of_rest.covariance()[0], j_NQ)
  variance_N += law_of_rest.s2_T[0] / p.runs_N[last_N]
  connector_M, t_M = p.connector_N[last_N], p.t_N[last_N]
  predicted = law_of_rest.predict(connector_M, t_M)[0]
  measured = p.centre + p.scale * p.y_TN[0, last_N]
  return [
    {
      'connector': p.names[k],
      'compute': p.compute0 * math.exp(t_M[i]),
      'auc': float(measured[i]),
      'predicted': float(predicted[i]),
      'error': float(measured[i] - predicted[i]),
      'standard_errors': float((measured[i] - predicted[i]) / (p.scale * variance_N[i] ** 0.5)),
    }
    for i, k in enumerate(connector_M)
  ]
