# SPDX-License-Identifier: Apache-2.0
"""HTML that is escaped once: cells and tables."""

import html
from collections.abc import Sequence


class Html(str):
  """Text that is HTML already."""


def cell(x: str) -> str:
  """The HTML of a cell's content."""
  return x if isinstance(x, Html) else html.escape(x)


def table(
  head: Sequence[str | tuple[str, int]],
  rows: Sequence[Sequence[str]],
  said: str,
  above: Sequence[tuple[str, int]] = (),
  kind: str = '',
) -> str:
  """A table in a box of its own, which scrolls; the first column names the row.

  Args:
    above: names over groups of columns, each with its number of columns.
    said: what the table is, for those who cannot see where it stands.
  """
  heads = ''.join(f'<th scope="col">{cell(x)}</th>' for x in head)
  groups = ''.join(
    f'<th scope="colgroup" colspan="{count}">{cell(name)}</th>' for name, count in above
  )
  body = ''.join(
    f'<tr><th scope="row">{cell(row[0])}</th>'
    + ''.join(f'<td>{cell(x)}</td>' for x in row[1:])
    + '</tr>'
    for row in rows
  )
  return (
    f'<div class="box {kind}" tabindex="0" role="region" aria-label="{html.escape(said)}"><table>'
    f'<thead>{f"<tr>{groups}</tr>" if above else ""}<tr>{heads}</tr></thead>'
    f'<tbody>{body}</tbody></table></div>'
  )
