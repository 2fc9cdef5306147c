# SPDX-License-Identifier: Apache-2.0
"""Laws of AUC against compute, fitted jointly over connectors.

  saturating        AUC = alpha - beta_k C^-gamma_k, one alpha for all connectors k
  saturating_free   the same, an alpha_k for each
  power_gain        AUC = AUC_0 + a_k C^gamma_k, AUC_0 given (UniMixer, arXiv 2604.00590)
  log_linear        AUC = a_k + b_k ln C

All four are one family. With t = ln(C / C_0), C_0 a reference compute, m_k the AUC there,
kappa = 1 / (alpha - mean AUC) and sigma_k = gamma_k / kappa (AUC counted from its mean),

  AUC_k(t) = m_k e^(-kappa sigma_k t) + sigma_k t phi(kappa sigma_k t),  phi(z) = (1 - e^-z) / z.

kappa = 0 is the straight line in ln C, kappa < 0 a gain over alpha = AUC_0; nothing is singular on
the way, so a fit that runs to alpha = infinity ends at kappa = 0 and says so. beta, gamma >= 0 are
the bounds kappa >= 0, sigma_k >= 0 and kappa m_k < 1. C is in units of C_0 (the geometric mean)
and AUC in units of its spread.

Shape letters: T sets of AUCs that share budgets (1 for data, many for simulations), N cells (a
connector at a size), K connectors, Q free parameters, R runs.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from deres_jax.core.errors import UserError, choose

MIN_BUDGETS = 4  # of a connector; below it there is no law to speak of
ON_BOUND_KAPPA, ON_BOUND_SIGMA = 1e-6, 1e-7  # at and below: on the bound
_HUGE = 1e100
STEEPEST = 60.0  # gamma times the range of ln C: beyond, one budget alone makes the curve


@dataclasses.dataclass(frozen=True)
class Points:
  """Runs: connector, size, compute in FLOPs, test AUC, seed."""

  names: tuple[str, ...]  # connectors
  which_R: np.ndarray  # index of the connector
  cell_R: np.ndarray  # runs of one connector at one size have one number
  compute_R: np.ndarray
  auc_R: np.ndarray
  seed_R: np.ndarray


class Row(NamedTuple):
  """A run as a law sees it."""

  connector: str
  compute: float  # FLOPs, all of a row's forward pass or all of a training
  auc: float
  seed: int
  size: str = ''  # what else tells cells of one connector apart, such as depth and width


def points(rows: Sequence[Row]) -> Points:
  """Points of runs; runs of one connector, size and compute are a cell.

  Raises UserError for compute that is not positive, an AUC outside [0, 1], a seed that stands
  twice in a cell, and fewer than four budgets (distinct computes) of a connector.
  """
  names = tuple(dict.fromkeys(row.connector for row in rows))
  cells, seen = {}, set()
  for name, compute, auc, seed, size in rows:
    if not (math.isfinite(compute) and compute > 0) or not 0 <= auc <= 1:
      raise UserError(f'{name}: compute {compute} and AUC {auc}: expected FLOPs > 0, 0 <= AUC <= 1')
    key = (name, size, compute)
    if (key, seed) in seen:
      raise UserError(f'{name} at {compute:.6g} FLOPs has seed {seed} twice: drop one run')
    seen.add((key, seed))
    cells.setdefault(key, len(cells))
  for name in names:
    budgets = len({key[2] for key in cells if key[0] == name})
    if budgets < MIN_BUDGETS:
      raise UserError(
        f'{name} has {budgets} budgets of compute: a law needs at least {MIN_BUDGETS} of every '
        'connector; run more sizes or leave it out'
      )
  return Points(
    names,
    np.array([names.index(row.connector) for row in rows], int),
    np.array([cells[row.connector, row.size, row.compute] for row in rows], int),
    np.array([row.compute for row in rows], float),
    np.array([row.auc for row in rows], float),
    np.array([row.seed for row in rows], int),
  )


@dataclasses.dataclass(frozen=True)
class Problem:
  """Cells in scaled units: t = ln(C / C_0), y = (AUC - centre) / scale."""

  names: tuple[str, ...]
  which_N: np.ndarray
  t_N: np.ndarray
  runs_N: np.ndarray  # runs of a cell: its weight
  y_TN: np.ndarray  # means over the runs of a cell
  pure_T: np.ndarray  # sum of squares of runs about their cells' means
  df_pure: int
  centre: float
  scale: float
  compute0: float  # C_0

  @property
  def runs(self) -> int:
    return int(self.runs_N.sum())

  @property
  def range(self) -> float:
    return float(np.ptp(self.t_N))

  def time(self, compute: float) -> float:
    """ln of compute over the reference, as the fits take it."""
    return math.log(compute / self.compute0)

  def subset(self, keep_N: np.ndarray) -> 'Problem':
    """Without the cells that `keep_N` denies; pure error stays that of all."""
    y_TN = self.y_TN[:, keep_N]
    return dataclasses.replace(
      self,
      which_N=self.which_N[keep_N],
      t_N=self.t_N[keep_N],
      runs_N=self.runs_N[keep_N],
      y_TN=y_TN,
    )

  def moved(self, compute: float) -> 'Problem':
    """The same cells with C_0 = `compute`."""
    return dataclasses.replace(self, t_N=self.t_N - self.time(compute), compute0=compute)

  def with_auc(self, auc_TN: np.ndarray, pure_T: np.ndarray) -> 'Problem':
    """Other AUCs of the cells; pure_T in AUC squared."""
    y_TN = (auc_TN - self.centre) / self.scale
    return dataclasses.replace(self, y_TN=y_TN, pure_T=pure_T / self.scale**2)


def problem(data: Points) -> Problem:
  """Cells of the runs: means, weighted by their runs (equal variance of a run: pooled)."""
  _, first, cell_R = np.unique(data.cell_R, return_index=True, return_inverse=True)
  runs_N = np.bincount(cell_R)
  mean_N = np.bincount(cell_R, data.auc_R) / runs_N
  log_N = np.log(data.compute_R[first])
  centre = float(np.average(mean_N, weights=runs_N))
  scale = float(np.std(mean_N)) or 1.0
  pure = float(((data.auc_R - mean_N[cell_R]) ** 2).sum()) / scale**2
  return Problem(
    data.names,
    data.which_R[first],
    log_N - log_N.mean(),
    runs_N,
    ((mean_N - centre) / scale)[None],
    np.array([pure]),
    len(data.auc_R) - len(runs_N),
    centre,
    scale,
    math.exp(log_N.mean()),
  )


# The family.


@dataclasses.dataclass(frozen=True)
class Form:
  """Which kappa a law has; free parameters are [kappas, m_1..K, sigma_1..K]."""

  name: str
  kappas: int  # number of free kappas: 0, 1 or K
  fixed: float = 0.0  # kappa where none is free

  def split(self, q_TQ: np.ndarray, num: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """kappa_TK, m_TK, sigma_TK."""
    k = self.kappas
    ones_TK = np.ones_like(q_TQ[:, k : k + num])
    kappa_TK = ones_TK * (q_TQ[:, :k] if k else self.fixed)
    return kappa_TK, q_TQ[:, k : k + num], q_TQ[:, k + num :]

  def low(self, num: int) -> np.ndarray:
    """Lower bounds of the free parameters."""
    return np.r_[np.zeros(self.kappas), np.full(num, -np.inf), np.zeros(num)]

  def size(self, num: int) -> int:
    """Number of free numbers."""
    return self.kappas + 2 * num


def form(name: str, p: Problem, baseline_auc: float | None = None) -> Form:
  """A law by name; raises UserError for unknown names and a baseline that is not below all AUCs."""
  if name == 'power_gain':
    lowest = p.centre + p.scale * float(p.y_TN.min())
    if baseline_auc is None or not baseline_auc < lowest:
      raise UserError(
        f'power_gain over AUC_0 = {baseline_auc}: give a baseline below every AUC '
        f'(the lowest is {lowest:.5f})'
      )
    return Form(name, 0, p.scale / (baseline_auc - p.centre))
  kappas = {'saturating': 1, 'saturating_free': len(p.names), 'log_linear': 0}
  return Form(name, choose(name, kappas, 'law'))


def phi(z: np.ndarray) -> np.ndarray:
  """(1 - e^-z) / z, also at 0 and for complex z."""
  small = np.abs(z) < 1e-2
  safe = np.where(small, 1.0, z)
  series = 1 - z / 2 * (1 - z / 3 * (1 - z / 4 * (1 - z / 5)))
  return np.where(small, series, -np.expm1(-safe) / safe)


def _phi_slope(z: np.ndarray, phi_z: np.ndarray, exp_z: np.ndarray) -> np.ndarray:
  small = np.abs(z) < 1e-2
  series = -1 / 2 + z / 3 - z**2 / 8 + z**3 / 30 - z**4 / 144
  return np.where(small, series, (exp_z - phi_z) / np.where(small, 1.0, z))


def value(kappa, m, sigma, t):
  """The law in scaled units; arrays that broadcast, real or complex."""
  return m * np.exp(-kappa * sigma * t) + sigma * t * phi(kappa * sigma * t)


def _allowed(kappa_TK, m_TK, sigma_TK) -> np.ndarray:
  return ((kappa_TK * m_TK < 1) & (sigma_TK >= 0)).all(axis=1)


class Family:
  """Weighted residuals of a problem under a form, as `lsq.minimise` asks for them.

  `fill(kappa_TK, m_TK, sigma_TK, h_T)` gives the parameter `drop` from the others: a constraint.
  """

  def __init__(self, p: Problem, f: Form, drop: int | None = None, fill=None):
    self._p, self._f, self._drop, self._fill = p, f, drop, fill
    self._num = len(p.names)
    self._weight_N = np.sqrt(p.runs_N)

  def complete(self, free_TQ: np.ndarray, h_T) -> np.ndarray:
    """All parameters from those left free."""
    if self._drop is None:
      return free_TQ
    left, right = np.split(free_TQ, [self._drop], axis=1)
    q_TQ = np.concatenate([left, np.zeros((len(free_TQ), 1)), right], axis=1)
    q_TQ[:, self._drop] = self._fill(*self._f.split(q_TQ, self._num), h_T)
    return q_TQ

  def _map(self, free_TQ, h_T) -> tuple[np.ndarray, np.ndarray]:
    """[T, 3K] and its derivative [T, 3, K, Q], by complex steps: exact (Squire & Trapp 1998)."""

    def whole(q, h):
      return np.stack(self._f.split(self.complete(q, h), self._num), axis=1)

    T, Q = free_TQ.shape
    moved_QTQ = np.tile(free_TQ.astype(complex), (Q, 1, 1))
    moved_QTQ[range(Q), :, range(Q)] += 1e-30j
    # All steps in one call: problems are often few, and calls are what they cost.
    moved = whole(moved_QTQ.reshape(Q * T, Q), None if h_T is None else np.tile(h_T, Q))
    slope_QT3K = moved.imag.reshape(Q, T, 3, self._num) / 1e-30
    return whole(free_TQ, h_T), slope_QT3K.transpose(1, 2, 3, 0)

  def residuals(self, h_T: np.ndarray | None = None):
    """A function for `lsq.minimise`; its problem numbers index h_T and, modulo, the data."""
    p = self._p

    def run(free_TQ, problem_T):
      with np.errstate(all='ignore'):
        some_h_T = None if h_T is None else h_T[problem_T]
        full_T3K, slope_T3KQ = self._map(free_TQ, some_h_T)
        kappa_TN, m_TN, sigma_TN = (full_T3K[:, i, p.which_N] for i in range(3))
        st_TN = sigma_TN * p.t_N
        z_TN = kappa_TN * st_TN
        exp_TN, phi_TN = np.exp(-z_TN), phi(z_TN)
        r_TN = m_TN * exp_TN + st_TN * phi_TN - p.y_TN[problem_T % len(p.y_TN)]
        by_kappa_TN = st_TN * (st_TN * _phi_slope(z_TN, phi_TN, exp_TN) - m_TN * exp_TN)
        by_sigma_TN = p.t_N * exp_TN * (1 - kappa_TN * m_TN)
        own_T3NQ = slope_T3KQ[:, :, p.which_N]
        j_TNQ = by_kappa_TN[..., None] * own_T3NQ[:, 0]
        j_TNQ += exp_TN[..., None] * own_T3NQ[:, 1]
        j_TNQ += by_sigma_TN[..., None] * own_T3NQ[:, 2]
        bad_T = ~_allowed(full_T3K[:, 0], full_T3K[:, 1], full_T3K[:, 2])
        # Also not where squares would overflow; nan compares as false.
        bad_T |= ~(np.abs(r_TN).max(axis=1) < _HUGE) | ~(np.abs(j_TNQ).max(axis=(1, 2)) < _HUGE)
        r_TN[bad_T], j_TNQ[bad_T] = np.inf, 0.0
      return r_TN * self._weight_N, j_TNQ * self._weight_N[:, None]

    return run
