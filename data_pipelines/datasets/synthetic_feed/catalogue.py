# SPDX-License-Identifier: Apache-2.0
"""The items of the planted feed: tag, author, popularity and main effect of each.

Every author has a home tag. The author's first item has it; each other item has it with probability
HOME_SHARE, else any tag. So neither field is a function of the other, and every tag and author has
an item.

Shapes: I items in the order of their ids (value v has id v + FIRST_TOKEN_ID), T tags, A authors.
"""

import dataclasses

import numpy as np

from data_pipelines.core.random import uniforms
from data_pipelines.datasets.synthetic.teacher import zipf_probabilities
from data_pipelines.datasets.synthetic_feed.options import FeedOptions

HOME_SHARE = 0.8

# Streams of the teacher's seed; the calibration has others.
_STREAM_ASSIGN, _STREAM_EFFECT, _STREAM_HOME = 0, 1, 2


@dataclasses.dataclass(frozen=True)
class Catalogue:
  """All items. Items, tags and authors are numbered by falling expected frequency in rows.

  Attributes:
    author_I, tag_I: int32 [items].
    probability_I: exact probability of the item in any row of any user (see make_catalogue).
    effect_I: main effect, mean 0 and variance 1 under probability_I.
    shelf_I: items sorted by tag.
    border_I: cumulative popularity along the shelf; the last is 1.
    start_T, mass_T: popularity on the shelf before a tag, and that of the tag.
    first_T, last_T: first and last index of a tag on the shelf.
  """

  author_I: np.ndarray
  tag_I: np.ndarray
  probability_I: np.ndarray
  effect_I: np.ndarray
  shelf_I: np.ndarray
  border_I: np.ndarray
  start_T: np.ndarray
  mass_T: np.ndarray
  first_T: np.ndarray
  last_T: np.ndarray

  def draw(self, uniform_N: np.ndarray) -> np.ndarray:
    """Returns items by popularity, from uniform draws: int32 [N]."""
    place_N = np.searchsorted(self.border_I, uniform_N, side='right')
    return self.shelf_I[np.minimum(place_N, len(self.shelf_I) - 1)]

  def draw_of(self, tag_N: np.ndarray, uniform_N: np.ndarray) -> np.ndarray:
    """Returns items of the given tags by popularity, from uniform draws: int32 [N]."""
    target_N = self.start_T[tag_N] + uniform_N * self.mass_T[tag_N]
    place_N = np.searchsorted(self.border_I, target_N, side='right')
    # Against rounding: a draw must never leave its tag.
    return self.shelf_I[np.clip(place_N, self.first_T[tag_N], self.last_T[tag_N])]


def _by_frequency(number_I: np.ndarray, probability_I: np.ndarray, count: int) -> np.ndarray:
  """Renumbers tags or authors so that their probability falls: int32 [items]."""
  total = np.bincount(number_I, weights=probability_I, minlength=count)
  new = np.empty(count, np.int32)
  new[np.argsort(-total, kind='stable')] = np.arange(count, dtype=np.int32)
  return new[number_I]


def _effects(probability_I: np.ndarray, seed: int) -> np.ndarray:
  """Draws effects of mean 0 and variance 1, without outliers: raw ones are in +-[0.5, 1]."""
  draws = uniforms(seed, _STREAM_EFFECT, 0, len(probability_I), 2)
  raw_I = (0.5 + 0.5 * draws[:, 0]) * np.where(draws[:, 1] < 0.5, -1.0, 1.0)
  raw_I -= probability_I @ raw_I
  return raw_I / np.sqrt(probability_I @ raw_I**2)


def make_catalogue(options: FeedOptions) -> Catalogue:
  """Draws the catalogue of these options' teacher.

  A candidate is drawn by popularity, or with probability `affinity` from one of the user's
  interests, which are uniform over the tags at any time. So in every row, for any history, an
  item i of tag t has the probability
    (1 - affinity) pop_i + affinity pop_i / (T pop(t)),
  and ids are sorted by it.
  """
  o, seed = options, options.teacher_seed
  draws = uniforms(seed, _STREAM_ASSIGN, 0, o.items, 4)
  homes_A = np.argsort(uniforms(seed, _STREAM_HOME, 0, o.authors, 1)[:, 0]) % o.tags
  author_I = np.where(
    np.arange(o.items) < o.authors, np.arange(o.items), (draws[:, 0] * o.authors).astype(np.int64)
  )
  at_home_I = (np.arange(o.items) < o.authors) | (draws[:, 1] < HOME_SHARE)
  tag_I = np.where(at_home_I, homes_A[author_I], (draws[:, 2] * o.tags).astype(np.int64))
  popularity_I = zipf_probabilities(o.items, o.zipf)[np.argsort(np.argsort(draws[:, 3]))]
  mass_T = np.bincount(tag_I, weights=popularity_I, minlength=o.tags)
  probability_I = popularity_I * (1 - o.affinity + o.affinity / (o.tags * mass_T[tag_I]))

  order = np.argsort(-probability_I, kind='stable')
  probability_I, popularity_I = probability_I[order], popularity_I[order]
  author_I = _by_frequency(author_I[order], probability_I, o.authors)
  tag_I = _by_frequency(tag_I[order], probability_I, o.tags)

  shelf_I = np.argsort(tag_I, kind='stable').astype(np.int32)
  border_I = np.cumsum(popularity_I[shelf_I])
  border_I[-1] = 1.0
  last_T = np.cumsum(np.bincount(tag_I, minlength=o.tags)) - 1
  start_T = np.concatenate(([0.0], border_I[last_T[:-1]]))
  return Catalogue(
    author_I=author_I,
    tag_I=tag_I,
    probability_I=probability_I,
    effect_I=_effects(probability_I, seed),
    shelf_I=shelf_I,
    border_I=border_I,
    start_T=start_T,
    mass_T=border_I[last_T] - start_T,
    first_T=np.concatenate(([0], last_T[:-1] + 1)),
    last_T=last_T,
  )
