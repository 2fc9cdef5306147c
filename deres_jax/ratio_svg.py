# SPDX-License-Identifier: Apache-2.0
"""Ratios with intervals as strips: one for each curve, all on one logarithmic scale."""

import math
from typing import Any

from deres_jax import svg
from deres_jax.scaling_svg import Look

_WIDEST_RATIO = 6.0
_WIDTH, _HEIGHT = 280, 30


def scale(intervals: list[dict[str, Any]]) -> svg.Scale:
  """Holds 1 and what the intervals span, but for ends that would squash the others."""
  ends = [x[k] for x in intervals for k in ('estimate', 'low', 'high')]
  ends = [min(max(x, 1 / _WIDEST_RATIO), _WIDEST_RATIO) for x in ends if x is not None]
  low, high = min([0.8, *ends]), max([1.25, *ends])
  return svg.Scale(low / 1.06, high * 1.06, 6, _WIDTH - 6, log=True)


def strip(x: svg.Scale, rows: list[tuple[dict[str, Any], str]], look: Look, said: str) -> str:
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
