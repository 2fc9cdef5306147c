# SPDX-License-Identifier: Apache-2.0
"""The page of `deres_jax.claims` as Markdown: a table of verdicts, then the figures behind each.

All figures come from the content of the .json; the text is in templates/claims.md.
"""

import math
from typing import Any

from deres_jax.claims import sections
from deres_jax.report import markdown

_TOLD = ('shown', 'not shown')


def page(c: dict[str, Any]) -> str:
  """Returns the content as Markdown."""
  helpers = {'summary': _summary, 'section': sections.section, 'curves': _curves}
  return markdown.render('deres_jax.claims', 'claims.md', {**c, **helpers, 'settings': _settings})


def _settings(study: dict[str, Any]) -> str:
  return ', '.join(f'{k}={v}' for k, v in study['settings'].items())


# The table on top.


def _summary(claims: list[dict[str, Any]], judged: bool) -> str:
  head = ['claim', 'paper', 'here [95 %]']
  head += ['verdict', 'what it would take'] if judged else []
  rows = []
  for claim in claims:
    row = [claim['title'], claim['paper']['text'], _here(claim)]
    rows.append([*row, sections.verdict(claim), _takes(claim)] if judged else row)
  return '\n'.join(markdown.table(head, rows, left=len(head)))


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


def _seeds(needed: dict[str, Any] | None, sizes: int) -> str:
  if needed is None:
    return 'two seeds or more, to see the scatter'
  if needed['power'] is None:
    return 'more than 100,000 seeds'
  sure = 'more than 100,000' if needed['sure'] is None else f'{needed["sure"]:,}'
  runs = 2 * sizes * needed['power']
  return f'{needed["power"]:,} seeds ({runs:,} runs); {sure} to be sure'


def _gamma_takes(needed: dict[str, Any] | None) -> str:
  if needed is None:
    return 'budgets at which the AUC rises and bends'
  best = needed['cheapest']
  if best is None:
    most = max(needed['tried'], key=lambda x: (x['seeds'], x['decades']))
    return f'more than {most["seeds"]} seeds, even over {most["decades"]:.1f} decades'
  return f'{best["seeds"]} seeds over {best["decades"]:.1f} decades ({best["runs"]} runs)'


def _curves(study: dict[str, Any]) -> str:
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
  table = markdown.table(['curve', 'connector', 'rates', *sizes], lines, 3)
  return '\n'.join([*table, '', f'Mean test AUC{closed if planted else ""}.'])


def _auc(y: dict[str, Any] | None) -> str:
  if y is None:
    return ''
  return f'{y["auc"]:.5f}' + ('' if y['closed'] is None else f' ({100 * y["closed"]:.1f} %)')
