# SPDX-License-Identifier: Apache-2.0
"""Exact CTR metrics on the host: every reported number comes from here.

The functions take all rows of an evaluation as NumPy arrays and compute in float64 and integers.
`deres_jax.metrics.streaming` has the numbers watched during training.

Shape letters: N rows of an evaluation, G groups of rows with equal score, K models compared on
the same rows. Labels are 0 or 1, logits are natural-log odds, losses are in nats.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

ECE_BINS = 20
_CACHED_ROWS = 1 << 16


class TieGroups(NamedTuple):
  """Rows grouped by equal score, in ascending order of score."""

  score_G: np.ndarray  # float64
  pos_G: np.ndarray  # int64, rows with label 1
  neg_G: np.ndarray  # int64, rows with label 0


def auc(labels_N, scores_N) -> float:
  """Returns the exact area under the ROC curve; a tie between a click and another row counts half.

    AUC = sum_g pos_g (neg_below_g + neg_g / 2) / (positives negatives)

  over groups g of equal score: the Mann-Whitney statistic with midranks (Hanley & McNeil 1982).
  The numerator is an integer sum, so the result does not depend on the order of the rows.

  Args:
    labels_N: 0 or 1, any bool, int or float dtype.
    scores_N: any float dtype, higher means more likely positive. Logits or probabilities:
      only the order matters. float32 and narrower are sorted as one packed integer (10M rows
      in well under a second); float64 takes several times as long, equally exact.

  Returns:
    AUC in [0, 1]; nan if the labels hold one class only.

  Raises:
    ValueError: on empty or mismatched arrays, labels other than 0 and 1, scores that are not
      floats, or NaN scores.

  >>> auc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])  # 3 of the 4 pairs are in order
  0.75
  """
  labels_N, scores_N = validated(labels_N, scores_N)
  if scores_N.dtype == np.float32:
    return _auc_of_keys(_sorted_keys(labels_N, scores_N))
  return auc_of_groups(_tie_groups(labels_N, scores_N))


def delong_se(labels_N, scores_N) -> float:
  """Returns the standard error of `auc` over the sampling of rows (DeLong et al. 1988).

    SE^2 = var(V10) / positives + var(V01) / negatives

  with V10 the share of negatives below each positive, V01 the share of positives above each
  negative, ties counting half, and unbiased variances. Midranks give both in O(N log N) (Sun & Xu
  2014). The spread over training seeds is not part of it. Takes and raises what `auc` does.

  Returns:
    The standard error; nan with fewer than two rows of either class.

  >>> round(delong_se([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]), 3)
  0.354
  """
  return _delong_se(_tie_groups(*validated(labels_N, scores_N)))


def delong_covariance(labels_N, scores_KN) -> tuple[np.ndarray, np.ndarray]:
  """Returns the AUCs of K models on the same rows, and the covariance of these AUCs.

  For a paired test of models i and j: z = (aucs[i] - aucs[j]) / sqrt(cov[i, i] + cov[j, j]
  - 2 cov[i, j]). DeLong, DeLong & Clarke-Pearson 1988; midrank form of Sun & Xu 2014.

  Args:
    labels_N: 0 or 1.
    scores_KN: one row of scores per model, any float dtype.

  Returns:
    aucs_K and cov_KK, float64. The square root of the diagonal is `delong_se`.

  Raises:
    ValueError: as `auc`, or if scores_KN is not 2-D, or with fewer than two rows of a class
      (no covariance exists).

  >>> scores_KN = [[0.1, 0.4, 0.35, 0.8], [0.1, 0.2, 0.3, 0.4]]
  >>> aucs_K, cov_KK = delong_covariance([0, 0, 1, 1], scores_KN)
  >>> aucs_K
  array([0.75, 1.  ])
  """
  scores_KN = np.asarray(scores_KN)
  if scores_KN.ndim != 2:
    raise ValueError(f'scores_KN must be [models, rows], got shape {scores_KN.shape}')
  labels_N = validated(labels_N, scores_KN[0])[0] if len(scores_KN) else np.asarray(labels_N)
  num_pos = int(labels_N.sum())
  num_neg = len(labels_N) - num_pos
  if min(num_pos, num_neg) < 2 or not len(scores_KN):
    raise ValueError(
      'delong_covariance needs at least 1 model and 2 rows of each class, got '
      f'{len(scores_KN)} models, {num_pos} positives and {num_neg} negatives'
    )
  v10_KP = np.empty((len(scores_KN), num_pos))
  v01_KN = np.empty((len(scores_KN), num_neg))
  for k, scores_N in enumerate(scores_KN):
    placement_N = _placements(*validated(labels_N, scores_N))
    v10_KP[k] = placement_N[labels_N]
    v01_KN[k] = placement_N[~labels_N]
  cov_KK = np.atleast_2d(np.cov(v10_KP) / num_pos + np.cov(v01_KN) / num_neg)
  return v10_KP.mean(axis=1), cov_KK


def log_loss(labels_N, logits_N) -> float:
  """Returns the mean binary cross-entropy in nats, in float64, from logits.

  The loss of a row is softplus(-logit) for a click and softplus(logit) otherwise: exact where a
  probability would have rounded to 0 or 1, and infinite only for an infinite logit on the wrong
  side. Raises what `auc` does.

  >>> round(log_loss([0, 1], [0.0, 0.0]), 4)  # ln 2
  0.6931
  """
  labels_N, logits_N = validated(labels_N, logits_N)
  wrong_N = logits_N.astype(np.float64)  # a copy: log odds of the other label
  np.negative(wrong_N, out=wrong_N, where=labels_N)
  tail_N = np.log1p(np.exp(-np.abs(wrong_N)))
  return float((np.maximum(wrong_N, 0.0) + tail_N).mean())


def normalized_entropy(labels_N, logits_N) -> float:
  """Returns log loss over the entropy of these labels' click rate (He et al. 2014, eq. 1).

    NE = log loss / -(p ln p + (1 - p) ln(1 - p)),  p the click rate

  1.0 is the score of the constant p; lower is better. nan if the labels hold one class only (zero
  entropy). Raises what `auc` does.

  >>> normalized_entropy([0, 1], [0.0, 0.0])
  1.0
  """
  labels_N, logits_N = validated(labels_N, logits_N)
  return log_loss(labels_N, logits_N) / _entropy(float(labels_N.mean()))


def calibration(labels_N, logits_N) -> float:
  """Returns the mean predicted over the mean observed click rate (He et al. 2014); 1.0 is ideal.

  nan if there are no clicks. Raises what `auc` does.

  >>> calibration([0, 0, 0, 1], [0.0, 0.0, 0.0, 0.0])  # predicts 1/2, observes 1/4
  2.0
  """
  labels_N, logits_N = validated(labels_N, logits_N)
  clicks = int(labels_N.sum())
  return float(_sigmoid(logits_N).sum()) / clicks if clicks else math.nan


def expected_calibration_error(labels_N, logits_N, bins: int = ECE_BINS) -> float:
  """Returns the row-weighted mean over bins of |mean predicted - mean observed click rate|.

  Bins are quantiles of the score, of equal mass: CTR scores crowd near zero, so most bins of equal
  width would be empty (adaptive calibration error, Nguyen & O'Connor 2015). Rows with equal score
  share the bin of their midrank, so the result does not depend on row order, and bins are equal in
  mass up to such ties.

  Raises:
    ValueError: as `auc`, or for bins < 1.

  >>> expected_calibration_error([0, 0, 0, 1], [0.0, 0.0, 0.0, 0.0])
  0.25
  """
  if bins < 1:
    raise ValueError(f'bins must be at least 1, got {bins}')
  return _ece(_tie_groups(*validated(labels_N, logits_N)), bins)


def evaluate_logits(labels_N, logits_N) -> dict[str, float | int]:
  """Returns every reported number of one evaluation, from one sort of the rows.

  Args:
    labels_N: 0 or 1. Real rows only: drop padding first.
    logits_N: natural-log odds, float32 for speed (see `auc`).

  Returns:
    Plain Python numbers: auc, auc_se (DeLong), logloss (nats), ne, calibration, ece (of
    `ECE_BINS` bins), rows, clicks, click_rate. Where labels hold one class only, those
    that do not exist are nan.

  Raises:
    ValueError: as `auc`.

  >>> figures = evaluate_logits([0, 0, 1, 1], [-2.0, 0.5, 0.0, 2.0])
  >>> figures['auc'], figures['rows'], round(figures['logloss'], 3)
  (0.75, 4, 0.48)
  """
  labels_N, logits_N = validated(labels_N, logits_N)
  groups = _tie_groups(labels_N, logits_N)
  clicks = int(labels_N.sum())
  click_rate = clicks / len(labels_N)
  logloss = log_loss(labels_N, logits_N)
  return {
    'auc': auc_of_groups(groups),
    'auc_se': _delong_se(groups),
    'logloss': logloss,
    'ne': logloss / _entropy(click_rate),
    'calibration': calibration(labels_N, logits_N),
    'ece': _ece(groups, ECE_BINS),
    'rows': len(labels_N),
    'clicks': clicks,
    'click_rate': click_rate,
  }


def rela_impr(auc: float, auc_base: float) -> float:
  """Returns the relative improvement over a baseline AUC, chance taken off both (RelaImpr).

    (AUC - 1/2) / (AUC_base - 1/2) - 1

  A fraction: 0.01 is one percent (Zhou et al. 2018, DIN).

  Raises:
    ValueError: for a baseline of exactly 0.5.

  >>> round(rela_impr(0.7565, 0.75), 4)
  0.026
  """
  if auc_base == 0.5:
    raise ValueError('rela_impr needs a baseline AUC other than 0.5, which is chance')
  return (auc - 0.5) / (auc_base - 0.5) - 1.0


def validated(labels_N, scores_N) -> tuple[np.ndarray, np.ndarray]:
  """Returns labels as bool and scores as float32 or float64.

  Raises:
    ValueError: as `auc`.

  >>> validated([0, 1], [0.25, 0.5])
  (array([False,  True]), array([0.25, 0.5 ]))
  """
  labels_N, scores_N = np.asarray(labels_N), np.asarray(scores_N)
  if labels_N.ndim != 1 or labels_N.shape != scores_N.shape or not labels_N.size:
    raise ValueError(
      'labels and scores must be non-empty 1-D arrays of one length, got shapes '
      f'{labels_N.shape} and {scores_N.shape}'
    )
  # jnp.issubdtype, because NumPy does not count bfloat16 among the floats.
  if not jnp.issubdtype(scores_N.dtype, jnp.floating) or scores_N.dtype.itemsize > 8:
    raise ValueError(f'scores must be float64 or a narrower float, got {scores_N.dtype}')
  if labels_N.dtype != np.bool_:
    is_one_N = labels_N == 1
    num_bad = labels_N.size - int(np.count_nonzero(is_one_N | (labels_N == 0)))
    if num_bad:
      raise ValueError(f'labels must be 0 or 1, {num_bad} of {labels_N.size} are neither')
    labels_N = is_one_N
  if scores_N.dtype != np.float64:
    scores_N = scores_N.astype(np.float32, copy=False)
  num_nan = int(np.count_nonzero(np.isnan(scores_N)))
  if num_nan:
    raise ValueError(f'{num_nan} of {scores_N.size} scores are NaN')
  return labels_N, scores_N


def ordered_bits(scores_N: np.ndarray) -> np.ndarray:
  """Returns uint32 in the order of the scores; equal scores give equal integers.

  The bits of float32 scores, the ranks of float64 ones.

  >>> bits_N = ordered_bits(np.float32([-1.0, -0.0, 0.0, 2.0]))
  >>> np.diff(bits_N) > 0  # only -0.0 and 0.0 tie
  array([ True, False,  True])
  """
  if scores_N.dtype != np.float32:
    return np.unique(scores_N, return_inverse=True)[1].astype(np.uint32)
  # + 0.0 turns -0.0 into +0.0, which must tie.
  bits_N = (scores_N + np.float32(0.0)).view(np.int32)
  # Negative floats grow as their bits shrink: flip all their bits, else only the sign bit.
  flip_N = (bits_N >> 31) | np.int32(-(2**31))
  return (bits_N ^ flip_N).view(np.uint32)


def _from_ordered_bits(ordered_G: np.ndarray) -> np.ndarray:
  """Inverts `ordered_bits` of float32 scores; float64."""
  bits_G = ordered_G.view(np.int32)
  flip_G = ~(bits_G >> 31) | np.int32(-(2**31))
  return (bits_G ^ flip_G).view(np.float32).astype(np.float64)


def run_ends(sorted_N: np.ndarray) -> np.ndarray:
  """Returns the index of the last row of every run of equal values in a sorted array.

  >>> run_ends(np.array([3, 3, 5, 8, 8, 8]))
  array([1, 2, 5])
  """
  return np.append(np.flatnonzero(sorted_N[1:] != sorted_N[:-1]), len(sorted_N) - 1)


def _sorted_keys(labels_N: np.ndarray, scores_N: np.ndarray) -> np.ndarray:
  """Returns rows in ascending order of float32 score, as uint64: `ordered_bits`, then the label.

  Packing the label into the lowest bit allows a sort without a gather, ten times faster than
  argsort. It cannot split a tie, as groups are cut on the other bits.
  """
  key_N = np.empty(len(scores_N), np.uint64)
  for chunk in _chunks(len(key_N)):
    key_N[chunk] = ordered_bits(scores_N[chunk])
    key_N[chunk] <<= np.uint64(1)
    key_N[chunk] |= labels_N[chunk]
  key_N.sort()
  return key_N


def _chunks(rows: int) -> Iterator[slice]:
  """Yields slices small enough for their temporaries to stay in a processor's cache."""
  for start in range(0, rows, _CACHED_ROWS):
    yield slice(start, min(start + _CACHED_ROWS, rows))


def _auc_of_keys(key_N: np.ndarray) -> float:
  """Returns the `auc` of `_sorted_keys`, without an array for all tie groups."""
  twice, pos, neg, start = 0, 0, 0, 0
  while start < len(key_N):
    end = min(start + _CACHED_ROWS, len(key_N))
    if end < len(key_N):  # do not cut a tie
      end = int(key_N.searchsorted(key_N[end - 1] | np.uint64(1), side='right'))
    key_B = key_N[start:end]
    end_G = run_ends(key_B >> np.uint64(1))
    pos_G = np.cumsum(key_B & np.uint64(1), dtype=np.int64)[end_G]
    neg_G = end_G + 1 - pos_G  # pos_G and neg_G: running totals of this chunk
    # Each group adds pos (2 neg below + neg).
    below_G = np.append(0, neg_G[:-1])
    new_G = np.diff(pos_G, prepend=0)
    twice += int((new_G * (neg_G + below_G)).sum()) + 2 * neg * int(pos_G[-1])
    pos, neg, start = pos + int(pos_G[-1]), neg + int(neg_G[-1]), end
  return twice / (2 * pos * neg) if pos and neg else math.nan


def _tie_groups(labels_N: np.ndarray, scores_N: np.ndarray) -> TieGroups:
  if scores_N.dtype != np.float32:
    score_G, group_N = np.unique(scores_N, return_inverse=True)
    pos_G = np.bincount(group_N[labels_N], minlength=len(score_G))
    return TieGroups(score_G, pos_G, np.bincount(group_N) - pos_G)
  key_N = _sorted_keys(labels_N, scores_N)
  sorted_labels_N = (key_N & np.uint64(1)).astype(bool)
  key_N >>= np.uint64(1)
  end_G = run_ends(key_N)
  score_G = _from_ordered_bits(key_N[end_G].astype(np.uint32))
  return TieGroups(score_G, *class_counts(sorted_labels_N, end_G))


def class_counts(sorted_labels_N: np.ndarray, end_G: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns pos_G and neg_G of the groups of sorted rows that end at the rows `end_G`.

  >>> class_counts(np.array([0, 1, 1, 0]), np.array([1, 3]))
  (array([1, 1]), array([1, 1]))
  """
  pos_G = np.diff(np.cumsum(sorted_labels_N, dtype=np.int64)[end_G], prepend=0)
  return pos_G, np.diff(end_G + 1, prepend=0) - pos_G


def auc_of_groups(groups: TieGroups) -> float:
  """Returns the AUC of rows grouped by score; nan if they hold one class only.

  A positive beats the negatives below it and half of those in its group: see `auc`.

  >>> auc_of_groups(TieGroups(np.array([0.1, 0.9]), np.array([0, 2]), np.array([2, 2])))
  0.75
  """
  num_pos, num_neg = int(groups.pos_G.sum()), int(groups.neg_G.sum())
  if not num_pos or not num_neg:
    return math.nan
  # Twice the pair count, so that half a tie stays an integer; int64 holds it up to 4e9 rows.
  twice_below_G = 2 * np.cumsum(groups.neg_G) - groups.neg_G
  return int((groups.pos_G * twice_below_G).sum()) / (2 * num_pos * num_neg)


def _placement_values(pos_G: np.ndarray, neg_G: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns V10 and V01 of each group's rows (see `delong_se`)."""
  v10_G = (np.cumsum(neg_G) - neg_G / 2) / neg_G.sum()
  return v10_G, 1.0 - (np.cumsum(pos_G) - pos_G / 2) / pos_G.sum()


def _delong_se(groups: TieGroups) -> float:
  num_pos, num_neg = int(groups.pos_G.sum()), int(groups.neg_G.sum())
  if min(num_pos, num_neg) < 2:
    return math.nan
  v10_G, v01_G = _placement_values(groups.pos_G, groups.neg_G)
  area = auc_of_groups(groups)
  var10 = float((groups.pos_G * (v10_G - area) ** 2).sum()) / (num_pos - 1)
  var01 = float((groups.neg_G * (v01_G - area) ** 2).sum()) / (num_neg - 1)
  return math.sqrt(var10 / num_pos + var01 / num_neg)


def _placements(labels_N: np.ndarray, scores_N: np.ndarray) -> np.ndarray:
  """Returns V10 at the positive rows and V01 at the negative rows, float64, in row order."""
  # Score in the high half, row in the low half of one integer: faster than argsort.
  key_N = ordered_bits(scores_N).astype(np.uint64)
  key_N <<= np.uint64(32)
  key_N |= np.arange(len(key_N), dtype=np.uint64)
  key_N.sort()
  order_N = (key_N & np.uint64(2**32 - 1)).astype(np.int64)
  key_N >>= np.uint64(32)
  end_G = run_ends(key_N)
  sorted_labels_N = labels_N[order_N]
  v10_G, v01_G = _placement_values(*class_counts(sorted_labels_N, end_G))
  size_G = np.diff(end_G + 1, prepend=0)
  placement_N = np.empty(len(labels_N))
  placement_N[order_N] = np.where(
    sorted_labels_N, np.repeat(v10_G, size_G), np.repeat(v01_G, size_G)
  )
  return placement_N


def _entropy(p: float) -> float:
  """Returns the entropy of a click rate in nats; nan for one class only."""
  return math.nan if p in (0.0, 1.0) else -(p * math.log(p) + (1.0 - p) * math.log(1.0 - p))


def _sigmoid(logits_N: np.ndarray) -> np.ndarray:
  logits_N = logits_N.astype(np.float64, copy=False)
  exp_N = np.exp(-np.abs(logits_N))  # in (0, 1]: never overflows
  return np.where(logits_N >= 0, 1.0, exp_N) / (1.0 + exp_N)


def _ece(groups: TieGroups, bins: int) -> float:
  size_G = groups.pos_G + groups.neg_G
  rows = int(size_G.sum())
  twice_midrank_G = 2 * np.cumsum(size_G) - size_G  # of ranks counted from 1/2 to rows - 1/2
  bin_G = twice_midrank_G * bins // (2 * rows)
  excess_G = size_G * _sigmoid(groups.score_G) - groups.pos_G
  return float(np.abs(np.bincount(bin_G, weights=excess_G)).sum()) / rows
