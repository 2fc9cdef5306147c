# SPDX-License-Identifier: Apache-2.0
"""Differences of AUC between curves, paired by seed: at each size, and pooled over sizes.

Shape letters: S sizes, U units (seeds), N rows of test, K runs.
"""

import math
import statistics
from typing import Any

import numpy as np
from scipy import special

from deres_jax.compare import logits as logits_lib
from deres_jax.metrics import exact, paired
from deres_jax.scaling.curves import Cell, Curve

Pair = tuple[str, Cell, Cell]  # what it is of, the one, and the one that it is compared with


def same_size(mine: Curve, base: Curve) -> list[Pair]:
  """The cells of both curves at every size that both have."""
  by_size = {cell.size: cell for cell in base.cells}
  return [(c.size, c, by_size[c.size]) for c in mine.cells if c.size in by_size]


def halves(mine: Curve, base: Curve, wanted: int) -> tuple[int, list[tuple[Cell, Cell, Cell]]]:
  """(mine at half the depth, base at half, base at full) for each width at one full depth.

  The full depth is `wanted` where it was run, else the largest that was.
  """
  ours = {(c.depth, _rest(c)): c for c in mine.cells}
  theirs = {(c.depth, _rest(c)): c for c in base.cells}
  found: dict[int, list[tuple[Cell, Cell, Cell]]] = {}
  for (depth, rest), cell in theirs.items():
    half = (depth // 2, rest)
    if depth % 2 == 0 and half in ours and half in theirs:
      found.setdefault(depth, []).append((ours[half], theirs[half], cell))
  full = wanted if wanted in found else max(found, default=0)
  return full, found.get(full, [])


def _rest(cell: Cell) -> str:
  """A cell's size without its depth."""
  return cell.size.partition(', ')[2]


def difference(pairs: list[Pair]) -> dict[str, Any]:
  """AUC of the first cells less that of the second: at each size, and pooled over sizes.

  Pooled: the differences of a seed are averaged over sizes, and the t interval is over these means.
  Runs of one seed share the order of rows and the table's start whatever their size, so the seed is
  the unit; nothing is assumed of how the sizes of a seed depend on each other. Every seed's mean is
  over the same sizes: the sizes with the most paired seeds, and the seeds that all of these have.

  Returns:
    by_size: what `paired.compare` says of each, with Holm's p over the sizes; compute_share.
    sizes, seeds: of the pooled figures. difference, low, high (95 % t interval), sd (of the seeds'
      means), p: pooled; None for what too few seeds do not give. gaps: the seeds' means.
    independent: half of the interval's width if runs of one seed at different sizes were
      independent; rela_impr_percent: of the pooled means.
  """
  used, units = _balanced(pairs)
  gaps_SU = np.array([[mine.aucs[u] - base.aucs[u] for u in units] for _, mine, base in used])
  gaps = gaps_SU.mean(axis=0).tolist() if units else []
  mean, half = paired.t_interval(gaps)
  return {
    'by_size': _by_size(pairs),
    'sizes': [size for size, _, _ in used],
    'seeds': len(units),
    'difference': mean,
    'low': None if half is None else mean - half,
    'high': None if half is None else mean + half,
    'sd': statistics.stdev(gaps) if len(gaps) > 1 else None,
    'p': paired.t_p(gaps),
    'gaps': gaps,
    'independent': _independent(gaps_SU) if units else None,
    'rela_impr_percent': _relative(used, units),
  }


def _balanced(pairs: list[Pair]) -> tuple[list[Pair], list]:
  """The sizes with the most paired runs, and the keys of runs that all of these have."""
  shared = [[key for key in mine.runs if key in base.runs] for _, mine, base in pairs]
  most = max(map(len, shared), default=0)
  used = [i for i, keys in enumerate(shared) if keys and len(keys) == most]
  units = [u for u in shared[used[0]] if all(u in shared[i] for i in used)] if used else []
  return [pairs[i] for i in used], units


def _relative(used: list[Pair], units: list) -> float | None:
  means = [statistics.fmean(p[i].aucs[u] for p in used for u in units) if units else 0.5
           for i in (1, 2)]  # fmt: skip
  return 100 * exact.rela_impr(*means) if means[1] != 0.5 else None


def _by_size(pairs: list[Pair]) -> list[dict[str, Any]]:
  lines = [
    {
      'size': size,
      'compute_share': mine.compute / base.compute,
      **paired.compare(mine.aucs, base.aucs),
    }
    for size, mine, base in pairs
  ]
  adjusted = paired.holm([line['t_p'] for line in lines])
  return [{**line, 't_p_holm': p} for line, p in zip(lines, adjusted, strict=True)]


def _independent(gaps_SU: np.ndarray) -> float | None:
  """Half width with the variance within sizes, pooled over them: S (U - 1) degrees of freedom."""
  sizes, units = gaps_SU.shape
  if units < 2:
    return None
  root = float(special.stdtrit(sizes * (units - 1), 0.975))
  return root * math.sqrt(float(gaps_SU.var(axis=1, ddof=1).mean()) / (sizes * units))


def split_sampling(pairs: list[Pair], labels_N: np.ndarray) -> float:
  """Half of the 95 % width that the test split's own sampling gives to the pooled difference.

  By DeLong's covariance of all runs' AUCs on the same rows, for these trained runs. Raises
  UserError where logits are missing.
  """
  used, units = _balanced(pairs)
  logits, weights = [], []
  for _, mine, base in used:
    for cell, sign in ((mine, 1), (base, -1)):
      for unit in units:
        logits.append(logits_lib.logits(cell.runs[unit], labels_N))
        weights.append(sign / (len(units) * len(used)))
  _, cov_KK = exact.delong_covariance(labels_N, np.stack(logits))
  weights_K = np.array(weights)
  return float(special.ndtri(0.975)) * math.sqrt(max(float(weights_K @ cov_KK @ weights_K), 0.0))
