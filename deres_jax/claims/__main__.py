# SPDX-License-Identifier: Apache-2.0
"""A page on the claims of DeRes's abstract: the evidence of finished sweeps for each.

  python -m deres_jax.claims --sweep=DIR1,DIR2 --out=FILE.md [--exploratory=DIR3]

FILE.json holds the same figures. `deres_jax.metrics.verdicts` has the rules of the verdicts,
`deres_jax.claims.contrasts` the pairing, `deres_jax.claims.study` the roles of curves. Sweeps in
--exploratory are reported alike, without verdicts.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import app, flags

from deres_jax.claims import contrasts, exponents, flops, page, paper
from deres_jax.claims import study as study_lib
from deres_jax.claims.study import Study
from deres_jax.compare import logits
from deres_jax.core import cli, files
from deres_jax.core.errors import UserError
from deres_jax.metrics import paired, verdicts
from deres_jax.scaling import curves

# Differences of AUC: (claim, its parts, further rows), each a pair of roles. A claim is shown only
# if all its parts are.
_DERES, _BASE = 'deres_p', 'plain'
DIFFERENCES = (
  ('gain', [(_DERES, _BASE)], []),
  ('dual_p', [(_DERES, _BASE), (_DERES, 'recall_silu')], []),
  ('dual_s', [('deres_s', _BASE), ('deres_s', 'recall_softmax')], []),
  (
    'identity',
    [(_DERES, 'dual_matrix')],
    [(_DERES, 'dual_vector'), (_DERES, 'dual_scalar')]
    + [(_BASE, kind) for kind in ('matrix', 'vector', 'scalar')],
  ),
  ('silu', [(_DERES, 'deres_s')], [('recall_silu', 'recall_softmax')]),
)


def claims(
  study: Study,
  labels_N: np.ndarray | None = None,
  data: str | None = None,
  widths: Sequence[int] = (),
) -> list[dict[str, Any]]:
  """Returns every claim with its figures and verdict, in the order of the abstract.

  Args:
    labels_N: labels of the test split, for its sampling error from stored logits; None: left out.
    data: prepared folder, for `widths`.
    widths: widths that were not run, at which FLOPs are counted.

  Returns:
    dicts of key, title, paper, verdict, remark, p (of the paired test; the largest of its parts),
    p_holm (over the claims that have one) and the figures of `_differences`, `_flops`, `_gamma` or
    `_depth`.
  """
  judged = {key: _differences(study, key, *rows, labels_N) for key, *rows in DIFFERENCES}
  judged |= {'flops': _flops(study, data, widths), 'gamma': _gamma(study), 'depth': _depth(study)}
  out = [
    {'key': key, 'title': paper.TITLES[key], 'paper': paper.CLAIMS[key], 'p': None, **judged[key]}
    for key in paper.CLAIMS
  ]
  adjusted = paired.holm([claim['p'] for claim in out])
  return [{**claim, 'p_holm': p} for claim, p in zip(out, adjusted, strict=True)]


def unjudged(judged: list[dict[str, Any]]) -> list[dict[str, Any]]:
  """Returns the claims with 'exploratory' in the place of their verdicts."""

  def without_verdict(x: dict[str, Any]) -> dict[str, Any]:
    if x['verdict'] != verdicts.NOT_RUN:
      x = {**x, 'verdict': 'exploratory', 'remark': ''}
    return {**x, 'rows': [without_verdict(row) for row in x['rows']]} if 'rows' in x else x

  return [without_verdict(claim) for claim in judged]


def _not_run(study: Study, *roles: str) -> dict[str, Any] | None:
  """Returns the verdict on a claim whose roles lack runs; None if all have some."""
  missing = [study_lib.ROLES[role] for role in roles if role not in study.roles]
  if not missing:
    return None
  return {'verdict': verdicts.NOT_RUN, 'remark': f'no runs of {" and ".join(missing)}'}


def _compared(
  curve: curves.Curve, base: curves.Curve, claimed: float | None, labels_N
) -> dict[str, Any]:
  """Returns one row: the pooled difference, that at each size, and a verdict."""
  pairs = contrasts.same_size(curve, base)
  pooled = contrasts.difference(pairs)
  verdict = verdicts.judge_effect(pooled['low'], pooled['high'], claimed)
  sampling, seeds = None, pooled['seeds']
  if labels_N is not None and seeds:
    sampling = contrasts.split_sampling(pairs, labels_N)
  return {
    'mine': curve.name,
    'base': base.name,
    **pooled,
    'claimed': claimed,
    'share_of_claim': pooled['difference'] / claimed if claimed and seeds else None,
    'sampling': sampling,
    'verdict': verdict.word,
    'remark': verdict.remark,
    'to_tell': verdicts.seeds_needed(pooled['sd'], seeds, claimed or verdicts.MIN_EFFECT),
  }


def _differences(study: Study, key: str, parts, further, labels_N) -> dict[str, Any]:
  """Judges a claim on a difference of AUCs: `parts` decide, `further` are printed beside."""
  claimed = paper.CLAIMS[key]['value']
  rows = [
    _compared(study.roles[a], study.roles[b], claimed, labels_N)
    for a, b in [*parts, *further]
    if {a, b} <= study.roles.keys()
  ]
  if key == 'gain' and _DERES in study.roles:
    deres = study.roles[_DERES]
    others = [c for c in study.curves if c not in (deres, study.roles.get(_BASE))]
    rows += [_compared(deres, c, None, None) for c in others if contrasts.same_size(deres, c)]
  not_run = [x for x in (_not_run(study, a, b) for a, b in parts) if x]
  if not_run:
    return {**not_run[0], 'rows': rows, 'parts': 0}
  deciding = rows[: len(parts)]
  verdict = verdicts.judge_all(
    [verdicts.Verdict(row['verdict'], row['remark']) for row in deciding]
  )
  known = all(row['p'] is not None for row in deciding)
  return {
    'verdict': verdict.word,
    'remark': verdict.remark,
    'rows': rows,
    'parts': len(parts),
    'p': max(row['p'] for row in deciding) if known else None,
  }


def _flops(study: Study, data: str | None, widths: Sequence[int]) -> dict[str, Any]:
  """Judges the extra FLOPs at the sizes that were run; adds those at `widths`.

  FLOPs and parameters are exact, examples a second are measured.
  """
  if not_run := _not_run(study, _DERES, _BASE):
    return not_run
  sizes = []
  for size, deres, base in contrasts.same_size(study.roles[_DERES], study.roles[_BASE]):
    result, base_result = (next(iter(cell.runs.values())).result for cell in (deres, base))
    speed = [
      deres.runs[key].result.rows_per_second / base.runs[key].result.rows_per_second
      for key in deres.runs
      if key in base.runs
    ]
    sizes.append({
      'size': size,
      'flops': base.compute,
      'extra_flops': deres.compute / base.compute - 1,
      'connector_extra': result.flops_connector_extra,
      'params': base_result.params_dense,
      'extra_params': result.params_dense / base_result.params_dense - 1,
      'rows_per_second_ratio': float(np.exp(np.mean(np.log(speed)))) if speed else None,
    })  # fmt: skip
  if not sizes:
    return {'verdict': verdicts.UNDECIDED, 'remark': 'no size that both have'}
  limit = paper.CLAIMS['flops']['value']
  verdict, remark, more = verdicts.judge_bound([x['extra_flops'] for x in sizes], limit), '', []
  if widths:
    cells = study.roles[_DERES].cells
    depths = sorted({cell.depth for cell in cells})
    more = flops.counted(next(iter(cells[0].runs.values())), data, depths, widths)
    below = sum(x['extra_flops'] < limit for x in more)
    where = ' and '.join(map(str, widths))
    remark = f'counted at width {where}, nothing trained: at {below} of {len(more)}'
  return {
    'verdict': verdict.word,
    'remark': '; '.join(filter(None, [verdict.remark, remark])),
    'sizes': sizes,
    'wider': more,
  }


def _gamma(study: Study) -> dict[str, Any]:
  if not_run := _not_run(study, _DERES, _BASE):
    return not_run
  if study.splits > 1:
    return {
      'verdict': verdicts.UNDECIDED,
      'remark': f'runs on {study.splits} splits: laws are fitted to runs on the same rows',
      'fitted': False,
    }
  deres, base = study.roles[_DERES], study.roles[_BASE]
  others = [curve for curve in study.curves if curve not in (deres, base)]
  deep = any(cell.depth == paper.DEPTH for cell in base.cells)
  match = f'depth={paper.DEPTH}' if deep else 'largest'
  return exponents.judge(deres, base, others, paper.GAMMAS, match)


def _depth(study: Study) -> dict[str, Any]:
  """Judges DeRes-P at half the depth against OneTrans at full depth, by the gain of that depth."""
  if not_run := _not_run(study, _DERES, _BASE):
    return not_run
  full, cells = contrasts.halves(study.roles[_DERES], study.roles[_BASE], paper.DEPTH)
  if not cells:
    return {
      'verdict': verdicts.NOT_RUN,
      'remark': 'no DeRes-P at half the layers of an OneTrans that was run at both',
    }
  gain = contrasts.difference([(deep.size, deep, half) for _, half, deep in cells])
  ours = contrasts.difference([(deep.size, deres, deep) for deres, _, deep in cells])
  allowed = verdicts.noninferiority_margin(gain['low'])
  verdict = verdicts.judge_noninferiority(ours['low'], ours['high'], allowed)
  sd = ours['sd'] if allowed else gain['sd']
  return {
    'verdict': verdict.word,
    'remark': verdict.remark,
    'layers': [full // 2, full],
    'margin': allowed,
    'gain': gain,
    'ours': ours,
    'p': None if allowed is None else paired.t_p([x + allowed for x in ours['gaps']]),
    'to_tell': verdicts.seeds_needed(sd, ours['seeds'], allowed or verdicts.MIN_EFFECT),
  }


def _define_flags():
  flags.DEFINE_list('sweep', [], 'Folders that deres_jax.sweep wrote: the runs to judge by.')
  flags.DEFINE_list('exploratory', [], 'More folders, to be reported without verdicts.')
  flags.DEFINE_string('out', None, 'Markdown file to write; a .json of the same name beside it.')
  flags.DEFINE_string('title', 'The claims of DeRes', 'First line of the page.')
  flags.DEFINE_string('command', '', 'What made the runs, to be shown on the page.')
  flags.DEFINE_string('note', '', 'How settings were chosen, to be shown on the page.')
  flags.DEFINE_string('data', None, 'Prepared folder of --sweep: sampling error of its test split.')
  flags.DEFINE_list('widths', [], 'Also count FLOPs at these widths; needs --data.')
  flags.DEFINE_list('curves', [], 'Only these curves of --sweep, by name; default: all.')
  flags.DEFINE_bool('partial', False, 'Allow unfinished runs.')


def main(argv: list[str]):
  """Runs the command: writes the page of claims."""
  cli.no_arguments(argv)
  f = flags.FLAGS
  if not f.sweep or not f.out:
    raise UserError('give both --sweep=DIR1,DIR2 and --out=FILE.md')
  out = files.output_file(f.out, '.md')
  study = study_lib.load(f.sweep, f.curves, f.partial)
  labels_N = None
  if f.data:
    if study.splits > 1:
      raise UserError(f'--data={f.data}: the sweeps are on {study.splits} splits, leave it out')
    labels_N = logits.labels(f.data, study.finished[0].result.data_content)
  if f.widths and not f.data:
    raise UserError(f'--widths={",".join(f.widths)}: needs --data, the prepared folder of the runs')
  if not all(x.isdecimal() for x in f.widths):
    raise UserError(f'--widths={",".join(f.widths)}: expected whole numbers, such as 64,128')
  widths = [int(x) for x in f.widths]
  more = study_lib.load(f.exploratory, (), f.partial) if f.exploratory else None
  content = {
    'kind': 'deres_jax claims',
    'title': f.title,
    'command': f.command,
    'note': f.note,
    'matters': verdicts.MIN_EFFECT,
    'partial': f.partial,
    'study': {**study_lib.described(study), 'claims': claims(study, labels_N, f.data, widths)},
    'exploratory': more and {**study_lib.described(more), 'claims': unjudged(claims(more))},
  }
  files.write_json(out.with_suffix('.json'), content)
  text = page.page(content)
  files.write(out, text)
  print(f'{text}\n{out}')


if __name__ == '__main__':
  _define_flags()
  app.run(cli.guarded(main), flags_parser=cli.parse)
