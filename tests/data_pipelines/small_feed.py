# SPDX-License-Identifier: Apache-2.0
"""A small planted feed, and its rows in plain Python."""

import bisect
import dataclasses
import functools
import math

import pytest

from data_pipelines.core.random import uniforms
from data_pipelines.datasets.synthetic_feed import calibration
from data_pipelines.datasets.synthetic_feed.calibration import calibrate
from data_pipelines.datasets.synthetic_feed.dataset import FeedSource
from data_pipelines.datasets.synthetic_feed.options import FeedOptions

SMALL = FeedOptions(users=300, items=200, tags=10, authors=30, events=8)
FLAGS = ['--dataset=synthetic_social', '--items=200', '--tags=10', '--authors=30', '--events=8']


@functools.cache
def teacher_of(options: FeedOptions = SMALL):
  """Returns the teacher and its measurements, on an eighth of the usual population."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(calibration, 'CALIBRATION_ROWS', 1 << 14)
    return calibrate(options)


def source_of(**changes) -> FeedSource:
  """Returns the small feed with other options and the small feed's teacher."""
  return FeedSource(dataclasses.replace(SMALL, **changes), teacher_of()[0])


def logit_of(teacher, ids, events, user_effect: float) -> float:
  """Computes the logit of one row from its ids, term by term as the teacher's docstring says."""
  _, item, author, tag, hour = (int(i) - 2 for i in ids)
  main = math.sqrt(0.8) * teacher.catalogue.effect_I[item] + math.sqrt(0.1) * user_effect
  main += math.sqrt(0.1) * math.sqrt(2) * math.cos(2 * math.pi * (hour - 20) / 24)
  by_tag = by_author = recent = 0.0
  for e_item, e_author, e_tag, kind, gap in events:
    if e_item == 0:
      continue
    weight = (1.0, 2.0, 3.0, -2.0)[kind - 2] * 2 ** (-0.25 * (gap - 2))
    by_tag += weight if e_tag - 2 == tag else 0
    by_author += weight if e_author - 2 == author else 0
    recent += 1 if e_tag - 2 == tag and gap - 2 <= 4 else 0  # below 16 minutes
  parts = (
    math.tanh(by_tag / 2) - teacher.centre_tag_T[tag],
    math.tanh(by_author / 2) - teacher.centre_author_A[author],
    -math.tanh(recent / 2) - teacher.centre_recent_T[tag],
  )
  history = sum(scale * part for scale, part in zip(teacher.scale_P, parts, strict=True))
  return teacher.bias + teacher.scale_main * main + history


def user_effect_of(options, user: int) -> float:
  """A user's main effect: uniform, of variance 1."""
  return (2 * uniforms(options.seed, 16, user, 1, 2 + options.interests)[0, 0] - 1) * math.sqrt(3)


def simulate_user(teacher, options, user: int):
  """Simulates one user; returns (ids, events, logit, label) of impressions after the warm-up."""
  o, catalogue = options, teacher.catalogue
  own = uniforms(o.seed, 16, user, 1, 2 + o.interests)[0]
  free, interests = list(range(o.tags)), []
  for uniform in own[2:]:
    interests.append(free.pop(int(uniform * len(free))))
  interests.sort()
  now, memory, out = int(own[1] * 86_400), [], []
  steps = o.warmup + o.impressions
  for step, u in enumerate(uniforms(o.seed, 17, user * steps, steps, 8).tolist()):
    normal = math.sqrt(-2 * math.log1p(-u[3])) * math.cos(2 * math.pi * u[4])
    now += min(max(int(180 * math.exp(2 * normal)), 1), 60 * 86_400)
    if u[7] < o.drift:
      left = u[7] / o.drift * o.interests
      free = [tag for tag in range(o.tags) if tag not in interests]
      interests[int(left)] = free[int(left % 1 * len(free))]
      interests.sort()
    target = u[2]
    if u[0] < o.affinity:
      tag = interests[int(u[1] * o.interests)]
      target = catalogue.start_T[tag] + u[2] * catalogue.mass_T[tag]
    item = int(catalogue.shelf_I[bisect.bisect_right(catalogue.border_I, target)])
    author, tag = int(catalogue.author_I[item]), int(catalogue.tag_I[item])
    ids = [user + 2, item + 2, author + 2, tag + 2, now // 3600 % 24 + 2]
    events = []
    for *attributes, time in memory[-o.events :]:
      minutes = (now - time) // 60
      events.append([*attributes, min(minutes.bit_length(), 15) + 2])
    events = [[0] * 5] * (o.events - len(events)) + events
    logit = logit_of(teacher, ids, events, user_effect_of(o, user))
    label = u[5] < 1 / (1 + math.exp(-logit))
    if step >= o.warmup:
      out.append((ids, events, logit, int(label)))
    if label:
      kind = sum(u[6] >= border for border in (0.55, 0.75, 0.85))
      memory.append((item + 2, author + 2, tag + 2, kind + 2, now))
  return out
