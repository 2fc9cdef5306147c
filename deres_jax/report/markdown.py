# SPDX-License-Identifier: Apache-2.0
"""Figures, intervals and tables as Markdown. AUC differences are in units of 0.0001."""

from typing import Any

import jinja2

from deres_jax.report import wording

UNIT = 1e-4


def number(value: float, half: float | None = None, sign: bool = True) -> str:
  """Returns an AUC difference in units of 0.0001, with fewer decimals the larger its scale."""
  x = value / UNIT
  scale = abs(x) if half is None else half / UNIT
  digits = 2 if scale < 3 else 1 if scale < 100 else 0
  return f'{x:+.{digits}f}' if sign else f'{x:.{digits}f}'


def interval(x: dict[str, Any]) -> str:
  """Returns '+1.2 [-0.5, +2.9]'."""
  if x['difference'] is None:
    return 'no pairs'
  if x['low'] is None:
    return f'{number(x["difference"])} (one seed)'
  half = (x['high'] - x['low']) / 2
  mean, low, high = (number(x[k], half) for k in ('difference', 'low', 'high'))
  return f'{mean} [{low}, {high}]'


def half(half_width: float | None) -> str:
  """Returns half the width of an interval, or nothing."""
  return '' if half_width is None else number(half_width, sign=False)


def profile(x: dict[str, Any], scale: float = 1.0) -> str:
  """Returns an interval of fit.json times `scale`, as '1.66 [1.5, 1.8]'."""
  if x['estimate'] is None and x['low_open'] and x['high_open']:
    return 'not bounded'
  ends = {k: x[k] and scale * x[k] for k in ('estimate', 'low', 'high')}
  return wording.interval({**x, **ends}, '.3g')


def cell(text: Any) -> str:
  """Escapes text for a cell or a line: it starts no other cell, line or tag."""
  line = ' '.join(str(text).split())
  for sign in ('\\', '|', '`'):
    line = line.replace(sign, f'\\{sign}')
  return line.replace('<', '&lt;')


def table(head: list[Any], rows: list[list[Any]], left: int = 1) -> list[str]:
  """Returns the lines of a table, the first `left` columns aligned left, the others right."""
  rule = '|' + ' --- |' * left + ' ---: |' * (len(head) - left)
  lines = ['| ' + ' | '.join(map(cell, x)) + ' |' for x in [head, *rows]]
  return [lines[0], rule, *lines[1:]]


def render(package: str, template: str, values: dict[str, Any]) -> str:
  """Returns the text that a template in a package's folder `templates` makes of values."""
  pages = jinja2.Environment(
    loader=jinja2.PackageLoader(package),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
  )
  pages.filters.update(cell=cell, thousands='{:,}'.format, profile=wording.interval)
  pages.filters.update(pad=lambda x, width: str(x).ljust(width), optional=wording.optional)
  return pages.get_template(template).render(values)
