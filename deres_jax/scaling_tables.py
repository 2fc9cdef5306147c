# SPDX-License-Identifier: Apache-2.0
"""The tables of a page of scaling laws, from the content of fit.json.

A cell is text and is escaped, or `Html`, which is not.
"""

import html
from collections.abc import Sequence
from typing import Any

from deres_jax import scaling_svg, wording
from deres_jax.scaling_svg import Look

LAWS = {
  'saturating': 'one α',
  'saturating_free': 'α of its own',
  'power_gain': 'power of the gain',
  'log_linear': 'straight line in ln C',
}
_LONG = 18  # characters of a name


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


def named(name: str, all_looks: dict[str, Look]) -> Html:
  """A curve's name with its mark; a long one may take several lines."""
  long = ' long' if len(name) > _LONG else ''
  return Html(
    f'<span class="named{long}">{scaling_svg.mark(all_looks[name])}'
    f'<span>{html.escape(name)}</span></span>'
  )


def _interval(x: dict[str, Any] | None, form: str = '.4g') -> Html:
  """An interval whose ends may stand below the estimate."""
  if x is None:
    return Html('')
  estimate, _, ends = wording.interval(x, form).partition(' ')
  return Html(f'{estimate} <span class="ends">{ends}</span>')


def exponents(c: dict[str, Any], all_looks: dict[str, Look]) -> str:
  """Exponents, ratios and gains of a doubling, under one alpha and under free ones."""
  laws = [c['laws'][name] for name in ('saturating', 'saturating_free')]
  ratios = [_ratios(law) for law in laws]
  rows = []
  for shared, free in zip(laws[0]['curves'], laws[1]['curves'], strict=True):
    name = shared['curve']
    row = [named(name, all_looks)]
    for curve, ratio in ((shared, ratios[0]), (free, ratios[1])):
      row += [_interval(curve['gamma']), ratio.get(name, 'reference')]
      row.append(_interval(curve['slope_per_doubling'], '.3g'))
    rows.append([*row, _interval(free['alpha'])])
  head = ['', 'γ', 'ratio', 'gain of a doubling', 'γ', 'ratio', 'gain of a doubling', 'α']
  above = (('', 1), ('one α for all', 3), ('an α of its own for each', 4))
  return table(head, rows, 'Exponents', above, 'grouped')


def _ratios(law: dict[str, Any]) -> dict[str, Html]:
  return {x['curve']: _interval(x['ratio']) for x in law['against_reference']}


def other_laws(c: dict[str, Any], all_looks: dict[str, Look]) -> str:
  """The laws that do not saturate."""
  rows = []
  for key in [key for key in ('power_gain', 'log_linear') if key in c['laws']]:
    law = c['laws'][key]
    ratios = _ratios(law)
    rows += [
      [
        named(curve['curve'], all_looks),
        LAWS[key],
        _interval(curve['gamma']),
        ratios.get(curve['curve'], 'reference'),
        _interval(curve['slope_per_doubling'], '.3g'),
      ]
      for curve in law['curves']
    ]
  head = ['', 'law', 'γ', 'ratio', 'gain of a doubling']
  if 'power_gain' not in c['laws']:  # a line has no exponent: its ratio is of slopes
    head, rows = [
      ['', 'law', 'ratio of slopes', 'gain of a doubling'],
      [row[:2] + row[3:] for row in rows],
    ]
  return table(head, rows, 'Other laws', kind='text')


def bootstraps(c: dict[str, Any], all_looks: dict[str, Look]) -> str:
  """Intervals of the exponents three ways; nothing without bootstraps."""
  rows = []
  for key, law in c['laws'].items():
    for curve in law['curves']:
      x = curve['gamma']
      if x and 'bootstrap_residual' in x:
        ends = [_ends(x[k]) if k in x else '' for k in ('bootstrap_residual', 'bootstrap_seeds')]
        rows.append([named(curve['curve'], all_looks), LAWS[key], _interval(x), *ends])
  head = ['', 'law', 'γ, F-profile', 'residuals drawn anew', 'runs of a size drawn anew']
  return table(head, rows, 'Bootstraps', kind='text') if rows else ''


def _ends(ends: list[float | None]) -> str:
  low, high = ('inf' if x is None else f'{x:.4g}' for x in ends)
  return f'{low} to {high}'


def match(c: dict[str, Any], all_looks: dict[str, Look]) -> str:
  """Compute at which a curve reaches the reference's AUC; nothing with one curve."""
  lines = [c['laws'][name]['match'] for name in ('saturating', 'saturating_free')]
  rows = [
    [
      named(one['curve'], all_looks),
      one['goal'],
      f'{one["goal_auc"]:.5f}',
      _interval({**one['compute'], **one['share']}),
      'inside' if one['within_budgets'] else 'extrapolated',
      _interval({**own['compute'], **own['share']}),
      'inside' if own['within_budgets'] else 'extrapolated',
    ]
    for one, own in zip(*lines, strict=True)
  ]
  head = ['', 'goal', 'AUC there', 'share of its compute', 'budgets', 'share', 'budgets']
  above = (('', 3), ('one α for all', 2), ('an α of its own for each', 2))
  return table(head, rows, 'Compute to match', above, 'grouped text') if rows else ''


def _difference(x: dict[str, Any]) -> Html:
  if x['difference'] is None:
    return Html('no pairs')
  half = '' if x['interval'] is None else f' ± {x["interval"]:.5f}'
  shown = f'{x["difference"]:+.5f}{half}'.replace('-', '−')
  sure = x['t_p_holm'] is not None and x['t_p_holm'] < 0.05
  return Html(f'<b>{shown}</b>' if sure else shown)


def _tests(x: dict[str, Any]) -> list[str]:
  figures = [(x['t_p'], '.2g'), (x['t_p_holm'], '.2g'), (x['sign_flip_p'], '.3g')]
  relative = wording.optional(x['rela_impr_percent'], '+.3f').replace('-', '−')
  return [*(wording.optional(value, form) for value, form in figures), relative]


_TESTS = ['pairs', 'difference of AUC', 'p of t', 'Holm', 'p of sign flips', 'RelaImpr, %']


def equal_size(c: dict[str, Any], all_looks: dict[str, Look]) -> str:
  """Each curve less the reference, size by size; nothing where no size is shared."""
  rows = [
    [
      named(x['curve'], all_looks),
      x['size'],
      f'{x["compute"] / x["reference_compute"]:.3f}',
      f'{x["pairs"]}',
      _difference(x),
      *_tests(x),
    ]
    for x in c['comparisons']
  ]
  return table(['', 'size', 'compute', *_TESTS], rows, 'Equal size', kind='text') if rows else ''


def shallower(c: dict[str, Any], all_looks: dict[str, Look]) -> str:
  """Cells of less depth less the goal; nothing where there are none."""
  rows = [
    [
      named(x['curve'], all_looks),
      x['size'],
      x['goal'],
      f'{x["compute_share"]:.3f}',
      f'{x["pairs"]}',
      _difference(x),
      *_tests(x),
    ]
    for x in c['shallower']
  ]
  head = ['', 'size', 'less the reference at', 'compute', *_TESTS]
  return table(head, rows, 'Shallower against the goal', kind='text text-too') if rows else ''


def quality(c: dict[str, Any]) -> str:
  """How well each law describes the runs."""
  rows = []
  for key, x in c['laws'].items():
    figures = [(x['aicc'], '.1f'), (x['lack_of_fit_p'], '.2g'), (x['residual_sd'], '.2g')]
    shown = [wording.optional(value, form).replace('-', '−') for value, form in figures]
    alpha = _interval(x['alpha'])
    rows.append([LAWS[key], x['formula'], alpha, f'{x["parameters"]}', *shown])
  head = ['', 'formula', 'α', 'parameters', 'AICc', 'lack of fit, p', 'residual sd']
  return table(head, rows, 'How well the laws fit', kind='text')


def extrapolation(c: dict[str, Any], all_looks: dict[str, Look]) -> str:
  """Errors at the largest budgets, left out of the fits; nothing where points are too few."""
  known = {key: law['extrapolation'] for key, law in c['laws'].items() if law['extrapolation']}
  rows = []
  for k, x in enumerate(next(iter(known.values()), [])):
    row = [named(x['connector'], all_looks), f'{x["auc"]:.5f}']
    for lines in known.values():
      error, steps = lines[k]['error'], lines[k]['standard_errors']
      row.append(f'{error:+.5f} ({steps:+.1f})'.replace('-', '−'))
    rows.append(row)
  return table(['', 'AUC', *(LAWS[key] for key in known)], rows, 'Left out') if rows else ''


def delong(c: dict[str, Any], all_looks: dict[str, Look]) -> str:
  """DeLong's test of each pair of runs; nothing without --data."""
  rows = [
    [
      named(x['curve'], all_looks),
      x['size'],
      f'{x["seed"]}',
      f'{x["difference"]:+.5f} ± {x["interval"]:.5f}'.replace('-', '−'),
      f'{x["p"]:.2g}',
      f'{x["p_holm"]:.2g}',
    ]
    for x in c['delong'] or []
  ]
  head = ['', 'size', 'seed', 'difference of AUC', 'p', 'Holm']
  return table(head, rows, 'DeLong', kind='tall text') if rows else ''
