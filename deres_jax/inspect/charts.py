# SPDX-License-Identifier: Apache-2.0
"""Pictures of a page about one model: maps of weights, gates, lines by depth, strips."""

import html
from collections.abc import Sequence
from typing import Any

from deres_jax.report import svg
from deres_jax.report.svg import Look

_LABEL, _CELL, _SMALL = 132, (74, 40), (26, 24)
_MOST_WRITTEN = 9  # columns whose cells have room for a figure
_LETTER = 7.2  # px of a letter of 12 px, about


def signed(x: float, form: str = '.2f') -> str:
  """A figure with a true minus sign; no minus before a zero."""
  text = f'{x:{form}}'
  return text.lstrip('-') if float(text) == 0 else text.replace('-', '−')


def heat(
  rows: Sequence[str],
  columns: Sequence[str],
  cells: dict[tuple[int, int], dict[str, float]],
  said: str,
  top: float,
) -> str:
  """A map of weights: colour by the mean, a mark and a minus where it is negative.

  Args:
    cells: by (row, column) mean, sd and the share that is negative, drawn as a bar at the foot.
    top: the size of a mean that has the full colour.
  """
  written = len(columns) <= _MOST_WRITTEN
  width, height = _CELL if written else _SMALL
  label = max(40.0, min(_LABEL, _LETTER * max(map(len, rows)) + 10))
  over = 22 if written else 12 + 5.5 * max(map(len, columns))
  parts = []
  for j, name in enumerate(columns):
    x = label + (j + 0.5) * width
    if written:
      parts.append(svg.text(x, over - 7, name))
    else:
      parts.append(_upright(x + 4, over - 6, name))
  for i, name in enumerate(rows):
    parts.append(svg.text(label - 8, over + i * height + height / 2 + 4, _short(name), 'end'))
  for (i, j), cell in cells.items():
    place = (label + j * width, over + i * height, width, height)
    parts.append(_cell(place, f'{rows[i]}, {columns[j]}', cell, top, written))
  total = label + width * len(columns) + 2, over + height * len(rows) + 2
  inner = svg.picture(parts, said, *total, 'heat')
  return f'<div class="map" style="width:{total[0]:.0f}px">{inner}</div>'


def _short(name: str) -> str:
  most = int((_LABEL - 10) / _LETTER)
  return name if len(name) <= most else f'{name[: most - 1]}…'


def _upright(x: float, y: float, said: str) -> str:
  inner = svg.text(0, 0, said, 'start')
  return f'<g transform="translate({x:.1f} {y:.1f}) rotate(-90)">{inner}</g>'


def _cell(place, name: str, cell: dict[str, float], top: float, written: bool) -> str:
  x, y, width, height = place
  mean, kind = cell['mean'], 'neg' if cell['mean'] < 0 else 'pos'
  full = 0.55 * min(1.0, abs(mean) / top) if top else 0
  said = f'{name}: mean {signed(mean, ".3f")}, sd {cell["sd"]:.3f}, {cell["negative"]:.0%} negative'
  size = f'x="{x + 1:.1f}" y="{y + 1:.1f}" width="{width - 2}" height="{height - 2}"'
  parts = [f'<rect {size} class="ground"/>']
  parts.append(f'<rect {size} class="{kind}" fill-opacity="{full:.3f}"/>')
  if cell['negative'] > 0:
    foot = f'x="{x + 1:.1f}" y="{y + height - 4:.1f}" height="3"'
    parts.append(f'<rect {foot} width="{(width - 2) * cell["negative"]:.1f}" class="neg"/>')
  if mean < 0:
    parts.append(svg.marker('triangle down', x + width - 8, y + 8, 3.6, 'neg'))
  if written:
    parts.append(svg.text(x + width / 2, y + 17, signed(mean), kind='mean-of'))
    if cell['sd'] >= 0.005:
      parts.append(svg.text(x + width / 2, y + 29, f'± {cell["sd"]:.2f}', kind='sd-of'))
  return f'<g><title>{html.escape(said)}</title>{"".join(parts)}</g>'


def gates(names: Sequence[str], some: Sequence[dict[str, Any]], width: int, kind: str) -> str:
  """A row a gate: its histogram over dimensions, 5-95 and 25-75 % and the median."""
  row, label, floor = 44, 108, 22
  low = min(0.5, *(g['quantiles']['0.0'] for g in some)) - 0.02
  high = max(0.5, *(g['quantiles']['1.0'] for g in some)) + 0.02
  x = svg.Scale(max(0.0, low), min(1.0, high), label, width - 12)
  height = row * len(some) + floor
  ticks, decimals = svg.round_ticks(x.low, x.high, 6 if width > 500 else 4)
  parts = [svg.line(x(t), 0, x(t), height - floor, 'grid') for t in ticks]
  parts += [svg.text(x(t), height - 6, f'{t:.{decimals}f}') for t in ticks]
  parts.append(svg.line(x(0.5), 0, x(0.5), height - floor, 'level'))
  for i, (name, gate) in enumerate(zip(names, some, strict=True)):
    foot, q = row * i + 32, gate['quantiles']
    parts.append(svg.text(label - 10, foot - 4, name, 'end'))
    parts.append(svg.polygon(_hills(gate['histogram'], x, foot, 26), 'band c1'))
    parts.append(svg.line(x(q['0.05']), foot + 5, x(q['0.95']), foot + 5, 'whisker c1'))
    parts.append(svg.line(x(q['0.25']), foot + 5, x(q['0.75']), foot + 5, 'middle c1'))
    told = f'{name}: median {q["0.5"]:.3f}, 5 to 95 % {q["0.05"]:.3f} to {q["0.95"]:.3f}'
    parts.append(svg.marker('circle', x(q['0.5']), foot + 5, 4, 'fill c1', told))
  return svg.picture(parts, 'Gates by depth', width, height, kind)


def _hills(histogram: Sequence[int], x: svg.Scale, foot: float, size: float):
  """Outline of a histogram over [0, 1], in bins of 0.02."""
  by = len(histogram) // 50
  bins = [sum(histogram[k : k + by]) for k in range(0, len(histogram), by)]
  top, points = max(bins) or 1, [(x.start, foot)]
  for k, count in enumerate(bins):
    edges = [min(max(e / 50, x.low), x.high) for e in (k, k + 1)]
    points += [(x(e), foot - size * count / top) for e in edges]
  return [*points, (x.end, foot)]


def lines(
  series: dict[str, list[tuple[int, float]]],
  looks: dict[str, Look],
  names: Sequence[str],
  said: str,
  zero: bool = True,
) -> str:
  """Figures by site; the head's read stands last.

  Args:
    names: of the sites, for those who rest a pointer on a mark.
    zero: whether the axis begins at 0.
  """
  width, height, left, floor = 420, 230, 46, 200
  values = [y for points in series.values() for _, y in points]
  low, high = min([0.0, *values] if zero else values), max(values)
  pad = 0.06 * ((high - low) or abs(high) or 1.0)
  y = svg.Scale(low if zero and low == 0 else low - pad, high + pad, floor, 10)
  x = svg.Scale(0, max(1, len(names) - 1), left + 12, width - 16)
  ticks, decimals = svg.round_ticks(y.low, y.high, 5)
  parts = [svg.line(left, y(t), width, y(t), 'grid') for t in ticks]
  parts += [svg.text(left - 6, y(t) + 4, signed(t, f'.{decimals}f'), 'end') for t in ticks]
  every = -(-len(names) // 12)
  for site in range(len(names)):
    head = site == len(names) - 1
    if head or (site % every == 0 and x(len(names) - 1) - x(site) > 34):
      parts.append(svg.text(x(site), floor + 16, 'head' if head else str(site)))
  parts.append(svg.text((left + width) / 2, height - 1, 'site'))
  for name, points in series.items():
    look = looks[name]
    parts.append(svg.polyline([(x(s), y(v)) for s, v in points], f'curve {look.colour}'))
    for site, value in points:
      told = f'{name}, {names[site]}: {value:.4g}'
      mark = svg.marker(look.shape, x(site), y(value), 3.8, f'fill {look.colour}', told)
      parts.append(mark)
  return svg.picture(parts, said, width, height)


def strip(x: svg.Scale, difference: float, half: float, said: str) -> str:
  """A difference with its interval, about the line at 0; ends beyond the scale are arrows."""
  height, parts = 22, []
  parts.append(svg.line(x(0), 0, x(0), height, 'one'))
  ends = []
  for end in (difference - half, difference + half):
    place = x(min(max(end, x.low), x.high))
    ends.append(place)
    if not x.low <= end <= x.high:
      sign = -1 if end < x.low else 1
      tip = [(place - 5 * sign, 7), (place, 11), (place - 5 * sign, 15)]
      parts.append(svg.polyline(tip, 'whisker c1'))
  parts.append(svg.line(ends[0], 11, ends[1], 11, 'whisker c1'))
  if x.low <= difference <= x.high:
    parts.append(svg.marker('circle', x(difference), 11, 4, 'fill c1'))
  return svg.picture(parts, said, x.end + 6, height, 'strip')
