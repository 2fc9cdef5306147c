# SPDX-License-Identifier: Apache-2.0
"""Exact CTR metrics, on the host: every number that is reported comes from here.

The functions take all rows of an evaluation as NumPy arrays and work in float64 and integers.
For the numbers watched during training see `deres_jax.metrics.streaming`.

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
  """Exact area under the ROC curve; a tie between a positive and a negative counts half.

  AUC = (sum over tie groups of pos * (negatives below + neg / 2)) / (P * N), the
  Mann-Whitney statistic with midranks (Hanley & McNeil 1982). The numerator is an integer
  sum, so the result does not depend on the order of the rows.

  Args:
    labels_N: 0 or 1, any bool, int or float dtype.
    scores_N: any float dtype, higher means more likely positive. Logits or probabilities:
      only the order matters. float32 and narrower are sorted as one packed integer (10M rows
      in well under a second); float64 takes an argsort, equally exact and several times slower.

  Returns:
    AUC in [0, 1]; nan if the labels hold one class only.

  Raises:
    ValueError: on empty or mismatched arrays, labels other than 0 and 1, scores that are not
      floats, or NaN scores.
  """
  labels_N, scores_N = checked(labels_N, scores_N)
  if scores_N.dtype == np.float32:
    return _auc_of_keys(_sorted_keys(labels_N, scores_N))
  return auc_of_groups(_tie_groups(labels_N, scores_N))


def delong_se(labels_N, scores_N) -> float:
  """Standard error of `auc` over the sampling of rows (DeLong et al. 1988), O(N log N).

  Placement values V10 (per positive) and V01 (per negative) come from midranks, as in
  Sun & Xu 2014; SE^2 = var(V10) / P + var(V01) / N with unbiased variances. It says nothing
  of the spread over training seeds.

  Args and errors are those of `auc`.

  Returns:
    The standard error; nan with fewer than two rows of either class.
  """
  return _delong_se(_tie_groups(*checked(labels_N, scores_N)))


def delong_covariance(labels_N, scores_KN) -> tuple[np.ndarray, np.ndarray]:
  """AUCs of K models scored on the same rows, and the covariance of these AUCs.

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
  """
  scores_KN = np.asarray(scores_KN)
  if scores_KN.ndim != 2:
    raise ValueError(f'scores_KN must be [models, rows], got shape {scores_KN.shape}')
  labels_N = checked(labels_N, scores_KN[0])[0] if len(scores_KN) else np.asarray(labels_N)
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
    placement_N = _placements(*checked(labels_N, scores_N))
    v10_KP[k] = placement_N[labels_N]
    v01_KN[k] = placement_N[~labels_N]
  cov_KK = np.atleast_2d(np.cov(v10_KP) / num_pos + np.cov(v01_KN) / num_neg)
  return v10_KP.mean(axis=1), cov_KK


def log_loss(labels_N, logits_N) -> float:
  """Mean binary cross-entropy in nats, in float64, from logits (never from probabilities).

  softplus(-logit) for a click and softplus(logit) otherwise: exact where a probability
  would have rounded to 0 or 1. Infinite only for an infinite logit on the wrong side.
  Errors are those of `auc`.
  """
  return _log_loss(*checked(labels_N, logits_N))


def normalized_entropy(labels_N, logits_N) -> float:
  """Log loss over the entropy of the click rate of these labels (He et al. 2014, eq. 1).

  1.0 is what the constant base rate scores; lower is better. nan if the labels hold one
  class only (zero entropy). Errors are those of `auc`.
  """
  labels_N, logits_N = checked(labels_N, logits_N)
  return _normalized_entropy(_log_loss(labels_N, logits_N), float(labels_N.mean()))


def calibration(labels_N, logits_N) -> float:
  """Mean predicted over mean observed click rate (He et al. 2014); 1.0 is ideal.

  nan if there are no clicks. Errors are those of `auc`.
  """
  labels_N, logits_N = checked(labels_N, logits_N)
  return _calibration(labels_N, logits_N)


def expected_calibration_error(labels_N, logits_N, bins: int = ECE_BINS) -> float:
  """Row-weighted mean of |mean predicted - mean observed| over bins of equal mass.

  Bins are quantiles of the score (CTR scores crowd near zero, equal-width bins would be
  nearly empty). Rows with equal score share the bin of their midrank, so the result does
  not depend on row order; bins are equal in mass up to such ties. Errors are those of
  `auc`, and ValueError for bins < 1.
  """
  if bins < 1:
    raise ValueError(f'bins must be at least 1, got {bins}')
  return _ece(_tie_groups(*checked(labels_N, logits_N)), bins)


def evaluate_logits(labels_N, logits_N) -> dict[str, float | int]:
  """Every reported number of one evaluation, from one sort of the rows.

  Args:
    labels_N: 0 or 1. Real rows only: drop padding first.
    logits_N: natural-log odds, float32 for speed (see `auc`).

  Returns:
    Plain Python numbers: auc, auc_se (DeLong), logloss (nats), ne, calibration, ece (of
    `ECE_BINS` bins), rows, clicks, click_rate. Where labels hold one class only, those
    that do not exist are nan.

  Raises:
    ValueError: as `auc`.
  """
  labels_N, logits_N = checked(labels_N, logits_N)
  groups = _tie_groups(labels_N, logits_N)
  clicks = int(labels_N.sum())
  click_rate = clicks / len(labels_N)
  logloss = _log_loss(labels_N, logits_N)
  return {
    'auc': auc_of_groups(groups),
    'auc_se': _delong_se(groups),
    'logloss': logloss,
    'ne': _normalized_entropy(logloss, click_rate),
    'calibration': _calibration(labels_N, logits_N),
    'ece': _ece(groups, ECE_BINS),
    'rows': len(labels_N),
    'clicks': clicks,
    'click_rate': click_rate,
  }


def rela_impr(auc: float, auc_base: float) -> float:
  """Relative improvement over a baseline AUC, chance taken off both (Zhou et al. 2018, DIN).

  A fraction: 0.01 is one percent. Raises ValueError for a baseline of exactly 0.5.
  """
  if auc_base == 0.5:
    raise ValueError('rela_impr needs a baseline AUC other than 0.5, which is chance')
  return (auc - 0.5) / (auc_base - 0.5) - 1.0


def checked(labels_N, scores_N) -> tuple[np.ndarray, np.ndarray]:
  """Labels as bool and scores as float32 or float64, or a ValueError that says why not."""
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
  """uint32 in the order of the float32 scores; equal scores give equal integers."""
  # + 0.0 turns -0.0 into +0.0, which must tie.
  bits_N = (scores_N + np.float32(0.0)).view(np.int32)
  # Negative floats grow as their bits shrink: flip all their bits, else only the sign bit.
  flip_N = (bits_N >> 31) | np.int32(-(2**31))
  return (bits_N ^ flip_N).view(np.uint32)


def _from_ordered_bits(ordered_G: np.ndarray) -> np.ndarray:
  """Inverse of `ordered_bits`, as float64."""
  bits_G = ordered_G.view(np.int32)
  flip_G = ~(bits_G >> 31) | np.int32(-(2**31))
  return (bits_G ^ flip_G).view(np.float32).astype(np.float64)


def run_ends(sorted_N: np.ndarray) -> np.ndarray:
  """Index of the last row of every run of equal values in a sorted array."""
  return np.append(np.flatnonzero(sorted_N[1:] != sorted_N[:-1]), len(sorted_N) - 1)


def _sorted_keys(labels_N: np.ndarray, scores_N: np.ndarray) -> np.ndarray:
  """Rows in ascending order of float32 score, as uint64: `ordered_bits`, then the label.

  The label rides in the lowest bit: a sort without a gather is ten times faster than argsort. It
  cannot split a tie, as groups are cut on the other bits.
  """
  key_N = np.empty(len(scores_N), np.uint64)
  for part in _parts(len(key_N)):
    key_N[part] = ordered_bits(scores_N[part])
    key_N[part] <<= np.uint64(1)
    key_N[part] |= labels_N[part]
  key_N.sort()
  return key_N


def _parts(rows: int) -> Iterator[slice]:
  """Slices of so many rows whose temporaries stay in a processor's cache."""
  for start in range(0, rows, _CACHED_ROWS):
    yield slice(start, min(start + _CACHED_ROWS, rows))


def _auc_of_keys(key_N: np.ndarray) -> float:
  """`auc` of `_sorted_keys`, without an array for all tie groups."""
  twice, pos, neg, start = 0, 0, 0, 0
  while start < len(key_N):
    end = min(start + _CACHED_ROWS, len(key_N))
    if end < len(key_N):  # no tie is cut
      end = int(key_N.searchsorted(key_N[end - 1] | np.uint64(1), side='right'))
    part_B = key_N[start:end]
    end_G = run_ends(part_B >> np.uint64(1))
    pos_G = np.cumsum(part_B & np.uint64(1), dtype=np.int64)[end_G]
    neg_G = end_G + 1 - pos_G  # both so far
    # sum of pos (2 neg below + neg), of what each group adds
    below_G = np.append(0, neg_G[:-1])
    new_G = np.diff(pos_G, prepend=0)
    twice += int((new_G * (neg_G + below_G)).sum()) + 2 * neg * int(pos_G[-1])
    pos, neg, start = pos + int(pos_G[-1]), neg + int(neg_G[-1]), end
  return twice / (2 * pos * neg) if pos and neg else math.nan


def _tie_groups(labels_N: np.ndarray, scores_N: np.ndarray) -> TieGroups:
  if scores_N.dtype == np.float32:
    key_N = _sorted_keys(labels_N, scores_N)
    sorted_labels_N = (key_N & np.uint64(1)).astype(bool)
    key_N >>= np.uint64(1)
    end_G = run_ends(key_N)
    score_G = _from_ordered_bits(key_N[end_G].astype(np.uint32))
  else:
    order_N = np.argsort(scores_N, kind='stable')
    sorted_labels_N, sorted_N = labels_N[order_N], scores_N[order_N]
    end_G = run_ends(sorted_N)
    score_G = sorted_N[end_G]
  pos_G = np.diff(np.cumsum(sorted_labels_N, dtype=np.int64)[end_G], prepend=0)
  neg_G = np.diff(end_G + 1, prepend=0) - pos_G
  return TieGroups(score_G, pos_G, neg_G)


def auc_of_groups(groups: TieGroups) -> float:
  """AUC of rows grouped by score; a tie counts half, one class only gives nan."""
  num_pos, num_neg = int(groups.pos_G.sum()), int(groups.neg_G.sum())
  if not num_pos or not num_neg:
    return math.nan
  # Twice the pair count, so that half a tie stays an integer; int64 holds it up to 4e9 rows.
  twice_below_G = 2 * np.cumsum(groups.neg_G) - groups.neg_G
  return int((groups.pos_G * twice_below_G).sum()) / (2 * num_pos * num_neg)


def _delong_se(groups: TieGroups) -> float:
  pos_G, neg_G = groups.pos_G, groups.neg_G
  num_pos, num_neg = int(pos_G.sum()), int(neg_G.sum())
  if min(num_pos, num_neg) < 2:
    return math.nan
  v10_G = (np.cumsum(neg_G) - neg_G / 2) / num_neg
  v01_G = 1.0 - (np.cumsum(pos_G) - pos_G / 2) / num_pos
  area = auc_of_groups(groups)
  var10 = float((pos_G * (v10_G - area) ** 2).sum()) / (num_pos - 1)
  var01 = float((neg_G * (v01_G - area) ** 2).sum()) / (num_neg - 1)
  return math.sqrt(var10 / num_pos + var01 / num_neg)


def _placements(labels_N: np.ndarray, scores_N: np.ndarray) -> np.ndarray:
  """V10 at the positive rows and V01 at the negative rows, float64, in row order."""
  if scores_N.dtype == np.float32 and len(scores_N) <= 2**32:
    # The row number rides in the low half of the key; faster than argsort.
    key_N = ordered_bits(scores_N).astype(np.uint64)
    key_N <<= np.uint64(32)
    key_N |= np.arange(len(key_N), dtype=np.uint64)
    key_N.sort()
    order_N = (key_N & np.uint64(2**32 - 1)).astype(np.int64)
    key_N >>= np.uint64(32)
    end_G = run_ends(key_N)
  else:
    order_N = np.argsort(scores_N, kind='stable')
    end_G = run_ends(scores_N[order_N])
  sorted_labels_N = labels_N[order_N]
  size_G = np.diff(end_G + 1, prepend=0)
  pos_G = np.diff(np.cumsum(sorted_labels_N, dtype=np.int64)[end_G], prepend=0)
  neg_G = size_G - pos_G
  v10_G = (np.cumsum(neg_G) - neg_G / 2) / neg_G.sum()
  v01_G = 1.0 - (np.cumsum(pos_G) - pos_G / 2) / pos_G.sum()
  placement_N = np.empty(len(labels_N))
  placement_N[order_N] = np.where(
    sorted_labels_N, np.repeat(v10_G, size_G), np.repeat(v01_G, size_G)
  )
  return placement_N


def _log_loss(labels_N: np.ndarray, logits_N: np.ndarray) -> float:
  wrong_N = logits_N.astype(np.float64)  # a copy: the log odds of the label not seen
  np.negative(wrong_N, out=wrong_N, where=labels_N)
  tail_N = np.log1p(np.exp(-np.abs(wrong_N)))
  return float((np.maximum(wrong_N, 0.0) + tail_N).mean())


def _normalized_entropy(logloss: float, click_rate: float) -> float:
  if click_rate in (0.0, 1.0):
    return math.nan
  other = 1.0 - click_rate
  return logloss / -(click_rate * math.log(click_rate) + other * math.log(other))


def _sigmoid(logits_N: np.ndarray) -> np.ndarray:
  logits_N = logits_N.astype(np.float64, copy=False)
  exp_N = np.exp(-np.abs(logits_N))  # in (0, 1]: never overflows
  return np.where(logits_N >= 0, 1.0, exp_N) / (1.0 + exp_N)


def _calibration(labels_N: np.ndarray, logits_N: np.ndarray) -> float:
  clicks = int(labels_N.sum())
  return float(_sigmoid(logits_N).sum()) / clicks if clicks else math.nan


def _ece(groups: TieGroups, bins: int) -> float:
  size_G = groups.pos_G + groups.neg_G
  rows = int(size_G.sum())
  twice_midrank_G = 2 * np.cumsum(size_G) - size_G  # of ranks counted from 1/2 to rows - 1/2
  bin_G = twice_midrank_G * bins // (2 * rows)
  excess_G = size_G * _sigmoid(groups.score_G) - groups.pos_G
  return float(np.abs(np.bincount(bin_G, weights=excess_G)).sum()) / rows
