# SPDX-License-Identifier: Apache-2.0
"""Runs of sweep folders: reading, settings, choice on validation, paired differences."""

import dataclasses
import json
import pathlib
import statistics
from typing import Any

from deres_jax import config as config_lib
from deres_jax.config import fields
from deres_jax.config import overrides as overrides_lib
from deres_jax.core import files
from deres_jax.core.errors import UserError, choose
from deres_jax.metrics import paired
from deres_jax.sweep import folder as folder_lib


@dataclasses.dataclass(frozen=True)
class Run:
  """A point of a sweep folder."""

  folder: str
  id: str
  name: str
  setting: str  # the fields that the sweep set, without the seed and operational ones
  seed: int
  overrides: dict[str, Any]
  result: dict[str, Any] | None  # None: not finished

  @property
  def key(self) -> tuple[str, int]:
    """What runs are paired by."""
    return self.folder, self.seed


@dataclasses.dataclass(frozen=True)
class Setting:
  """One setting of a model and its runs, by (folder, seed)."""

  name: str
  shown: str  # the fields that vary among the settings of this name
  runs: dict[tuple[str, int], Run]  # finished ones
  missing: int  # runs that others have and this one has not

  def mean(self, figure: str) -> float:
    """Of a figure of result.json over the runs."""
    return statistics.fmean(run.result[figure] for run in self.runs.values())


def load(folders: list[str]) -> list[Run]:
  """All points of the sweep folders; raises UserError for runs that must not stand together."""
  runs = [run for folder in folders for run in _load(folder)]
  finished = [run for run in runs if run.result]
  if not finished:
    raise UserError(f'{", ".join(folders)} hold no finished run: run the sweep first')
  datasets = sorted({run.result['dataset'] for run in finished})
  if len(datasets) > 1:
    raise UserError(f'the sweeps are on {" and ".join(datasets)}: compare runs on one data set')
  seen = {}
  for run in finished:
    content = json.dumps(run.result['data_content'], sort_keys=True)
    first = seen.setdefault(('folder', run.folder), (content, run))
    if first[0] != content:
      raise UserError(f'{run.folder} holds runs on different data: {first[1].id} and {run.id}')
    other = seen.setdefault((run.id, content), run)
    if other is not run:
      raise UserError(
        f'run {run.id} ({run.name}) stands in {other.folder} and in {run.folder}, on the same '
        'data: it must not count twice'
      )
  return runs


def _load(folder: str) -> list[Run]:
  file = pathlib.Path(folder) / 'sweep.json'
  if not file.is_file():
    raise UserError(f'{folder} holds no sweep.json: give folders that deres_jax.sweep wrote')
  counted = config_lib.identity(fields.Config()).keys() - {'seed'}
  out = {}
  for point in folder_lib.listed(file):
    overrides = {k: v for k, v in point['overrides'].items() if k in counted}
    result = file.with_name('runs') / point['id'] / 'result.json'
    run = Run(
      folder,
      point['id'],
      point['name'],
      overrides_lib.written(dict(sorted(overrides.items()))),
      point['seed'],
      overrides,
      _result(result),
    )
    if run.result and run.result['auc_validation'] is None:
      raise UserError(f'run {run.id} ({run.name}) in {folder} has no validation AUC to choose by')
    other = out.setdefault((run.name, run.setting, run.seed), run)
    if other is not run:
      raise UserError(
        f'{file}: {other.id} and {run.id} are both {run.name} ({run.setting}), seed {run.seed}: '
        'one is of an older config; take it out of the list'
      )
  return list(out.values())


def _result(file: pathlib.Path) -> dict[str, Any] | None:
  if not file.is_file():
    return None
  then = 'delete it and run the sweep again'
  found = files.read_json(file, dict, then)
  figures = ('auc', 'logloss', 'auc_validation')  # the last may be null
  good = all(isinstance(found.get(k), float | None) for k in figures)
  good &= isinstance(found.get('dataset'), str)
  lacking = [k for k in (*figures, 'dataset', 'data_content') if k not in found]
  if lacking or not good or None in (found['auc'], found['logloss']):
    what = f'lacks {", ".join(lacking)}' if lacking else 'has no figures'
    raise UserError(f'{file}: is not the result of a run, it {what}: {then}')
  return found


def settings(runs: list[Run], partial: bool) -> dict[str, list[Setting]]:
  """Settings by name, in the order of the sweeps.

  A setting is complete with a run for every (folder, seed) that any point has. Raises UserError
  for an incomplete one unless `partial`.
  """
  expected = {run.key for run in runs}
  groups: dict[str, dict[str, list[Run]]] = {}
  for run in runs:
    groups.setdefault(run.name, {}).setdefault(run.setting, []).append(run)
  out = {}
  for name, by_setting in groups.items():
    items = [set(some[0].overrides.items()) for some in by_setting.values()]
    same = set.intersection(*items)
    out[name] = []
    for some in by_setting.values():
      shown = {k: v for k, v in some[0].overrides.items() if (k, v) not in same}
      finished = {run.key: run for run in some if run.result}
      missing = len(expected - finished.keys())
      out[name].append(Setting(name, overrides_lib.written(_rounded(shown)), finished, missing))
  lacking = _lacking(out)
  if lacking and not partial:
    more = f' and {len(lacking) - 5} more' if len(lacking) > 5 else ''
    raise UserError(
      f'{sum(s.missing for tried in out.values() for s in tried)} runs are missing: '
      f'{"; ".join(lacking[:5])}{more}: finish the sweeps, or say --partial'
    )
  return out


def _rounded(overrides: dict[str, Any]) -> dict[str, Any]:
  """Floats as people write them: 3 * 0.1 is 0.3."""
  return {k: float(f'{v:.6g}') if isinstance(v, float) else v for k, v in overrides.items()}


def _lacking(groups: dict[str, list[Setting]]) -> list[str]:
  return [
    f'{s.name}{f" ({s.shown})" if s.shown else ""} lacks {s.missing}'
    for tried in groups.values()
    for s in tried
    if s.missing
  ]


def chosen(tried: list[Setting]) -> Setting | None:
  """The best mean validation AUC among the settings with the most runs; None: nothing finished."""
  most = max(len(s.runs) for s in tried)
  ready = [s for s in tried if len(s.runs) == most]
  return max(ready, key=lambda s: s.mean('auc_validation')) if most else None


def difference(mine: Setting, reference: Setting) -> dict[str, Any]:
  """Mean test AUC over that of the reference, paired by (folder, seed), with 95 % t interval.

  `interval` is half its width; None for fewer than two pairs.
  """
  pairs = [k for k in mine.runs if k in reference.runs]
  gaps = [mine.runs[k].result['auc'] - reference.runs[k].result['auc'] for k in pairs]
  mean, half = paired.t_interval(gaps)
  return {'pairs': len(gaps), 'difference': mean, 'interval': half}


def figures(groups: dict[str, list[Setting]], reference: str) -> list[dict[str, Any]]:
  """A dict for every name with a finished run: the lines of the table."""
  best = {name: chosen(tried) for name, tried in groups.items()}
  base = choose(reference, best, 'reference (--reference)')
  if base is None:
    raise UserError(f'the reference {reference!r} has no finished run: choose another')
  return [_line(s, base) for s in best.values() if s]


def _line(s: Setting, base: Setting) -> dict[str, Any]:
  aucs = [run.result['auc'] for run in s.runs.values()]
  return {
    'name': s.name,
    'setting': s.shown,
    'runs': len(aucs),
    'auc': statistics.fmean(aucs),
    'auc_sd': statistics.stdev(aucs) if len(aucs) > 1 else None,
    'reference': s is base,
    **difference(s, base),
    'auc_validation': s.mean('auc_validation'),
    'logloss': s.mean('logloss'),
    'params_dense': s.mean('params_dense'),
    'flops_forward_per_row': s.mean('flops_forward_per_row'),
    'rows_per_second': s.mean('rows_per_second'),
    'by_run': [
      {
        'sweep': run.folder,
        'seed': run.seed,
        'id': run.id,
        **{k: run.result[k] for k in ('auc', 'auc_se', 'auc_validation', 'logloss')},
      }
      for run in s.runs.values()
    ],
  }


def compare(
  runs: list[Run], title: str, made_by: str, reference: str | None, partial: bool
) -> dict[str, Any]:
  """Everything that the page shows."""
  groups = settings(runs, partial)
  reference = reference or runs[0].name
  finished = [run.result for run in runs if run.result]
  lines = figures(groups, reference)
  picked = {(line['name'], line['setting']) for line in lines}
  return {
    'title': title,
    'command': made_by,
    'dataset': finished[0]['dataset'],
    'rows_test': sorted({r['rows'] for r in finished}),
    'devices': sorted({f'{r["device"]["count"]} x {r["device"]["kind"]}' for r in finished}),
    'versions': sorted({_versions(r['versions']) for r in finished}),
    'sweeps': list(dict.fromkeys(run.folder for run in runs)),
    'seeds': sorted({run.seed for run in runs}),
    'missing': _lacking(groups),
    'reference': reference,
    'table': lines,
    'settings': [
      {
        'name': s.name,
        'setting': s.shown,
        'runs': len(s.runs),
        'auc_validation': s.mean('auc_validation') if s.runs else None,
        'chosen': (s.name, s.shown) in picked,
      }
      for tried in groups.values()
      for s in tried
    ],
  }


def _versions(versions: dict[str, str]) -> str:
  return ', '.join(f'{k} {v}' for k, v in versions.items())
