# SPDX-License-Identifier: Apache-2.0
"""Exact and streaming metrics against scikit-learn, loops from the papers, and each other.

Shape letters: N rows, B rows of a batch, K models, D devices.
"""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from deres_jax.metrics import exact as exact_lib
from deres_jax.metrics.streaming import HIST_BINS, HIST_LIMIT, StreamState

P = jax.sharding.PartitionSpec


def simulate(rows: int, offset: float, scale: float = 1.0, seed: int = 0):
  """Labels drawn from a calibrated model: float32 logits around `offset`."""
  rng = np.random.default_rng(seed)
  logits_N = (rng.normal(size=rows) * scale + offset).astype(np.float32)
  labels_N = (rng.random(rows) < 1 / (1 + np.exp(-logits_N))).astype(np.uint8)
  return labels_N, logits_N


def brute_delong(labels_N, scores_KN):
  """DeLong et al. 1988 by its definition, over all pairs: AUCs and covariance."""
  v10_KP, v01_KQ = [], []
  for scores_N in np.asarray(scores_KN, np.float64):
    pos_P, neg_Q = scores_N[labels_N == 1], scores_N[labels_N == 0]
    wins_PQ = [[1.0 if p > q else 0.5 if p == q else 0.0 for q in neg_Q] for p in pos_P]
    v10_KP.append([sum(row) / len(neg_Q) for row in wins_PQ])
    v01_KQ.append([sum(column) / len(pos_P) for column in zip(*wins_PQ, strict=True)])

  def covariance(values_KM):
    centred = [[v - sum(row) / len(row) for v in row] for row in values_KM]
    size = len(values_KM[0])
    return np.array(
      [
        [sum(x * y for x, y in zip(a, b, strict=True)) / (size - 1) for b in centred]
        for a in centred
      ]
    )

  cov_KK = covariance(v10_KP) / len(v10_KP[0]) + covariance(v01_KQ) / len(v01_KQ[0])
  return np.mean(v10_KP, axis=1), cov_KK


# Few distinct values, so that ties are common; both signs, both zeros, tiny and huge.
TIED_SCORES = st.sampled_from([-1e30, -2.5, -1.0, -1e-40, -0.0, 0.0, 1e-40, 0.3, 1.0, 7.0])
SCORES = st.one_of(TIED_SCORES, st.floats(width=32, allow_nan=False, allow_infinity=False))
DTYPES = st.sampled_from([np.float32, np.float64])


@st.composite
def labelled_scores(draw, models=None):
  rows = draw(st.integers(4, 40))
  labels_N = draw(st.lists(st.integers(0, 1), min_size=rows, max_size=rows))
  labels_N[:4] = [0, 1, 0, 1]
  shape = rows if models is None else rows * models
  scores = np.array(draw(st.lists(SCORES, min_size=shape, max_size=shape)), draw(DTYPES))
  return np.array(labels_N), scores if models is None else scores.reshape(models, rows)


@settings(max_examples=200, deadline=None)
@given(labelled_scores())
def test_auc_equals_sklearn(case):
  labels_N, scores_N = case
  expected = sklearn.metrics.roc_auc_score(labels_N, scores_N)
  assert exact_lib.auc(labels_N, scores_N) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize('offset', [0.0, -2.0, -5.0])
def test_auc_of_bfloat16_logits_equals_sklearn(offset):
  labels_N, logits_N = simulate(20_000, offset)
  coarse_N = np.asarray(jnp.asarray(logits_N, jnp.bfloat16))
  assert len(np.unique(coarse_N.astype(np.float32))) < 3_000  # there are ties to handle
  expected = sklearn.metrics.roc_auc_score(labels_N, coarse_N.astype(np.float32))
  assert exact_lib.auc(labels_N, coarse_N) == pytest.approx(expected, abs=1e-12)
  assert exact_lib.auc(labels_N, logits_N) != exact_lib.auc(labels_N, coarse_N)


@pytest.mark.parametrize('descending', [False, True])
def test_auc_does_not_depend_on_row_order_under_ties(descending):
  # An argsort-and-trapezoid AUC shifts by 4e-4 here: stable sorts keep the label order in ties.
  labels_N, logits_N = simulate(50_000, -1.0)
  coarse_N = np.round(logits_N * 4) / 4
  order_N = np.argsort(labels_N, kind='stable')[:: -1 if descending else 1]
  for metric in (exact_lib.auc, exact_lib.delong_se, exact_lib.expected_calibration_error):
    whole = metric(labels_N, coarse_N)
    assert metric(labels_N[order_N], coarse_N[order_N]) == pytest.approx(whole, rel=1e-12)


@settings(max_examples=100, deadline=None)
@given(labelled_scores())
def test_auc_depends_on_the_order_of_scores_only(case):
  labels_N, scores_N = case
  _, rank_N = np.unique(scores_N, return_inverse=True)  # -0.0 and 0.0 share a rank
  whole = exact_lib.auc(labels_N, scores_N)
  assert exact_lib.auc(labels_N, rank_N.astype(np.float32)) == whole
  assert exact_lib.auc(labels_N, np.exp(rank_N / 10.0) - 3.0) == whole
  assert exact_lib.auc(labels_N, -rank_N.astype(np.float32)) == pytest.approx(1 - whole)
  assert exact_lib.auc(1 - labels_N, rank_N.astype(np.float32)) == pytest.approx(1 - whole)


def test_auc_known_values():
  labels_N = np.array([0, 1, 0, 1, 1])
  assert exact_lib.auc(labels_N, np.array([-3, 2, -1, 5, 0.5], np.float32)) == 1.0
  assert exact_lib.auc(labels_N, np.full(5, -0.7, np.float32)) == 0.5
  assert exact_lib.auc(np.array([1, 0]), np.array([-0.0, 0.0], np.float32)) == 0.5
  assert exact_lib.auc(np.array([1, 0]), np.array([-0.0, 0.0], np.float64)) == 0.5
  assert exact_lib.auc(np.array([1, 0]), np.array([np.inf, -np.inf], np.float32)) == 1.0
  assert math.isnan(exact_lib.auc(np.ones(3), np.arange(3, dtype=np.float32)))
  assert math.isnan(exact_lib.auc(np.zeros(3), np.arange(3, dtype=np.float32)))


@pytest.mark.parametrize('dtype', [np.float32, np.float64, np.float16])
@pytest.mark.parametrize(
  'metric',
  [
    exact_lib.auc,
    exact_lib.delong_se,
    exact_lib.log_loss,
    exact_lib.normalized_entropy,
    exact_lib.calibration,
    exact_lib.expected_calibration_error,
    exact_lib.evaluate_logits,
  ],
)
def test_bad_inputs_raise_with_the_count(metric, dtype):
  scores_N = np.array([0.1, np.nan, 0.2, np.nan], dtype)
  with pytest.raises(ValueError, match='2 of 4 scores are NaN'):
    metric(np.array([0, 1, 0, 1]), scores_N)
  with pytest.raises(ValueError, match='1 of 4 are neither'):
    metric(np.array([0, 1, 0, 2]), np.zeros(4, dtype))
  with pytest.raises(ValueError, match=r'\(3,\) and \(4,\)'):
    metric(np.zeros(3), np.zeros(4, dtype))
  with pytest.raises(ValueError, match=r'\(4, 1\)'):
    metric(np.zeros(4), np.zeros((4, 1), dtype))
  with pytest.raises(ValueError, match='non-empty'):
    metric(np.zeros(0), np.zeros(0, dtype))
  with pytest.raises(ValueError, match='int64'):
    metric(np.zeros(4), np.zeros(4, np.int64))


@settings(max_examples=60, deadline=None)
@given(labelled_scores(models=3))
def test_delong_equals_its_definition(case):
  labels_N, scores_KN = case
  expected_K, expected_KK = brute_delong(labels_N, scores_KN)
  aucs_K, cov_KK = exact_lib.delong_covariance(labels_N, scores_KN)
  np.testing.assert_allclose(aucs_K, expected_K, atol=1e-12)
  np.testing.assert_allclose(cov_KK, expected_KK, atol=1e-12)
  for k, scores_N in enumerate(scores_KN):
    assert exact_lib.auc(labels_N, scores_N) == pytest.approx(aucs_K[k], abs=1e-12)
    se = exact_lib.delong_se(labels_N, scores_N)
    assert se**2 == pytest.approx(expected_KK[k, k], abs=1e-12)


def test_delong_agrees_with_the_bootstrap():
  labels_N, logits_N = simulate(3_000, -1.5)
  rng = np.random.default_rng(1)
  other_N = (logits_N + rng.normal(size=3_000)).astype(np.float32)
  draws = []
  for _ in range(400):
    rows_N = rng.integers(0, 3_000, 3_000)
    draws.append([exact_lib.auc(labels_N[rows_N], s[rows_N]) for s in (logits_N, other_N)])
  _, cov_KK = exact_lib.delong_covariance(labels_N, np.stack([logits_N, other_N]))
  # 400 draws estimate a variance within 7 %; the tolerance is 2 sigma.
  np.testing.assert_allclose(np.cov(np.transpose(draws)), cov_KK, rtol=0.2)


def test_delong_needs_two_rows_of_each_class():
  labels_N, scores_N = np.array([0, 0, 1]), np.array([0.1, 0.2, 0.3], np.float32)
  assert math.isnan(exact_lib.delong_se(labels_N, scores_N))
  with pytest.raises(ValueError, match='1 positives and 2 negatives'):
    exact_lib.delong_covariance(labels_N, scores_N[None])
  with pytest.raises(ValueError, match=r'\[models, rows\]'):
    exact_lib.delong_covariance(labels_N, scores_N)
  with pytest.raises(ValueError, match='0 models'):
    exact_lib.delong_covariance(labels_N, np.zeros((0, 3)))


@pytest.mark.parametrize('offset', [0.0, -4.0])
def test_log_loss_equals_sklearn(offset):
  labels_N, logits_N = simulate(5_000, offset)
  probabilities_N = 1 / (1 + np.exp(-logits_N.astype(np.float64)))
  expected = sklearn.metrics.log_loss(labels_N, probabilities_N)
  assert exact_lib.log_loss(labels_N, logits_N) == pytest.approx(expected, rel=1e-12)


def test_log_loss_survives_extreme_logits():
  logits_N = np.array([-200.0, 200.0, -200.0, 40.0], np.float32)
  expected = (0 + 0 + 200 + math.exp(-40)) / 4
  assert exact_lib.log_loss(np.array([0, 1, 1, 1]), logits_N) == pytest.approx(expected, rel=1e-12)
  tiny = exact_lib.log_loss(np.array([1]), np.array([40.0]))
  assert tiny == pytest.approx(math.exp(-40), rel=1e-9, abs=0)
  assert exact_lib.log_loss(np.array([1, 0]), np.array([np.inf, -np.inf])) == 0.0
  assert exact_lib.log_loss(np.array([0]), np.array([np.inf])) == math.inf


def test_normalized_entropy_of_the_base_rate_is_one():
  labels_N = np.array([1, 0, 0, 0] * 50)
  base_N = np.full(200, math.log(1 / 3))
  assert exact_lib.normalized_entropy(labels_N, base_N) == pytest.approx(1.0, rel=1e-12)
  assert exact_lib.normalized_entropy(labels_N, base_N + 1) > 1.0
  assert math.isnan(exact_lib.normalized_entropy(np.zeros(3), np.zeros(3)))
  assert math.isnan(exact_lib.normalized_entropy(np.ones(3), np.zeros(3)))


def test_calibration_is_predicted_over_observed():
  labels_N = np.array([1, 0, 0, 0, 0])
  logits_N = np.array([math.log(0.4 / 0.6)] * 5)
  assert exact_lib.calibration(labels_N, logits_N) == pytest.approx(2.0, rel=1e-12)
  assert exact_lib.calibration(np.ones(2), np.array([1e4, 1e4])) == 1.0
  assert math.isnan(exact_lib.calibration(np.zeros(3), np.zeros(3)))


def test_ece_against_a_loop_over_equal_bins():
  labels_N, logits_N = simulate(2_000, -1.0)
  order_N = np.argsort(logits_N)
  expected = 0.0
  for rows in np.split(order_N, 20):  # 100 distinct scores each: no ties to share
    predicted = np.mean(1 / (1 + np.exp(-logits_N[rows].astype(np.float64))))
    expected += abs(predicted - labels_N[rows].mean()) / 20
  ece = exact_lib.expected_calibration_error(labels_N, logits_N)
  assert ece == pytest.approx(expected, rel=1e-9)


def test_ece_puts_ties_into_the_bin_of_their_midrank():
  # Scores a a a a b b c c in two bins of four rows, probabilities 1/2, 3/4, 9/10. The midrank
  # of a is 2 and of b is 5, so the bins are {a} and {b, c}, in whatever order the rows come.
  logits_N = np.repeat(np.log([1.0, 3.0, 9.0]), [4, 2, 2])
  labels_N = np.array([1, 0, 0, 0, 1, 0, 1, 1])
  expected = (abs(4 * 0.5 - 1) + abs(2 * 0.75 + 2 * 0.9 - 3)) / 8
  ece = exact_lib.expected_calibration_error(labels_N, logits_N, bins=2)
  assert ece == pytest.approx(expected, rel=1e-12)
  # Scores a a a a b: the midrank of a is 2 of 5 rows; by its last rank it would join b.
  logits_N = np.repeat(np.log([1.0, 3.0]), [4, 1])
  expected = (abs(4 * 0.5 - 4) + abs(0.75 - 0)) / 5
  ece = exact_lib.expected_calibration_error(np.array([1, 1, 1, 1, 0]), logits_N, bins=2)
  assert ece == pytest.approx(expected, rel=1e-12)


def test_ece_finds_errors_that_cancel_in_calibration():
  labels_N, logits_N = simulate(100_000, 0.0, scale=2.0)
  assert exact_lib.expected_calibration_error(labels_N, logits_N) < 0.01
  flat_N = logits_N / 4  # right on average, wrong everywhere
  assert exact_lib.calibration(labels_N, flat_N) == pytest.approx(1.0, abs=0.02)
  assert exact_lib.expected_calibration_error(labels_N, flat_N) > 0.1
  constant_N = np.zeros(len(labels_N))
  observed = labels_N.mean()
  constant = exact_lib.expected_calibration_error(labels_N, constant_N)
  assert constant == pytest.approx(abs(0.5 - observed))
  with pytest.raises(ValueError, match='bins'):
    exact_lib.expected_calibration_error(labels_N, logits_N, bins=0)


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_evaluate_logits_equals_the_single_metrics_and_is_json(dtype):
  labels_N, logits_N = simulate(4_000, -2.0)
  logits_N = logits_N.astype(dtype)
  result = exact_lib.evaluate_logits(jnp.asarray(labels_N), logits_N)
  assert json.loads(json.dumps(result)) == result
  assert result == {
    'auc': exact_lib.auc(labels_N, logits_N),
    'auc_se': exact_lib.delong_se(labels_N, logits_N),
    'logloss': exact_lib.log_loss(labels_N, logits_N),
    'ne': exact_lib.normalized_entropy(labels_N, logits_N),
    'calibration': exact_lib.calibration(labels_N, logits_N),
    'ece': exact_lib.expected_calibration_error(labels_N, logits_N),
    'rows': 4_000,
    'clicks': int(labels_N.sum()),
    'click_rate': labels_N.mean(),
  }
  assert {type(value) for value in result.values()} == {float, int}


def test_rela_impr():
  assert exact_lib.rela_impr(0.76, 0.70) == pytest.approx(0.3)
  assert exact_lib.rela_impr(0.70, 0.70) == 0.0
  with pytest.raises(ValueError, match=r'0\.5'):
    exact_lib.rela_impr(0.6, 0.5)


def whole_state(labels_N, logits_N) -> StreamState:
  return StreamState.from_batch(logits_N, labels_N, np.ones(len(labels_N)))


# Click rates of about 50 %, 5 %, 0.5 % and 0.05 %, from wide to narrow logits.
@pytest.mark.parametrize('scale', [2.0, 1.0, 0.3, 0.05])
@pytest.mark.parametrize('offset', [0.0, -3.2, -5.7, -7.6])
def test_stream_auc_is_within_1e_7_of_exact(offset, scale):
  labels_N, logits_N = simulate(2_000_000, offset, scale)
  streamed = whole_state(labels_N, logits_N).compute()
  exact = exact_lib.evaluate_logits(labels_N, logits_N)
  bins = len(np.unique(np.floor(logits_N * (HIST_BINS / 2 / HIST_LIMIT))))
  clicks, others = exact['clicks'], exact['rows'] - exact['clicks']
  # Random within bins: 1e-7, except for a thousand clicks within a twentieth of a logit.
  limit = max(1e-7, 4 / math.sqrt(12 * bins * clicks * others))
  assert limit < 1e-6
  assert streamed['auc'] == pytest.approx(exact['auc'], abs=limit)
  assert streamed['logloss'] == pytest.approx(exact['logloss'], rel=1e-6)
  assert streamed['calibration'] == pytest.approx(exact['calibration'], rel=1e-6)
  assert streamed['mean_prediction'] == pytest.approx(
    exact['calibration'] * exact['click_rate'], rel=1e-6
  )
  for key in ('rows', 'clicks', 'click_rate'):
    assert streamed[key] == exact[key]
  json.dumps(streamed)


def test_merged_batches_equal_one_batch():
  labels_N, logits_N = simulate(10_000, -2.0)
  whole = whole_state(labels_N, logits_N).compute()
  update = jax.jit(lambda state, *batch: state.merge(StreamState.from_batch(*batch)))
  state = StreamState.zeros()
  for rows in np.array_split(np.arange(10_000), 7):
    # Padded to one shape with junk, which weights must mask.
    pad = 2_000 - len(rows)
    logits_B = np.append(logits_N[rows], np.full(pad, np.nan, np.float32))
    labels_B = np.append(labels_N[rows], np.ones(pad, np.uint8))
    weights_B = np.append(np.ones(len(rows), np.float32), np.zeros(pad, np.float32))
    state = update(state, logits_B, labels_B, weights_B)
  merged = state.compute()
  for key in ('auc', 'rows', 'clicks', 'click_rate'):
    assert merged[key] == whole[key]
  for key in ('logloss', 'mean_prediction', 'calibration'):
    assert merged[key] == pytest.approx(whole[key], rel=1e-6)
  assert update._cache_size() == 1


def test_stream_sums_do_not_drift():
  # A plain float32 sum of these 2,000 batch losses is off by more than 1e-6.
  labels_B, logits_B = simulate(512, -1.0)
  batch = whole_state(labels_B, logits_B)

  @jax.jit
  def repeat(batch):
    merge = lambda _, state: state.merge(batch)  # noqa: E731
    return jax.lax.fori_loop(0, 2_000, merge, StreamState.zeros())

  assert repeat(batch).compute()['rows'] == 2_000 * 512
  assert repeat(batch).compute()['logloss'] == pytest.approx(batch.compute()['logloss'], rel=1e-9)
  bare = np.float32(0)
  for _ in range(2_000):
    bare += np.float32(batch.loss_sum)
  assert abs(bare / (2_000 * float(batch.loss_sum)) - 1) > 1e-6


def test_stream_counts_are_exact_above_2_to_the_24():
  big = StreamState.zeros()
  big = big.replace(neg_K=big.neg_K.at[0].set(2**24), pos_K=big.pos_K.at[5].set(2**24))
  one = StreamState.from_batch(jnp.array([-15.0]), jnp.array([0]), jnp.array([1]))
  result = big.merge(one).merge(one).compute()
  assert result['rows'] == 2**25 + 2
  assert result['clicks'] == 2**24


def test_stream_state_can_be_donated():
  labels_B, logits_B = simulate(64, -1.0)
  update = jax.jit(StreamState.merge, donate_argnums=0)
  state = update(StreamState.zeros(), whole_state(labels_B, logits_B))
  state = update(state, whole_state(labels_B, logits_B))
  assert state.compute()['rows'] == 128


def test_stream_psum_over_devices_equals_one_batch():
  assert len(jax.devices()) >= 4, 'run the tests with 4 or more (simulated) devices'
  mesh = jax.make_mesh((4,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
  labels_N, logits_N = simulate(4_096, -2.0)
  # Unequal shares of real rows: averages over devices would be wrong.
  weights_N = (np.arange(4_096) % 1_024 < 256 * (1 + np.arange(4_096) // 1_024)).astype(np.int32)

  @jax.jit
  @jax.shard_map(mesh=mesh, in_specs=P('data'), out_specs=P())
  def update(logits_B, labels_B, weights_B):
    state = StreamState.zeros().merge(StreamState.from_batch(logits_B, labels_B, weights_B))
    return jax.lax.psum(state, 'data')

  result = update(logits_N, labels_N, weights_N).compute()
  real_N = weights_N == 1
  whole = whole_state(labels_N[real_N], logits_N[real_N]).compute()
  assert result['rows'] == 256 + 512 + 768 + 1024
  assert result == pytest.approx(whole, rel=1e-6)
  assert result['auc'] == whole['auc']


def test_stream_corner_cases():
  empty = StreamState.zeros().compute()
  assert empty['rows'] == empty['clicks'] == 0
  assert all(math.isnan(empty[key]) for key in ('auc', 'logloss', 'click_rate', 'calibration'))
  ones = np.ones(2)
  beyond = StreamState.from_batch(np.array([-99.0, 99.0]), np.array([0, 1]), ones).compute()
  assert beyond['auc'] == 1.0
  assert beyond['logloss'] == pytest.approx(0.0, abs=1e-30)
  spoilt = StreamState.from_batch(np.array([np.nan, 1.0]), np.array([0, 1]), ones)
  assert all(math.isnan(spoilt.compute()[key]) for key in ('auc', 'logloss', 'mean_prediction'))
  assert spoilt.compute()['rows'] == 2
  padded = StreamState.from_batch(np.array([np.nan, 1.0]), np.array([0, 1]), np.array([0, 1]))
  assert padded.compute()['rows'] == 1
  assert padded.compute()['logloss'] == pytest.approx(math.log1p(math.exp(-1.0)), rel=1e-6)
  wrong = StreamState.from_batch(np.array([-np.inf, 1.0]), np.array([1, 1]), ones)
  assert StreamState.zeros().merge(wrong).compute()['logloss'] == math.inf
  with pytest.raises(ValueError, match=r'\(2, 1\)'):
    StreamState.from_batch(np.zeros((2, 1)), np.zeros(2), ones)


def test_stream_accepts_bfloat16_logits_and_bool_labels():
  labels_N, logits_N = simulate(1_000, -1.0)
  logits_N = jnp.asarray(logits_N, jnp.bfloat16)
  state = StreamState.from_batch(logits_N, labels_N == 1, np.ones(1_000, bool))
  assert state.loss_sum.dtype == jnp.float32
  exact = exact_lib.log_loss(labels_N, np.asarray(logits_N))
  assert state.compute()['logloss'] == pytest.approx(exact, rel=1e-6)
