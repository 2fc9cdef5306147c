# SPDX-License-Identifier: Apache-2.0
"""Small pictures as inline SVG. Colours are classes of the page, so that they follow its theme.

All text is escaped. A picture is drawn at the size at which it is shown, about 340 pixels wide.
"""

import dataclasses
import html
import math

WIDTH, HEIGHT = 340, 150
LEFT, RIGHT, TOP, BOTTOM = 38, 8, 8, 30
LABEL_WIDTH = 6.2  # of a character, about
MOST_TICKS = 5
LONGEST = 8  # characters of a label
PLACES = 10


def compact(value: float) -> str:
  """1, 10, 1k, 2.5M."""
  for size, unit in ((1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
    if value >= size:
      return f'{value / size:.3g}{unit}'
  return f'{value:.3g}'


def linear_ticks(high: float) -> list[float]:
  """0 and a few round numbers up to `high` > 0."""
  step = 10.0 ** math.floor(math.log10(high / MOST_TICKS))
  step *= next(k for k in (1, 2, 5, 10) if high / (k * step) <= MOST_TICKS + 1e-9)
  return [k * step for k in range(int(high / step + 1e-9) + 1)]


def decades(high: float) -> list[int]:
  """Powers of ten from 1 to beyond `high`, not more than a handful."""
  last = max(1, math.ceil(math.log10(max(high, 1)) - 1e-9))
  step = -(-last // 5)
  return [10**k for k in range(0, last + step, step)]


def text(x: float, y: float, said: str, anchor: str = 'middle', kind: str = '') -> str:
  """A label; `anchor` is start, middle or end."""
  place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
  return f'<text {place} class="{kind}">{html.escape(said)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
  """A straight line."""
  return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def picture(parts: list[str], said: str, width: int = WIDTH, height: int = HEIGHT) -> str:
  """An SVG element of these parts; `said` is for those who cannot see it."""
  return (
    f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(said)}">'
    f'{"".join(parts)}</svg>'
  )


@dataclasses.dataclass(frozen=True)
class Scale:
  """Values to pixels, linear or logarithmic."""

  low: float
  high: float
  start: float
  end: float
  log: bool = False

  def __call__(self, value: float) -> float:
    low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
    value = math.log(value) if self.log else value
    return self.start + (self.end - self.start) * (value - low) / (high - low)


def _levels(ticks, scale: Scale, label) -> list[str]:
  parts = []
  for tick in ticks:
    parts.append(line(LEFT, scale(tick), WIDTH - RIGHT, scale(tick), 'grid'))
    parts.append(text(LEFT - 5, scale(tick) + 3.5, label(tick), 'end'))
  return parts


def rank_frequency(points: list[list[int]], most_ids: int, most_rows: int) -> str:
  """Rows of an id by its rank, both logarithmic; the axes hold `most_ids` and `most_rows`."""
  ranks, rows = decades(most_ids), decades(most_rows)
  x = Scale(1, ranks[-1], LEFT, WIDTH - RIGHT, log=True)
  y = Scale(1, rows[-1], HEIGHT - BOTTOM, TOP, log=True)
  parts = _levels(rows, y, compact)
  for tick in ranks:
    anchor = 'end' if tick == ranks[-1] else 'middle'
    parts.append(text(x(tick) + (3 if anchor == 'end' else 0), HEIGHT - 16, compact(tick), anchor))
  parts.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 3, 'rank of the id', kind='axis'))
  path = ' '.join(f'{x(rank):.1f},{y(count):.1f}' for rank, count in points)
  if len(points) > 1:
    parts.append(f'<polyline points="{path}" class="curve"/>')
  for rank, count in (points[0], points[-1]) if points else ():
    parts.append(f'<circle cx="{x(rank):.1f}" cy="{y(count):.1f}" r="2.5" class="dot"/>')
  return picture(parts, 'rows of each id by rank, logarithmic')


def _labels(labels: list[str], x: Scale) -> list[str]:
  """Labels below places 0, 1, ...: all that fit, at equal distances."""
  labels = [label if len(label) <= LONGEST else label[: LONGEST - 1] + '…' for label in labels]
  space = (WIDTH - LEFT - RIGHT) / len(labels)
  every = math.ceil((max(map(len, labels)) * LABEL_WIDTH + 4) / space)
  return [text(x(k + 0.5), HEIGHT - 16, label) for k, label in enumerate(labels) if k % every == 0]


def click_rates(
  points: list[dict], mean: float, highest: float, said: str, places: list[int] | None = None
) -> str:
  """Click rates with 95 % intervals, cut off at `highest` (hollow dots), and the mean.

  Args:
    places: where the points stand, of PLACES; None: side by side, each with its label.
  """
  labels = [str(k + 1) for k in range(PLACES)] if places else [p['label'] for p in points]
  x = Scale(0, max(1, len(labels)), LEFT, WIDTH - RIGHT)
  y = Scale(0, highest, HEIGHT - BOTTOM, TOP)
  parts = _levels(linear_ticks(highest), y, lambda tick: f'{round(100 * tick, 6):g} %')
  parts.append(line(LEFT, y(mean), WIDTH - RIGHT, y(mean), 'mean'))
  for k, point in zip(places or range(len(points)), points, strict=True):
    low, high = min(point['low'], highest), min(point['high'], highest)
    parts.append(line(x(k + 0.5), y(low), x(k + 0.5), y(high), 'interval'))
    kind = 'dot' if point['click_rate'] <= highest else 'beyond'
    centre = f'cx="{x(k + 0.5):.1f}" cy="{y(min(point["click_rate"], highest)):.1f}"'
    parts.append(f'<circle {centre} r="3" class="{kind}"/>')
  if labels:
    parts += _labels(labels, x)
  parts.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 3, said, kind='axis'))
  return picture(parts, f'click rate by {said}')


def coverage(known: float, missing: float, unknown: float) -> str:
  """One bar of three shares."""
  parts, start = [], 0.0
  for share, kind in ((known, 'known'), (missing, 'missing'), (unknown, 'unknown')):
    width = WIDTH * share
    if share > 0:
      # A share too small to be seen is shown as a hair.
      shown = max(width, 1.5)
      left = min(start, WIDTH - shown)
      parts.append(f'<rect x="{left:.1f}" y="0" width="{shown:.1f}" height="9" class="{kind}"/>')
    start += width
  return picture(parts, 'shares of known, missing and unknown values', height=9)


def bars(labels: list[str], values: list[float], label, said: str) -> str:
  """Bars from 0; `label` makes a tick of the vertical axis."""
  highest = max([*values, 1e-9]) * 1.05
  x = Scale(0, max(1, len(values)), LEFT, WIDTH - RIGHT)
  y = Scale(0, highest, HEIGHT - BOTTOM, TOP)
  parts = _levels(linear_ticks(highest), y, label)
  gap = 0.1 if len(values) > 1 else 0.4
  for k, value in enumerate(values):
    left, right = x(k + gap), x(k + 1 - gap)
    parts.append(
      f'<rect x="{left:.1f}" y="{y(value):.1f}" width="{right - left:.1f}" '
      f'height="{y(0) - y(value):.1f}" class="known"/>'
    )
  if values:
    parts += _labels(labels, x)
  parts.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 3, said, kind='axis'))
  return picture(parts, said)
