# SPDX-License-Identifier: Apache-2.0
"""Draws the charts of a page about a prepared folder, 340 pixels wide."""

import math
from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import NullLocator

from deres_jax.report import charts
from deres_jax.report.charts import Look, paint, tag
from deres_jax.report.wording import compact

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 340, 42, 8, 8, 34
PLOT = 156  # height of axes with their ticks and name
LETTER = 6.6  # pixels of a letter of 11 px, about
LONGEST = 8  # letters of a label
COLOURS = {'known': 'c1', 'missing': 'c5', 'unknown': 'rule'}
BLUE = Look('c1', 'o')


def percent_tick(value: float) -> str:
  """Returns a share as '25 %'."""
  return f'{round(100 * value, 6):g} %'


def _axes(figure: Figure | None = None, height: float = PLOT, top: float = TOP) -> Axes:
  """Returns axes at `top` pixels of a figure."""
  below = height - top - (PLOT - TOP)
  ax = charts.axes(WIDTH, height, LEFT, top, RIGHT, BOTTOM + below, figure)
  ax.tick_params(labelsize=11)
  return ax


def _linear_levels(ax: Axes, highest: float, text: Callable[[float], str]):
  ax.set_ylim(0, highest)
  ticks, _ = charts.round_ticks(0, highest, 5)
  charts.y_ticks(ax, ticks, [text(tick) for tick in ticks])


def _labels(ax: Axes, labels: Sequence[str]):
  """Writes labels below places 0.5, 1.5, ...: all that fit, at equal distances."""
  ax.set_xlim(0, max(1, len(labels)))
  texts = [text if len(text) <= LONGEST else text[: LONGEST - 1] + '…' for text in labels]
  space = (WIDTH - LEFT - RIGHT) / max(1, len(texts))
  every = max(1, math.ceil((max(map(len, texts), default=0) * LETTER + 4) / space))
  charts.x_ticks(ax, [k + 0.5 for k in range(0, len(texts), every)], texts[::every])
  ax.tick_params('x', length=0)


def _coverage(ax: Axes, shares: dict[str, float]):
  """Draws one bar of the shares of known, missing and unknown values."""
  ax.set(xlim=(0, 1), ylim=(0, 1))
  start, hair = 0.0, 1.5 / WIDTH  # a share too small to be seen is shown as a hair
  for kind, colour in COLOURS.items():
    share = shares[kind]
    if share > 0:
      left = min(start, 1 - max(share, hair))
      tip = f'{kind}: {share:.2%}'
      ax.add_patch(Rectangle((left, 0), max(share, hair), 1, color=paint(colour), linewidth=0,
                             gid=tag(kind, tip)))  # fmt: skip
    start += share


def _rank_frequency(ax: Axes, points: list[list[int]], most_ids: int, most_rows: int):
  """Draws the rows of an id by its rank; both axes are logarithmic."""
  charts.limits(ax, 1, max(10, most_ids), log=True, room=0)
  ax.set(yscale='log', ylim=(1, max(10, most_rows)))
  ax.yaxis.set(minor_locator=NullLocator())
  for ticks, high in ((charts.x_ticks, most_ids), (charts.y_ticks, most_rows)):
    major, _ = charts.log_ticks(1, max(10, high), most=6)
    ticks(ax, major, [compact(x) for x in major])
  charts.axis_names(ax, 'rank of the id', below=32)
  if len(points) > 1:
    ax.plot(*zip(*points, strict=True), color=paint('c1'), linewidth=1.8, gid=tag('curve'))
  for rank, rows in (points[0], points[-1]) if points else ():
    charts.mark(ax, rank, rows, BLUE, 2.5, 'end', f'rank {rank:,}: {rows:,} rows')


def _click_rates(ax: Axes, x: dict, mean: float, highest: float):
  """Draws click rates with 95 % intervals, cut off at `highest` (hollow dots), and the mean."""
  points = x['click_rates']
  by_id = x['click_rates_by'] == 'id'
  labels = [p['label'] for p in points] if by_id else [str(k + 1) for k in range(10)]
  _labels(ax, labels)
  _linear_levels(ax, highest, percent_tick)
  ax.axhline(mean, color=paint('soft'), linewidth=1, linestyle=(0, (3, 3)), gid=tag('mean'))
  for k, point in enumerate(points):
    place = 0.5 + (k if by_id else int(point['label']) - 1)
    ends = [min(point[end], highest) for end in ('low', 'high')]
    ax.plot([place] * 2, ends, color=paint('c1'), linewidth=1.4, alpha=0.55, gid=tag('interval'))
    rate = point['click_rate']
    tip = f'{point["label"]}: {rate:.2%} of {point["rows"]:,} rows'
    kind = 'dot' if rate <= highest else 'beyond'
    charts.mark(ax, place, min(rate, highest), BLUE, 3, kind, tip, hollow=rate > highest)
  charts.axis_names(
    ax, 'value' if by_id else 'tenth of the rows, from common to rare ids', below=32
  )


def field(x: dict, frame: dict) -> Figure:
  """Draws a field: coverage, rows of each id, click rates.

  Args:
    frame: ranges of the axes, which all fields share.
  """
  height = 20 + 2 * (PLOT + 24)
  bar = charts.axes(WIDTH, height, 0, 0, 0, height - 9)
  _coverage(bar, x['coverage'])
  ranks = _axes(bar.figure, height, 42)
  _rank_frequency(ranks, x['rank_frequency'], frame['ids'], frame['rows'])
  rates = _axes(bar.figure, height, height - PLOT + TOP)
  _click_rates(rates, x, frame['mean'], frame['rate'])
  for ax, title in ((ranks, 'Rows of each id'), (rates, 'Click rate')):
    charts.label(ax, title, (0, 1), (-LEFT, 12), coords='axes fraction', kind='title')
  return bar.figure


def bars(
  labels: Sequence[str], values: Sequence[float], text: Callable[[float], str], name: str
) -> Figure:
  """Draws bars from 0.

  Args:
    text: returns the label of a tick of the vertical axis.
    name: of the horizontal axis.
  """
  ax = _axes()
  _labels(ax, labels)
  _linear_levels(ax, max([*values, 1e-9]) * 1.05, text)
  gap = 0.1 if len(values) > 1 else 0.4
  for k, (words, value) in enumerate(zip(labels, values, strict=True)):
    ax.add_patch(Rectangle((k + gap, 0), 1 - 2 * gap, value, color=paint('c1'), linewidth=0,
                           gid=tag('bar', f'{words}: {text(value)}')))  # fmt: skip
  charts.axis_names(ax, name, below=32)
  return ax.figure
