# SPDX-License-Identifier: Apache-2.0
"""Laws of AUC against compute, fitted jointly over connectors k.

  saturating        AUC = alpha - beta_k C^-gamma_k, one alpha for all connectors
  saturating_free   the same with an alpha_k for each connector
  power_gain        AUC = AUC_0 + a_k C^gamma_k, AUC_0 given (UniMixer, arXiv 2604.00590)
  log_linear        AUC = a_k + b_k ln C

All four are one family. With t = ln(C / C_0), C_0 a reference compute, m_k the AUC there,
kappa = 1 / (alpha - mean AUC) and sigma_k = gamma_k / kappa (AUC counted from its mean),

  AUC_k(t) = m_k e^(-kappa sigma_k t) + sigma_k t phi(kappa sigma_k t),  phi(z) = (1 - e^-z) / z.

kappa = 0 is the straight line in ln C, kappa < 0 a gain over alpha = AUC_0. Nothing is singular
between them, so a fit that tends to alpha = infinity ends at kappa = 0 and reports it. The bounds
beta, gamma >= 0 become kappa >= 0, sigma_k >= 0 and kappa m_k < 1. Scaled units: C in units of C_0
(the geometric mean), AUC in units of its spread.

Shape letters: T sets of AUCs at the same budgets (1 for data, many for simulations), N cells (a
connector at a size), K connectors, Q free parameters, R runs.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from deres_jax.core.errors import UserError, choose

MIN_BUDGETS = 4  # distinct computes of a connector that a law needs
ON_BOUND_KAPPA, ON_BOUND_SIGMA = 1e-6, 1e-7  # at and below: on the bound
MAX_STEEPNESS = 60.0  # gamma times the range of ln C; beyond it one budget decides the curve
_MAX_RESIDUAL = 1e100


class Observation(NamedTuple):
  """The test AUC of one run."""

  connector: str
  compute: float  # FLOPs of a row's forward pass or of a training
  auc: float
  seed: int
  size: str = ''  # distinguishes cells of equal compute, such as depth and width


@dataclasses.dataclass(frozen=True)
class Problem:
  """Cell means in scaled units: t = ln(C / C_0), y = (AUC - centre) / scale.

  >>> p = problem([Observation('A', 2.0**i, 0.7 + 0.01 * i, 0) for i in range(4)])
  >>> round(p.log_compute(2 * p.compute0), 4)  # ln 2
  0.6931
  """

  names: tuple[str, ...]  # of connectors
  cell_R: np.ndarray  # cell of each run
  auc_R: np.ndarray
  connector_N: np.ndarray  # index into names
  t_N: np.ndarray
  runs_N: np.ndarray  # number of runs, the weight of a cell
  y_TN: np.ndarray  # means over the runs of a cell
  pure_T: np.ndarray  # pure error: sum of squares of runs about their cells' means
  df_pure: int
  centre: float
  scale: float
  compute0: float  # C_0

  @property
  def runs(self) -> int:
    return int(self.runs_N.sum())

  @property
  def t_range(self) -> float:
    return float(np.ptp(self.t_N))

  def log_compute(self, compute: float) -> float:
    """Returns t = ln(compute / C_0)."""
    return math.log(compute / self.compute0)

  def subset(self, keep_N: np.ndarray) -> 'Problem':
    """Keeps the cells where `keep_N` is true, and the pure error of all."""
    return dataclasses.replace(
      self,
      connector_N=self.connector_N[keep_N],
      t_N=self.t_N[keep_N],
      runs_N=self.runs_N[keep_N],
      y_TN=self.y_TN[:, keep_N],
    )

  def with_auc(self, auc_TN: np.ndarray, pure_T: np.ndarray) -> 'Problem':
    """Returns the same cells with other AUCs; pure_T in AUC squared."""
    y_TN = (auc_TN - self.centre) / self.scale
    return dataclasses.replace(self, y_TN=y_TN, pure_T=pure_T / self.scale**2)


def problem(rows: Sequence[Observation]) -> Problem:
  """Groups runs into cells of one connector, size and compute, averaged in scaled units.

  Raises:
    UserError: for compute that is not positive, an AUC outside [0, 1], a seed that occurs twice in
      a cell, or a connector with fewer than four budgets (distinct computes).

  >>> p = problem([Observation('A', 2.0**i, 0.7 + 0.01 * s, s) for i in range(4) for s in (0, 1)])
  >>> p.runs_N, round(p.centre, 3)
  (array([2, 2, 2, 2]), 0.705)
  """
  names = tuple(dict.fromkeys(row.connector for row in rows))
  cell_of_R = [(row.connector, row.size, row.compute) for row in rows]
  cells = {cell: n for n, cell in enumerate(dict.fromkeys(cell_of_R))}
  _check(rows, names, cells)
  auc_R = np.array([row.auc for row in rows], float)
  cell_R = np.array([cells[cell] for cell in cell_of_R], int)
  runs_N = np.bincount(cell_R)
  mean_N = np.bincount(cell_R, auc_R) / runs_N
  log_N = np.log([compute for _, _, compute in cells])
  centre = float(np.average(mean_N, weights=runs_N))
  scale = float(np.std(mean_N)) or 1.0
  return Problem(
    names=names,
    cell_R=cell_R,
    auc_R=auc_R,
    connector_N=np.array([names.index(name) for name, _, _ in cells], int),
    t_N=log_N - log_N.mean(),
    runs_N=runs_N,
    y_TN=((mean_N - centre) / scale)[None],
    pure_T=np.array([float(((auc_R - mean_N[cell_R]) ** 2).sum()) / scale**2]),
    df_pure=len(rows) - len(cells),
    centre=centre,
    scale=scale,
    compute0=math.exp(log_N.mean()),
  )


def _check(rows: Sequence[Observation], names: Sequence[str], cells: dict[tuple, int]):
  seeds = set()
  for name, compute, auc, seed, size in rows:
    if not (math.isfinite(compute) and compute > 0) or not 0 <= auc <= 1:
      raise UserError(f'{name}: compute {compute} and AUC {auc}: expected FLOPs > 0, 0 <= AUC <= 1')
    if (name, size, compute, seed) in seeds:
      raise UserError(f'{name} at {compute:.6g} FLOPs has seed {seed} twice: drop one run')
    seeds.add((name, size, compute, seed))
  for name in names:
    budgets = len({compute for connector, _, compute in cells if connector == name})
    if budgets < MIN_BUDGETS:
      raise UserError(
        f'{name} has {budgets} budgets of compute: a law needs at least {MIN_BUDGETS} of every '
        'connector; run more sizes or leave it out'
      )


# The family.


@dataclasses.dataclass(frozen=True)
class Form:
  """One law of the family: its free parameters are [kappas, m_1..K, sigma_1..K].

  >>> Form('saturating', kappas=1).split(np.array([[0.5, 1.0, 2.0, 3.0, 4.0]]), 2)
  (array([[0.5, 0.5]]), array([[1., 2.]]), array([[3., 4.]]))
  """

  name: str
  kappas: int  # number of free kappas: 0, 1 or K
  fixed: float = 0.0  # kappa where none is free

  def split(self, q_TQ: np.ndarray, num: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns kappa_TK, m_TK, sigma_TK of `num` connectors."""
    k = self.kappas
    ones_TK = np.ones_like(q_TQ[:, k : k + num])
    kappa_TK = ones_TK * (q_TQ[:, :k] if k else self.fixed)
    return kappa_TK, q_TQ[:, k : k + num], q_TQ[:, k + num :]

  def lower_bounds(self, num: int) -> np.ndarray:
    """Returns the lower bounds of the free parameters."""
    return np.r_[np.zeros(self.kappas), np.full(num, -np.inf), np.zeros(num)]

  def num_params(self, num: int) -> int:
    """Returns the number of free parameters of `num` connectors."""
    return self.kappas + 2 * num


def form(name: str, p: Problem, baseline_auc: float | None = None) -> Form:
  """Returns a law by its name.

  Args:
    baseline_auc: AUC_0 of power_gain.

  Raises:
    UserError: for an unknown name or a baseline that is not below every AUC.

  >>> p = problem([Observation('A', 2.0**i, 0.7 + 0.01 * i, 0) for i in range(4)])
  >>> form('saturating', p)
  Form(name='saturating', kappas=1, fixed=0.0)
  """
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
  """Returns (1 - e^-z) / z, by its series near 0; z may be complex.

  >>> phi(np.array([0.0, 1.0])).round(4)
  array([1.    , 0.6321])
  """
  small = np.abs(z) < 1e-2
  safe = np.where(small, 1.0, z)
  series = 1 - z / 2 * (1 - z / 3 * (1 - z / 4 * (1 - z / 5)))
  return np.where(small, series, -np.expm1(-safe) / safe)


def _phi_slope(z: np.ndarray, phi_z: np.ndarray, exp_z: np.ndarray) -> np.ndarray:
  small = np.abs(z) < 1e-2
  series = -1 / 2 + z / 3 - z**2 / 8 + z**3 / 30 - z**4 / 144
  return np.where(small, series, (exp_z - phi_z) / np.where(small, 1.0, z))


def value(kappa, m, sigma, t):
  """Evaluates the law in scaled units: m e^(-kappa sigma t) + sigma t phi(kappa sigma t).

  Arguments broadcast and may be complex.

  >>> t = np.array([0.0, 1.0, 2.0])
  >>> value(0.0, 1.0, 0.5, t)  # kappa = 0: a line in ln C
  array([1. , 1.5, 2. ])
  """
  return m * np.exp(-kappa * sigma * t) + sigma * t * phi(kappa * sigma * t)


def _within_bounds(kappa_TK, m_TK, sigma_TK) -> np.ndarray:
  return ((kappa_TK * m_TK < 1) & (sigma_TK >= 0)).all(axis=1)


# (kappa_TK, m_TK, sigma_TK, h_T) -> the parameter that makes a quantity equal to h_T.
Solve = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Residuals:
  """Weighted residuals and Jacobian of a law, as `least_squares.minimise` takes them.

  A constraint removes the free parameter `drop`: `solve` gives it from the others and h_T. Indices
  of problems select from h_T and, modulo T, from the data.

  >>> p = problem([Observation('A', 2.0**i, 0.7 + 0.01 * i, 0) for i in range(4)])
  >>> line_TQ = np.array([[0.0, p.y_TN[0, -1] / p.t_N[-1]]])  # m and sigma of AUC = m + sigma t
  >>> r_TN, j_TNQ = Residuals(p, form('log_linear', p))(line_TQ, np.array([0]))
  >>> bool(np.abs(r_TN).max() < 1e-12), j_TNQ.shape
  (True, (1, 4, 2))
  """

  p: Problem
  f: Form
  drop: int | None = None
  solve: Solve | None = None
  h_T: np.ndarray | None = None

  def _complete(self, free_TQ: np.ndarray, h_T) -> np.ndarray:
    """Returns all parameters, the dropped one among them."""
    if self.drop is None:
      return free_TQ
    left, right = np.split(free_TQ, [self.drop], axis=1)
    q_TQ = np.concatenate([left, np.zeros((len(free_TQ), 1)), right], axis=1)
    q_TQ[:, self.drop] = self.solve(*self.f.split(q_TQ, len(self.p.names)), h_T)
    return q_TQ

  def _curve_params(self, free_TQ, h_T) -> tuple[np.ndarray, np.ndarray]:
    """Returns (kappa, m, sigma) [T, 3, K] and their derivative [T, 3, K, Q].

    The derivative takes complex steps, which are exact (Squire & Trapp 1998).
    """
    num = len(self.p.names)

    def stacked(q, h):
      return np.stack(self.f.split(self._complete(q, h), num), axis=1)

    T, Q = free_TQ.shape
    steps_QTQ = np.tile(free_TQ.astype(complex), (Q, 1, 1))
    steps_QTQ[range(Q), :, range(Q)] += 1e-30j
    # All steps in one call: with few problems the number of calls is what costs.
    steps = stacked(steps_QTQ.reshape(Q * T, Q), None if h_T is None else np.tile(h_T, Q))
    slope_QT3K = steps.imag.reshape(Q, T, 3, num) / 1e-30
    return stacked(free_TQ, h_T), slope_QT3K.transpose(1, 2, 3, 0)

  def __call__(self, free_TQ: np.ndarray, problem_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    p = self.p
    with np.errstate(all='ignore'):
      h_T = None if self.h_T is None else self.h_T[problem_T]
      params_T3K, slope_T3KQ = self._curve_params(free_TQ, h_T)
      kappa_TN, m_TN, sigma_TN = (params_T3K[:, i, p.connector_N] for i in range(3))
      st_TN = sigma_TN * p.t_N
      z_TN = kappa_TN * st_TN
      exp_TN, phi_TN = np.exp(-z_TN), phi(z_TN)
      r_TN = m_TN * exp_TN + st_TN * phi_TN - p.y_TN[problem_T % len(p.y_TN)]
      by_kappa_TN = st_TN * (st_TN * _phi_slope(z_TN, phi_TN, exp_TN) - m_TN * exp_TN)
      by_sigma_TN = p.t_N * exp_TN * (1 - kappa_TN * m_TN)
      slope_T3NQ = slope_T3KQ[:, :, p.connector_N]
      j_TNQ = by_kappa_TN[..., None] * slope_T3NQ[:, 0]
      j_TNQ += exp_TN[..., None] * slope_T3NQ[:, 1]
      j_TNQ += by_sigma_TN[..., None] * slope_T3NQ[:, 2]
      bad_T = ~_within_bounds(*(params_T3K[:, i] for i in range(3)))
      # Also where squares would overflow; nan compares as false.
      bad_T |= ~(np.abs(r_TN).max(axis=1) < _MAX_RESIDUAL)
      bad_T |= ~(np.abs(j_TNQ).max(axis=(1, 2)) < _MAX_RESIDUAL)
      r_TN[bad_T], j_TNQ[bad_T] = np.inf, 0.0
    weight_N = np.sqrt(p.runs_N)
    return r_TN * weight_N, j_TNQ * weight_N[:, None]
