# SPDX-License-Identifier: Apache-2.0
"""Renders pages from the templates of this room. Every text is escaped unless it is Markup."""

from typing import Any

import jinja2

from deres_jax.report import charts, wording

_PAGES = jinja2.Environment(
  loader=jinja2.PackageLoader('deres_jax.report'),
  autoescape=True,
  undefined=jinja2.StrictUndefined,
  trim_blocks=True,
  lstrip_blocks=True,
  extensions=['jinja2.ext.do'],
)
_PAGES.globals.update(colours=charts.COLOURS, symbol=charts.symbol)
_PAGES.filters.update(compact=wording.compact, interval=wording.interval, number=wording.number)
_PAGES.globals.update(ui=_PAGES.get_template('macros.html').module)


def render(template: str, values: dict[str, Any]) -> str:
  """Returns the page that a template makes of these values."""
  return _PAGES.get_template(template).render(values)
