# SPDX-License-Identifier: Apache-2.0
"""AUC inside groups of rows: of each user, and of head, torso and tail items. Exact, on the host.

Shape letters: N rows, K runs of rows of one user with equal score, U users.
"""

import math

import numpy as np

from deres_jax.metrics import exact


def gauc(labels_N, scores_N, users_N) -> dict[str, float | int]:
  """Mean of the users' AUCs, weighted by their rows (Zhu et al. 2017; Zhou et al. 2018, DIN eq. 7).

  A user whose rows are all of one label has no AUC and is left out. A tie counts half, as in
  `metrics.auc`.

  Args:
    labels_N: 0 or 1.
    scores_N: any float dtype.
    users_N: whole numbers from 0 to 2^31 - 1.

  Returns:
    gauc; gauc_se, its standard error over the sampling of users (the weighted mean's); gauc_users
    and gauc_rows, how many entered. nan where no user has both labels.

  Raises:
    ValueError: as `metrics.auc`, or users that are not whole numbers of the same rows.
  """
  labels_N, scores_N = exact.checked(labels_N, scores_N)
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
  """AUC and rows of each user who has both labels. float64 [U], float64 [U]."""
  if scores_N.dtype == np.float32:
    rank_N = exact.ordered_bits(scores_N)
  else:
    rank_N = np.unique(scores_N, return_inverse=True)[1]
  # User, score and label in one number: a sort without a gather.
  key_N = users_N.astype(np.uint64) << np.uint64(33)
  key_N |= rank_N.astype(np.uint64) << np.uint64(1)
  key_N |= labels_N
  key_N.sort()
  positive_N = (key_N & np.uint64(1)).astype(np.int64)
  end_K = exact.run_ends(key_N >> np.uint64(1))
  pos_K = np.diff(np.cumsum(positive_N)[end_K], prepend=0)
  neg_K = np.diff(end_K + 1, prepend=0) - pos_K
  end_U = exact.run_ends(key_N[end_K] >> np.uint64(33))
  start_U = np.concatenate([[0], end_U[:-1] + 1])
  pos_U, neg_U = np.add.reduceat(pos_K, start_U), np.add.reduceat(neg_K, start_U)
  runs_U = np.diff(end_U, prepend=-1)
  below_K = np.cumsum(neg_K) - neg_K
  below_K -= np.repeat(below_K[start_U], runs_U)  # negatives of the same user with less
  twice_U = np.add.reduceat(pos_K * (2 * below_K + neg_K), start_U)
  both_U = (pos_U > 0) & (neg_U > 0)
  area_U = twice_U[both_U] / (2.0 * pos_U[both_U] * neg_U[both_U])
  return area_U, (pos_U + neg_U)[both_U].astype(np.float64)


def item_aucs(
  labels_N, scores_N, ids_N: np.ndarray, first_known: int, head_below: int, torso_below: int
) -> dict[str, float | int]:
  """AUC among the rows of head, of torso and of tail items.

  Args:
    ids_N: id of each row's item. Ids are sorted by frequency.
    first_known: smaller ids are unknown items, which count as tail.
    head_below: first id of the torso.
    torso_below: first id of the tail.

  Returns:
    auc_head, auc_head_se (DeLong), rows_head, and the same of torso and tail. nan where the rows
    of a part are none or have one label only.
  """
  labels_N, scores_N = exact.checked(labels_N, scores_N)
  known_N = ids_N >= first_known
  head_N = known_N & (ids_N < head_below)
  torso_N = known_N & ~head_N & (ids_N < torso_below)
  found = {}
  for name, part_N in (('head', head_N), ('torso', torso_N), ('tail', ~head_N & ~torso_N)):
    rows = int(part_N.sum())
    some = (labels_N[part_N], scores_N[part_N]) if rows else None
    found[f'auc_{name}'] = exact.auc(*some) if some else math.nan
    found[f'auc_{name}_se'] = exact.delong_se(*some) if some else math.nan
    found[f'rows_{name}'] = rows
  return found
