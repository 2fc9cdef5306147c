# SPDX-License-Identifier: Apache-2.0
"""The tables of a page of scaling laws, from the content of fit.json.

A cell is text and is escaped, or `Html`, which is not.
"""

import html
import os
import pathlib
import urllib.parse
from typing import Any

from deres_jax.compare import rerun, runs
from deres_jax.report import html as html_lib
from deres_jax.report import svg, wording
from deres_jax.report.html import Html
from deres_jax.report.svg import Look
from deres_jax.scaling.curves import COMPUTE

LAWS = {
  'saturating': 'one α',
  'saturating_free': 'α of its own',
  'power_gain': 'power of the gain',
  'log_linear': 'straight line in ln C',
}


_LONG = 18  # characters of a name


def named(name: str, all_looks: dict[str, Look]) -> html_lib.Html:
  """A curve's name with its mark; a long one may take several lines."""
  long = ' long' if len(name) > _LONG else ''
  return html_lib.Html(
    f'<span class="named{long}">{svg.mark(all_looks[name])}<span>{html.escape(name)}</span></span>'
  )


def _interval(x: dict[str, Any] | None, form: str = '.4g') -> html_lib.Html:
  """An interval whose ends may stand below the estimate."""
  if x is None:
    return html_lib.Html('')
  estimate, _, ends = wording.interval(x, form).partition(' ')
  return html_lib.Html(f'{estimate} <span class="ends">{ends}</span>')


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
  return html_lib.table(head, rows, 'Exponents', above, 'grouped')


def _ratios(law: dict[str, Any]) -> dict[str, html_lib.Html]:
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
  return html_lib.table(head, rows, 'Other laws', kind='text')


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
  return html_lib.table(head, rows, 'Bootstraps', kind='text') if rows else ''


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
  return html_lib.table(head, rows, 'Compute to match', above, 'grouped text') if rows else ''


def _difference(x: dict[str, Any]) -> html_lib.Html:
  if x['difference'] is None:
    return html_lib.Html('no pairs')
  half = '' if x['interval'] is None else f' ± {x["interval"]:.5f}'
  shown = f'{x["difference"]:+.5f}{half}'.replace('-', '−')
  sure = x['t_p_holm'] is not None and x['t_p_holm'] < 0.05
  return html_lib.Html(f'<b>{shown}</b>' if sure else shown)


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
  return (
    html_lib.table(['', 'size', 'compute', *_TESTS], rows, 'Equal size', kind='text')
    if rows
    else ''
  )


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
  return (
    html_lib.table(head, rows, 'Shallower against the goal', kind='text text-too') if rows else ''
  )


def quality(c: dict[str, Any]) -> str:
  """How well each law describes the runs."""
  rows = []
  for key, x in c['laws'].items():
    figures = [(x['aicc'], '.1f'), (x['lack_of_fit_p'], '.2g'), (x['residual_sd'], '.2g')]
    shown = [wording.optional(value, form).replace('-', '−') for value, form in figures]
    alpha = _interval(x['alpha'])
    rows.append([LAWS[key], x['formula'], alpha, f'{x["parameters"]}', *shown])
  head = ['', 'formula', 'α', 'parameters', 'AICc', 'lack of fit, p', 'residual sd']
  return html_lib.table(head, rows, 'How well the laws fit', kind='text')


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
  return (
    html_lib.table(['', 'AUC', *(LAWS[key] for key in known)], rows, 'Left out') if rows else ''
  )


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
  return html_lib.table(head, rows, 'DeLong', kind='tall text') if rows else ''


def link(run: runs.Run, out: pathlib.Path) -> Html:
  """The run's id; linked, relative to the folder of the page, to its config.json if it is there."""
  file = run.config_file
  id = html.escape(run.id)
  if not file.is_file():
    return Html(f'<code>{id}</code>')
  path = pathlib.Path(os.path.relpath(file.resolve(), out.resolve())).as_posix()
  return Html(f'<a href="{urllib.parse.quote(path)}"><code>{id}</code></a>')


def table(
  c: dict[str, Any], looks: dict[str, Look], finished: list[runs.Run], out: pathlib.Path
) -> str:
  """All finished runs, those on no curve last: figures, config and command."""
  figure = COMPUTE[c['compute']]
  place = {
    (run['sweep'], run['id']): (i, point)
    for i, point in enumerate(c['points'])
    for run in point['runs']
  }
  last = (len(c['points']), None)
  ordered = sorted(finished, key=lambda r: (place.get((r.folder, r.id), last)[0], r.seed))
  rows, known = [], set()
  for run in ordered:
    r, (_, point) = run.result, place.get((run.folder, run.id), last)
    known.add(run.config_file.is_file())
    command = f'<details><summary>command</summary><pre>{html.escape(rerun.command(run))}</pre>'
    rows.append([
      named(point['curve'], looks) if point else f'{run.name} (on no curve)',
      point['size'] if point else f'depth {r.depth}, dim {r.dim}',
      f'{run.seed}',
      svg.compact(getattr(r, figure)),
      f'{r.params_dense:,}',
      f'{r.auc:.5f}',
      link(run, out),
      Html(f'{command}</details>'),
    ])  # fmt: skip
  head = ['', 'size', 'seed', 'FLOPs', 'dense parameters', 'AUC', 'config', '']
  notes = []
  if True in known:
    notes.append(
      '<p>A command sets every field that is not at its default, on top of a file of one line:</p>'
      f'<pre>{html.escape(rerun.MAKE_FILE)}</pre>'
    )
  if False in known:
    notes.append(
      '<p>Where no config.json is beside a result, put the experiment file of the sweep in the '
      f'place of <code>{rerun.UNKNOWN}</code>: the command sets what the sweep varied.</p>'
    )
  return f'<h2>Runs</h2>{"".join(notes)}' + html_lib.table(head, rows, 'Runs', kind='tall text')
