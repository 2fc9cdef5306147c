# SPDX-License-Identifier: Apache-2.0
"""The pictures of a page of scaling laws, from the content of fit.json."""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

from deres_jax.report import svg, wording

COLOURS = 7  # classes c0 to c6 of the page


_CHARACTER = 8.3  # px of a label's letter, about


_WIDEST_LABEL = 190


_GAP, _MOST_SHIFT = 15, 22  # px between labels at line ends, and from a label to its line's end


def looks(c: dict[str, Any]) -> dict[str, svg.Look]:
  """A look for every curve, the reference first."""
  names = [x['curve'] for x in c['laws']['saturating']['curves']]
  names.sort(key=lambda name: name != c['reference'])
  shapes = list(svg.SHAPES)
  return {
    name: svg.Look(f'c{i % COLOURS}', shapes[i % len(shapes)]) for i, name in enumerate(names)
  }  # fmt: skip


# Axes.


@dataclasses.dataclass(frozen=True)
class Frame:
  """Size of a picture and the margins of what is drawn."""

  width: int
  height: int
  right: int = 14
  left: int = 56
  top: int = 26
  bottom: int = 46

  @property
  def end(self) -> int:
    return self.width - self.right

  @property
  def floor(self) -> int:
    return self.height - self.bottom

  def x(self, low: float, high: float, log: bool) -> svg.Scale:
    """A horizontal scale with some room at both ends."""
    if low == high:
      low, high = (low / 2, high * 2) if log else (low - 1, high + 1)
    if log:
      room = (high / low) ** 0.035
      return svg.Scale(low / room, high * room, self.left, self.end, log=True)
    room = 0.05 * (high - low)
    return svg.Scale(low - room, high + room, self.left, self.end)

  def y(self, values: list[float]) -> svg.Scale:
    """A vertical scale for AUCs with some room at both ends."""
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or 0.001
    return svg.Scale(low - room, high + room, self.floor, self.top)


def _auc_axis(f: Frame, y: svg.Scale) -> list[str]:
  ticks, decimals = svg.round_ticks(y.low, y.high, f.height // 50)
  parts = [svg.text(0, 12, 'AUC, test split', 'start', 'axis')]
  for tick in ticks:
    parts.append(svg.line(f.left, y(tick), f.end, y(tick), 'grid'))
    parts.append(svg.text(f.left - 8, y(tick) + 4, f'{tick:.{decimals}f}', 'end', 'y'))
  return parts


def _floor(f: Frame, x: svg.Scale, major: list[float], minor: list[float], said: str) -> list[str]:
  parts = [svg.line(f.left, f.floor, f.end, f.floor, 'rule')]
  parts += [svg.line(x(t), f.floor, x(t), f.floor + 3, 'rule') for t in minor]
  for tick in major:
    parts.append(svg.line(x(tick), f.floor, x(tick), f.floor + 6, 'rule'))
    parts.append(svg.text(x(tick), f.floor + 19, svg.compact(tick), kind='x'))
  parts.append(svg.text(f.end, f.height - 5, said, 'end', 'axis'))
  return parts


# Runs.


def _run_title(point: dict[str, Any], run: dict[str, Any]) -> str:
  return f'{point["curve"]}, {point["size"]}, seed {run["seed"]}: AUC {run["auc"]:.5f}'


def _dots(
  c: dict[str, Any],
  all_looks: dict[str, svg.Look],
  x: Callable[[dict[str, Any]], float],
  y: svg.Scale,
) -> list[str]:
  """A small mark for each run and a large one for the mean of a size; `x` places a point."""
  means, runs = [], []
  for point in c['points']:
    look, across = all_looks[point['curve']], x(point)
    if len(point['runs']) > 1:
      title = f'{point["curve"]}, {point["size"]}: mean AUC {point["auc"]:.5f}'
      kind = f'mean {look.colour}'
      means.append(svg.marker(look.shape, across, y(point['auc']), 4.8, kind, title))
    radius = 2.2 if len(point['runs']) > 1 else 3.6
    for run in point['runs']:
      title = _run_title(point, run)
      kind = f'run {look.colour}'
      runs.append(svg.marker(look.shape, across, y(run['auc']), radius, kind, title))
  return means + runs


def _aucs(c: dict[str, Any]) -> list[float]:
  return [run['auc'] for point in c['points'] for run in point['runs']]


# AUC against compute.


def _levels(c: dict[str, Any], values: list[float], bayes_auc: float | None) -> list:
  """Level lines that do not squash what is between the AUCs."""
  room = max(values) + 0.4 * (max(values) - min(values))
  alpha = c['laws']['saturating']['alpha']['estimate']
  wanted = [('best possible (Bayes)', bayes_auc), ('fitted limit α', alpha)]
  return [(said, auc) for said, auc in wanted if auc is not None and max(values) < auc <= room]


def _spread(wanted: list[float], gap: float) -> list[float]:
  """Places near the wanted ones, from top to bottom in their order, at least `gap` apart."""
  order = sorted(range(len(wanted)), key=wanted.__getitem__)
  blocks: list[list] = []  # [mean of the wanted centres, indices]
  for i in order:
    blocks.append([wanted[i], [i]])
    while len(blocks) > 1 and _touch(blocks[-2], blocks[-1], gap):
      (a, above), (b, below) = blocks[-2:]
      n, m = len(above), len(below)
      blocks[-2:] = [[(a * n + b * m) / (n + m), above + below]]
  out = [0.0] * len(wanted)
  for centre, members in blocks:
    for k, i in enumerate(members):
      out[i] = centre + (k - (len(members) - 1) / 2) * gap
  return out


def _touch(a: list, b: list, gap: float) -> bool:
  return b[0] - a[0] < gap * (len(a[1]) + len(b[1])) / 2


def _end_labels(
  lines: list[dict[str, Any]], f: Frame, x: svg.Scale, y: svg.Scale, all_looks: dict[str, svg.Look]
) -> list[str] | None:
  """Names at the ends of the lines; None where they do not fit."""
  ends = [(x(line['compute'][-1]), y(line['auc'][-1])) for line in lines]
  widest = max(len(line['curve']) for line in lines) * _CHARACTER
  if widest > _WIDEST_LABEL or min(end for end, _ in ends) < f.left + 0.85 * (f.end - f.left):
    return None
  places = _spread([height for _, height in ends], _GAP)
  shifts = [abs(place - height) for place, (_, height) in zip(places, ends, strict=True)]
  if max(shifts) > _MOST_SHIFT or min(places) < f.top - 8 or max(places) > f.floor:
    return None
  parts = []
  for line, (right, height), place in zip(lines, ends, places, strict=True):
    colour = all_looks[line['curve']].colour
    points = [(right + 7, height), (f.end + 2, place), (f.end + 8, place)]
    parts.append(svg.polyline(points, f'leader {colour}'))
    parts.append(svg.text(f.end + 12, place + 4, line['curve'], 'start', f'name {colour}'))
  return parts


def compute(
  c: dict[str, Any], all_looks: dict[str, svg.Look], bayes_auc: float | None, wide: bool
) -> tuple[str, bool]:
  """AUC against C: runs, means, lines and bands; and whether the lines bear their names."""
  lines = c['laws']['saturating']['line']
  widest = min(max(len(line['curve']) for line in lines) * _CHARACTER, _WIDEST_LABEL)
  f = Frame(900, 470, right=int(widest) + 18) if wide else Frame(370, 360, left=50)
  values = _aucs(c) + [auc for line in lines for auc in line['auc']]
  levels = _levels(c, values, bayes_auc)
  y = f.y(values + [auc for _, auc in levels])
  all_compute = [p['compute'] for p in c['points']]

  def scale(frame: Frame) -> svg.Scale:
    return frame.x(min(all_compute), max(all_compute), log=True)

  labels = _end_labels(lines, f, scale(f), y, all_looks) if wide else None
  if wide and not labels:
    f = dataclasses.replace(f, right=14)
  x, id = scale(f), 'wide' if wide else 'narrow'
  parts = [svg.clip(id, f.left, f.top - 8, f.end, f.floor), *_auc_axis(f, y)]
  parts += _floor(f, x, *svg.log_ticks(x.low, x.high), f'{c["compute_unit"]} (logarithmic)')
  for said, auc in levels:
    parts.append(svg.line(f.left, y(auc), f.end, y(auc), 'level'))
    parts.append(svg.text(f.left + 4, y(auc) - 5, f'{said} {auc:.4f}', 'start', 'y'))
  bands, curves = [], []
  for line in lines:
    colour = all_looks[line['curve']].colour
    across = [x(value) for value in line['compute']]
    if line['low'] is not None:
      low = [(a, y(b)) for a, b in zip(across, line['low'], strict=True)]
      high = [(a, y(b)) for a, b in zip(across, line['high'], strict=True)]
      bands.append(svg.polygon(low + high[::-1], f'band {colour}'))
    points = [(a, y(b)) for a, b in zip(across, line['auc'], strict=True)]
    curves.append(svg.polyline(points, f'curve {colour}'))
  parts.append(svg.group(bands, 'bands', id))
  parts.append(svg.group(curves, 'curves', id))
  parts.append(svg.group(_dots(c, all_looks, lambda p: x(p['compute']), y), 'dots'))
  parts += labels or []
  said = (
    f'AUC against compute, logarithmic, with the fitted law of '
    f'{wording.names([line["curve"] for line in lines])}, a mark for every run'
  )
  return svg.picture(parts, said, f.width, f.height, f'{id} by-compute'), bool(labels)


# AUC against parameters and depth.


def joined(c: dict[str, Any], all_looks: dict[str, svg.Look], figure: str) -> str:
  """AUC against 'params' or 'depth': runs, and means joined by width. No law is drawn."""
  f = Frame(410, 340, left=52)
  y = f.y(_aucs(c))
  values = sorted({point[figure] for point in c['points']})
  log = figure == 'params' or values[-1] >= 8 * values[0]
  x = f.x(values[0], values[-1], log)
  names, aside = list(all_looks), 0.0
  if figure == 'depth':  # all curves have the same depths: side by side
    aside = min(6.0, 26 / len(names))
    major, minor = _apart(values, x), []
  else:
    major, minor = svg.log_ticks(x.low, x.high, most=6)

  def place(point: dict[str, Any]) -> float:
    return x(point[figure]) + aside * (names.index(point['curve']) - (len(names) - 1) / 2)

  shown = 'layers' if figure == 'depth' else 'dense parameters'
  said = f'{shown} (logarithmic)' if log else shown
  parts = [*_auc_axis(f, y), *_floor(f, x, major, minor, said)]
  starts: dict[int, tuple[float, float]] = {}
  for (name, dim), some in _by_width(c):
    points = [(place(p), y(p['auc'])) for p in sorted(some, key=lambda p: p[figure])]
    parts.append(svg.polyline(points, f'join {all_looks[name].colour}'))
    starts[dim] = min(points[0], starts.get(dim, points[0]), key=lambda point: point[1])
  parts.append(svg.group(_dots(c, all_looks, place, y), 'dots'))
  if len(starts) > 1:
    parts += [
      svg.text(across - 6, height - 12, f'dim {dim}', 'start', 'width')
      for dim, (across, height) in starts.items()
    ]
  said = f'AUC against {shown}: a mark for every run, means of one width joined'
  return svg.picture(parts, said, f.width, f.height, f'by-{figure}')


def _apart(values: list[float], x: svg.Scale) -> list[float]:
  """Those of the values that are far enough apart to bear a label."""
  out = values[-1:]
  for value in values[-2::-1]:
    if x(out[-1]) - x(value) > 20:
      out.append(value)
  return out[::-1]


def _by_width(c: dict[str, Any]) -> list[tuple[tuple[str, int], list[dict[str, Any]]]]:
  def of(point):
    return point['curve'], point['dim']

  return [(k, list(some)) for k, some in itertools.groupby(sorted(c['points'], key=of), of)]


_WIDEST_RATIO = 6.0


_WIDTH, _HEIGHT = 280, 30


def scale(intervals: list[dict[str, Any]]) -> svg.Scale:
  """Holds 1 and what the intervals span, but for ends that would squash the others."""
  ends = [x[k] for x in intervals for k in ('estimate', 'low', 'high')]
  ends = [min(max(x, 1 / _WIDEST_RATIO), _WIDEST_RATIO) for x in ends if x is not None]
  low, high = min([0.8, *ends]), max([1.25, *ends])
  return svg.Scale(low / 1.06, high * 1.06, 6, _WIDTH - 6, log=True)


def strip(x: svg.Scale, rows: list[tuple[dict[str, Any], str]], look: svg.Look, said: str) -> str:
  """Intervals of one ratio, one below the other, about the line at 1; beyond the scale: arrows."""
  parts = [svg.line(x(1), 0, x(1), _HEIGHT, 'one')]
  for k, (interval, kind) in enumerate(rows):
    middle = _HEIGHT * (k + 0.5) / len(rows)
    ends = []
    for end, sign, name in ((interval['low'], -1, 'low'), (interval['high'], 1, 'high')):
      beyond = end is None or not x.low <= max(end, 1e-300) <= x.high
      place = (x.start if sign < 0 else x.end) if beyond else x(end)
      ends.append(place)
      if beyond or interval[f'{name}_open']:
        tip = [(place - 5 * sign, middle - 4), (place, middle), (place - 5 * sign, middle + 4)]
        parts.append(svg.polyline(tip, f'whisker {kind} {look.colour}'))
    parts.append(svg.line(ends[0], middle, ends[1], middle, f'whisker {kind} {look.colour}'))
    estimate = interval['estimate']
    if estimate is not None and x.low <= estimate <= x.high:
      shape = f'{kind} {look.colour}'
      parts.append(svg.marker(look.shape, x(estimate), middle, 3.9, shape))
  return svg.picture(parts, said, _WIDTH, _HEIGHT, 'strip')


def axis(x: svg.Scale) -> str:
  """Ticks below the strips."""
  ticks = [t for t in (0.2, 0.5, 1, 1.5, 2, 3, 5) if x.low <= t <= x.high]
  if len(ticks) < 3:
    ticks = [t for t in (0.8, 0.9, 1, 1.1, 1.2, 1.3, 1.4, 1.5) if x.low <= t <= x.high]
  kept = [1.0]
  for tick in sorted(ticks, key=lambda t: abs(math.log(t))):
    if all(abs(x(tick) - x(other)) > 26 for other in kept):
      kept.append(tick)
  parts = [svg.line(x.start, 1, x.end, 1, 'rule')]
  for tick in sorted(kept):
    parts.append(svg.line(x(tick), 1, x(tick), 6, 'rule'))
    parts.append(svg.text(x(tick), 18, f'{tick:g}', kind='x'))
  return svg.picture(parts, 'scale of the ratios', _WIDTH, 22, 'strip')
