# SPDX-License-Identifier: Apache-2.0
"""Parts of inline SVG pictures. Colours are classes of the page, so that they follow its theme.

All text is escaped. Coordinates have two decimals: 0.01 px is beyond what an eye or a screen tells.
"""

import dataclasses
import html
import math
from collections.abc import Sequence

_MOST_TICKS = 6


_SUPERSCRIPT = str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹')


# Filled outlines about (0, 0), all of about the area of a circle of radius 1.
SHAPES = {
  'circle': 'M-1 0a1 1 0 1 0 2 0a1 1 0 1 0-2 0z',
  'square': 'M-.9-.9H.9V.9H-.9z',
  'triangle': 'M0-1.25L1.2.85H-1.2z',
  'diamond': 'M0-1.3L1.3 0L0 1.3L-1.3 0z',
  'plus': 'M-.45-1.2H.45V-.45H1.2V.45H.45V1.2H-.45V.45H-1.2V-.45H-.45z',
  'triangle down': 'M0 1.25L1.2-.85H-1.2z',
  'star': 'M0-1.45L.4-.45L1.4-.42L.62.22L.88 1.2L0 .62L-.88 1.2L-.62.22L-1.4-.42L-.4-.45z',
  'cross': 'M-1.15-.6L-.6-1.15L0-.55L.6-1.15L1.15-.6L.55 0L1.15.6L.6 1.15L0 .55L-.6 1.15L-1.15.6'
  'L-.55 0z',
}


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


def round_ticks(low: float, high: float, most: int = _MOST_TICKS) -> tuple[list[float], int]:
  """Multiples of 1, 2 or 5 times a power of ten in [low, high], and the decimals they need."""
  power = math.floor(math.log10((high - low) / most))
  step = next(
    k * 10.0**power for k in (1, 2, 5, 10, 20) if (high - low) / (k * 10.0**power) <= most
  )
  decimals = max(0, -math.floor(math.log10(step) + 1e-9))
  first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
  return [round(k * step, decimals) for k in range(first, last + 1)], decimals


def log_ticks(low: float, high: float, most: int = 7) -> tuple[list[float], list[float]]:
  """Ticks with a label and ticks without in [low, high] > 0, round on a logarithmic axis."""
  powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)

  def inside(digits: Sequence[int], every: int = 1) -> list[float]:
    some = [float(f'{k}e{p}') for p in powers if p % every == 0 for k in digits]
    return [x for x in some if low * (1 - 1e-9) <= x <= high * (1 + 1e-9)]

  small = inside(range(1, 10))
  for digits in (range(1, 10), (1, 2, 3, 5), (1, 2, 5), (1, 3)):
    if 2 < len(inside(digits)) <= most:
      return inside(digits), small
  if len(small) < 3:
    return round_ticks(low, high)[0], []
  every = next(k for k in range(1, 400) if len(inside((1,), k)) <= most)
  return inside((1,), every), small if every == 1 else inside((1,))


def compact(value: float) -> str:
  """1, 20k, 2.5M, 3G, 4T, 5·10¹⁵."""
  if value >= 1e15:
    power = math.floor(math.log10(value) + 1e-12)
    digits = f'{value / 10.0**power:.3g}'
    return ('' if digits == '1' else f'{digits}·') + f'10{str(power).translate(_SUPERSCRIPT)}'
  for size, unit in ((1e12, 'T'), (1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
    if value >= size:
      return f'{value / size:.3g}{unit}'
  return f'{value:.3g}'


def _title(said: str) -> str:
  return f'<title>{html.escape(said)}</title>' if said else ''


def text(x: float, y: float, said: str, anchor: str = 'middle', kind: str = '') -> str:
  """A label; `anchor` is start, middle or end."""
  place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
  return f'<text {place} class="{kind}">{html.escape(said)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
  """A straight line."""
  return f'<line x1="{x1:.2f}" y1="{y1:.2f}" x2="{x2:.2f}" y2="{y2:.2f}" class="{kind}"/>'


def _path(points: Sequence[tuple[float, float]]) -> str:
  return ' '.join(f'{x:.2f},{y:.2f}' for x, y in points)


def polyline(points: Sequence[tuple[float, float]], kind: str) -> str:
  """A line through points."""
  return f'<polyline points="{_path(points)}" class="{kind}"/>'


def polygon(points: Sequence[tuple[float, float]], kind: str) -> str:
  """An area."""
  return f'<polygon points="{_path(points)}" class="{kind}"/>'


def marker(shape: str, x: float, y: float, radius: float, kind: str, said: str = '') -> str:
  """One of SHAPES about a point; `said` is shown when a pointer rests on it."""
  place = f'transform="translate({x:.2f} {y:.2f}) scale({radius:g})"'
  return f'<path d="{SHAPES[shape]}" {place} class="{kind}">{_title(said)}</path>'


def group(parts: Sequence[str], kind: str = '', clip: str = '') -> str:
  """Parts with a class in common, cut off outside the clip of this id."""
  cut = f' clip-path="url(#{clip})"' if clip else ''
  return f'<g class="{kind}"{cut}>{"".join(parts)}</g>'


def clip(id: str, left: float, top: float, right: float, bottom: float) -> str:
  """A rectangle to cut groups off at."""
  size = f'width="{right - left:g}" height="{bottom - top:g}"'
  return f'<clipPath id="{id}"><rect x="{left:g}" y="{top:g}" {size}/></clipPath>'


def picture(parts: Sequence[str], said: str, width: float, height: float, kind: str = '') -> str:
  """An SVG element of these parts; `said` is for those who cannot see it."""
  return (
    f'<svg viewBox="0 0 {width:g} {height:g}" class="{kind}" role="img" '
    f'aria-label="{html.escape(said)}">{"".join(parts)}</svg>'
  )


@dataclasses.dataclass(frozen=True)
class Look:
  """How a curve is told from others: by a colour and by a shape."""

  colour: str
  shape: str


def mark(look: Look) -> str:
  """The marker of a curve, to stand in text."""
  inner = marker(look.shape, 7, 7, 4.6, f'fill {look.colour}')
  return f'<svg viewBox="0 0 14 14" class="mark" aria-hidden="true">{inner}</svg>'


def key(all_looks: dict[str, Look], kind: str = '') -> str:
  """The legend."""
  items = ''.join(
    f'<li>{mark(look)}<span>{html.escape(name)}</span></li>' for name, look in all_looks.items()
  )
  return f'<ul class="key {kind}">{items}</ul>'
