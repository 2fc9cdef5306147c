# SPDX-License-Identifier: Apache-2.0
"""Metrics of the best possible model on data whose click probabilities are known."""

import numpy as np

from data_pipelines.datasets.synthetic.teacher import sigmoid


def soft_auc(score_N: np.ndarray, positive_N: np.ndarray) -> float | None:
  """Returns the AUC, ties counted half, for labels or for probabilities of them.

  Args:
    score_N: scores; only their order counts.
    positive_N: probability that a row is positive, or its label. With probabilities the result
      is the expected number of positive-negative pairs in the right order over the expected number
      of all pairs i != j.

  Returns:
    The AUC, or None if there is no positive-negative pair.
  """
  positive_N = positive_N.astype(np.float64)
  _, group_N = np.unique(score_N, return_inverse=True)
  positive_G = np.bincount(group_N, weights=positive_N)
  negative_G = np.bincount(group_N, weights=1 - positive_N)
  below_G = np.cumsum(negative_G) - negative_G
  # The grouped sums count a row and itself as a tie.
  itself = (positive_N * (1 - positive_N)).sum()
  right = (positive_G * (below_G + 0.5 * negative_G)).sum() - 0.5 * itself
  pairs = positive_G.sum() * negative_G.sum() - itself
  return float(right / pairs) if pairs > 0 else None


def grouped_auc(score_N: np.ndarray, label_N: np.ndarray, group_N: np.ndarray) -> float | None:
  """Returns the mean of the groups' AUCs, weighted by rows, over groups that have both labels.

  Args:
    score_N: scores; only their order within a group counts.
    label_N: 0 or 1.
    group_N: group of each row, integers from 0 on.

  Returns:
    The mean, or None if no group has both labels.
  """
  order = np.lexsort((score_N, group_N))
  score_N, group_N = score_N[order], group_N[order]
  positive_N = label_N[order].astype(np.float64)
  new_N = np.ones(len(order), bool)
  new_N[1:] = (group_N[1:] != group_N[:-1]) | (score_N[1:] != score_N[:-1])
  tie_N = np.cumsum(new_N) - 1  # rows of a group with one score
  group_R = group_N[new_N]
  positive_R = np.bincount(tie_N, weights=positive_N)
  negative_R = np.bincount(tie_N) - positive_R
  positive_G = np.bincount(group_R, weights=positive_R)
  negative_G = np.bincount(group_R, weights=negative_R)
  before_G = np.cumsum(negative_G) - negative_G
  below_R = np.cumsum(negative_R) - negative_R - before_G[group_R]
  right_G = np.bincount(group_R, weights=positive_R * (below_R + 0.5 * negative_R))
  both_G = (positive_G > 0) & (negative_G > 0)
  if not both_G.any():
    return None
  auc_G = right_G[both_G] / (positive_G[both_G] * negative_G[both_G])
  return float(np.average(auc_G, weights=(positive_G + negative_G)[both_G]))


def log_loss(logit_N: np.ndarray, positive_N: np.ndarray) -> float:
  """Returns the mean of -y log p - (1 - y) log(1 - p) with p = sigmoid(logit), in nats."""
  return float((np.logaddexp(0, logit_N) - positive_N * logit_N).mean())


def bayes_metrics(logit_N: np.ndarray, main_N: np.ndarray, label_N: np.ndarray) -> dict:
  """Returns the best reachable metrics of a split.

  Args:
    logit_N: the true logit.
    main_N: its order-1 part, up to a constant.
    label_N: the drawn labels.

  Returns:
    bayes_auc, bayes_logloss: of the true probabilities on the drawn labels.
    bayes_auc_expected, bayes_logloss_expected: their expectations over labels.
    linear_auc: of the order-1 part on the drawn labels: the best additive predictor of the logit,
      a reference for models without interactions (a fitted one may differ slightly).
  """
  probability_N = sigmoid(logit_N)
  return {
    'bayes_auc': soft_auc(logit_N, label_N),
    'bayes_logloss': log_loss(logit_N, label_N),
    'bayes_auc_expected': soft_auc(logit_N, probability_N),
    'bayes_logloss_expected': log_loss(logit_N, probability_N),
    'linear_auc': soft_auc(main_N, label_N),
  }
