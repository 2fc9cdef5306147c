# SPDX-License-Identifier: Apache-2.0
"""CTR metrics: exact ones on the host, one streaming state for the device.

Two families, and why there are two:

* The exact functions take all rows of an evaluation as NumPy arrays and work in float64 and
  integers. Every number that is reported comes from here (`evaluate_logits`).
* `StreamState` is a small pytree that a jitted step can update, add and psum. It serves the
  numbers watched during training. Its AUC is within 1e-5 of the exact one, or, where clicks
  are few and logits narrow, within 1 % of the standard error.

AUCs of batches or devices are never averaged: that drops every pair of rows that straddles
two batches, and is biased by -0.02 once batches differ in base rate. States are summed and
the ratio is taken once.

Shape letters: N rows of an evaluation, B rows of a batch, G groups of rows with equal score,
K histogram bins (in `StreamState`) or models compared on the same rows (in
`delong_covariance`). Labels are 0 or 1, logits are natural-log odds, losses are in nats.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

ECE_BINS = 20

# Streaming histogram. 16,384 bins over [-15, 15] are 0.0018 wide in logit; a sigmoid at the
# ends is 3e-7, below any click rate worth modelling, and the outer bins catch what is beyond.
HIST_BINS = 16_384
HIST_LIMIT = 15.0


# Exact metrics, on the host.


class _TieGroups(NamedTuple):
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
  return _auc(_tie_groups(*_checked(labels_N, scores_N)))


def delong_se(labels_N, scores_N) -> float:
  """Standard error of `auc` over the sampling of rows (DeLong et al. 1988), O(N log N).

  Placement values V10 (per positive) and V01 (per negative) come from midranks, as in
  Sun & Xu 2014; SE^2 = var(V10) / P + var(V01) / N with unbiased variances. It says nothing
  of the spread over training seeds.

  Args and errors are those of `auc`.

  Returns:
    The standard error; nan with fewer than two rows of either class.
  """
  return _delong_se(_tie_groups(*_checked(labels_N, scores_N)))


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
  labels_N = _checked(labels_N, scores_KN[0])[0] if len(scores_KN) else np.asarray(labels_N)
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
    placement_N = _placements(*_checked(labels_N, scores_N))
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
  return _log_loss(*_checked(labels_N, logits_N))


def normalized_entropy(labels_N, logits_N) -> float:
  """Log loss over the entropy of the click rate of these labels (He et al. 2014, eq. 1).

  1.0 is what the constant base rate scores; lower is better. nan if the labels hold one
  class only (zero entropy). Errors are those of `auc`.
  """
  labels_N, logits_N = _checked(labels_N, logits_N)
  return _normalized_entropy(_log_loss(labels_N, logits_N), float(labels_N.mean()))


def calibration(labels_N, logits_N) -> float:
  """Mean predicted over mean observed click rate (He et al. 2014); 1.0 is ideal.

  nan if there are no clicks. Errors are those of `auc`.
  """
  labels_N, logits_N = _checked(labels_N, logits_N)
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
  return _ece(_tie_groups(*_checked(labels_N, logits_N)), bins)


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
  labels_N, logits_N = _checked(labels_N, logits_N)
  groups = _tie_groups(labels_N, logits_N)
  clicks = int(labels_N.sum())
  click_rate = clicks / len(labels_N)
  logloss = _log_loss(labels_N, logits_N)
  return {
    'auc': _auc(groups),
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


def _checked(labels_N, scores_N) -> tuple[np.ndarray, np.ndarray]:
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


def _ordered_bits(scores_N: np.ndarray) -> np.ndarray:
  """uint32 in the order of the float32 scores; equal scores give equal integers."""
  # + 0.0 turns -0.0 into +0.0, which must tie.
  bits_N = (scores_N + np.float32(0.0)).view(np.int32)
  # Negative floats grow as their bits shrink: flip all their bits, else only the sign bit.
  flip_N = (bits_N >> 31) | np.int32(-(2**31))
  return (bits_N ^ flip_N).view(np.uint32)


def _from_ordered_bits(ordered_G: np.ndarray) -> np.ndarray:
  """Inverse of `_ordered_bits`, as float64."""
  bits_G = ordered_G.view(np.int32)
  flip_G = ~(bits_G >> 31) | np.int32(-(2**31))
  return (bits_G ^ flip_G).view(np.float32).astype(np.float64)


def _group_ends(sorted_N: np.ndarray) -> np.ndarray:
  """Index of the last row of every run of equal values in a sorted array."""
  return np.append(np.flatnonzero(sorted_N[1:] != sorted_N[:-1]), len(sorted_N) - 1)


def _tie_groups(labels_N: np.ndarray, scores_N: np.ndarray) -> _TieGroups:
  if scores_N.dtype == np.float32:
    # The label rides in the lowest bit of the key: a sort without a gather is ten times
    # faster than argsort. It cannot split a tie, as groups are cut on the other bits.
    key_N = _ordered_bits(scores_N).astype(np.uint64)
    key_N <<= np.uint64(1)
    key_N |= labels_N
    key_N.sort()
    sorted_labels_N = (key_N & np.uint64(1)).astype(bool)
    key_N >>= np.uint64(1)
    end_G = _group_ends(key_N)
    score_G = _from_ordered_bits(key_N[end_G].astype(np.uint32))
  else:
    order_N = np.argsort(scores_N, kind='stable')
    sorted_labels_N, sorted_N = labels_N[order_N], scores_N[order_N]
    end_G = _group_ends(sorted_N)
    score_G = sorted_N[end_G]
  pos_G = np.diff(np.cumsum(sorted_labels_N, dtype=np.int64)[end_G], prepend=0)
  neg_G = np.diff(end_G + 1, prepend=0) - pos_G
  return _TieGroups(score_G, pos_G, neg_G)


def _auc(groups: _TieGroups) -> float:
  num_pos, num_neg = int(groups.pos_G.sum()), int(groups.neg_G.sum())
  if not num_pos or not num_neg:
    return math.nan
  # Twice the pair count, so that half a tie stays an integer; int64 holds it up to 4e9 rows.
  twice_below_G = 2 * np.cumsum(groups.neg_G) - groups.neg_G
  return int((groups.pos_G * twice_below_G).sum()) / (2 * num_pos * num_neg)


def _delong_se(groups: _TieGroups) -> float:
  pos_G, neg_G = groups.pos_G, groups.neg_G
  num_pos, num_neg = int(pos_G.sum()), int(neg_G.sum())
  if min(num_pos, num_neg) < 2:
    return math.nan
  v10_G = (np.cumsum(neg_G) - neg_G / 2) / num_neg
  v01_G = 1.0 - (np.cumsum(pos_G) - pos_G / 2) / num_pos
  area = _auc(groups)
  var10 = float((pos_G * (v10_G - area) ** 2).sum()) / (num_pos - 1)
  var01 = float((neg_G * (v01_G - area) ** 2).sum()) / (num_neg - 1)
  return math.sqrt(var10 / num_pos + var01 / num_neg)


def _placements(labels_N: np.ndarray, scores_N: np.ndarray) -> np.ndarray:
  """V10 at the positive rows and V01 at the negative rows, float64, in row order."""
  if scores_N.dtype == np.float32 and len(scores_N) <= 2**32:
    # The row number rides in the low half of the key; faster than argsort.
    key_N = _ordered_bits(scores_N).astype(np.uint64)
    key_N <<= np.uint64(32)
    key_N |= np.arange(len(key_N), dtype=np.uint64)
    key_N.sort()
    order_N = (key_N & np.uint64(2**32 - 1)).astype(np.int64)
    key_N >>= np.uint64(32)
    end_G = _group_ends(key_N)
  else:
    order_N = np.argsort(scores_N, kind='stable')
    end_G = _group_ends(scores_N[order_N])
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


def _ece(groups: _TieGroups, bins: int) -> float:
  size_G = groups.pos_G + groups.neg_G
  rows = int(size_G.sum())
  twice_midrank_G = 2 * np.cumsum(size_G) - size_G  # of ranks counted from 1/2 to rows - 1/2
  bin_G = twice_midrank_G * bins // (2 * rows)
  excess_G = size_G * _sigmoid(groups.score_G) - groups.pos_G
  return float(np.abs(np.bincount(bin_G, weights=excess_G)).sum()) / rows


# Streaming metrics, on the device.


@struct.dataclass
class StreamState:
  """Sums over rows from which AUC, loss and calibration follow; adds over batches, devices.

  All fields are sums, so `jax.lax.psum(state, axes)` and `merge` are both right.
  Counts are int32, exact where float32 would stop at 2^24: a bin holds 2^31 - 1 rows, so take
  `compute` and start from `zeros` before two billion rows.
  Each float sum is a pair, the sum and what rounding dropped from it: a lone float32 sum over
  thousands of batches drifts by 1e-6, the size of the differences looked for.
  """

  pos_K: jax.Array  # int32, clicks by logit bin
  neg_K: jax.Array  # int32, other rows by logit bin
  loss_sum: jax.Array  # float32, nats
  loss_dropped: jax.Array  # float32, to be added to loss_sum
  prediction_sum: jax.Array  # float32, predicted clicks
  prediction_dropped: jax.Array  # float32, to be added to prediction_sum

  @classmethod
  def zeros(cls) -> 'StreamState':
    """The state of no rows."""
    # One array per field: a jitted update can donate its state only if no two share a buffer.
    counts = [jnp.zeros(HIST_BINS, jnp.int32) for _ in range(2)]
    return cls(*counts, *[jnp.zeros((), jnp.float32) for _ in range(4)])

  @classmethod
  def from_batch(cls, logits_B, labels_B, weights_B) -> 'StreamState':
    """The state of one batch; runs inside jit and shard_map. Note the order: logits first.

    Args:
      logits_B: natural-log odds, any float dtype.
      labels_B: 0 or 1; anything above 0 is a click.
      weights_B: 1 for a real row, 0 for padding. A mask: anything above 0 counts one row, and
        what a padded row holds (NaN too) has no effect.

    Returns:
      A state whose loss, prediction and AUC are NaN if a real row has a NaN logit.

    Raises:
      ValueError: unless all three are 1-D and of one length (broadcasting would miscount).
    """
    shapes = (jnp.shape(logits_B), jnp.shape(labels_B), jnp.shape(weights_B))
    if len(set(shapes)) != 1 or len(shapes[0]) != 1:
      raise ValueError(f'logits, labels and weights must be 1-D and alike, got {shapes}')
    real_B, click_B = jnp.asarray(weights_B) > 0, jnp.asarray(labels_B) > 0
    logits_B = jnp.asarray(logits_B, jnp.float32)
    # One scatter-add of B integers into both histograms: negatives first, then positives.
    scale = HIST_BINS / (2 * HIST_LIMIT)
    # NaN goes to bin 0, so that the row counts are right at least.
    bin_B = jnp.nan_to_num(jnp.floor((logits_B + HIST_LIMIT) * scale), nan=0.0)
    bin_B = jnp.clip(bin_B, 0, HIST_BINS - 1)
    bin_B = bin_B.astype(jnp.int32) + HIST_BINS * click_B.astype(jnp.int32)
    counts = jnp.zeros(2 * HIST_BINS, jnp.int32).at[bin_B].add(real_B.astype(jnp.int32))
    neg_K, pos_K = jnp.split(counts, 2)
    # softplus of the log odds of the label not seen: no cancellation at large logits.
    loss_B = jax.nn.softplus(jnp.where(click_B, -logits_B, logits_B))
    loss = jnp.sum(jnp.where(real_B, loss_B, 0.0))
    prediction = jnp.sum(jnp.where(real_B, jax.nn.sigmoid(logits_B), 0.0))
    return cls(pos_K, neg_K, loss, jnp.zeros_like(loss), prediction, jnp.zeros_like(loss))

  def merge(self, other: 'StreamState') -> 'StreamState':
    """The state of both sets of rows; runs inside jit and shard_map."""
    loss_sum, loss_dropped = _two_sum(self.loss_sum, other.loss_sum)
    prediction_sum, prediction_dropped = _two_sum(self.prediction_sum, other.prediction_sum)
    return StreamState(
      self.pos_K + other.pos_K,
      self.neg_K + other.neg_K,
      loss_sum,
      self.loss_dropped + other.loss_dropped + loss_dropped,
      prediction_sum,
      self.prediction_dropped + other.prediction_dropped + prediction_dropped,
    )

  def compute(self) -> dict[str, float | int]:
    """The metrics, on the host in float64; fetches the state, so call it rarely.

    Returns:
      Plain Python numbers: auc (rows of one bin tie at half; for its error see the head of
      this file), loss (nats per row), mean_prediction, calibration (predicted over observed
      clicks), rows, clicks, click_rate. Where rows or classes are missing, what does not
      exist is nan.
    """
    state = jax.device_get(self)
    pos_K, neg_K = state.pos_K.astype(np.int64), state.neg_K.astype(np.int64)
    clicks = int(pos_K.sum())
    rows = clicks + int(neg_K.sum())
    loss = _pair_value(state.loss_sum, state.loss_dropped)
    prediction = _pair_value(state.prediction_sum, state.prediction_dropped)
    bins_K = np.arange(HIST_BINS, dtype=np.float64)
    # A NaN logit has no place in the histogram; the prediction sum tells that there was one.
    area = _auc(_TieGroups(bins_K, pos_K, neg_K)) if not math.isnan(prediction) else math.nan
    return {
      'auc': area,
      'loss': loss / rows if rows else math.nan,
      'mean_prediction': prediction / rows if rows else math.nan,
      'calibration': prediction / clicks if clicks else math.nan,
      'rows': rows,
      'clicks': clicks,
      'click_rate': clicks / rows if rows else math.nan,
    }


def _two_sum(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
  """a + b rounded, and exactly what the rounding dropped (Knuth's TwoSum)."""
  total = a + b
  b_kept = total - a
  return total, (a - (total - b_kept)) + (b - b_kept)


def _pair_value(total, dropped) -> float:
  # An infinite total leaves NaN in the dropped part (inf - inf); the total alone is right then.
  return float(total) + float(dropped) if np.isfinite(total) else float(total)
