# SPDX-License-Identifier: Apache-2.0
"""The sections of the page of `deres_jax.claims`: the figures behind each verdict."""

from typing import Any

from deres_jax.report import markdown

_MOST_COLUMNS = 6


def verdict(claim: dict[str, Any]) -> str:
  """Returns a verdict and its remark, with a dagger if Holm's p is not below 0.05."""
  beyond = claim['verdict'] == 'shown' and claim['p_holm'] is not None and claim['p_holm'] >= 0.05
  remark = f': {claim["remark"]}' if claim['remark'] else ''
  return f'**{claim["verdict"]}**{" †" if beyond else ""}{remark}'


def section(claim: dict[str, Any], study: dict[str, Any], judged: bool) -> str:
  """Returns the text under the heading of a claim; `judged`: with verdicts."""
  paper = claim['paper']
  out = [f'Paper ({paper["source"]}): {markdown.cell(paper["text"])}.']
  if judged:
    out[0] += f' Here: {verdict(claim)}.'
  elif claim['verdict'] == 'not run here':
    out[0] += f' Not run here: {claim["remark"]}.'
  out.append('')
  if claim['key'] == 'gain':
    remarks = _gain_remarks(study, paper['value'], judged)
    out += [*remarks, ''] if remarks else []
  if 'sizes' in claim:
    out += _flops(claim)
  elif 'shared' in claim:
    out += _gamma(claim)
  elif 'ours' in claim:
    out += _depth(claim)
  elif claim.get('rows'):
    out += _differences(claim, judged)
  return '\n'.join(out).rstrip('\n')


def _gain_remarks(study: dict[str, Any], claimed: float, judged: bool) -> list[str]:
  remarks = []
  if judged:
    remarks.append(
      'The paper gives +0.32 % and a RelaImpr of 2.27 % ((AUC - 0.5) / (AUC_b - 0.5) - 1). Both '
      'cannot be of the same metric and base: +0.0032 is 2.27 % of AUC_b - 0.5 for an AUC_b of '
      '0.64. "Up to" is the best of its data sets; here all sizes are pooled, none is picked.'
    )
  base = next((x for x in study['curves'] if x['name'] == 'OneTrans'), None)
  room = 0.0
  if study['planted'] and base:
    room = study['planted']['bayes_auc'] - max(x['auc'] for x in base['cells'])
  if room > 0:
    remarks.append(
      f'The best size of OneTrans leaves {markdown.number(room)} to the best possible AUC '
      f'({study["planted"]["bayes_auc"]:.5f}); the gain that the paper claims is '
      f'{100 * claimed / room:.0f} % of that.'
    )
  return remarks


def _differences(claim: dict[str, Any], judged: bool) -> list[str]:
  rows = claim['rows']
  sampled = any(x['sampling'] is not None for x in rows)
  head = [
    'pooled over sizes',
    'sizes x seeds',
    'AUC difference [95 %]',
    '± if sizes are independent',
  ]
  head += ['± of the test split'] if sampled else []
  head += ['RelaImpr %'] + (['verdict', 'seeds for 80 % (sd at its ends)'] if judged else [])
  lines = []
  for x in rows:
    line = [f'{x["mine"]} - {x["base"]}', f'{len(x["sizes"])} x {x["seeds"]}', markdown.interval(x)]
    line.append(markdown.half(x['independent']))
    line += [markdown.half(x['sampling'])] if sampled else []
    line.append('' if x['rela_impr_percent'] is None else f'{x["rela_impr_percent"]:+.3f}')
    if judged:
      remark = f': {x["remark"]}' if x['remark'] else ''
      line += [x['verdict'] + remark, _range(x)]
    lines.append(line)
  out = markdown.table(head, lines)
  columns = rows[:_MOST_COLUMNS]
  sizes = list(dict.fromkeys(y['size'] for x in columns for y in x['by_size']))
  by_column = [{y['size']: y for y in x['by_size']} for x in columns]
  lines = [[size, *(_at_size(by_size.get(size)) for by_size in by_column)] for size in sizes]
  out += [
    '',
    *markdown.table(['at each size', *(f'{x["mine"]} - {x["base"]}' for x in columns)], lines, 1),
  ]
  out += [
    '',
    "Means of paired seeds ± half the 95 % t interval; *: Holm's p over the sizes below 0.05.",
  ]
  return out


def _range(row: dict[str, Any]) -> str:
  seeds = row['to_tell']
  if seeds is None or row['verdict'] != 'cannot be told here':
    return ''
  low, middle, high = (
    '>100,000' if n is None else f'{n:,}'
    for n in (seeds['power_range'][0], seeds['power'], seeds['power_range'][1])
  )
  return f'{middle} ({low} to {high})'


def _at_size(y: dict[str, Any] | None) -> str:
  if y is None or not y['pairs']:
    return ''
  star = '*' if y['t_p_holm'] is not None and y['t_p_holm'] < 0.05 else ''
  half = '' if y['interval'] is None else f' ± {markdown.number(y["interval"], sign=False)}'
  return f'{markdown.number(y["difference"], y["interval"])}{half}{star}'


def _flops(claim: dict[str, Any]) -> list[str]:
  head = [
    'size',
    'MFLOP a row, OneTrans',
    'extra FLOPs %',
    'extra parameters %',
    'rows/s over OneTrans',
  ]
  lines = [
    [
      x['size'],
      f'{x["flops"] / 1e6:.4g}',
      f'{100 * x["extra_flops"]:.2f}',
      f'{100 * x["extra_params"]:.2f}',
      '' if x['rows_per_second_ratio'] is None else f'{x["rows_per_second_ratio"]:.2f}',
    ]
    for x in claim['sizes']
  ]  # fmt: skip
  more = [
    [f'depth {x["depth"]}', x['dim'], f'{x["flops"] / 1e6:.4g}', f'{100 * x["extra_flops"]:.2f}']
    for x in claim['wider']
  ]
  counted = ['counted, not trained', 'width', 'MFLOP a row, OneTrans', 'extra FLOPs %']
  return [
    *markdown.table(head, lines),
    '',
    *([*markdown.table(counted, more), ''] if more else []),
    'FLOPs of a forward pass are counted from the program and exact; the share falls as models get '
    'wider. Rows/s are what the clock said of training, on a machine that other work may have '
    'shared: a hint, not a measurement.',
  ]


def _gamma(claim: dict[str, Any]) -> list[str]:
  head = ['curve', 'budgets', 'gamma, alpha of its own', 'gain of a doubling', 'mean AUC rises']
  lines = [
    [
      x['curve'],
      x['budgets'],
      markdown.profile(x['gamma']),
      markdown.profile(x['slope_per_doubling'], scale=1 / markdown.UNIT),
      f'{x["rises"]} of {x["steps"]} steps',
    ]
    for x in claim['curves']
  ]
  fit = claim['fit']
  text = [
    f'Laws AUC = alpha - beta C^-gamma over {claim["decades"]:.2f} decades of compute; 95 % '
    'F-profiles, an open end in a round bracket; gains in units of 0.0001. All but the first '
    'two lines are fits of other curves, which take no part in the ratio. Gamma of DeRes-P over '
    f'that of OneTrans: {markdown.profile(claim["shared"])} under one alpha (a ratio of slopes), '
    f'{markdown.profile(claim["free"])} under free ones.',
    '',
    f'One alpha for both: {_p(claim["shared_alpha_p"])}; lack of fit: '
    f'{_p(fit["saturating"]["lack_of_fit_p"])}; AICc of a straight line in ln C less that of the '
    f'law: {_gap(fit["log_linear"]["aicc"], fit["saturating"]["aicc"])}.',
  ]
  text += ['', *(f'- {markdown.cell(x)}' for x in claim['warnings'])] if claim['warnings'] else []
  return [*markdown.table(head, lines), '', *text]


def _p(p: float | None) -> str:
  return 'not tested' if p is None else f'p = {p:.2g}'


def _gap(a: float | None, b: float | None) -> str:
  return 'none' if a is None or b is None else f'{a - b:+.1f}'


def _depth(claim: dict[str, Any]) -> list[str]:
  half, full = claim['layers']
  lines = []
  for title, key in ((f'OneTrans, {full} layers less {half}', 'gain'),
                     (f'DeRes-P, {half} layers, less OneTrans, {full}', 'ours')):  # fmt: skip
    x = claim[key]
    lines += [[title, 'pooled', f'{len(x["sizes"])} x {x["seeds"]}', markdown.interval(x), '']]
    lines += [
      ['', f'of {y["size"]}', f'1 x {y["pairs"]}', _at_size(y), f'{y["compute_share"]:.3f}']
      for y in x['by_size']
    ]
  allowed = claim['margin']
  margin = 'none, nothing to match' if allowed is None else markdown.number(allowed, sign=False)
  instead = f' {full} layers stand in for 16, which were not run at both depths.'
  return [
    *markdown.table(
      ['', 'size', 'sizes x seeds', 'AUC difference [95 %]', 'FLOPs over the other'], lines, 2
    ),
    '',
    f'Margin: {margin}.{"" if full == 16 else instead}',
  ]
