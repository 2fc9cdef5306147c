# SPDX-License-Identifier: Apache-2.0
"""Draws the charts of a page about one model: maps of weights, gates, lines by depth, strips."""

import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from deres_jax.report import charts
from deres_jax.report.charts import Look, paint, tag
from deres_jax.report.wording import number

_LABEL, _CELL, _SMALL = 132, (74, 40), (26, 24)
_MOST_WRITTEN = 9  # columns whose cells have room for a figure
_LETTER = 7.2  # pixels of a letter of 12 px, about
_BLUE = Look('c1', 'o')


def heat(
  rows: Sequence[str], columns: Sequence[str], cells: dict[tuple[int, int], dict[str, float]]
) -> Figure:
  """Draws a map of weights: colour by the mean, a mark and a minus where it is negative.

  Args:
    cells: by (row, column) mean, sd and the share that is negative, drawn as a bar at the foot.
  """
  written = len(columns) <= _MOST_WRITTEN
  width, height = _CELL if written else _SMALL
  left = max(40.0, min(_LABEL, _LETTER * max(map(len, rows)) + 10))
  top = 22 if written else 12 + _LETTER * max(map(len, columns))
  size = left + width * len(columns) + 2, top + height * len(rows) + 2
  ax = charts.axes(*size, left, top, 2, 2)
  ax.set(xlim=(0, len(columns)), ylim=(len(rows), 0))
  for j, name in enumerate(columns):
    ha, rotation = ('center', 0) if written else ('center', 90)
    charts.label(ax, name, (j + 0.5, 0), (0, 6), ha=ha, colour='text', rotation=rotation)
  for i, name in enumerate(rows):
    words = _short(name)
    charts.label(ax, words, (0, i + 0.5), (-8, 0), ha='right', va='center_baseline', colour='text')
  full = max(abs(cell['mean']) for cell in cells.values())
  for (i, j), cell in cells.items():
    _cell(ax, i, j, f'{rows[i]}, {columns[j]}', cell, full, (width, height))
    if written:
      charts.label(
        ax, number(cell['mean'], '.2f'), (j + 0.5, i), (0, -17), ha='center', colour='text',
        size=13, bold=True, kind='mean-of',
      )  # fmt: skip
      if cell['sd'] >= 0.005:
        charts.label(
          ax, f'± {cell["sd"]:.2f}', (j + 0.5, i), (0, -29), ha='center', colour='text', size=10.5,
          kind='sd-of',
        )  # fmt: skip
  return ax.figure


def _short(name: str) -> str:
  most = int((_LABEL - 10) / _LETTER)
  return name if len(name) <= most else f'{name[: most - 1]}…'


def _cell(
  ax: Axes,
  i: int,
  j: int,
  name: str,
  cell: dict[str, float],
  full: float,
  size: tuple[float, float],
):
  """Draws the colours of one cell, of which the mean `full` has the strongest."""
  x, y = 1 / size[0], 1 / size[1]  # a pixel
  mean, negative = cell['mean'], cell['negative']
  tip = f'{name}: mean {number(mean, ".3f")}, sd {cell["sd"]:.3f}, {negative:.0%} negative'
  colour = paint('c2' if mean < 0 else 'c1')
  opacity = 0.55 * min(1.0, abs(mean) / full) if full else 0
  box = (j + x, i + y), 1 - 2 * x, 1 - 2 * y
  ax.add_patch(Rectangle(*box, facecolor=paint('panel'), gid=tag('cell', tip)))
  ax.add_patch(Rectangle(*box, facecolor=colour, alpha=opacity, gid=tag('tint')))
  if negative > 0:
    foot = (j + x, i + 1 - 4 * y), (1 - 2 * x) * negative, 3 * y
    ax.add_patch(Rectangle(*foot, facecolor=paint('c2'), gid=tag('share')))
  if mean < 0:
    charts.mark(ax, j + 1 - 8 * x, i + 8 * y, Look('c2', 'v'), 3.6, 'neg')


def gates(names: Sequence[str], all_gates: Sequence[dict[str, Any]], wide: bool) -> Figure:
  """Draws, for each gate, its histogram, 5-95 and 25-75 % and the median."""
  row, left, floor = 44, 108, 22
  width, height = 940 if wide else 400, row * len(all_gates) + floor
  ax = charts.axes(width, height, left, 0, 12, floor)
  low = min(0.5, *(g['quantiles']['0.0'] for g in all_gates)) - 0.02
  high = max(0.5, *(g['quantiles']['1.0'] for g in all_gates)) + 0.02
  ax.set(xlim=(max(0.0, low), min(1.0, high)), ylim=(row * len(all_gates), 0))
  ax.set_xticks(*charts.round_ticks(*ax.get_xlim(), 6 if wide else 4))
  ax.grid(axis='x', color=paint('grid'), linewidth=1)
  ax.axvline(0.5, color=paint('soft'), alpha=0.7, linewidth=1, linestyle=(0, (4, 4)))
  blue = paint(_BLUE.colour)
  for i, (name, gate) in enumerate(zip(names, all_gates, strict=True)):
    foot, q = row * i + 32, gate['quantiles']
    charts.label(ax, name, (ax.get_xlim()[0], foot - 4), (-10, 0), ha='right')
    ax.fill(*_outline(gate['histogram'], foot, 26), color=blue, alpha=0.13, linewidth=0,
            gid=tag('hill'))  # fmt: skip
    for ends, weight in ((('0.05', '0.95'), 2), (('0.25', '0.75'), 5)):
      line = [q[end] for end in ends]
      ax.plot(line, [foot + 5] * 2, color=blue, linewidth=weight, solid_capstyle='round',
              gid=tag('quantiles'))  # fmt: skip
    tip = f'{name}: median {q["0.5"]:.3f}, 5 to 95 % {q["0.05"]:.3f} to {q["0.95"]:.3f}'
    charts.mark(ax, q['0.5'], foot + 5, _BLUE, 4, 'median', tip)
  return ax.figure


def _outline(histogram: Sequence[int], foot: float, size: float) -> tuple[list, list]:
  """Returns the outline of a histogram over [0, 1], in bins of 0.02."""
  by = len(histogram) // 50
  bins = [sum(histogram[k : k + by]) for k in range(0, len(histogram), by)]
  highest, x, y = max(bins) or 1, [0.0], [foot]
  for k, count in enumerate(bins):
    x += [k / 50, (k + 1) / 50]
    y += [foot - size * count / highest] * 2
  return [*x, 1.0], [*y, foot]


def lines(
  series: dict[str, list[tuple[int, float]]],
  looks: dict[str, Look],
  names: Sequence[str],
  zero: bool = True,
) -> Figure:
  """Draws values by site; the head's read stands last.

  Args:
    names: of the sites, for tool tips.
    zero: whether the axis begins at 0.
  """
  ax = charts.axes(420, 236, 46, 10, 10, 42)
  values = [y for points in series.values() for _, y in points]
  low, high = min([0.0, *values] if zero else values), max(values)
  room = 0.06 * ((high - low) or abs(high) or 1.0)
  ax.set_ylim(low if zero and low == 0 else low - room, high + room)
  charts.limits(ax, 0, max(1, len(names) - 1), room=0.03)
  ticks, labels = charts.round_ticks(*ax.get_ylim(), 5)
  charts.y_ticks(ax, ticks, [label.replace('-', '−') for label in labels])
  last, every = len(names) - 1, math.ceil(len(names) / 12)
  sites = [k for k in range(0, last, every) if (last - k) * 350 > 34 * max(1, last)]
  charts.x_ticks(ax, [*sites, last], [*map(str, sites), 'head'])
  charts.axis_names(ax, 'site')
  for name, points in series.items():
    look = looks[name]
    ax.plot(*zip(*points, strict=True), color=paint(look.colour), linewidth=2)
    for site, value in points:
      charts.mark(ax, site, value, look, 3.8, 'value', f'{name}, {names[site]}: {value:.4g}')
  return ax.figure


def strips(checks: Sequence[dict[str, Any]]) -> list[Markup]:
  """Draws each difference of AUC with its interval about the line at 0, on one scale."""
  if not checks:
    return []
  widths = sorted(x['interval'] for x in checks)
  reach = max(4 * widths[len(widths) // 2], 1e-6)
  low = max(min(x['difference'] - x['interval'] for x in checks), -3 * reach)
  high = min(max(x['difference'] + x['interval'] for x in checks), reach)
  out = []
  for i, x in enumerate(checks):
    ax = charts.axes(220, 22, 6, 0, 6, 0)
    ax.set(xlim=(min(low, -reach / 4), max(high, reach / 4)), ylim=(0, 1))
    ax.axvline(0, color=paint('rule'), linewidth=1)
    ends = x['difference'] - x['interval'], x['difference'] + x['interval']
    charts.whisker(ax, 0.5, ends, _BLUE)
    if ax.get_xlim()[0] <= x['difference'] <= ax.get_xlim()[1]:
      charts.mark(ax, x['difference'], 0.5, _BLUE, 4, 'estimate')
    words = [number(value, '.5f') for value in (x['difference'], *ends)]
    description = f'{x["change"]}: {words[0]} [{words[1]}, {words[2]}]'
    out.append(charts.svg(ax.figure, f'strip{i}', description, 'strip'))
  return out
