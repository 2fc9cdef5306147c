# SPDX-License-Identifier: Apache-2.0
"""A page on the claims of DeRes's abstract: what finished sweeps show of each, and do not.

  python -m deres_jax.claims --sweep=DIR1,DIR2 --out=FILE.md [--exploratory=DIR3]

FILE.json holds the same figures. The rules of the verdicts stand in `deres_jax.metrics.verdicts`,
the pairing in `deres_jax.claims.contrasts`, the roles in `deres_jax.claims.study`. Sweeps in
--exploratory are reported alike, without verdicts."""

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

# Differences of AUC: (claim, its parts, further rows), each (mine, base). The verdict is on the
# parts; all of them, where there are several.
_MINE, _BASE = 'deres_p', 'plain'
DIFFERENCES = (
  ('gain', [(_MINE, _BASE)], []),
  ('dual_p', [(_MINE, _BASE), (_MINE, 'recall_silu')], []),
  ('dual_s', [('deres_s', _BASE), ('deres_s', 'recall_softmax')], []),
  (
    'identity',
    [(_MINE, 'dual_matrix')],
    [(_MINE, 'dual_vector'), (_MINE, 'dual_scalar')]
    + [(_BASE, kind) for kind in ('matrix', 'vector', 'scalar')],
  ),
  ('silu', [(_MINE, 'deres_s')], [('recall_silu', 'recall_softmax')]),
)


def claims(
  study: Study,
  labels_N: np.ndarray | None = None,
  data: str | None = None,
  widths: Sequence[int] = (),
) -> list[dict[str, Any]]:
  """Every claim with its figures and verdict, in the order of the abstract.

  Args:
    labels_N: of the test split, for its sampling error from stored logits; None leaves it out.
    data, widths: prepared folder, and widths to count FLOPs at that were not run.

  Returns:
    dicts of key, title, paper, verdict, remark, p (of the paired test; of parts the largest),
    p_holm (over the claims that have one) and what `_differences`, `_flops`, `_gamma` and `_depth`
    add.
  """
  found = {key: _differences(study, key, *rows, labels_N) for key, *rows in DIFFERENCES}
  found |= {'flops': _flops(study, data, widths), 'gamma': _gamma(study), 'depth': _depth(study)}
  out = [
    {'key': key, 'title': paper.TITLES[key], 'paper': paper.CLAIMS[key], 'p': None, **found[key]}
    for key in paper.CLAIMS
  ]
  adjusted = paired.holm([claim['p'] for claim in out])
  return [{**claim, 'p_holm': p} for claim, p in zip(out, adjusted, strict=True)]


def unjudged(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
  """The same claims with no verdict but 'exploratory', where there are runs."""

  def bare(x: dict[str, Any]) -> dict[str, Any]:
    seen = x if x['verdict'] == verdicts.NOT_RUN else {**x, 'verdict': 'exploratory', 'remark': ''}
    return {**seen, 'rows': [bare(row) for row in x['rows']]} if 'rows' in x else seen

  return [bare(claim) for claim in found]


def _absent(study: Study, *roles: str) -> dict[str, Any] | None:
  missing = [study_lib.ROLES[role] for role in roles if role not in study.roles]
  if not missing:
    return None
  return {'verdict': verdicts.NOT_RUN, 'remark': f'no runs of {" and ".join(missing)}'}


def _compared(
  mine: curves.Curve, base: curves.Curve, claimed: float | None, labels_N
) -> dict[str, Any]:
  """One row: the pooled difference, each size, a verdict of its own."""
  pairs = contrasts.same_size(mine, base)
  found = contrasts.difference(pairs)
  verdict = verdicts.judge_effect(found['low'], found['high'], claimed)
  sampling = None
  if labels_N is not None and found['seeds']:
    sampling = contrasts.split_sampling(pairs, labels_N)
  return {
    'mine': mine.name,
    'base': base.name,
    **found,
    'claimed': claimed,
    'share_of_claim': found['difference'] / claimed if claimed and found['seeds'] else None,
    'sampling': sampling,
    'verdict': verdict.word,
    'remark': verdict.remark,
    'to_tell': verdicts.seeds_needed(found['sd'], found['seeds'], claimed or verdicts.MIN_EFFECT),
  }


def _differences(study: Study, key: str, parts, further, labels_N) -> dict[str, Any]:
  """A claim on a difference of AUCs: `parts` decide, `further` rows stand beside."""
  claimed = paper.CLAIMS[key]['value']
  rows = [
    _compared(study.roles[a], study.roles[b], claimed, labels_N)
    for a, b in [*parts, *further]
    if {a, b} <= study.roles.keys()
  ]
  if key == 'gain' and _MINE in study.roles:
    mine = study.roles[_MINE]
    others = [c for c in study.curves if c not in (mine, study.roles.get(_BASE))]
    rows += [_compared(mine, c, None, None) for c in others if contrasts.same_size(mine, c)]
  absent = [_absent(study, a, b) for a, b in parts]
  if any(absent):
    return {**next(filter(None, absent)), 'rows': rows, 'parts': 0}
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
  """Exact: FLOPs and parameters at each size; and how fast the rows went by, which is not.

  The verdict is on the sizes that were run; what is counted at other widths stands beside it.
  """
  if absent := _absent(study, _MINE, _BASE):
    return absent
  sizes = []
  for size, mine, base in contrasts.same_size(study.roles[_MINE], study.roles[_BASE]):
    ours, theirs = (next(iter(cell.runs.values())).result for cell in (mine, base))
    speed = [
      mine.runs[key].result.rows_per_second / base.runs[key].result.rows_per_second
      for key in mine.runs
      if key in base.runs
    ]
    sizes.append({
      'size': size,
      'flops': base.compute,
      'extra_flops': mine.compute / base.compute - 1,
      'connector_extra': ours.flops_connector_extra,
      'params': theirs.params_dense,
      'extra_params': ours.params_dense / theirs.params_dense - 1,
      'rows_per_second_ratio': float(np.exp(np.mean(np.log(speed)))) if speed else None,
    })  # fmt: skip
  if not sizes:
    return {'verdict': verdicts.UNDECIDED, 'remark': 'no size that both have'}
  limit = paper.CLAIMS['flops']['value']
  verdict, remark, more = verdicts.judge_bound([x['extra_flops'] for x in sizes], limit), '', []
  if widths:
    cells = study.roles[_MINE].cells
    depths = sorted({cell.depth for cell in cells})
    more = flops.counted(next(iter(cells[0].runs.values())), data, depths, widths)
    held = sum(x['extra_flops'] < limit for x in more)
    where = ' and '.join(map(str, widths))
    remark = f'counted at width {where}, nothing trained: at {held} of {len(more)}'
  return {
    'verdict': verdict.word,
    'remark': '; '.join(filter(None, [verdict.remark, remark])),
    'sizes': sizes,
    'wider': more,
  }


def _gamma(study: Study) -> dict[str, Any]:
  if absent := _absent(study, _MINE, _BASE):
    return absent
  if study.splits > 1:
    return {
      'verdict': verdicts.UNDECIDED,
      'remark': f'runs on {study.splits} splits: laws are fitted to runs on the same rows',
      'fitted': False,
    }
  mine, base = study.roles[_MINE], study.roles[_BASE]
  others = [curve for curve in study.curves if curve not in (mine, base)]
  deep = any(cell.depth == paper.DEPTH for cell in base.cells)
  match = f'depth={paper.DEPTH}' if deep else 'largest'
  return exponents.judge(mine, base, others, paper.GAMMAS, match)


def _depth(study: Study) -> dict[str, Any]:
  """DeRes-P at half the depth less OneTrans at all of it, and what the depth gains OneTrans."""
  if absent := _absent(study, _MINE, _BASE):
    return absent
  full, cells = contrasts.halves(study.roles[_MINE], study.roles[_BASE], paper.DEPTH)
  if not cells:
    return {
      'verdict': verdicts.NOT_RUN,
      'remark': 'no DeRes-P at half the layers of an OneTrans that was run at both',
    }
  gain = contrasts.difference([(deep.size, deep, half) for _, half, deep in cells])
  ours = contrasts.difference([(deep.size, mine, deep) for mine, _, deep in cells])
  allowed = verdicts.noninferiority_margin(gain['low'])
  verdict = verdicts.judge_noninferiority(ours['low'], ours['high'], allowed)
  wanted = ours['sd'] if allowed else gain['sd']
  return {
    'verdict': verdict.word,
    'remark': verdict.remark,
    'layers': [full // 2, full],
    'margin': allowed,
    'gain': gain,
    'ours': ours,
    'p': None if allowed is None else paired.t_p([x + allowed for x in ours['gaps']]),
    'to_tell': verdicts.seeds_needed(wanted, ours['seeds'], allowed or verdicts.MIN_EFFECT),
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
  """The command: writes the page of claims."""
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
