# SPDX-License-Identifier: Apache-2.0
"""The page of `deres_jax.claims` as Markdown: one table to read, then what it rests on.

Everything is taken from the content of the .json.
"""

import math
from typing import Any

from deres_jax.claims import sections
from deres_jax.report import markdown

_TOLD = ('shown', 'not shown')

_RULES = """\
A verdict is read off the 95 % interval printed beside it, by these rules:

- **shown**: the interval lies wholly on the claim's side (above 0; FLOPs, which are exact, below
  5 % at every size). "Smaller than claimed": it also excludes an effect as large as the paper's.
- **not shown**: the interval excludes an effect of the claimed size and is not above 0, or lies on
  the other side. A claim without a size is taken at {matters}, the smallest gap between models that
  papers on Criteo and Avazu report.
- **cannot be told here**: the interval holds both no effect and the claimed one, or there is none.
- *Half the layers match* is a question of being no worse: the interval of DeRes-P at half the
  layers less OneTrans at all of them lies above minus a margin. The margin is {matters}, and never
  more than half the lower end of what the added layers gain OneTrans. If that gain is not shown,
  there is nothing to match.
- *Exponents*: under one alpha for both curves the ratio is one of slopes, so it must be above 1
  under one alpha and under free ones. That it is not the claimed one is told by either; by the
  first only if one alpha is not rejected. If the AUC does not rise, there is no law.
- A claim of two parts is shown only if both are.

Intervals are Student's t over seeds: the differences of a seed (the same in both models) are
averaged over sizes first, because runs of one seed share the order of rows and the start of the
table at every size. They are not widened for the number of claims, as each is a question of its
own; a † marks what does not outlast Holm's correction over all claims (paired t tests; exponents
have none). They speak of other seeds, not of other data, nor of this test split's own sampling,
unless a column says so."""

_TAKES = """\
*What it would take*: the fewest seeds, at the scatter seen, with an 80 % chance that the interval
excludes 0 if the claimed effect is there (noncentral t with n - 1 degrees of freedom and
noncentrality effect x sqrt(n) / sd, beyond t(0.975, n - 1)); and the fewest whose interval is too
narrow to hold both 0 and the claimed effect, which tell whatever is there. For exponents:
simulated sweeps at the paper's two exponents, the noise and the gap to alpha seen here."""


def page(c: dict[str, Any]) -> str:
  """The content as Markdown."""
  study, more = c['study'], c['exploratory']
  out = [
    f'# {markdown.cell(c["title"])}',
    '',
    f'What {study["runs"]} runs on {markdown.cell(study["dataset"])} show of the claims of DeRes '
    '(arXiv 2606.07980). The paper has other data, larger models and no public code: this tests '
    'the method as it is built here, not the runs of the paper. AUC differences are in units of '
    '0.0001: +32 is "+0.32 %".',
    '',
    *_summary(study['claims'], judged=True),
    '',
  ]
  if c['partial']:
    out += ['**Some runs may be missing** (--partial).', '']
  out += ['## How to read it', '', _RULES.format(matters=f'{c["matters"]:g} AUC'), '', _TAKES]
  for claim in study['claims']:
    out += [
      '',
      f'## {markdown.cell(claim["title"])}',
      '',
      *sections.section(claim, study, judged=True),
    ]
  out += ['', '## How it was made', '', *_made(study, c['note'], c['command'])]
  if more:
    out += [
      '',
      f'## Exploratory: {markdown.cell(more["dataset"])}',
      '',
      f'The same figures from {more["runs"]} more runs; no verdict is drawn from them.',
      '',
      *_summary(more['claims'], judged=False),
    ]
    for claim in more['claims']:
      out += [
        '',
        f'### {markdown.cell(claim["title"])} (exploratory)',
        '',
        *sections.section(claim, more, False),
      ]
    out += ['', '### How they were made', '', *_made(more, '', '')]
  return '\n'.join(out) + '\n'


# The table on top.


def _summary(claims: list[dict[str, Any]], judged: bool) -> list[str]:
  head = ['claim', 'paper', 'here [95 %]']
  head += ['verdict', 'what it would take'] if judged else []
  rows = []
  for claim in claims:
    row = [claim['title'], claim['paper']['text'], _here(claim)]
    rows.append([*row, sections.verdict(claim), _takes(claim)] if judged else row)
  return markdown.table(head, rows, left=len(head))


def _here(claim: dict[str, Any]) -> str:
  if 'sizes' in claim:  # FLOPs
    shares = [100 * x['extra_flops'] for x in claim['sizes']]
    low, high = f'{min(shares):.2g}', f'{max(shares):.2g}'
    return (
      f'{low} % at {len(shares)} sizes'
      if low == high
      else (f'{low} to {high} % at {len(shares)} sizes')
    )
  if 'shared' in claim:
    one, free = (markdown.profile(claim[k]) for k in ('shared', 'free'))
    return f'ratio {one} under one alpha, {free} under free ones'
  if 'ours' in claim:
    half, full = claim['layers']
    return (
      f'{half} against {full}: {markdown.interval(claim["ours"])}; the layers gain OneTrans '
      f'{markdown.interval(claim["gain"])}'
    )
  if claim.get('parts'):
    parts = claim['rows'][: claim['parts']]
    deciding = [x for x in parts if x['verdict'] == claim['verdict']]
    row = min(deciding, key=lambda x: -math.inf if x['low'] is None else x['low'])
    name = f' (less {row["base"]}, the part that decides)' if len(parts) > 1 else ''
    share = row['share_of_claim']
    of = '' if share is None or row['verdict'] != 'shown' else f', {share:.2g} of the claimed'
    return markdown.interval(row) + of + name
  return ''


def _takes(claim: dict[str, Any]) -> str:
  if claim['verdict'] != 'cannot be told here':
    return ''
  if 'shared' in claim:
    return _gamma_takes(claim['to_tell'])
  if 'ours' in claim:
    return _seeds(claim['to_tell'], len(claim['ours']['sizes']))
  open_rows = [
    x for x in claim.get('rows', [])[: claim.get('parts', 0)] if x['verdict'] not in _TOLD
  ]
  if not open_rows:
    return ''
  worst = max(open_rows, key=lambda x: (x['to_tell'] or {}).get('power') or 0)
  return _seeds(worst['to_tell'], len(worst['sizes']))


def _seeds(found: dict[str, Any] | None, sizes: int) -> str:
  if found is None:
    return 'two seeds or more, to see the scatter'
  if found['power'] is None:
    return 'more than 100,000 seeds'
  sure = 'more than 100,000' if found['sure'] is None else f'{found["sure"]:,}'
  runs = 2 * sizes * found['power']
  return f'{found["power"]:,} seeds ({runs:,} runs); {sure} to be sure'


def _gamma_takes(found: dict[str, Any] | None) -> str:
  if found is None:
    return 'budgets at which the AUC rises and bends'
  best = found['cheapest']
  if best is None:
    most = max(found['tried'], key=lambda x: (x['seeds'], x['decades']))
    return f'more than {most["seeds"]} seeds, even over {most["decades"]:.1f} decades'
  return f'{best["seeds"]} seeds over {best["decades"]:.1f} decades ({best["runs"]} runs)'


# How it was made.


def _made(study: dict[str, Any], note: str, command: str) -> list[str]:
  planted = study['planted']
  splits = f'; {study["splits"]} splits, which overlap' if study['splits'] > 1 else ''
  known = ''
  if planted:
    known = (
      f' Labels are planted: the best possible test AUC is {planted["bayes_auc"]:.5f}, that of the '
      f'best additive predictor {planted["linear_auc"]:.5f}.'
    )
  settings = ', '.join(f'{k}={v}' for k, v in study['settings'].items())
  rows, devices = ' or '.join(f'{n:,}' for n in study['rows_test']), ' and '.join(study['devices'])
  out = [
    f'- Data: {markdown.cell(study["dataset"])}; {rows} rows of test{splits}.{known}',
    f'- Runs: {study["runs"]}, seeds {", ".join(map(str, study["seeds"]))}, from '
    f'{markdown.cell(", ".join(study["sweeps"]))}.',
    f'- Device: {markdown.cell(devices)}; {markdown.cell("; ".join(study["versions"]))}.',
    f'- Settings of all curves, where not the defaults: {markdown.cell(settings) or "none"}.',
    '- Where a size was run at several learning rates, the best mean validation AUC was taken; the '
    'test split took no part in any choice.',
  ]
  if note:
    out.append(f'- {markdown.cell(note)}')
  if command:
    out += ['', 'Made by', '', '```', command.replace('```', "'''"), '```']
  return [*out, '', *_curves(study)]


def _curves(study: dict[str, Any]) -> list[str]:
  planted = study['planted']
  curves = study['curves']
  sizes = list(dict.fromkeys(y['size'] for x in curves for y in x['cells']))
  lines = []
  for x in curves:
    by_size = {y['size']: y for y in x['cells']}
    rates = '; '.join(', '.join(f'{k}={v}' for k, v in r.items()) for r in x['rates'])
    name = x['name'] if x['called'] == x['name'] else f'{x["name"]} ({x["called"]})'
    lines.append([name, x['connector'], rates, *(_auc(by_size.get(size)) for size in sizes)])
  closed = (
    '; in brackets the share of the way from the best additive predictor to the best possible'
  )
  return [
    *markdown.table(['curve', 'connector', 'rates', *sizes], lines, 3),
    '',
    f'Mean test AUC{closed if planted else ""}.',
  ]


def _auc(y: dict[str, Any] | None) -> str:
  if y is None:
    return ''
  return f'{y["auc"]:.5f}' + ('' if y['closed'] is None else f' ({100 * y["closed"]:.1f} %)')
