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

Pair = tuple[str, Cell, Cell]  # size, a cell, and the cell that it is compared with


def same_size(curve: Curve, base: Curve) -> list[Pair]:
  """Pairs the cells of two curves at every size that both have."""
  by_size = {cell.size: cell for cell in base.cells}
  return [(c.size, c, by_size[c.size]) for c in curve.cells if c.size in by_size]


def halves(curve: Curve, base: Curve, depth: int) -> tuple[int, list[tuple[Cell, Cell, Cell]]]:
  """Pairs a curve at half the depth with the base at full depth, at each width.

  Args:
    depth: the full depth; if it was not run at both depths, the largest that was.

  Returns:
    the full depth; (cell of the curve at half, of the base at half, of the base at full).
  """
  cells, base_cells = (
    {(cell.depth, cell.size.partition(', ')[2]): cell for cell in x.cells} for x in (curve, base)
  )
  by_depth: dict[int, list[tuple[Cell, Cell, Cell]]] = {}
  for (full, width), cell in base_cells.items():
    half = (full // 2, width)
    if full % 2 == 0 and half in cells and half in base_cells:
      by_depth.setdefault(full, []).append((cells[half], base_cells[half], cell))
  full = depth if depth in by_depth else max(by_depth, default=0)
  return full, by_depth.get(full, [])


def difference(pairs: list[Pair]) -> dict[str, Any]:
  """Returns the AUC of the first cells less that of the second, at each size and pooled.

  The differences of a seed are averaged over sizes, and the t interval is over these means. Runs of
  one seed share the order of examples and the initial table whatever their size, so the seed is the
  unit, and its sizes may depend on each other in any way. Every seed's mean is over the same sizes:
  those with the most paired seeds, for the seeds that all of them have.

  Returns:
    by_size: `paired.compare` of each size, with Holm's p over the sizes; compute_share.
    sizes, seeds: of the pooled figures.
    difference, low, high, sd, p: pooled, with the 95 % t interval and the sd of the seeds' means;
      None where there are too few seeds. gaps: the seeds' means.
    independent: half the interval's width if the sizes of a seed were independent.
    rela_impr_percent: of the pooled means.
  """
  used, units = _balanced(pairs)
  gaps_SU = np.array([[cell.aucs[u] - base.aucs[u] for u in units] for _, cell, base in used])
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
  """Returns the sizes with the most paired runs, and the keys of runs that all of these have."""
  shared = [[key for key in cell.runs if key in base.runs] for _, cell, base in pairs]
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
      'compute_share': cell.compute / base.compute,
      **paired.compare(cell.aucs, base.aucs),
    }
    for size, cell, base in pairs
  ]
  adjusted = paired.holm([line['t_p'] for line in lines])
  return [{**line, 't_p_holm': p} for line, p in zip(lines, adjusted, strict=True)]


def _independent(gaps_SU: np.ndarray) -> float | None:
  """Returns the half width by the variance within sizes, with S (U - 1) degrees of freedom."""
  sizes, units = gaps_SU.shape
  if units < 2:
    return None
  root = float(special.stdtrit(sizes * (units - 1), 0.975))
  return root * math.sqrt(float(gaps_SU.var(axis=1, ddof=1).mean()) / (sizes * units))


def split_sampling(pairs: list[Pair], labels_N: np.ndarray) -> float:
  """Returns half the 95 % width of the pooled difference due to the sampling of the test split.

  It comes from DeLong's covariance of all AUCs on the same rows, and is for these trained runs.

  Raises:
    UserError: logits are missing or damaged.
  """
  used, units = _balanced(pairs)
  logits, weights = [], []
  for _, first, base in used:
    for cell, sign in ((first, 1), (base, -1)):
      for unit in units:
        logits.append(logits_lib.logits(cell.runs[unit], labels_N))
        weights.append(sign / (len(units) * len(used)))
  _, cov_KK = exact.delong_covariance(labels_N, np.stack(logits))
  weights_K = np.array(weights)
  return float(special.ndtri(0.975)) * math.sqrt(max(float(weights_K @ cov_KK @ weights_K), 0.0))
