# SPDX-License-Identifier: Apache-2.0
"""Finds the constants of the planted feed's teacher on a fixed population of users.

A history depends on earlier clicks, and these on the constants. So we simulate the same population
again and again: each round measures means and variances of the parts, solves for the bias by
bisection and goes STEP of the way there. (The whole way would overshoot: a stronger history makes
more clicks, and these a stronger history.) Labels are drawn from the logit with the final
constants, so its metrics are exact; only the shares and the click rate have the error of a finite
population.
"""

import dataclasses

import numpy as np

from data_pipelines.datasets.synthetic.teacher import sigmoid, solve_bias
from data_pipelines.datasets.synthetic_feed.catalogue import make_catalogue
from data_pipelines.datasets.synthetic_feed.options import PARTS, FeedOptions
from data_pipelines.datasets.synthetic_feed.teacher import AUTHOR, TAG, FeedTeacher
from data_pipelines.datasets.synthetic_feed.users import Population, Rows, simulate
from data_pipelines.prepared.schema import FIRST_TOKEN_ID
from deres_jax.core.errors import UserError

CALIBRATION_ROWS = 1 << 17
ROUNDS, STEP = 9, 0.6
_STREAM_USERS, _STREAM_STEPS = 8, 9  # of the teacher's seed, beside the catalogue's


def _population_rows(teacher: FeedTeacher, options: FeedOptions) -> Rows:
  users = -(-CALIBRATION_ROWS // options.impressions)
  rows = Rows.empty(users, options.impressions, events=0)
  population = Population(options.teacher_seed, _STREAM_USERS, _STREAM_STEPS)
  simulate(teacher, options, population, 0, (0, options.impressions), rows)
  return rows


def _means(value_N: np.ndarray, number_N: np.ndarray, count: int) -> np.ndarray:
  rows = np.bincount(number_N, minlength=count)
  return np.bincount(number_N, weights=value_N, minlength=count) / np.maximum(rows, 1)


def _round(teacher: FeedTeacher, options: FeedOptions, rows: Rows) -> FeedTeacher:
  """Moves STEP of the way to the constants that would be right for these rows."""
  o = options
  ids_NF = rows.ids_USF.reshape(-1, rows.ids_USF.shape[-1])
  tag_N, author_N = ids_NF[:, TAG] - FIRST_TOKEN_ID, ids_NF[:, AUTHOR] - FIRST_TOKEN_ID
  # The rows have the parts as this teacher centres and scales them.
  raw_NP = rows.history_USP.reshape(-1, 3) / np.where(teacher.scale_P, teacher.scale_P, 1)
  centres = (teacher.centre_tag_T, teacher.centre_author_A, teacher.centre_recent_T)
  numbers = (tag_N, author_N, tag_N)
  new = []
  for p, (centre, number_N) in enumerate(zip(centres, numbers, strict=True)):
    raw_NP[:, p] += centre[number_N]
    new.append(_means(raw_NP[:, p], number_N, len(centre)))
    raw_NP[:, p] -= new[-1][number_N]
  scale_P = _scales(raw_NP, o)
  rest_N = rows.main_US.reshape(-1) + raw_NP @ scale_P
  bias = solve_bias(rest_N, o.click_rate, bisections=50)
  return dataclasses.replace(
    teacher,
    scale_P=_toward(teacher.scale_P, scale_P),
    centre_tag_T=_toward(centres[0], new[0]),
    centre_author_A=_toward(centres[1], new[1]),
    centre_recent_T=_toward(centres[2], new[2]),
    bias=_toward(teacher.bias, bias),
  )


def _toward(old, new):
  return old + STEP * (new - old)


def _active(options: FeedOptions) -> np.ndarray:
  """Returns which parts of the history are in the logit at all, bool [3]."""
  return (np.array(options.shares[1:]) > 0) & (options.logit_std > 0)


def _scales(raw_NP: np.ndarray, options: FeedOptions) -> np.ndarray:
  share_P, active_P, std_P = np.array(options.shares[1:]), _active(options), raw_NP.std(axis=0)
  for name, share, active, std in zip(PARTS[1:], share_P, active_P, std_P, strict=True):
    if active and std < 1e-6:
      raise UserError(
        f'--shares: part {name} has the share {share}, but no history shows it; '
        'raise --warmup, --click_rate or --affinity, or give it no share'
      )
  if not active_P.any():
    return np.zeros(3)
  scale_P = np.where(active_P, np.sqrt(share_P) / np.maximum(std_P, 1e-6), 0.0)
  return scale_P * options.logit_std * np.sqrt(share_P.sum()) / (raw_NP @ scale_P).std()


def calibrate(options: FeedOptions) -> tuple[FeedTeacher, dict]:
  """Returns the teacher of these options, and measurements of a last simulation.

  Neither the seed of the users nor their number matters.

  Returns:
    The teacher; `logit_std` and `covariance` (main, tag, author, recent) of the logit's parts and
    `click_rate`, over the population's rows.

  Raises:
    UserError: a part of the logit has a share but no history shows it.
  """
  o = options
  catalogue = make_catalogue(o)
  teacher = FeedTeacher(
    catalogue=catalogue,
    scale_main=o.logit_std * o.shares[0] ** 0.5,
    scale_P=_active(o).astype(np.float64),
    centre_tag_T=np.zeros(o.tags),
    centre_author_A=np.zeros(o.authors),
    centre_recent_T=np.zeros(o.tags),
    bias=float(np.log(o.click_rate / (1 - o.click_rate))),
  )
  for _ in range(ROUNDS):
    teacher = _round(teacher, o, _population_rows(teacher, o))
  rows = _population_rows(teacher, o)
  parts_NQ = np.concatenate((rows.main_US.reshape(-1, 1), rows.history_USP.reshape(-1, 3)), axis=1)
  return teacher, {
    'logit_std': float(rows.logit_US.std()),
    'covariance': np.cov(parts_NQ.T, bias=True).tolist(),
    'click_rate': float(sigmoid(rows.logit_US).mean()),
  }
