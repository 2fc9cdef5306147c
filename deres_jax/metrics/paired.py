# SPDX-License-Identifier: Apache-2.0
"""Two models on the same splits and seeds: intervals and tests of the difference of their AUCs.

Differences are paired, so what a split or a seed does to both is not counted. DeLong's test is of
one trained pair over the rows of a test split; the others are over the runs.

Shape letters: N rows, P pairs.
"""

import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import special

from deres_jax.metrics import exact

_EXACT = 20  # pairs up to which all 2^P sign flips are counted
_DRAWS = 2**18


def t_interval(gaps: Sequence[float], level: float = 0.95) -> tuple[float | None, float | None]:
  """Mean and half the width of its t interval; None for what too few values do not give."""
  n = len(gaps)
  if n < 2:
    return (statistics.fmean(gaps) if n else None), None
  root = float(special.stdtrit(n - 1, (1 + level) / 2))
  return statistics.fmean(gaps), root * statistics.stdev(gaps) / math.sqrt(n)


def t_p(gaps: Sequence[float]) -> float | None:
  """Two-sided p of the paired t test; None for fewer than two pairs."""
  if len(gaps) < 2:
    return None
  mean, sd = statistics.fmean(gaps), statistics.stdev(gaps)
  if sd == 0:
    return float(mean == 0)
  return 2 * float(special.stdtr(len(gaps) - 1, -abs(mean) / sd * math.sqrt(len(gaps))))


def sign_flip_p(gaps: Sequence[float]) -> float | None:
  """Two-sided p that differences are symmetric about 0: the share of sign flips as far out.

  Fisher's randomisation test: exact up to 20 pairs, so that five pairs cannot give less than
  1/16; from 2^18 random flips of a fixed seed beyond. None without pairs.
  """
  gaps_P = np.asarray(gaps, float)
  n = len(gaps_P)
  if not n:
    return None
  seen = abs(gaps_P.sum())
  # Sums that differ by rounding only are ties, and ties count.
  slack = 1e-12 * np.abs(gaps_P).sum()
  if n > _EXACT:
    flips = np.random.default_rng(0).integers(0, 2, (_DRAWS, n), dtype=np.int8) * 2 - 1
    return float((np.abs(flips @ gaps_P) >= seen - slack).sum() + 1) / (_DRAWS + 1)
  sums = np.zeros(1)
  for gap in gaps_P:
    sums = np.concatenate([sums - gap, sums + gap])
  return float((np.abs(sums) >= seen - slack).mean())


def holm(p_values: Sequence[float | None]) -> list[float | None]:
  """p-values adjusted for all of these tests (Holm 1979); None stays None and does not count."""
  order = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
  out: list[float | None] = [None] * len(p_values)
  highest = 0.0
  for rank, (p, i) in enumerate(order):
    highest = max(highest, min(1.0, p * (len(order) - rank)))
    out[i] = highest
  return out


def rela_impr_percent(auc: float, auc_base: float) -> float:
  """RelaImpr in per cent (Zhou et al. 2018): ((AUC - 1/2) / (AUC_b - 1/2) - 1) x 100."""
  return 100 * exact.rela_impr(auc, auc_base)


def delong(labels_N, logits_N, base_logits_N, level: float = 0.95) -> dict[str, float]:
  """AUC of a run less that of a base on the same rows, by DeLong et al. 1988.

  Returns:
    difference, se, interval (half its width, normal) and p (two-sided; 1 for equal logits).

  Raises:
    ValueError: as `metrics.delong_covariance`.
  """
  (auc, base), cov_KK = exact.delong_covariance(labels_N, np.stack([logits_N, base_logits_N]))
  difference = float(auc - base)
  variance = cov_KK[0, 0] + cov_KK[1, 1] - 2 * cov_KK[0, 1]
  se = math.sqrt(max(float(variance), 0.0))
  p = 2 * float(special.ndtr(-abs(difference) / se)) if se > 0 else float(difference == 0)
  half = float(special.ndtri((1 + level) / 2)) * se
  return {'difference': difference, 'se': se, 'interval': half, 'p': p}


def compare(
  mine: Mapping[Hashable, float], base: Mapping[Hashable, float], level: float = 0.95
) -> dict[str, Any]:
  """AUCs by key (split and seed) less those of a base with the same keys.

  Returns:
    pairs; difference (mean) and interval (half the width of its t interval); t_p;
    sign_flip_p; rela_impr_percent (of the means over the pairs). None for what too few pairs do
    not give.
  """
  keys = [key for key in mine if key in base]
  gaps = [mine[key] - base[key] for key in keys]
  mean, half = t_interval(gaps, level)
  relative = None
  if keys:
    means = [statistics.fmean(x[key] for key in keys) for x in (mine, base)]
    relative = rela_impr_percent(*means) if means[1] != 0.5 else None
  return {
    'pairs': len(gaps),
    'difference': mean,
    'interval': half,
    't_p': t_p(gaps),
    'sign_flip_p': sign_flip_p(gaps),
    'rela_impr_percent': relative,
  }
