# SPDX-License-Identifier: Apache-2.0
"""Draws every chart: matplotlib figures, as SVG inside a page and as PDF and PNG beside it.

Lengths are pixels of the page: at 72 dpi a point is a pixel. Equal figures give equal bytes.
"""

import contextlib
import dataclasses
import functools
import io
import math
import pathlib
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from xml.etree import ElementTree

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib import image
from matplotlib.axes import Axes
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.markers import MarkerStyle
from matplotlib.patches import FancyArrowPatch, PathPatch
from matplotlib.ticker import MaxNLocator, NullLocator
from matplotlib.transforms import Affine2D, Transform

from deres_jax.core import files
from deres_jax.core.errors import printable
from deres_jax.report import inline

# A user's matplotlibrc changes no page.
matplotlib.rcdefaults()
matplotlib.rcParams.update({
  'path.simplify': False,
  'pdf.fonttype': 42,
  'svg.fonttype': 'none',
  'svg.hashsalt': 'deres_jax',
  'text.parse_math': False,
})  # fmt: skip

# Name of a CSS variable: the colour in light and in dark mode. Curves have those of Okabe and Ito,
# darker on white and lighter on black, which any colour vision tells apart.
COLOURS = {
  'text': ('#1c2128', '#e4e9ee'),
  'soft': ('#59636e', '#9aa4af'),
  'rule': ('#c9d0d7', '#3a424b'),
  'grid': ('#e9edf1', '#232930'),
  'page': ('#ffffff', '#0f1318'),
  'panel': ('#f6f8fa', '#171c22'),
  'c0': ('#47515c', '#b4bdc7'),
  'c1': ('#0072b2', '#4aa8e8'),
  'c2': ('#cc4e00', '#ff8a4a'),
  'c3': ('#00805d', '#2fc79c'),
  'c4': ('#b04a8b', '#e48cc4'),
  'c5': ('#8a6a00', '#dcb13c'),
  'c6': ('#2f93cf', '#93d3f7'),
}
_VARIABLES = {light: f'var(--{name})' for name, (light, _) in COLOURS.items()}

SHAPES = 'os^DPv*X'  # matplotlib's markers
CURVE_COLOURS = [name for name in COLOURS if re.fullmatch(r'c\d', name)]
_PNG_DPI, _SHEET_WIDTH = 144, 2200


@dataclasses.dataclass(frozen=True)
class Look:
  """The colour (a name in COLOURS) and the marker of a curve."""

  colour: str
  shape: str


def looks(names: Sequence[str]) -> dict[str, Look]:
  """Returns a look for each name; up to 56 names differ."""
  return {
    name: Look(CURVE_COLOURS[i % len(CURVE_COLOURS)], SHAPES[i % len(SHAPES)])
    for i, name in enumerate(names)
  }


def paint(name: str) -> str:
  """Returns the light colour of this name; `svg` replaces it by the CSS variable."""
  return COLOURS[name][0]


def tag(kind: str, tip: str = '') -> str:
  """Returns a gid that `svg` turns into a class and a tool tip."""
  return f'{kind}:{printable(tip)}'


# Ticks.


def round_ticks(low: float, high: float, most: int = 6) -> tuple[list[float], list[str]]:
  """Returns multiples of 1, 2 or 5 times a power of ten in [low, high], and their labels."""
  values = MaxNLocator(most, steps=[1, 2, 5, 10]).tick_values(low, high)
  decimals = max(0, -math.floor(math.log10(values[1] - values[0]) + 1e-9))
  room = 1e-9 * (high - low)
  ticks = [round(float(x), decimals) for x in values if low - room <= x <= high + room]
  return ticks, [f'{x:.{decimals}f}' for x in ticks]


def log_ticks(low: float, high: float, most: int = 7) -> tuple[list[float], list[float]]:
  """Returns major and minor ticks in [low, high], low > 0, for a logarithmic axis."""
  powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)

  def inside(digits: Sequence[int], every: int = 1) -> list[float]:
    values = [float(f'{k}e{p}') for p in powers if p % every == 0 for k in digits]
    return [x for x in values if low * (1 - 1e-9) <= x <= high * (1 + 1e-9)]

  minor = inside(range(1, 10))
  for digits in (range(1, 10), (1, 2, 3, 5), (1, 2, 5), (1, 3)):
    if 2 < len(inside(digits)) <= most:
      return inside(digits), minor
  if len(minor) < 3:
    return round_ticks(low, high)[0], []
  every = next(k for k in range(1, 400) if len(inside((1,), k)) <= most)
  return inside((1,), every), minor if every == 1 else inside((1,))


# Parts of a figure.


def axes(
  width: float, height: float, left: float = 0, top: float = 0, right: float = 0,
  bottom: float = 0, figure: Figure | None = None,
) -> Axes:  # fmt: skip
  """Returns bare axes with these margins, in a new figure of this size unless one is given."""
  figure = figure or Figure((width / 72, height / 72), dpi=72, facecolor='none')
  share = (left / width, bottom / height, 1 - (left + right) / width, 1 - (top + bottom) / height)
  ax = figure.add_axes(share)
  ax.patch.set_visible(False)
  ax.spines[:].set_visible(False)
  ax.spines['bottom'].set_color(paint('rule'))
  ax.tick_params(length=0, labelsize=12, labelcolor=paint('soft'), color=paint('rule'), width=1)
  ax.set(xticks=[], yticks=[], axisbelow=True)
  return ax


def limits(ax: Axes, low: float, high: float, log: bool = False, room: float = 0.05):
  """Sets the horizontal range, with room at both ends."""
  if low == high:
    low, high = (low / 2, high * 2) if log else (low - 1, high + 1)
  if log:
    ax.set_xscale('log')
    ax.xaxis.set(major_locator=NullLocator(), minor_locator=NullLocator())
    margin = (high / low) ** room
    ax.set_xlim(low / margin, high * margin)
  else:
    ax.set_xlim(low - room * (high - low), high + room * (high - low))


def x_ticks(ax: Axes, ticks: Sequence[float], labels: Sequence[str], minor: Sequence[float] = ()):
  """Draws the horizontal axis: a rule with ticks and labels below it."""
  ax.spines['bottom'].set_visible(True)
  for tick in ax.set_xticks(ticks, list(map(printable, labels))):
    tick.label1.set_gid(tag('x'))
  ax.set_xticks(minor, [''] * len(minor), minor=True)
  ax.tick_params('x', length=6)
  ax.tick_params('x', which='minor', length=3, color=paint('rule'), width=1)


def y_ticks(ax: Axes, ticks: Sequence[float], labels: Sequence[str]):
  """Draws the vertical axis: labelled grid lines."""
  ax.grid(axis='y', color=paint('grid'), linewidth=1)
  for tick in ax.set_yticks(ticks, labels):
    tick.label1.set_gid(tag('y'))
    tick.gridline.set_gid(tag('grid'))


def label(
  ax: Axes, words: str, at: tuple[float, float], offset: tuple[float, float] = (0, 0),
  ha: str = 'left', va: str = 'baseline', coords: str | Transform = 'data', colour: str = 'soft',
  size: float = 12, bold: bool = False, rotation: float = 0, kind: str = 'label',
  leader: bool = False,
):  # fmt: skip
  """Writes words at a point of the axes, moved by an offset in pixels (right, up).

  Args:
    coords: of the point, in matplotlib's terms.
    leader: whether a thin line leads to the point.
  """
  line = dict(arrowstyle='-', color=paint(colour), alpha=0.5, shrinkA=0, shrinkB=5, relpos=(0, 0.5))
  ax.annotate(
    printable(words), at, offset, coords, 'offset points', line if leader else None,
    annotation_clip=False, ha=ha, va=va, color=paint(colour), fontsize=size,
    fontweight='bold' if bold else 'normal', rotation=rotation, gid=tag(kind),
  )  # fmt: skip


def axis_names(ax: Axes, x: str = '', y: str = '', below: float = 40):
  """Writes the names of the axes: `below` the right end, and above the vertical axis."""
  if x:
    label(ax, x, (1, 0), (0, -below), ha='right', coords='axes fraction', kind='axis')
  if y:
    left = -72 * ax.figure.get_figwidth() * ax.get_position().x0
    label(ax, y, (0, 1), (left, 14), coords='axes fraction', kind='axis')


def mark(
  ax: Axes, x: float, y: float, look: Look, radius: float, kind: str, tip: str = '',
  hollow: bool = False,
):  # fmt: skip
  """Draws the marker of a look; the tip is shown when a pointer rests on it."""
  colour = paint(look.colour)
  size = 2 * radius * (0.9 if look.shape in 'sD' else 1.1)
  face, edge = (paint('page'), 1.4) if hollow else (colour, 0)
  ax.plot(
    [x], [y], look.shape, color=colour, markersize=size, markerfacecolor=face,
    markeredgewidth=edge, clip_on=False, zorder=4 if hollow else 5, gid=tag(kind, tip),
  )  # fmt: skip


def whisker(
  ax: Axes, y: float, ends: tuple[float | None, float | None], look: Look, width: float = 2,
  arrows: tuple[bool, bool] = (False, False),
):  # fmt: skip
  """Draws a horizontal interval; None is infinite, and an end beyond the axis becomes an arrow."""
  to_share = ax.transScale + ax.transLimits
  shares = [
    infinite if end is None else to_share.transform((end, y))[0]
    for end, infinite in zip(ends, (-math.inf, math.inf), strict=True)
  ]
  left, right = (min(max(share, 0), 1) for share in shares)
  heads = arrows[0] or shares[0] < 0, arrows[1] or shares[1] > 1
  if left == right:  # all of it lies beyond the axis
    heads = left == 0, left == 1
    left, right = left - 0.03 * heads[1], right + 0.03 * heads[0]
  ax.add_patch(
    FancyArrowPatch(
      (left, y), (right, y), arrowstyle=f'{"<" if heads[0] else ""}-{">" if heads[1] else ""}',
      mutation_scale=9, linewidth=width, color=paint(look.colour), shrinkA=0, shrinkB=0,
      clip_on=False, transform=ax.get_yaxis_transform(), gid=tag('whisker'),
    )
  )  # fmt: skip


def legend(figure: Figure, all_looks: Mapping[str, Look]) -> Figure:
  """Returns the figure with a legend below it; a page has its own."""
  handles = [
    Line2D([], [], color=paint(look.colour), marker=look.shape, label=printable(name))
    for name, look in all_looks.items()
  ]
  figure.legend(
    handles=handles, loc='upper center', bbox_to_anchor=(0.5, 0), ncols=4, frameon=False,
    labelcolor=paint('text'), fontsize=12,
  )  # fmt: skip
  return figure


# Output.


@contextlib.contextmanager
def _missing_glyphs_allowed() -> Iterator[None]:
  """A name may have letters that matplotlib's font lacks; a browser has them."""
  with warnings.catch_warnings():
    warnings.filterwarnings('ignore', 'Glyph')
    yield


def svg(
  figure: Figure, name: str, description: str, kind: str = '', full_size: bool = False
) -> Markup:
  """Returns the figure as an SVG element whose colours are CSS variables.

  Args:
    name: begins every id in the element, so it must be unique on the page.
    description: is read to those who cannot see the chart.
    full_size: whether the chart keeps its size; others fill the width of the page.
  """
  text = io.StringIO()
  with _missing_glyphs_allowed():
    figure.savefig(
      text, format='svg', metadata=dict.fromkeys(('Creator', 'Date', 'Format', 'Type'))
    )
  root = inline.element(text.getvalue(), name, _VARIABLES)
  root.attrib = {
    'viewBox': root.attrib['viewBox'],
    'class': f'chart {kind}'.strip(),
    'role': 'img',
    'aria-label': printable(description),
  }
  if full_size:
    root.set('style', f'width:{72 * figure.get_figwidth():.0f}px')
  return Markup(ElementTree.tostring(root, encoding='unicode'))


@functools.cache
def symbol(look: Look) -> Markup:
  """Returns the marker of a look as an SVG element to stand in text."""
  ax = axes(14, 14)
  ax.set(xlim=(-7, 7), ylim=(-7, 7))
  style = MarkerStyle(look.shape)
  path = style.get_path().transformed(style.get_transform() + Affine2D().scale(9.5))
  ax.add_patch(PathPatch(path, facecolor=paint(look.colour), linewidth=0, clip_on=False))
  element = svg(ax.figure, 'symbol', '', 'mark')
  return Markup(element.replace('role="img" aria-label=""', 'aria-hidden="true"'))


def save(page: pathlib.Path, figures: Mapping[str, Figure]):
  """Writes figures, by their titles, beside a page: a PDF of a page each, and all as one PNG."""
  images = []
  with (
    _missing_glyphs_allowed(),
    files.replacing(page.with_suffix('.pdf')) as partial,
    PdfPages(partial, metadata={'CreationDate': None}) as pdf,
  ):
    for title, figure in figures.items():
      heading = figure.text(0.5, 1, printable(title), ha='center', va='bottom', color=paint('text'))
      box, pixels = figure.get_tightbbox().padded(0.15), io.BytesIO()
      pdf.savefig(figure, facecolor='white', bbox_inches=box)
      quick = {'compress_level': 0}
      figure.savefig(pixels, dpi=_PNG_DPI, facecolor='white', bbox_inches=box, pil_kwargs=quick)
      heading.remove()
      images.append(image.imread(io.BytesIO(pixels.getvalue()))[..., :3])
  with files.replacing(page.with_suffix('.png')) as partial:
    image.imsave(partial, _sheet(images), format='png')


def _sheet(images: Sequence[np.ndarray]) -> np.ndarray:
  """Returns images in rows on white, as many beside each other as fit."""
  width = max(_SHEET_WIDTH, *(x.shape[1] for x in images))
  places, left, top, height = [], 0, 0, 0
  for x in images:
    if left + x.shape[1] > width:
      left, top, height = 0, top + height, 0
    places.append((top, left))
    left, height = left + x.shape[1], max(height, x.shape[0])
  sheet = np.ones((top + height, width if top else left, 3), np.float32)
  for x, (top, left) in zip(images, places, strict=True):
    sheet[top : top + x.shape[0], left : left + x.shape[1]] = x
  return sheet
