# SPDX-License-Identifier: Apache-2.0
"""Solves many small nonlinear least-squares problems at once, with lower bounds.

Shape letters: T problems, N residuals of each, Q parameters of each.
"""

from collections.abc import Callable

import numpy as np

# (theta_TQ, indices of these problems) -> residuals_TN, jacobian_TNQ; not finite: out of bounds.
Residuals = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]

_ITERATIONS = 200
_RELATIVE, _ABSOLUTE = 1e-13, 1e-26  # stop where the predicted decrease is below this
_MAX_DAMPING = 1e12  # at which no direction goes down


def minimise(
  residuals: Residuals, theta_TQ: np.ndarray, low_Q: np.ndarray, problem_T: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Minimises sums of squares by Levenberg-Marquardt (Marquardt 1963), each with its own damping.

    step = -(J^T J + damping diag(J^T J))^-1 J^T r

  A parameter on its bound stays there while the gradient points outwards. Steps that raise the sum
  or leave the domain are rejected.

  Args:
    residuals: function of parameters and problem indices: it skips problems that are done.
    theta_TQ: starting points, within bounds.
    low_Q: lower bounds; -inf for none.
    problem_T: index of the problem that each row of theta belongs to.

  Returns:
    theta_TQ and the sums of squares rss_T; inf where the start itself is out of the domain.

  >>> goal_T = np.array([1.0, -1.0])
  >>> residuals = lambda x_TQ, t: (x_TQ - goal_T[t, None], np.ones((len(x_TQ), 1, 1)))
  >>> theta_TQ, rss_T = minimise(residuals, np.full((2, 1), 5.0), np.zeros(1), np.arange(2))
  >>> theta_TQ.round(6), rss_T.round(6)  # -1 is below the bound 0
  (array([[1.], [0.]]), array([0., 1.]))
  """
  theta_TQ = np.maximum(theta_TQ, low_Q)
  r_TN, j_TNQ = residuals(theta_TQ, problem_T)
  rss_T = _sum(r_TN)
  damping_T = np.full(len(theta_TQ), 1e-3)
  live = np.flatnonzero(np.isfinite(rss_T))
  for _ in range(_ITERATIONS):
    if not len(live):
      break
    step_TQ, decrease_T = _step(theta_TQ[live], r_TN[live], j_TNQ[live], damping_T[live], low_Q)
    trial_TQ = np.maximum(theta_TQ[live] + step_TQ, low_Q)
    new_r_TN, new_j_TNQ = residuals(trial_TQ, problem_T[live])
    new_T = _sum(new_r_TN)
    better_T = new_T < rss_T[live]
    done_T = decrease_T <= _RELATIVE * rss_T[live] + _ABSOLUTE
    take = live[better_T]
    theta_TQ[take], rss_T[take] = trial_TQ[better_T], new_T[better_T]
    r_TN[take], j_TNQ[take] = new_r_TN[better_T], new_j_TNQ[better_T]
    damping_T[live] *= np.where(better_T, 0.1, 5.0)
    damping_T = np.maximum(damping_T, 1e-14)
    live = live[~done_T & (damping_T[live] < _MAX_DAMPING)]
  return theta_TQ, rss_T


def _sum(r_TN: np.ndarray) -> np.ndarray:
  with np.errstate(invalid='ignore', over='ignore'):
    rss_T = (r_TN * r_TN).sum(axis=1)
  return np.where(np.isfinite(rss_T), rss_T, np.inf)


def _step(theta_TQ, r_TN, j_TNQ, damping_T, low_Q):
  """Returns the damped step, and the decrease of the sum that it predicts."""
  gradient_TQ = np.matmul(r_TN[:, None, :], j_TNQ)[:, 0]
  normal_TQQ = np.matmul(j_TNQ.transpose(0, 2, 1), j_TNQ)
  at_bound_TQ = (theta_TQ <= low_Q) & (gradient_TQ > 0)
  gradient_TQ = np.where(at_bound_TQ, 0.0, gradient_TQ)
  normal_TQQ = np.where(at_bound_TQ[:, :, None] | at_bound_TQ[:, None, :], 0.0, normal_TQQ)
  size_TQ = np.sqrt(np.einsum('tqq->tq', normal_TQQ)) + at_bound_TQ
  size_TQ = np.where(size_TQ > 0, size_TQ, 1.0)
  # Columns of length one take the units out of the condition number.
  scaled_TQQ = normal_TQQ / size_TQ[:, :, None] / size_TQ[:, None, :]
  right_TQ1 = (-gradient_TQ / size_TQ)[:, :, None]
  eye_QQ = np.eye(theta_TQ.shape[1])
  step_TQ = np.linalg.solve(scaled_TQQ + (damping_T[:, None, None] + 1e-15) * eye_QQ, right_TQ1)
  step_TQ = step_TQ[:, :, 0]
  decrease_T = (step_TQ * right_TQ1[:, :, 0]).sum(axis=1)
  return step_TQ / size_TQ, decrease_T
