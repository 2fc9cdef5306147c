# SPDX-License-Identifier: Apache-2.0
"""Figures, intervals and tables as Markdown. AUC differences are in units of 0.0001."""

from typing import Any

import jinja2

from deres_jax.report import wording

UNIT = 1e-4


def number(value: float, half: float | None = None, sign: bool = True) -> str:
  """An AUC difference in units of 0.0001; two decimals where the interval or the value is small."""
  x = value / UNIT
  scale = abs(x) if half is None else half / UNIT
  digits = 2 if scale < 3 else 1 if scale < 100 else 0
  return f'{x:+.{digits}f}' if sign else f'{x:.{digits}f}'


def interval(x: dict[str, Any]) -> str:
  """Formats a figure and its interval: '+1.2 [-0.5, +2.9]'."""
  if x['difference'] is None:
    return 'no pairs'
  if x['low'] is None:
    return f'{number(x["difference"])} (one seed)'
  half = (x['high'] - x['low']) / 2
  mean, low, high = (number(x[k], half) for k in ('difference', 'low', 'high'))
  return f'{mean} [{low}, {high}]'


def half(half_width: float | None) -> str:
  """Half the width of an interval, or nothing."""
  return '' if half_width is None else number(half_width, sign=False)


def profile(x: dict[str, Any], scale: float = 1.0) -> str:
  """Formats an interval of fit.json, times `scale`: '1.66 [1.5, 1.8]'."""
  if x['estimate'] is None and x['low_open'] and x['high_open']:
    return 'not bounded'
  ends = {k: x[k] and scale * x[k] for k in ('estimate', 'low', 'high')}
  return wording.interval({**x, **ends}, '.3g')


def cell(text: Any) -> str:
  """Text of others as it can stand in a line or a table: no new cell, line or tag."""
  one = ' '.join(str(text).split())
  for sign in ('\\', '|', '`'):
    one = one.replace(sign, f'\\{sign}')
  return one.replace('<', '&lt;')


def table(head: list[Any], rows: list[list[Any]], left: int = 1) -> list[str]:
  """Markdown: the first `left` columns to the left, the others to the right."""
  rule = '|' + ' --- |' * left + ' ---: |' * (len(head) - left)
  lines = ['| ' + ' | '.join(map(cell, x)) + ' |' for x in [head, *rows]]
  return [lines[0], rule, *lines[1:]]


def render(package: str, template: str, values: dict[str, Any]) -> str:
  """Returns the Markdown that a template in a package's folder `templates` makes of values."""
  pages = jinja2.Environment(
    loader=jinja2.PackageLoader(package),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
  )
  pages.filters.update(cell=cell, thousands='{:,}'.format)
  return pages.get_template(template).render(values)
