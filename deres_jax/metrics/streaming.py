# SPDX-License-Identifier: Apache-2.0
"""Metrics that a jitted step accumulates: for watching a run, not for reporting it.

A histogram over logits counts the rows of each bin and sums their positions within the bin. If the
rows of a bin are uniform in it, a click there outranks another row with probability 1/2 + the
difference of their mean positions. So the error of AUC is random: about 1 / sqrt(12 K P N) with K
occupied bins, P clicks and N other rows (2e-8 at a million rows and 0.5 % clicks), and at most half
the share of pairs in a common bin. States of batches and devices are added and AUC is computed
once. An average of their AUCs would drop every pair of rows from two batches, a bias of -0.02 once
batches differ in base rate.

Shape letters: B rows of a batch, K histogram bins.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from deres_jax.metrics.exact import TieGroups, auc_of_groups

# Streaming histogram. 65,536 bins over [-15, 15] are 0.0005 wide in logit; a sigmoid at the
# ends is 3e-7, below any click rate worth modelling, and the outer bins hold all logits beyond.
HIST_BINS = 65_536
HIST_LIMIT = 15.0
# A row's position in its bin is an integer below HIST_POSITIONS, so sums do not depend on order.
# Bins times positions is 2^24, the resolution of a float32.
HIST_POSITIONS = 256


@struct.dataclass
class StreamState:
  """Sums over rows that give AUC, loss and calibration; states of batches or devices add up.

  All fields are sums, so `jax.lax.psum(state, axes)` and `merge` are both right. Their names are
  those of checkpoints on disk.
  Counts are int32, exact where float32 would stop at 2^24. The sum of a bin's positions must stay
  below 2^31, so call `compute` and restart from `zeros` before eight million rows.
  Each float sum is a pair, the sum and what rounding dropped from it (compensated summation): a
  plain float32 sum over thousands of batches drifts by 1e-6, the size of differences of interest.

  >>> total = StreamState.zeros()
  >>> for logits_B, labels_B in ([-2.0, 0.5], [0, 0]), ([0.0, 2.0], [1, 1]):
  ...   batch = StreamState.from_batch(jnp.array(logits_B), jnp.array(labels_B), jnp.ones(2))
  ...   total = total.merge(batch)
  >>> round(total.compute()['auc'], 4), total.compute()['rows']
  (0.75, 4)
  """

  pos_K: jax.Array  # int32, clicks by logit bin
  neg_K: jax.Array  # int32, other rows by logit bin
  pos_place_K: jax.Array  # int32, sum of the positions of clicks in their bin
  neg_place_K: jax.Array  # int32, the same of other rows
  loss_sum: jax.Array  # float32, nats
  loss_dropped: jax.Array  # float32, to be added to loss_sum
  prediction_sum: jax.Array  # float32, predicted clicks
  prediction_dropped: jax.Array  # float32, to be added to prediction_sum

  @classmethod
  def zeros(cls) -> 'StreamState':
    """Returns the state of no rows."""
    # One array per field: a jitted update can donate its state only if no two share a buffer.
    counts = [jnp.zeros(HIST_BINS, jnp.int32) for _ in range(4)]
    return cls(*counts, *[jnp.zeros((), jnp.float32) for _ in range(4)])

  @classmethod
  def from_batch(cls, logits_B, labels_B, weights_B) -> 'StreamState':
    """Returns the state of one batch; runs inside jit and shard_map. Logits come first.

    Args:
      logits_B: natural-log odds, any float dtype.
      labels_B: 0 or 1; anything above 0 is a click.
      weights_B: 1 for a real row, 0 for padding. A mask: anything above 0 counts as one row, and
        the values of a padded row (NaN too) have no effect.

    Returns:
      A state whose loss, prediction and AUC are NaN if a real row has a NaN logit.

    Raises:
      ValueError: unless all three are 1-D and of one length (broadcasting would count wrongly).
    """
    shapes = (jnp.shape(logits_B), jnp.shape(labels_B), jnp.shape(weights_B))
    if len(set(shapes)) != 1 or len(shapes[0]) != 1:
      raise ValueError(f'logits, labels and weights must be 1-D and alike, got {shapes}')
    real_B, click_B = jnp.asarray(weights_B) > 0, jnp.asarray(labels_B) > 0
    logits_B = jnp.asarray(logits_B, jnp.float32)
    scale = HIST_BINS * HIST_POSITIONS / (2 * HIST_LIMIT)
    # NaN goes to bin 0 explicitly: cast to an integer it differs by platform and loses the row.
    fine_B = jnp.nan_to_num(jnp.floor((logits_B + HIST_LIMIT) * scale), nan=0.0)
    fine_B = jnp.clip(fine_B, 0, HIST_BINS * HIST_POSITIONS - 1).astype(jnp.int32)
    bin_B = fine_B // HIST_POSITIONS + HIST_BINS * click_B.astype(jnp.int32)
    # Both histograms in one array: negatives first, then positives.
    zeros = jnp.zeros(2 * HIST_BINS, jnp.int32)
    real_B = real_B.astype(jnp.int32)
    neg_K, pos_K = jnp.split(zeros.at[bin_B].add(real_B), 2)
    positions = zeros.at[bin_B].add(real_B * (fine_B % HIST_POSITIONS))
    neg_place_K, pos_place_K = jnp.split(positions, 2)
    # softplus of the log odds of the other label: no cancellation at large logits.
    loss_B = jax.nn.softplus(jnp.where(click_B, -logits_B, logits_B))
    loss = jnp.sum(jnp.where(real_B, loss_B, 0.0))
    prediction = jnp.sum(jnp.where(real_B, jax.nn.sigmoid(logits_B), 0.0))
    counts = pos_K, neg_K, pos_place_K, neg_place_K
    return cls(*counts, loss, jnp.zeros_like(loss), prediction, jnp.zeros_like(loss))

  def merge(self, other: 'StreamState') -> 'StreamState':
    """Returns the state of both sets of rows; runs inside jit and shard_map."""
    total = jax.tree.map(jnp.add, self, other)
    loss, loss_dropped = _two_sum(self.loss_sum, other.loss_sum)
    prediction, prediction_dropped = _two_sum(self.prediction_sum, other.prediction_sum)
    return total.replace(
      loss_sum=loss,
      loss_dropped=total.loss_dropped + loss_dropped,
      prediction_sum=prediction,
      prediction_dropped=total.prediction_dropped + prediction_dropped,
    )

  def compute(self) -> dict[str, float | int]:
    """Returns the metrics, on the host in float64; fetches the state, so call it rarely.

    Returns:
      Plain Python numbers: auc (for its error see the head of this file), logloss (nats per row),
      mean_prediction, calibration (predicted over observed clicks), rows, clicks, click_rate.
      nan where rows or a class are missing.
    """
    state = jax.device_get(self)
    pos_K, neg_K = state.pos_K.astype(np.int64), state.neg_K.astype(np.int64)
    clicks = int(pos_K.sum())
    rows = clicks + int(neg_K.sum())
    loss = _pair_value(state.loss_sum, state.loss_dropped)
    prediction = _pair_value(state.prediction_sum, state.prediction_dropped)
    # The histogram hides a NaN logit; the prediction sum does not.
    area = math.nan if math.isnan(prediction) else _auc(state, pos_K, neg_K)
    return {
      'auc': area,
      'logloss': loss / rows if rows else math.nan,
      'mean_prediction': prediction / rows if rows else math.nan,
      'calibration': prediction / clicks if clicks else math.nan,
      'rows': rows,
      'clicks': clicks,
      'click_rate': clicks / rows if rows else math.nan,
    }


def _auc(state: StreamState, pos_K: np.ndarray, neg_K: np.ndarray) -> float:
  """Returns the AUC of the histogram; mean positions decide the pairs within a bin."""
  bins_K = np.arange(HIST_BINS, dtype=np.float64)
  area = auc_of_groups(TieGroups(bins_K, pos_K, neg_K))
  # Per bin: P N (mean position of clicks - that of others) = N sum_clicks - P sum_others.
  within = neg_K * state.pos_place_K.astype(float) - pos_K * state.neg_place_K.astype(float)
  pairs = float(pos_K.sum()) * float(neg_K.sum())
  return area + float(within.sum()) / HIST_POSITIONS / pairs if pairs else area


def _two_sum(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns a + b rounded, and exactly what the rounding dropped (Knuth's TwoSum)."""
  total = a + b
  b_rounded = total - a
  return total, (a - (total - b_rounded)) + (b - b_rounded)


def _pair_value(total, dropped) -> float:
  # An infinite total leaves NaN in the dropped part (inf - inf); the total alone is right then.
  return float(total) + float(dropped) if np.isfinite(total) else float(total)
