# SPDX-License-Identifier: Apache-2.0
"""AUC within groups of rows: of users, and of head, torso and tail items. Exact, on the host.

Shape letters: N rows, K runs of rows of one user with equal score, U users.
"""

import math

import numpy as np

from deres_jax.metrics import exact


def gauc(labels_N, scores_N, users_N) -> dict[str, float | int]:
  """Returns the mean AUC of users, weighted by their rows (Zhu et al. 2017; Zhou et al. 2018, DIN).

    GAUC = sum_u rows_u AUC_u / sum_u rows_u

  over the users u with both labels. A tie counts half, as in `exact.auc`.

  Args:
    labels_N: 0 or 1.
    scores_N: any float dtype.
    users_N: whole numbers from 0 to 2^31 - 1.

  Returns:
    gauc; gauc_se, the weighted mean's standard error over the sampling of users; gauc_users and
    gauc_rows, the numbers of users and rows with an AUC. nan where no user has both labels.

  Raises:
    ValueError: as `exact.auc`, or users that are not one whole number a row.

  >>> gauc([0, 1, 0, 1, 0], [0.1, 0.9, 0.8, 0.3, 0.5], [7, 7, 8, 8, 8])['gauc']  # 1 and 0
  0.4
  """
  labels_N, scores_N = exact.validated(labels_N, scores_N)
  users_N = np.asarray(users_N)
  if users_N.shape != labels_N.shape or not np.issubdtype(users_N.dtype, np.integer):
    raise ValueError(
      f'users must be {labels_N.shape[0]} whole numbers, got {users_N.dtype}{list(users_N.shape)}'
    )
  if users_N.min() < 0 or users_N.max() >= 2**31:
    raise ValueError(f'users run from {users_N.min()} to {users_N.max()}, expected 0 to 2^31 - 1')
  area_U, rows_U = _user_aucs(labels_N, scores_N, users_N)
  rows = int(rows_U.sum())
  mean = float((area_U * rows_U).sum() / rows) if rows else math.nan
  error = math.sqrt(float((rows_U**2 * (area_U - mean) ** 2).sum())) / rows if rows else math.nan
  return {'gauc': mean, 'gauc_se': error, 'gauc_users': len(area_U), 'gauc_rows': rows}


def _user_aucs(labels_N, scores_N, users_N) -> tuple[np.ndarray, np.ndarray]:
  """Returns AUC and rows of each user with both labels, as float64."""
  # User, score and label packed into one number: a sort without a gather.
  key_N = users_N.astype(np.uint64) << np.uint64(33)
  key_N |= exact.ordered_bits(scores_N).astype(np.uint64) << np.uint64(1)
  key_N |= labels_N
  key_N.sort()
  positive_N = key_N & np.uint64(1)
  end_K = exact.run_ends(key_N >> np.uint64(1))
  pos_K, neg_K = exact.class_counts(positive_N, end_K)
  end_U = exact.run_ends(key_N[end_K] >> np.uint64(33))
  start_U = np.concatenate([[0], end_U[:-1] + 1])
  pos_U, neg_U = np.add.reduceat(pos_K, start_U), np.add.reduceat(neg_K, start_U)
  runs_U = np.diff(end_U, prepend=-1)
  below_K = np.cumsum(neg_K) - neg_K
  below_K -= np.repeat(below_K[start_U], runs_U)  # negatives of the same user with a lower score
  twice_U = np.add.reduceat(pos_K * (2 * below_K + neg_K), start_U)
  both_U = (pos_U > 0) & (neg_U > 0)
  area_U = twice_U[both_U] / (2.0 * pos_U[both_U] * neg_U[both_U])
  return area_U, (pos_U + neg_U)[both_U].astype(np.float64)


def item_aucs(
  labels_N, scores_N, ids_N: np.ndarray, first_known: int, head_below: int, torso_below: int
) -> dict[str, float | int]:
  """Returns the AUC among the rows of head, of torso and of tail items.

  Args:
    ids_N: id of each row's item, the most frequent items first.
    first_known: smallest id of a known item; unknown ones count as tail.
    head_below: first id of the torso.
    torso_below: first id of the tail.

  Returns:
    auc_head, auc_head_se (DeLong), rows_head, and the same for torso and tail. nan where a part
    has no rows or one label only.

  >>> scores_N, ids_N = [0.1, 0.9, 0.8, 0.2, 0.4, 0.4], np.array([2, 2, 5, 5, 9, 9])
  >>> aucs = item_aucs([0, 1, 0, 1, 0, 1], scores_N, ids_N, 2, head_below=4, torso_below=8)
  >>> aucs['auc_head'], aucs['auc_torso'], aucs['auc_tail']
  (1.0, 0.0, 0.5)
  """
  labels_N, scores_N = exact.validated(labels_N, scores_N)
  known_N = ids_N >= first_known
  head_N = known_N & (ids_N < head_below)
  torso_N = known_N & ~head_N & (ids_N < torso_below)
  figures = {}
  for name, part_N in (('head', head_N), ('torso', torso_N), ('tail', ~head_N & ~torso_N)):
    rows = int(part_N.sum())
    part = (labels_N[part_N], scores_N[part_N]) if rows else None
    figures[f'auc_{name}'] = exact.auc(*part) if part else math.nan
    figures[f'auc_{name}_se'] = exact.delong_se(*part) if part else math.nan
    figures[f'rows_{name}'] = rows
  return figures
