# SPDX-License-Identifier: Apache-2.0
"""AUC inside users and among head, torso and tail items, against plain loops."""

import math

import numpy as np
import pytest

from deres_jax.metrics import exact, grouped


def pairs_auc(labels, scores):
  """Share of positive-negative pairs in the right order; None without a pair."""
  good = [
    (s > t) + 0.5 * (s == t)
    for y, s in zip(labels, scores, strict=True)
    for z, t in zip(labels, scores, strict=True)
    if y == 1 and z == 0
  ]
  return sum(good) / len(good) if good else None


def made(seed=0, n=400, users=25, dtype=np.float32):
  rng = np.random.default_rng(seed)
  users_N = rng.zipf(1.5, n).clip(max=users).astype(np.int32) * 80_000_000  # up to 2^31
  scores_N = np.round(rng.normal(size=n) * 2, 1).astype(dtype)  # ties, of both signs
  labels_N = (rng.random(n) < 1 / (1 + np.exp(-scores_N))).astype(np.float32)
  return labels_N, scores_N, users_N


@pytest.mark.parametrize('dtype', [np.float32, np.float64, np.float16])
def test_gauc_is_the_mean_over_users_weighted_by_rows(dtype):
  labels, scores, users = made(dtype=dtype)
  areas, weights = [], []
  for user in np.unique(users):
    mine = users == user
    area = pairs_auc(labels[mine], scores[mine])
    if area is not None:
      areas.append(area)
      weights.append(mine.sum())
  areas, weights = np.array(areas), np.array(weights)
  assert 5 < len(areas) < len(np.unique(users))  # some users have one label only
  mean = (areas * weights).sum() / weights.sum()
  error = math.sqrt((weights**2 * (areas - mean) ** 2).sum()) / weights.sum()
  found = grouped.gauc(labels, scores, users)
  assert found['gauc'] == pytest.approx(mean, abs=1e-12)
  assert found['gauc_se'] == pytest.approx(error, abs=1e-12)
  assert (found['gauc_users'], found['gauc_rows']) == (len(areas), weights.sum())


def test_gauc_ignores_row_order_and_shifts_of_a_user():
  labels, scores, users = made(1, dtype=np.float64)
  order = np.random.default_rng(2).permutation(len(labels))
  assert grouped.gauc(labels[order], scores[order], users[order]) == grouped.gauc(
    labels, scores, users
  )
  shifted = scores + users // 80_000_000
  assert grouped.gauc(labels, shifted, users)['gauc'] == grouped.gauc(labels, scores, users)['gauc']
  assert exact.auc(labels, shifted) != exact.auc(labels, scores)


def test_gauc_of_one_user_is_the_auc():
  labels, scores, _ = made(3)
  found = grouped.gauc(labels, scores, np.zeros(len(labels), np.int64))
  assert found['gauc'] == pytest.approx(exact.auc(labels, scores), abs=1e-12)
  assert found['gauc_se'] == pytest.approx(0, abs=1e-12)


def test_users_of_one_label_have_no_gauc():
  found = grouped.gauc([1, 1, 0], np.array([1.0, 2, 3]), [4, 4, 5])
  assert math.isnan(found['gauc']) and math.isnan(found['gauc_se'])
  assert found['gauc_users'] == found['gauc_rows'] == 0


@pytest.mark.parametrize('users', [[0, 1], [0.0, 1, 2], [-1, 0, 1], [0, 1, 2**31]])
def test_invalid_user_ids_raise(users):
  with pytest.raises(ValueError, match='users'):
    grouped.gauc([1, 0, 1], np.array([1.0, 2, 3]), users)


def test_item_aucs_split_rows_by_id():
  labels, scores, _ = made(4)
  ids = np.random.default_rng(5).integers(0, 30, len(labels))
  found = grouped.item_aucs(labels, scores, ids, 2, 7, 20)
  parts = {
    'head': [i in range(2, 7) for i in ids],
    'torso': [i in range(7, 20) for i in ids],
    'tail': [i in (0, 1) or i >= 20 for i in ids],
  }
  for name, mine in parts.items():
    mine = np.array(mine)
    assert found[f'auc_{name}'] == pytest.approx(pairs_auc(labels[mine], scores[mine]), abs=1e-12)
    assert found[f'auc_{name}_se'] == exact.delong_se(labels[mine], scores[mine])
    assert found[f'rows_{name}'] == mine.sum() > 0


def test_item_aucs_of_an_empty_part_are_nan():
  labels, scores, _ = made(6)
  found = grouped.item_aucs(labels, scores, np.full(len(labels), 3), 2, 7, 20)
  assert found['auc_head'] == exact.auc(labels, scores)
  assert math.isnan(found['auc_tail']) and found['rows_tail'] == 0
