# SPDX-License-Identifier: Apache-2.0
"""Runs of sweep folders: reads them, chooses settings on validation, pairs runs by seed."""

import dataclasses
import json
import pathlib
import statistics
from collections.abc import Iterable
from typing import Any

from deres_jax import config as config_lib
from deres_jax.config import fields
from deres_jax.config import overrides as overrides_lib
from deres_jax.core import run_files
from deres_jax.core.errors import UserError, choose
from deres_jax.metrics import paired

_ADVICE = 'delete it and run the sweep again, which keeps finished runs'


@dataclasses.dataclass(frozen=True)
class Run:
  """A point of a sweep folder, and its result if it is finished."""

  folder: str
  id: str
  name: str
  setting: str  # the fields that the sweep set, without the seed and operational ones
  seed: int
  overrides: dict[str, Any]
  result: run_files.Result | None

  @property
  def key(self) -> tuple[str, int]:
    """Runs with the same key are paired."""
    return self.folder, self.seed

  @property
  def workdir(self) -> pathlib.Path:
    """The folder of the run, inside that of the sweep."""
    return pathlib.Path(self.folder) / 'runs' / self.id

  @property
  def config_file(self) -> pathlib.Path:
    """The path of config.json, whether it is there or not."""
    return self.workdir / 'config.json'

  def config(self) -> run_files.RunConfig | None:
    """Reads config.json; None where there is none."""
    return run_files.read_config(self.workdir, 'take the run out of the sweep or run it again')


@dataclasses.dataclass(frozen=True)
class Setting:
  """One setting of a model and its finished runs, by (folder, seed)."""

  name: str
  text: str  # the fields that differ between the settings of this name
  runs: dict[tuple[str, int], Run]
  missing: int  # keys of other settings for which this one has no finished run

  @property
  def label(self) -> str:
    """The name, and the fields that differ."""
    return f'{self.name} ({self.text})' if self.text else self.name

  def mean(self, figure: str) -> float:
    """Returns the mean over the runs of a field of `Result`."""
    return statistics.fmean(getattr(run.result, figure) for run in self.runs.values())


def load(folders: list[str]) -> list[Run]:
  """Reads all points of sweep folders.

  Raises:
    UserError: a damaged file, no finished run, or runs that are not comparable: other data in one
      folder, another data set, or one run counted twice.
  """
  runs = [run for folder in folders for run in _load(folder)]
  finished = [run for run in runs if run.result]
  if not finished:
    raise UserError(f'{", ".join(folders)}: no finished run: run the sweep first')
  datasets = sorted({run.result.dataset for run in finished})
  if len(datasets) > 1:
    raise UserError(f'the sweeps are on {" and ".join(datasets)}: compare runs on one data set')
  first_of = {}
  for run in finished:
    content = json.dumps(run.result.data_content, sort_keys=True)
    other_content, other = first_of.setdefault(('folder', run.folder), (content, run))
    if other_content != content:
      raise UserError(f'{run.folder} holds runs on different data: {other.id} and {run.id}')
    other = first_of.setdefault((run.id, content), run)
    if other is not run:
      raise UserError(
        f'run {run.id} ({run.name}) is in {other.folder} and in {run.folder}, on the same data: '
        'it would count twice'
      )
  return runs


def _load(folder: str) -> list[Run]:
  path = pathlib.Path(folder)
  if not (path / 'sweep.json').exists():
    raise UserError(f'{folder} holds no sweep.json: give folders that deres_jax.sweep wrote')
  identity_fields = config_lib.identity(fields.Config()).keys() - {'seed'}
  runs = {}
  for point in run_files.read_sweep(path, _ADVICE):
    overrides = {k: v for k, v in point.overrides.items() if k in identity_fields}
    setting = overrides_lib.as_text(dict(sorted(overrides.items())))
    result = run_files.read_result(path / 'runs' / point.id, _ADVICE)
    run = Run(folder, point.id, point.name, setting, point.seed, overrides, result)
    if result and None in (result.auc, result.auc_validation):
      split = 'test' if result.auc is None else 'validation'
      raise UserError(f'run {run.id} ({run.name}) in {folder} has no {split} AUC to compare by')
    other = runs.setdefault((run.name, setting, run.seed), run)
    if other is not run:
      raise UserError(
        f'{path / "sweep.json"}: {other.id} and {run.id} are both {run.name} ({setting}), seed '
        f'{run.seed}: one is of an older config; take it out of the list'
      )
  return list(runs.values())


def settings(runs: list[Run], partial: bool) -> dict[str, list[Setting]]:
  """Groups runs into settings by name, in the order of the sweeps.

  A setting is complete if it has a finished run for every (folder, seed) of any point.

  Raises:
    UserError: a setting is incomplete and not `partial`.
  """
  expected = {run.key for run in runs}
  groups: dict[str, dict[str, list[Run]]] = {}
  for run in runs:
    groups.setdefault(run.name, {}).setdefault(run.setting, []).append(run)
  out = {}
  for name, by_setting in groups.items():
    same = set.intersection(*(set(members[0].overrides.items()) for members in by_setting.values()))
    out[name] = []
    for members in by_setting.values():
      varied = {k: v for k, v in members[0].overrides.items() if (k, v) not in same}
      finished = {run.key: run for run in members if run.result}
      missing = len(expected - finished.keys())
      out[name].append(Setting(name, overrides_lib.as_text(_rounded(varied)), finished, missing))
  lacking = _lacking(out)
  if lacking and not partial:
    more = f' and {len(lacking) - 5} more' if len(lacking) > 5 else ''
    raise UserError(
      f'{sum(s.missing for s in _all(out))} runs are missing: {"; ".join(lacking[:5])}{more}: '
      'finish the sweeps, or say --partial'
    )
  return out


def _all(groups: dict[str, list[Setting]]) -> Iterable[Setting]:
  return (setting for settings in groups.values() for setting in settings)


def _rounded(overrides: dict[str, Any]) -> dict[str, Any]:
  """Rounds floats as people write them: 3 * 0.1 is 0.3."""
  return {k: float(f'{v:.6g}') if isinstance(v, float) else v for k, v in overrides.items()}


def _lacking(groups: dict[str, list[Setting]]) -> list[str]:
  return [f'{s.label} lacks {s.missing}' for s in _all(groups) if s.missing]


def chosen(candidates: list[Setting]) -> Setting | None:
  """Returns the setting with the best mean validation AUC among those with the most runs.

  None where no run is finished.
  """
  most = max(len(s.runs) for s in candidates)
  ready = [s for s in candidates if len(s.runs) == most]
  return max(ready, key=lambda s: s.mean('auc_validation')) if most else None


def difference(setting: Setting, reference: Setting) -> dict[str, Any]:
  """Returns the mean difference of test AUCs, paired by (folder, seed).

  `interval` is half the width of the 95 % t interval; None for fewer than two pairs.
  """
  pairs = [k for k in setting.runs if k in reference.runs]
  gaps = [setting.runs[k].result.auc - reference.runs[k].result.auc for k in pairs]
  mean, half = paired.t_interval(gaps)
  return {'pairs': len(gaps), 'difference': mean, 'interval': half}


def figures(groups: dict[str, list[Setting]], reference: str) -> list[dict[str, Any]]:
  """Returns the lines of the table: one for every name with a finished run."""
  best = {name: chosen(tried) for name, tried in groups.items()}
  base = choose(reference, best, 'reference (--reference)')
  if base is None:
    raise UserError(f'the reference {reference!r} has no finished run: choose another')
  return [_line(s, base) for s in best.values() if s]


def _line(s: Setting, base: Setting) -> dict[str, Any]:
  aucs = [run.result.auc for run in s.runs.values()]
  return {
    'name': s.name,
    'setting': s.text,
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
        **{k: getattr(run.result, k) for k in ('auc', 'auc_se', 'auc_validation', 'logloss')},
      }
      for run in s.runs.values()
    ],
  }


def compare(
  runs: list[Run], title: str, made_by: str, reference: str | None, partial: bool
) -> dict[str, Any]:
  """Returns the content of the page and of the .json beside it."""
  groups = settings(runs, partial)
  reference = reference or runs[0].name
  finished = [run.result for run in runs if run.result]
  lines = figures(groups, reference)
  picked = {(line['name'], line['setting']) for line in lines}
  return {
    'title': title,
    'command': made_by,
    'dataset': finished[0].dataset,
    'rows_test': sorted({r.rows for r in finished}),
    'devices': sorted({r.devices_text for r in finished}),
    'versions': sorted({r.versions_text for r in finished}),
    'sweeps': list(dict.fromkeys(run.folder for run in runs)),
    'seeds': sorted({run.seed for run in runs}),
    'missing': _lacking(groups),
    'reference': reference,
    'table': lines,
    'settings': [
      {
        'name': s.name,
        'setting': s.text,
        'runs': len(s.runs),
        'auc_validation': s.mean('auc_validation') if s.runs else None,
        'chosen': (s.name, s.text) in picked,
      }
      for s in _all(groups)
    ],
  }
