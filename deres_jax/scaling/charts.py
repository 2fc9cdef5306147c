# SPDX-License-Identifier: Apache-2.0
"""Draws the charts of a page of scaling laws, from the content of fit.json."""

import itertools
import math
from collections.abc import Callable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from deres_jax.report import charts, wording
from deres_jax.report.charts import Look, paint

_LETTER = 8.3  # pixels of a label's letter, about
_WIDEST_LABEL = 190
_GAP, _MOST_SHIFT = 15, 22  # pixels between labels at line ends, and from a label to its line's end
_LEFT, _TOP, _BOTTOM = 56, 26, 46
SIZES = {'params': 'dense parameters', 'depth': 'layers'}  # that AUC is drawn against


def looks(c: dict[str, Any]) -> dict[str, Look]:
  """Returns a look for each curve, the reference first."""
  names = [x['curve'] for x in c['laws']['saturating']['curves']]
  return charts.looks(sorted(names, key=lambda name: name != c['reference']))


# Runs.


def _auc_axis(ax: Axes, aucs: list[float]):
  low, high = min(aucs), max(aucs)
  room = 0.06 * (high - low) or 0.001
  ax.set_ylim(low - room, high + room)
  height = 72 * ax.figure.get_figheight()
  charts.y_ticks(ax, *charts.round_ticks(*ax.get_ylim(), int(height // 50)))


def _marks(
  ax: Axes,
  c: dict[str, Any],
  all_looks: dict[str, Look],
  x: Callable[[dict[str, Any]], float],
):
  """Draws a small mark for each run and a large one for the mean of a size.

  Args:
    x: returns where a point stands on the horizontal axis.
  """
  for point in c['points']:
    look, size, several = all_looks[point['curve']], point['size'], len(point['runs']) > 1
    if several:
      tip = f'{point["curve"]}, {size}: mean AUC {point["auc"]:.5f}'
      charts.mark(ax, x(point), point['auc'], look, 4.8, 'mean', tip, hollow=True)
    for run in point['runs']:
      tip = f'{point["curve"]}, {size}, seed {run["seed"]}: AUC {run["auc"]:.5f}'
      charts.mark(ax, x(point), run['auc'], look, 2.2 if several else 3.6, 'run', tip)


def _aucs(c: dict[str, Any]) -> list[float]:
  return [run['auc'] for point in c['points'] for run in point['runs']]


# AUC against compute.


def _levels(c: dict[str, Any], aucs: list[float], bayes_auc: float | None) -> dict[str, float]:
  """Returns the level lines that leave enough room to what is between the AUCs."""
  highest = max(aucs) + 0.4 * (max(aucs) - min(aucs))
  alpha = c['laws']['saturating']['alpha']['estimate']
  levels = {'best possible (Bayes)': bayes_auc, 'fitted limit α': alpha}
  return {k: auc for k, auc in levels.items() if auc is not None and max(aucs) < auc <= highest}


def _spread(heights: list[float], gap: float) -> list[float]:
  """Returns heights near the given ones, in their order, at least `gap` apart."""
  order = sorted(range(len(heights)), key=heights.__getitem__)
  blocks: list[tuple[float, list[int]]] = []  # mean height, indices
  for i in order:
    blocks.append((heights[i], [i]))
    while len(blocks) > 1 and _touch(blocks[-2], blocks[-1], gap):
      (a, above), (b, below) = blocks[-2:]
      n, m = len(above), len(below)
      blocks[-2:] = [((a * n + b * m) / (n + m), above + below)]
  out = [0.0] * len(heights)
  for centre, members in blocks:
    for k, i in enumerate(members):
      out[i] = centre + (k - (len(members) - 1) / 2) * gap
  return out


def _touch(a: tuple[float, list[int]], b: tuple[float, list[int]], gap: float) -> bool:
  return b[0] - a[0] < gap * (len(a[1]) + len(b[1])) / 2


def _line_names(ax: Axes, lines: list[dict[str, Any]], all_looks: dict[str, Look]) -> bool:
  """Writes the names of curves at the ends of their lines; returns False if they do not fit."""
  ends = [ax.transData.transform((line['compute'][-1], line['auc'][-1])) for line in lines]
  (left, bottom), (right, top) = ax.bbox.get_points()
  widest = max(len(line['curve']) for line in lines) * _LETTER
  if widest > _WIDEST_LABEL or min(end[0] for end in ends) < left + 0.85 * (right - left):
    return False
  heights = _spread([end[1] for end in ends], _GAP)
  shifts = [height - end[1] for height, end in zip(heights, ends, strict=True)]
  if max(map(abs, shifts)) > _MOST_SHIFT or min(heights) < bottom or max(heights) > top + 8:
    return False
  for line, end, shift in zip(lines, ends, shifts, strict=True):
    at, offset = (line['compute'][-1], line['auc'][-1]), (right + 12 - end[0], shift)
    colour = all_looks[line['curve']].colour
    charts.label(
      ax, line['curve'], at, offset, va='center_baseline', colour=colour, size=13.5, bold=True,
      kind='name', leader=True,
    )  # fmt: skip
  return True


def compute(
  c: dict[str, Any], all_looks: dict[str, Look], bayes_auc: float | None, wide: bool
) -> tuple[Figure, bool]:
  """Draws AUC against C: runs, means, lines and bands; says whether the lines bear their names."""
  lines = c['laws']['saturating']['line']
  longest = max(len(line['curve']) for line in lines)
  right = min(longest * _LETTER, _WIDEST_LABEL) + 18 if wide else 14
  ax = _compute_axes(c, bayes_auc, right, wide)
  named = wide and _line_names(ax, lines, all_looks)
  if wide and not named:
    ax = _compute_axes(c, bayes_auc, 14, wide)
  for line in lines:
    colour = paint(all_looks[line['curve']].colour)
    if line['low'] is not None:
      x, low, high = line['compute'], line['low'], line['high']
      ax.fill(
        x + x[::-1], low + high[::-1], color=colour, alpha=0.13, linewidth=0, zorder=2,
        gid=charts.tag('band'),
      )  # fmt: skip
    ax.plot(
      line['compute'], line['auc'], color=colour, linewidth=2, zorder=3, gid=charts.tag('curve')
    )
  _marks(ax, c, all_looks, lambda point: point['compute'])
  return ax.figure, named


def _compute_axes(c: dict[str, Any], bayes_auc: float | None, right: float, wide: bool) -> Axes:
  """Returns the axes of AUC against C, with level lines."""
  lines = c['laws']['saturating']['line']
  aucs = _aucs(c) + [auc for line in lines for auc in line['auc']]
  levels = _levels(c, aucs, bayes_auc)
  ax = charts.axes(*((900, 470) if wide else (370, 360)), _LEFT, _TOP, right, _BOTTOM)
  budgets = [point['compute'] for point in c['points']]
  charts.limits(ax, min(budgets), max(budgets), log=True, room=0.035)
  _auc_axis(ax, [*aucs, *levels.values()])
  major, minor = charts.log_ticks(*ax.get_xlim())
  charts.x_ticks(ax, major, [wording.compact(x) for x in major], minor)
  charts.axis_names(ax, f'{c["compute_unit"]} (logarithmic)', 'AUC, test split')
  for name, auc in levels.items():
    ax.axhline(
      auc, color=paint('soft'), alpha=0.7, linewidth=1, linestyle=(0, (4, 4)),
      gid=charts.tag('level'),
    )  # fmt: skip
    charts.label(ax, f'{name} {auc:.4f}', (0, auc), (4, 5), coords=ax.get_yaxis_transform())
  return ax


# AUC against parameters and depth.


def joined(c: dict[str, Any], all_looks: dict[str, Look], figure: str) -> Figure:
  """Draws AUC against 'params' or 'depth': runs, and means joined by width. There is no law."""
  ax = charts.axes(410, 340, _LEFT, _TOP, 14, _BOTTOM)
  _auc_axis(ax, _aucs(c))
  values = sorted({point[figure] for point in c['points']})
  log = figure == 'params' or values[-1] >= 8 * values[0]
  charts.limits(ax, values[0], values[-1], log)
  names, aside = list(all_looks), 0.0
  if figure == 'depth':  # all curves have the same depths: side by side
    aside = min(6.0, 26 / len(names))
    major, minor = _apart(ax, values), []
  else:
    major, minor = charts.log_ticks(*ax.get_xlim(), most=6)
  charts.x_ticks(ax, major, [wording.compact(x) for x in major], minor)

  def place(point: dict[str, Any]) -> float:
    x = ax.transData.transform((point[figure], point['auc']))[0]
    x += aside * (names.index(point['curve']) - (len(names) - 1) / 2)
    return ax.transData.inverted().transform((x, 0))[0]

  words = SIZES[figure]
  charts.axis_names(ax, f'{words} (logarithmic)' if log else words, 'AUC, test split')
  starts: dict[int, tuple[float, float]] = {}  # first mean of a width, of the highest curve
  for (name, dim), points in _by_width(c):
    line = [(place(p), p['auc']) for p in sorted(points, key=lambda p: p[figure])]
    colour = paint(all_looks[name].colour)
    ax.plot(*zip(*line, strict=True), color=colour, linewidth=1.3, alpha=0.55)
    starts[dim] = max(line[0], starts.get(dim, line[0]), key=lambda point: point[1])
  _marks(ax, c, all_looks, place)
  if len(starts) > 1:
    for dim, at in starts.items():
      charts.label(ax, f'dim {dim}', at, (-6, 12), size=11, kind='width')
  return ax.figure


def _apart(ax: Axes, values: list[float]) -> list[float]:
  """Returns those of the values that are far enough apart to bear a label."""

  def pixel(value: float) -> float:
    return ax.transData.transform((value, ax.get_ylim()[0]))[0]

  out = values[-1:]
  for value in values[-2::-1]:
    if pixel(out[-1]) - pixel(value) > 20:
      out.append(value)
  return out[::-1]


def _by_width(c: dict[str, Any]) -> list[tuple[tuple[str, int], list[dict[str, Any]]]]:
  def of(point):
    return point['curve'], point['dim']

  return [(k, list(points)) for k, points in itertools.groupby(sorted(c['points'], key=of), of)]


# Ratios of exponents.

_WIDEST_RATIO = 6.0
_STRIP = 280  # pixels


def ratio_range(intervals: list[dict[str, Any]]) -> tuple[float, float]:
  """Returns a range that holds 1 and the intervals, but for ends that would squash the others."""
  ends = [x[k] for x in intervals for k in ('estimate', 'low', 'high')]
  ends = [min(max(x, 1 / _WIDEST_RATIO), _WIDEST_RATIO) for x in ends if x is not None]
  return min([0.8, *ends]) / 1.06, max([1.25, *ends]) * 1.06


def strip(ratios: tuple[float, float], shared: dict[str, Any], free: dict[str, Any], look: Look):
  """Draws the interval of a ratio with one alpha, and below it the one with alphas of their own."""
  ax = charts.axes(_STRIP, 30, 6, 0, 6, 0)
  charts.limits(ax, *ratios, log=True, room=0)
  ax.set_ylim(0, 1)
  ax.axvline(1, color=paint('rule'), linewidth=1)
  for y, x, hollow in ((0.75, shared, False), (0.25, free, True)):
    arrows = x['low_open'], x['high_open']
    charts.whisker(ax, y, (x['low'], x['high']), look, 1.2 if hollow else 2, arrows)
    if x['estimate'] is not None and ratios[0] <= x['estimate'] <= ratios[1]:
      charts.mark(ax, x['estimate'], y, look, 3.9, 'estimate', hollow=hollow)
  return ax.figure


def ratio_axis(ratios: tuple[float, float]) -> Figure:
  """Draws the ticks below the strips."""
  ax = charts.axes(_STRIP, 22, 6, 0, 6, 21)
  charts.limits(ax, *ratios, log=True, room=0)
  low, high = ratios
  ticks = [t for t in (0.2, 0.5, 1, 1.5, 2, 3, 5) if low <= t <= high]
  if len(ticks) < 3:
    ticks = [t for t in (0.8, 0.9, 1, 1.1, 1.2, 1.3, 1.4, 1.5) if low <= t <= high]
  apart = 26 / (_STRIP - 12) * math.log(high / low)
  labelled = [1.0]
  for tick in sorted(ticks, key=lambda t: abs(math.log(t))):
    if all(abs(math.log(tick / other)) > apart for other in labelled):
      labelled.append(tick)
  charts.x_ticks(ax, sorted(labelled), [f'{t:g}' for t in sorted(labelled)])
  return ax.figure


def compute_description(c: dict[str, Any]) -> str:
  """Returns what the chart of AUC against compute shows, for those who cannot see it."""
  names = wording.names([line['curve'] for line in c['laws']['saturating']['line']])
  return f'AUC against compute, logarithmic, with the fitted law of {names}, a mark for every run'
