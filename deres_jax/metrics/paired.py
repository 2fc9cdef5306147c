# SPDX-License-Identifier: Apache-2.0
"""Paired comparison of two models' AUCs on the same splits and seeds: intervals and tests.

Pairing cancels what a split or a seed does to both models. DeLong's test compares one trained pair
over the rows of a test split; the other tests compare over runs.

Shape letters: N rows, P pairs.
"""

import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import special

from deres_jax.metrics import exact

_MAX_EXACT_PAIRS = 20  # up to which all 2^P sign flips are counted
_DRAWS = 2**18


def t_interval(gaps: Sequence[float], level: float = 0.95) -> tuple[float | None, float | None]:
  """Returns the mean and half the width of its t interval: t_{n-1} sd / sqrt(n).

  None for what too few values do not give: the half width of one, both of none.

  >>> mean, half = t_interval([0.001, 0.002, 0.003])
  >>> round(mean, 4), round(half, 4)
  (0.002, 0.0025)
  """
  n = len(gaps)
  if n < 2:
    return (statistics.fmean(gaps) if n else None), None
  return statistics.fmean(gaps), t_half_width(n, statistics.stdev(gaps), level)


def t_half_width(n: int, sd: float, level: float = 0.95) -> float:
  """Returns half the width of the t interval of a mean: t_{n-1} sd / sqrt(n).

  >>> round(t_half_width(5, sd=4e-4), 6)
  0.000497
  """
  return float(special.stdtrit(n - 1, (1 + level) / 2)) * sd / math.sqrt(n)


def t_p(gaps: Sequence[float]) -> float | None:
  """Returns the two-sided p of the paired t test: t = mean sqrt(n) / sd; None under two pairs.

  >>> round(t_p([0.001, 0.002, 0.003]), 3)
  0.074
  """
  if len(gaps) < 2:
    return None
  mean, sd = statistics.fmean(gaps), statistics.stdev(gaps)
  if sd == 0:
    return float(mean == 0)
  return 2 * float(special.stdtr(len(gaps) - 1, -abs(mean) / sd * math.sqrt(len(gaps))))


def sign_flip_p(gaps: Sequence[float]) -> float | None:
  """Returns the two-sided p of Fisher's randomisation test: differences are symmetric about 0.

  p is the share of the 2^P sign flips whose sum is at least as far from 0 as the observed one,
  so that five pairs cannot give less than 1/16. Exact up to 20 pairs; beyond, an estimate from
  2^18 random flips of a fixed seed. None without pairs.

  >>> sign_flip_p([0.001, 0.002, 0.003, 0.001, 0.002])
  0.0625
  """
  gaps_P = np.asarray(gaps, float)
  n = len(gaps_P)
  if not n:
    return None
  observed = abs(gaps_P.sum())
  # Sums that differ by rounding only are ties, and ties count.
  slack = 1e-12 * np.abs(gaps_P).sum()
  if n > _MAX_EXACT_PAIRS:
    flips = np.random.default_rng(0).integers(0, 2, (_DRAWS, n), dtype=np.int8) * 2 - 1
    return float((np.abs(flips @ gaps_P) >= observed - slack).sum() + 1) / (_DRAWS + 1)
  sums = np.zeros(1)
  for gap in gaps_P:
    sums = np.concatenate([sums - gap, sums + gap])
  return float((np.abs(sums) >= observed - slack).mean())


def holm(p_values: Sequence[float | None]) -> list[float | None]:
  """Returns p-values adjusted for all of these tests: step-down Bonferroni (Holm 1979).

  None stays None and is not one of the tests.

  >>> holm([0.01, 0.04, None, 0.03])
  [0.03, 0.06, None, 0.06]
  """
  order = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
  out: list[float | None] = [None] * len(p_values)
  highest = 0.0
  for rank, (p, i) in enumerate(order):
    highest = max(highest, min(1.0, p * (len(order) - rank)))
    out[i] = highest
  return out


def delong(labels_N, logits_N, base_logits_N, level: float = 0.95) -> dict[str, float]:
  """Compares the AUC of a run to a base's on the same rows by DeLong's test (DeLong et al. 1988).

    z = (AUC - AUC_base) / sqrt(var AUC + var AUC_base - 2 cov)

  Returns:
    difference (AUC less the base's), se, interval (half its width, normal) and p (two-sided; 1 for
    equal logits).

  Raises:
    ValueError: as `exact.delong_covariance`.

  >>> labels_N, base_N = np.arange(100) % 2, np.arange(100.0)
  >>> test = delong(labels_N, base_N + 20 * labels_N, base_N)
  >>> round(test['difference'], 4), round(test['se'], 4), test['p'] < 1e-6
  (0.178, 0.0103, True)
  """
  (auc, base), cov_KK = exact.delong_covariance(labels_N, np.stack([logits_N, base_logits_N]))
  difference = float(auc - base)
  variance = cov_KK[0, 0] + cov_KK[1, 1] - 2 * cov_KK[0, 1]
  se = math.sqrt(max(float(variance), 0.0))
  p = 2 * float(special.ndtr(-abs(difference) / se)) if se > 0 else float(difference == 0)
  half = float(special.ndtri((1 + level) / 2)) * se
  return {'difference': difference, 'se': se, 'interval': half, 'p': p}


def compare(
  aucs: Mapping[Hashable, float], base_aucs: Mapping[Hashable, float], level: float = 0.95
) -> dict[str, Any]:
  """Compares AUCs by key (split and seed) to those of a base with the same keys.

  Returns:
    pairs; difference (mean) and interval (half the width of its t interval); t_p;
    sign_flip_p; rela_impr_percent (of the means over the pairs). None for what too few pairs do
    not give.

  >>> result = compare({0: 0.752, 1: 0.755, 2: 0.9}, {0: 0.75, 1: 0.751})
  >>> result['pairs'], round(result['difference'], 4), round(result['rela_impr_percent'], 2)
  (2, 0.003, 1.2)
  """
  keys = [key for key in aucs if key in base_aucs]
  gaps = [aucs[key] - base_aucs[key] for key in keys]
  mean, half = t_interval(gaps, level)
  relative = None
  if keys:
    means = [statistics.fmean(x[key] for key in keys) for x in (aucs, base_aucs)]
    relative = 100 * exact.rela_impr(*means) if means[1] != 0.5 else None
  return {
    'pairs': len(gaps),
    'difference': mean,
    'interval': half,
    't_p': t_p(gaps),
    'sign_flip_p': sign_flip_p(gaps),
    'rela_impr_percent': relative,
  }
