# SPDX-License-Identifier: Apache-2.0
"""Simulates users of the planted feed, each alone: a user's rows are a function of (seed, number).

A user has several interests at the same time; now and then another tag replaces one, so that
earlier rows tell less and a model must read the history. An impression shows a candidate out of one
interest (probability `affinity`) or out of all items, some time after the impression before. Its
click is drawn from the teacher's logit of the row; a clicked item is an event of the rows after it.
The impressions before number 0 are the warm-up.

Shapes: U users, S steps that are stored, K interests, L events, F fields, G attributes.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from data_pipelines.core.random import uniforms
from data_pipelines.datasets.synthetic.teacher import sigmoid
from data_pipelines.datasets.synthetic_feed.options import FeedOptions
from data_pipelines.datasets.synthetic_feed.teacher import (
  ATTRIBUTES,
  E_GAP,
  E_ITEM,
  FIELDS,
  HOURS,
  KIND_PROBABILITY,
  FeedTeacher,
  gap_ids,
)
from data_pipelines.prepared.schema import FIRST_TOKEN_ID

GAP_MEDIAN, GAP_SIGMA = 180.0, 2.0  # seconds between impressions: log-normal
MAX_GAP = 60 * 86_400  # seconds
_DAY = 86_400
_STEP_DRAWS = 8  # from an interest?, which, item, two of the gap, click, kind, drift
_KIND_CDF = np.cumsum(KIND_PROBABILITY)[:-1]


class Population(NamedTuple):
  """An endless line of users: a seed, the stream of the users' draws, that of their steps'."""

  seed: int
  users_stream: int
  steps_stream: int


@dataclasses.dataclass(frozen=True)
class Rows:
  """Impressions of users, by user and step.

  Attributes:
    ids_USF: int32, as they are written.
    events_USLG: int32, as they are written; None if not stored.
    main_US, history_USP: parts of the logit, float64.
    logit_US: the logit.
    label_US: uint8.
  """

  ids_USF: np.ndarray
  events_USLG: np.ndarray | None
  main_US: np.ndarray
  history_USP: np.ndarray
  logit_US: np.ndarray
  label_US: np.ndarray

  @classmethod
  def empty(cls, users: int, steps: int, events: int) -> 'Rows':
    """Allocates rows; stores no events if `events` is 0."""
    return cls(
      ids_USF=np.empty((users, steps, len(FIELDS)), np.int32),
      events_USLG=np.empty((users, steps, events, len(ATTRIBUTES)), np.int32) if events else None,
      main_US=np.empty((users, steps)),
      history_USP=np.empty((users, steps, 3)),
      logit_US=np.empty((users, steps)),
      label_US=np.empty((users, steps), np.uint8),
    )

  def users(self, start: int, stop: int) -> 'Rows':
    """Returns views of some users' rows."""
    return Rows(**{k: None if v is None else v[start:stop] for k, v in vars(self).items()})


def interests_of(uniform_UK: np.ndarray, tags: int) -> np.ndarray:
  """Draws distinct tags, all sets equally probable: int64 [U, K], ascending."""
  chosen_UK = np.empty((len(uniform_UK), 0), np.int64)
  for k in range(uniform_UK.shape[1]):
    tag_U = _other(chosen_UK, (uniform_UK[:, k] * (tags - k)).astype(np.int64))
    chosen_UK = np.sort(np.c_[chosen_UK, tag_U], axis=1)
  return chosen_UK


def _other(taken_UK: np.ndarray, number_U: np.ndarray) -> np.ndarray:
  """Returns the tags that have these numbers among those not taken; taken_UK ascends."""
  tag_U = number_U.copy()
  for k in range(taken_UK.shape[1]):
    tag_U += tag_U >= taken_UK[:, k]
  return tag_U


def drifted(interest_UK: np.ndarray, uniform_U: np.ndarray, options: FeedOptions) -> np.ndarray:
  """Replaces, with probability `drift`, one of each user's interests by another tag."""
  moved = np.flatnonzero(uniform_U < options.drift)
  if not len(moved):
    return interest_UK
  # The rest of the draw is uniform again: it says which interest goes and which tag comes.
  left_M = uniform_U[moved] / options.drift * options.interests
  which_M = np.minimum(left_M.astype(np.int64), options.interests - 1)
  free = options.tags - options.interests
  number_M = np.minimum(((left_M - which_M) * free).astype(np.int64), free - 1)
  new_MK = interest_UK[moved]
  new_MK[np.arange(len(moved)), which_M] = _other(new_MK, number_M)
  out_UK = interest_UK.copy()
  out_UK[moved] = np.sort(new_MK, axis=1)
  return out_UK


def user_draws(options: FeedOptions, population: Population, first: int, users: int):
  """Draws users [first, first + users): effect (variance 1), second of the day, interests."""
  draws = uniforms(population.seed, population.users_stream, first, users, 2 + options.interests)
  effect_U = (2 * draws[:, 0] - 1) * np.sqrt(3)
  return effect_U, (draws[:, 1] * _DAY).astype(np.int64), interests_of(draws[:, 2:], options.tags)


def _seconds(uniform_U2: np.ndarray) -> np.ndarray:
  """Draws log-normal times of whole seconds, at least 1: int64 (Box and Muller, 1958)."""
  normal_U = np.sqrt(-2 * np.log1p(-uniform_U2[:, 0])) * np.cos(2 * np.pi * uniform_U2[:, 1])
  seconds_U = GAP_MEDIAN * np.exp(GAP_SIGMA * normal_U)
  return np.clip(seconds_U, 1, MAX_GAP).astype(np.int64)


def simulate(
  teacher: FeedTeacher,
  options: FeedOptions,
  population: Population,
  first: int,
  keep: tuple[int, int],
  rows: Rows,
) -> None:
  """Simulates users from number `first` on and stores some of their impressions.

  Args:
    keep: the first impression to store, and the one after the last.
    rows: the output; its arrays have one entry per user.
  """
  o, users = options, len(rows.ids_USF)
  steps = o.warmup + o.impressions
  effect_U, now_U, interest_UK = user_draws(o, population, first, users)
  draws_USW = uniforms(
    population.seed, population.steps_stream, first * steps, users * steps, _STEP_DRAWS
  ).reshape(users, steps, _STEP_DRAWS)
  events_ULG = np.zeros((users, o.events, len(ATTRIBUTES)), np.int32)
  time_UL = np.zeros((users, o.events), np.int64)
  ids_UF = np.empty((users, len(FIELDS)), np.int32)
  ids_UF[:, 0] = np.arange(first, first + users) + FIRST_TOKEN_ID
  for step in range(o.warmup + keep[1]):
    draws_UW = draws_USW[:, step]
    now_U = now_U + _seconds(draws_UW[:, 3:5])
    interest_UK = drifted(interest_UK, draws_UW[:, 7], o)
    _show(teacher, o, draws_UW, interest_UK, now_U, ids_UF)
    event_mask_UL = events_ULG[..., E_ITEM] != 0
    events_ULG[..., E_GAP] = np.where(event_mask_UL, gap_ids(now_U[:, None] - time_UL), 0)
    main_U = teacher.main(ids_UF, effect_U)
    history_UP = teacher.history(ids_UF, events_ULG)
    logit_U = teacher.bias + main_U + history_UP.sum(axis=1)
    clicked_U = draws_UW[:, 5] < sigmoid(logit_U)
    s = step - o.warmup - keep[0]
    if s >= 0:
      rows.ids_USF[:, s] = ids_UF
      if rows.events_USLG is not None:
        rows.events_USLG[:, s] = events_ULG
      rows.main_US[:, s], rows.history_USP[:, s] = main_U, history_UP
      rows.logit_US[:, s], rows.label_US[:, s] = logit_U, clicked_U
    _remember(np.flatnonzero(clicked_U), draws_UW[:, 6], now_U, ids_UF, events_ULG, time_UL)


def _show(teacher, options, draws_UW, interest_UK, now_U, ids_UF) -> None:
  """Puts every user's next candidate and the hour into ids_UF."""
  catalogue = teacher.catalogue
  which_U = (draws_UW[:, 1] * options.interests).astype(np.int64)
  tag_U = np.take_along_axis(interest_UK, which_U[:, None], axis=1)[:, 0]
  item_U = np.where(
    draws_UW[:, 0] < options.affinity,
    catalogue.draw_of(tag_U, draws_UW[:, 2]),
    catalogue.draw(draws_UW[:, 2]),
  )
  values = (item_U, catalogue.author_I[item_U], catalogue.tag_I[item_U], now_U // 3600 % HOURS)
  for f, value_U in enumerate(values, start=1):
    ids_UF[:, f] = value_U + FIRST_TOKEN_ID


def _remember(user_C, uniform_U, now_U, ids_UF, events_ULG, time_UL) -> None:
  """Appends clicked candidates to their users' histories, which drop the oldest event."""
  kind_C = np.searchsorted(_KIND_CDF, uniform_U[user_C], side='right')
  events_ULG[user_C, :-1] = events_ULG[user_C, 1:]
  time_UL[user_C, :-1] = time_UL[user_C, 1:]
  events_ULG[user_C, -1, :3] = ids_UF[user_C, 1:4]  # item, author, tag
  events_ULG[user_C, -1, 3] = kind_C + FIRST_TOKEN_ID
  time_UL[user_C, -1] = now_U[user_C]
