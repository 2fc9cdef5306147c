# SPDX-License-Identifier: Apache-2.0
"""Scaling laws as a page: the numbers of fit.json, in words, charts and tables.

Equal content gives an equal page.
"""

import os
import pathlib
import urllib.parse
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from deres_jax.compare import rerun, runs
from deres_jax.report import charts as drawing
from deres_jax.report import html
from deres_jax.report.charts import Look
from deres_jax.report.wording import against, interval, names
from deres_jax.scaling import charts
from deres_jax.scaling.curves import COMPUTE

LAWS = {
  'saturating': 'one α',
  'saturating_free': 'α of its own',
  'power_gain': 'power of the gain',
  'log_linear': 'straight line in ln C',
}
_MOST_NAMES = 5  # in a sentence
_VERDICTS = {'larger': 'larger', 'smaller': 'smaller', 'open': 'cannot tell'}


def bayes_auc(finished: list[runs.Run]) -> float | None:
  """Returns the test AUC of the teacher that drew the labels, if the data are planted."""
  bayes = finished[0].result.bayes
  return bayes.bayes_auc if bayes else None


# In words.


def _comparison(c: dict[str, Any], law: str) -> str:
  """Returns a clause: whose exponents differ from the reference's."""
  by: dict[str, list[str]] = {}
  others = c['laws'][law]['against_reference']
  for x in others:
    by.setdefault(against(x['ratio'], 1), []).append(x['curve'])

  def who(curves: list[str]) -> str:
    if len(curves) <= _MOST_NAMES:
      return names(curves)
    if len(curves) == len(others):
      return 'all others'
    return f'{len(curves)} of the {len(others)} others'

  out = [
    f'{who(by[k])} {"have" if len(by[k]) > 1 else "has"} a {k} exponent than {c["reference"]}'
    for k in ('larger', 'smaller')
    if k in by
  ]
  if 'open' in by:
    out.append(f'these runs cannot tell {who(by["open"])} from {c["reference"]}')
  return '; '.join(out)


def lead(c: dict[str, Any]) -> str:
  """Returns what the runs say about the exponents."""
  law = c['laws']['saturating']
  if len(law['curves']) == 1:
    x = law['curves'][0]
    gamma = interval(x['gamma'])
    return f'γ of {x["curve"]} is {gamma}. There is no other curve to compare it with.'
  shared, free = _comparison(c, 'saturating'), _comparison(c, 'saturating_free')
  if shared == free:
    return f'With one α for all and with an α of its own for each, {shared}.'
  return f'With one α for all, {shared}. With an α of its own for each, {free}.'


def _answers(c: dict[str, Any], looks: dict[str, Look]) -> dict[str, Any]:
  """Returns, for the list of curves, exponents, ratios to the reference, and their charts."""
  law, free_law = c['laws']['saturating'], c['laws']['saturating_free']
  gammas = {x['curve']: x['gamma'] for x in law['curves']}
  ratios = {x['curve']: x['ratio'] for x in law['against_reference']}
  free = {x['curve']: x['ratio'] for x in free_law['against_reference']}
  match = {x['curve']: x for x in law['match']}  # the largest goal comes last
  if not ratios:
    return {'gammas': gammas, 'others': [], 'axis': ''}
  ratio_range = charts.ratio_range([*ratios.values(), *free.values()])
  others = []
  for i, name in enumerate(name for name in looks if name in ratios):
    strip = charts.strip(ratio_range, ratios[name], free[name], looks[name])
    words = f'ratio of {name}: {interval(ratios[name])}, with an alpha of its own '
    unbounded = all(free[name][k] is None for k in ('estimate', 'low', 'high'))
    others.append({
      'name': name,
      'ratio': ratios[name],
      'verdict': _VERDICTS[against(ratios[name], 1)],
      'free_ratio': None if unbounded else free[name],
      'free_verdict': _VERDICTS[against(free[name], 1)],
      'match': match[name],
      'share': {**match[name]['compute'], **match[name]['share']},
      'strip': drawing.svg(strip, f'strip{i}', words + interval(free[name]), 'strip'),
    })  # fmt: skip
  axis = drawing.svg(charts.ratio_axis(ratio_range), 'axis', 'scale of the ratios', 'strip')
  return {'gammas': gammas, 'others': others, 'axis': axis}


def _facts(c: dict[str, Any]) -> list[tuple[str, str]]:
  return [
    ('sweeps', ', '.join(c['sweeps'])),
    ('options', ', '.join(f'{k} {v}' for k, v in c['options'].items() if v is not None)),
    *c['method'].items(),
    ('versions', ', '.join(f'{k} {v}' for k, v in c['versions'].items())),
    ('files read', f'{len(c["inputs"])}; their SHA-256 are in fit.json'),
  ]


def _config_link(run: runs.Run, out: pathlib.Path) -> str | None:
  """Returns the address of a run's config.json, seen from the page's folder, if it is there."""
  file = run.config_file
  if not file.is_file():
    return None
  return urllib.parse.quote(pathlib.Path(os.path.relpath(file.resolve(), out.resolve())).as_posix())


def _runs(c: dict[str, Any], finished: list[runs.Run], out: pathlib.Path) -> list[dict[str, Any]]:
  """Returns all finished runs, those on no curve last: numbers, config and command."""
  place = {
    (run['sweep'], run['id']): (i, point)
    for i, point in enumerate(c['points'])
    for run in point['runs']
  }
  last = len(c['points']), None
  rows = []
  for run in sorted(finished, key=lambda r: (place.get((r.folder, r.id), last)[0], r.seed)):
    r, (_, point) = run.result, place.get((run.folder, run.id), last)
    rows.append({
      'curve': point and point['curve'],
      'name': run.name,
      'size': point['size'] if point else f'depth {r.depth}, dim {r.dim}',
      'seed': run.seed,
      'flops': getattr(r, COMPUTE[c['compute']]),
      'params': r.params_dense,
      'auc': r.auc,
      'config': _config_link(run, out),
      'id': run.id,
      'command': rerun.command(run),
    })  # fmt: skip
  return rows


# The page.


def figures(c: dict[str, Any], finished: list[runs.Run]) -> dict[str, Figure]:
  """Returns the charts to be saved beside the page, by their titles."""
  looks = charts.looks(c)
  compute, named = charts.compute(c, looks, bayes_auc(finished), wide=True)
  if not named:
    drawing.legend(compute, looks)
  by_size = {
    f'AUC against {axis}': drawing.legend(charts.joined(c, looks, figure), looks)
    for figure, axis in charts.SIZES.items()
  }
  return {'AUC against compute': compute, **by_size}


def _compute_charts(
  c: dict[str, Any], looks: dict[str, Look], best: float | None
) -> tuple[Markup, bool]:
  """Returns AUC against compute for laptops and phones, and whether the wide one bears names."""
  words = charts.compute_description(c)
  wide, named = charts.compute(c, looks, best, wide=True)
  narrow, _ = charts.compute(c, looks, best, wide=False)
  both = [
    drawing.svg(figure, kind, words, f'{kind} by-compute')
    for figure, kind in ((wide, 'wide'), (narrow, 'narrow'))
  ]
  return Markup('').join(both), named


def page(c: dict[str, Any], finished: list[runs.Run], out: pathlib.Path) -> str:
  """Returns the page as HTML.

  Args:
    c: the content of fit.json (`deres_jax.scaling.fit`).
    finished: all finished runs.
    out: the folder that the page will stand in.
  """
  looks, best = charts.looks(c), bayes_auc(finished)
  compute, named = _compute_charts(c, looks, best)
  by_size = [
    drawing.svg(
      charts.joined(c, looks, figure), figure,
      f'AUC against {axis}: a mark for every run, means of one width joined', f'by-{figure}',
    )
    for figure, axis in charts.SIZES.items()
  ]  # fmt: skip
  run_rows = _runs(c, finished, out)
  have_config = {bool(row['config']) for row in run_rows}
  return html.render(
    'scaling.html',
    {
      'c': c,
      'curves': len(c['laws']['saturating']['curves']),
      'run_count': sum(len(point['runs']) for point in c['points']),
      'lead': lead(c),
      'looks': looks,
      **_answers(c, looks),
      'best': best,
      'compute': compute,
      'named': named,
      'by_size': by_size,
      'laws': LAWS,
      'bootstrapped': any(
        'bootstrap_residual' in (x['gamma'] or {})
        for law in c['laws'].values()
        for x in law['curves']
      ),
      'run_rows': run_rows,
      'make_file': rerun.MAKE_FILE if True in have_config else None,
      'unknown_file': rerun.UNKNOWN if False in have_config else None,
      'facts': _facts(c),
    },
  )
