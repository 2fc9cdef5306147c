# SPDX-License-Identifier: Apache-2.0
"""Scaling laws as one HTML page: inline SVG, no script, nothing fetched, all text escaped.

It says what fit.json says, in the same figures; equal content gives an equal page.
"""

import html
import pathlib
from typing import Any

from deres_jax.compare import runs as runs_lib
from deres_jax.report import svg, wording
from deres_jax.report.style import STYLE
from deres_jax.report.svg import Look
from deres_jax.scaling import charts, tables

_OWN = 'saturating_free'
_MOST_NAMES = 5  # in a sentence


def bayes_auc(finished: list[runs_lib.Run]) -> float | None:
  """AUC of the teacher that drew the labels of the test split, if the data are planted."""
  bayes = finished[0].result.bayes
  return bayes.bayes_auc if bayes else None


# The first screen.


def _said_of(c: dict[str, Any], law: str) -> str:
  """Whose exponents are told from the reference's, as a clause."""
  by: dict[str, list[str]] = {}
  others = c['laws'][law]['against_reference']
  for x in others:
    by.setdefault(wording.against(x['ratio'], 1), []).append(x['curve'])

  def who(some: list[str]) -> str:
    if len(some) <= _MOST_NAMES:
      return wording.names(some)
    return 'all others' if len(some) == len(others) else f'{len(some)} of the {len(others)} others'

  out = [
    f'{who(by[k])} {"have" if len(by[k]) > 1 else "has"} a {k} exponent than {c["reference"]}'
    for k in ('larger', 'smaller')
    if k in by
  ]
  if 'open' in by:
    out.append(f'these runs cannot tell {who(by["open"])} from {c["reference"]}')
  return '; '.join(out)


def lead(c: dict[str, Any]) -> str:
  """What the runs say of the exponents, in words."""
  law = c['laws']['saturating']
  if len(law['curves']) == 1:
    x = law['curves'][0]
    gamma = wording.interval(x['gamma'])
    return f'γ of {x["curve"]} is {gamma}. There is no other curve to compare it with.'
  shared, own = _said_of(c, 'saturating'), _said_of(c, _OWN)
  if shared == own:
    return f'With one α for all and with an α of its own for each, {shared}.'
  return f'With one α for all, {shared}. With an α of its own for each, {own}.'


_VERDICTS = {'larger': 'larger', 'smaller': 'smaller', 'open': 'cannot tell'}


def _answers(c: dict[str, Any], looks: dict[str, Look]) -> str:
  """A line for every curve: its exponent, the ratio to the reference, and a picture of it."""
  law, own = c['laws']['saturating'], c['laws'][_OWN]
  gammas = {x['curve']: x['gamma'] for x in law['curves']}
  ratios = {x['curve']: x['ratio'] for x in law['against_reference']}
  free = {x['curve']: x['ratio'] for x in own['against_reference']}
  reference = html.escape(c['reference'])
  head = f'<b>{reference}</b>: {_whole(gammas[c["reference"]], "γ ")}, the reference'
  parts = [_answer(looks[c['reference']], head, '')]
  if not ratios:
    return f'<div class="answers">{parts[0]}<div></div></div>'
  x = charts.scale([*ratios.values(), *free.values()])
  parts.append(f'<p class="note wide-only">times {reference}’s, 95 % intervals</p>')
  matched = {line['curve']: line for line in law['match']}  # the largest goal comes last
  for name in [name for name in looks if name in ratios]:
    one, two = ratios[name], free[name]
    head = (
      f'<b>{html.escape(name)}</b>: {_whole(gammas[name], "γ ")}, <b>{_whole(one)}</b> times '
      f'{reference}’s'
    )
    note = (
      f'One α: {_VERDICTS[wording.against(one, 1)]}. An α of its own: {_free(two)}. '
      f'{_matched(matched[name], reference)}'
    )
    parts.append(_answer(looks[name], head, note))
    said = f'ratio of {name}: {wording.interval(one)}, with an alpha of its own '
    said += wording.interval(two)
    parts.append(charts.strip(x, [(one, 'shared'), (two, 'free')], looks[name], said))
  said = 'Ratios of γ. Filled: one α for all; hollow: an α of its own; arrow: open or cut off.'
  parts.append(f'<p class="note">{said}</p>')
  return f'<div class="answers">{"".join(parts)}{charts.axis(x)}</div>'


def _answer(look: Look, head: str, note: str) -> str:
  more = f'<p class="note figure">{note}</p>' if note else ''
  return f'<div><p class="what figure">{svg.mark(look)} {head}</p>{more}</div>'


def _whole(x: dict[str, Any], name: str = '') -> str:
  """An interval that stays on one line."""
  return f'<span class="whole">{name}{wording.interval(x)}</span>'


def _free(ratio: dict[str, Any]) -> str:
  if ratio['estimate'] is None and ratio['low'] is None and ratio['high'] is None:
    return 'cannot tell, nothing bounds the ratio'
  return f'{_VERDICTS[wording.against(ratio, 1)]}, {_whole(ratio)} times'


def _matched(x: dict[str, Any], reference: str) -> str:
  share = _whole({**x['compute'], **x['share']})
  if x['share']['estimate'] is None:
    return f'Compute to match {reference} at {html.escape(x["goal"])}: {share} of its own.'
  outside = '' if x['within_budgets'] else ' (outside the budgets that were run)'
  return f'Matches {reference} at {html.escape(x["goal"])} with {share} of its compute{outside}.'


def _warnings(c: dict[str, Any]) -> str:
  if not c['warnings']:
    return ''
  items = ''.join(f'<li>{html.escape(x)}</li>' for x in c['warnings'])
  many = ' class="many"' if len(c['warnings']) > 2 else ''
  return (
    f'<section class="warnings"><h2>Before you quote a figure</h2><ul{many}>{items}</ul></section>'
  )  # fmt: skip


def _head(c: dict[str, Any]) -> str:
  runs = sum(len(point['runs']) for point in c['points'])
  count = len(c['laws']['saturating']['curves'])
  what = 'curve' if count == 1 else 'curves'
  over = (
    f'{count} {what}, {runs} runs, {c["decades"]:.2f} decades of compute; C: {c["compute_unit"]}'
  )
  return (
    f'<p class="over">Scaling laws</p><h1>AUC against compute on {html.escape(c["dataset"])}</h1>'
    f'<p class="over">{html.escape(over)}</p>'
  )


# Pictures.


def _figures(c: dict[str, Any], looks: dict[str, Look], best: float | None) -> str:
  wide, labelled = charts.compute(c, looks, best, wide=True)
  narrow, _ = charts.compute(c, looks, best, wide=False)
  key = svg.key(looks)
  known = (
    f' The labels were drawn by a known teacher: the best possible AUC is {best:.5f}.'
    if best is not None
    else ''
  )
  return (
    '<h2>AUC against compute</h2>'
    f'{svg.key(looks, "narrow-only") if labelled else key}'
    f'<figure>{wide}{narrow}<figcaption>Small marks: runs, one for each seed. Large marks: their '
    'mean. Lines: AUC = α − β C<sup>−γ</sup> with one α for all; bands: 95 % of the fitted mean, '
    f'over training seeds.{known}</figcaption></figure>'
    '<h2>AUC against parameters and depth</h2>'
    f'<p>No fit here: the law is in C. Means of one width are joined.</p>{key}'
    f'<div class="pair"><figure>{charts.joined(c, looks, "params")}</figure>'
    f'<figure>{charts.joined(c, looks, "depth")}</figure></div>'
    '<p class="note">Parameters are dense ones, without embedding tables. Curves of one depth '
    'stand side by side.</p>'
  )


# Tables.


def _section(title: str, body: str, note: str = '') -> str:
  """A heading with its table and a note; nothing for an empty table."""
  return f'<h2>{title}</h2>{f"<p>{note}</p>" if note else ""}{body}' if body else ''


def _noise(c: dict[str, Any]) -> str:
  x = c['noise']
  said = []
  if x['seed_sd'] is not None:
    said.append(f'A run varies over seeds by {x["seed_sd"]:.2g} (sd, {x["df_seeds"]} degrees of '
                'freedom).')  # fmt: skip
  if x['residual_sd'] is not None:
    said.append(f'Runs scatter about the curves of one α by {x["residual_sd"]:.2g} '
                f'({x["df_residual"]} degrees of freedom).')  # fmt: skip
  if c['shared_alpha_p'] is not None:
    said.append(f'One α for all: F test, p = {c["shared_alpha_p"]:.2g}.')
  said += [
    html.escape(f'At a bound, {tables.LAWS[k]}: {note}.')
    for k, law in c['laws'].items()
    for note in law['boundary']
  ]
  return ' '.join(said)


def _all_tables(c: dict[str, Any], looks: dict[str, Look]) -> str:
  reference = html.escape(c['reference'])
  drawn = tables.bootstraps(c, looks)
  left_out = tables.extrapolation(c, looks)
  delong = tables.delong(c, looks)
  return ''.join([
    _section(
      'Exponents',
      tables.exponents(c, looks) + '<h3>Other laws</h3>' + tables.other_laws(c, looks)
      + (f'<details><summary>Bootstrap intervals</summary>{drawn}</details>' if drawn else ''),
      f'95 % F-profile intervals; a round bracket is an open side, the runs do not exclude what '
      f'lies beyond. Ratios are to {reference}. The gain of a doubling of C is in AUC, at '
      f'C = {svg.compact(c["compute_reference"])}; it differs little between laws.',
    ),
    _section(
      'Compute to match', tables.match(c, looks),
      f'Where a curve reaches the fitted AUC of {reference} at the goal, over the compute of '
      f'{reference} there: below 1 it needs less.',
    ),
    _section(
      'Equal size', tables.equal_size(c, looks),
      f'Mean AUC less that of {reference} at the same size, paired by seed, with 95 % t intervals; '
      'no law is trusted. Bold: p &lt; 0.05 after Holm’s correction over this table.',
    ),
    _section(
      f'Fewer layers against {reference}', tables.shallower(c, looks),
      'Cells of the goal’s width and less depth, less the goal: paired by seed, Holm over this '
      'table.',
    ),
    _section(
      'How well the laws fit',
      tables.quality(c)
      + (
        '<h3>Largest budgets, predicted without them</h3>'
        '<p class="note">Measured less predicted AUC; in brackets, in standard errors.</p>'
        + left_out if left_out else ''
      ),
      f'{_noise(c)} A lower AICc is better; 2 is little.',
    ),
    _section('DeLong’s test', delong, 'Each run less the reference’s of its size and seed, over '
             'the rows of the test split.'),
  ])  # fmt: skip


def _made(c: dict[str, Any]) -> str:
  options = ', '.join(f'{k} {v}' for k, v in c['options'].items() if v is not None)
  items = [
    ('sweeps', ', '.join(c['sweeps'])),
    ('options', options),
    *c['method'].items(),
    ('versions', ', '.join(f'{k} {v}' for k, v in c['versions'].items())),
    ('files read', f'{len(c["inputs"])}; their SHA-256 stand in fit.json'),
  ]
  return (
    '<h2>How it was made</h2><dl>'
    + ''.join(f'<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>' for k, v in items)
    + '</dl><p class="note">The same figures: <a href="fit.json">fit.json</a>; the runs: '
    '<a href="runs.csv">runs.csv</a>.</p>'
  )


def page(c: dict[str, Any], finished: list[runs_lib.Run], out: pathlib.Path) -> str:
  """The whole page.

  Args:
    c: the content of fit.json (`deres_jax.scaling.fit`).
    finished: all finished runs.
    out: the folder that the page will stand in.
  """
  looks = charts.looks(c)
  return (
    '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width,initial-scale=1">'
    f'<title>Scaling laws, {html.escape(c["dataset"])}</title><style>{STYLE}</style></head><body>'
    f'<header>{_head(c)}</header><main>'
    f'<p class="lead">{html.escape(lead(c))}</p>{_answers(c, looks)}{_warnings(c)}'
    f'{_figures(c, looks, bayes_auc(finished))}{_all_tables(c, looks)}'
    f'{tables.table(c, looks, finished, out)}{_made(c)}</main></body></html>\n'
  )
