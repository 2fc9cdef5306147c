# SPDX-License-Identifier: Apache-2.0
"""The planted feed's teacher: a logit that is a known function of the values of a row.

An event e of the history has the weight w_e = (weight of its kind of feedback) (RECENCY_DECAY ^ its
gap bucket). The parts of the logit, before they are centred and scaled, are
  main    sqrt(.8) effect of the item + sqrt(.1) effect of the user + sqrt(.1) effect of the hour
  tag     tanh(sum of w_e over events of the candidate's tag / SATURATION)
  author  tanh(sum of w_e over events of the candidate's author / SATURATION)
  recent  -tanh(number of events of the candidate's tag in the last RECENT_MINUTES / SATURATION):
          too much of the same in one sitting. Second order: it needs tag and gap together.
The last three, the parts of the history, are 0 without history. Each is centred by its mean over
the rows of a tag (author: of an author), and they are scaled so that
  * their variances are in the ratio of their shares,
  * the variance of their sum is (1 - the share of main) logit_std^2;
`calibration` measures these constants. Main has exactly its share. The parts of the history are
correlated with each other, hardly with main.

Shapes: N rows, L events, P = 3 parts of the history, T tags, A authors.
"""

import dataclasses

import numpy as np

from data_pipelines.datasets.synthetic_feed.catalogue import Catalogue
from data_pipelines.prepared.schema import FIRST_TOKEN_ID, PADDING_ID

FIELDS = ('user_id', 'item_id', 'author', 'tag', 'hour')
ATTRIBUTES = ('item_id', 'author', 'tag', 'kind', 'gap')
SHARED = ('item_id', 'author', 'tag')  # attributes with the ids of the field of the same name
USER, ITEM, AUTHOR, TAG, HOUR = range(5)
E_ITEM, E_AUTHOR, E_TAG, E_KIND, E_GAP = range(5)

HOURS = 24
# Feedback of a user on a clicked item: its probability, and its weight for later clicks.
KINDS = ('click', 'like', 'share', 'hide')
KIND_PROBABILITY = (0.55, 0.2, 0.1, 0.15)
KIND_WEIGHT = (1.0, 2.0, 3.0, -2.0)
# Bucket 0: below a minute before the row; bucket b: 2^(b-1) to 2^b minutes; the last: or more.
GAP_BUCKETS = 16
RECENCY_DECAY = 2**-0.25  # a weight falls like gap^-1/4
RECENT_BUCKETS = 5
RECENT_MINUTES = 2 ** (RECENT_BUCKETS - 1)
SATURATION = 2.0
MAIN_SHARES = (0.8, 0.1, 0.1)  # of main's variance: item, user, hour


@dataclasses.dataclass(frozen=True)
class FeedTeacher:
  """The catalogue and the constants of the logit.

  Attributes:
    scale_main: factor of the main part, which has variance 1.
    scale_P: factors of the parts of the history.
    centre_tag_T, centre_author_A, centre_recent_T: their means, before they are scaled.
    bias: the logit's mean.
  """

  catalogue: Catalogue
  scale_main: float
  scale_P: np.ndarray
  centre_tag_T: np.ndarray
  centre_author_A: np.ndarray
  centre_recent_T: np.ndarray
  bias: float

  def main(self, ids_NF: np.ndarray, user_effect_N: np.ndarray) -> np.ndarray:
    """Returns the order-1 part, float64 [N].

    Args:
      ids_NF: ids as they are written, int32.
      user_effect_N: main effects of the rows' users, of variance 1.
    """
    hour_N = ids_NF[:, HOUR] - FIRST_TOKEN_ID
    hour_effect_N = np.sqrt(2) * np.cos(2 * np.pi * (hour_N - 20) / HOURS)  # best at 8 p.m.
    item, user, hour = np.sqrt(MAIN_SHARES)
    effect_N = item * self.catalogue.effect_I[ids_NF[:, ITEM] - FIRST_TOKEN_ID]
    return self.scale_main * (effect_N + user * user_effect_N + hour * hour_effect_N)

  def history(self, ids_NF: np.ndarray, events_NLG: np.ndarray) -> np.ndarray:
    """Returns the parts tag, author and recent, centred and scaled: float64 [N, 3].

    Args:
      ids_NF, events_NLG: ids as they are written, int32.
    """
    tag_N, author_N = ids_NF[:, TAG] - FIRST_TOKEN_ID, ids_NF[:, AUTHOR] - FIRST_TOKEN_ID
    raw_NP = raw_history(ids_NF, events_NLG)
    raw_NP[:, 0] -= self.centre_tag_T[tag_N]
    raw_NP[:, 1] -= self.centre_author_A[author_N]
    raw_NP[:, 2] -= self.centre_recent_T[tag_N]
    return raw_NP * self.scale_P


def _weight_tables() -> tuple[np.ndarray, np.ndarray]:
  """Returns the weights by id of the kind and of the gap; 0 for padding."""
  gap = RECENCY_DECAY ** np.arange(GAP_BUCKETS)
  none = np.zeros(FIRST_TOKEN_ID)
  return np.concatenate((none, KIND_WEIGHT)), np.concatenate((none, gap))


_KIND_WEIGHT_BY_ID, _GAP_WEIGHT_BY_ID = _weight_tables()


def raw_history(ids_NF: np.ndarray, events_NLG: np.ndarray) -> np.ndarray:
  """Returns the parts tag, author and recent, neither centred nor scaled: float64 [N, 3]."""
  gap_NL = events_NLG[..., E_GAP]
  weight_NL = _KIND_WEIGHT_BY_ID[events_NLG[..., E_KIND]] * _GAP_WEIGHT_BY_ID[gap_NL]
  same_tag_NL = events_NLG[..., E_TAG] == ids_NF[:, TAG, None]
  same_author_NL = events_NLG[..., E_AUTHOR] == ids_NF[:, AUTHOR, None]
  recent_NL = same_tag_NL & (gap_NL != PADDING_ID) & (gap_NL < FIRST_TOKEN_ID + RECENT_BUCKETS)
  tag_N = np.where(same_tag_NL, weight_NL, 0.0).sum(axis=1)
  author_N = np.where(same_author_NL, weight_NL, 0.0).sum(axis=1)
  raw_NP = np.stack((tag_N, author_N, -recent_NL.sum(axis=1)), axis=1)
  return np.tanh(raw_NP / SATURATION)


def gap_ids(seconds: np.ndarray) -> np.ndarray:
  """Returns the ids of the time from event to row, int32, from whole seconds (0 or more)."""
  # frexp gives the number of binary digits of whole minutes, exactly.
  bucket = np.frexp((seconds // 60).astype(np.float64))[1]
  return np.minimum(bucket, GAP_BUCKETS - 1).astype(np.int32) + np.int32(FIRST_TOKEN_ID)


def gap_tokens() -> list[bytes]:
  """Returns the names of the gap's ids: lower edges in minutes."""
  return [b'<1m', *(b'>=%dm' % (1 << b) for b in range(GAP_BUCKETS - 1))]
