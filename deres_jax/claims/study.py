# SPDX-License-Identifier: Apache-2.0
"""The curves of finished sweeps by their roles in the paper's claims.

The stored config of a run decides its role, never its name.
"""

import dataclasses
import json
import statistics
from collections.abc import Sequence
from typing import Any

from deres_jax import config as config_lib
from deres_jax.compare import runs as runs_lib
from deres_jax.config import fields
from deres_jax.core.errors import UserError
from deres_jax.scaling import curves as curves_lib
from deres_jax.scaling.curves import Cell, Curve

ROLES = {
  'plain': 'OneTrans',
  'recall_softmax': 'AttnRes',
  'recall_silu': 'AttnRes, SiLU',
  'deres_s': 'DeRes-S',
  'deres_p': 'DeRes-P',
  'dual_matrix': 'DeRes-P, matrix residual',
  'dual_vector': 'DeRes-P, vector residual',
  'dual_scalar': 'DeRes-P, scalar residual',
  'matrix': 'matrix residual alone',
  'vector': 'vector residual alone',
  'scalar': 'scalar residual alone',
}
_SINGLE = {
  'prenorm': 'plain',
  'attnres': 'recall_softmax',
  'attnres_pointwise': 'recall_silu',
  'matrix': 'matrix',
  'vector': 'vector',
  'scalar': 'scalar',
}
# Switches of the paper's dual path; a sweep may set others (block length, scale).
_DUAL = {'deres.path': 'dual', 'deres.gate': 'vector', 'deres.gate_form': 'convex'}
_ROLE_FIELDS = (
  'model.backbone', 'model.connector', *_DUAL, 'deres.identity_kind', 'deres.score_fn',
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Study:
  """Finished sweeps on one data set; on several splits of it, the split distinguishes runs.

  Attributes:
    curves: in the order of the sweeps; a curve with a role bears the role's name.
    roles: the curves that have one. called: what the sweep calls a curve, by our name.
    identity: config fields of any run of a curve, by our name.
    splits: how many splits of the data the runs are on.
  """

  folders: list[str]
  curves: list[Curve]
  roles: dict[str, Curve]
  called: dict[str, str]
  identity: dict[str, dict[str, Any]]
  finished: list[runs_lib.Run]
  splits: int


def role_of(identity: dict[str, Any]) -> str | None:
  """Returns the role of a config (`identity` of config.json) in the claims; None: no role."""
  connector = identity['model.connector']
  if identity['model.backbone'] != 'onetrans':
    return None
  if connector in _SINGLE:
    return _SINGLE[connector]
  if any(identity[field] != value for field, value in _DUAL.items()):
    return None
  kind = identity['deres.identity_kind']
  if connector == 'deres' and identity['deres.score_fn'] == 'silu':
    return 'deres_p' if kind == 'identity' else f'dual_{kind}'
  return 'deres_s' if connector == 'deres_s' and kind == 'identity' else None


def load(folders: list[str], only: Sequence[str] = (), partial: bool = False) -> Study:
  """Reads the curves of sweep folders.

  Args:
    only: names of the curves to take; empty: all.

  Raises:
    UserError: as `compare.runs.load`; also for a run without config.json, an unknown name in
      `only`, and two curves of one role.
  """
  groups = _by_data(folders)
  loaded = [curves_lib.load(group, 'forward', partial) for group in groups]
  curves = _merged([curves for curves, _ in loaded])
  finished = [run for _, runs in loaded for run in runs]
  names = [curve.name for curve in curves]
  unknown = [name for name in only if name not in names]
  if unknown:
    raise UserError(f'--curves={unknown[0]}: {", ".join(folders)} have {", ".join(names)}')
  study = Study(folders, [], {}, {}, {}, finished, len(groups))
  for curve in curves:
    if not only or curve.name in only:
      _cast(study, curve)
  return study


def _cast(study: Study, curve: Curve):
  """Adds a curve under the name of its role."""
  identities = [_identity(run) for cell in curve.cells for run in cell.runs.values()]
  roles = {role_of(identity) for identity in identities}
  if len(roles) > 1:
    raise UserError(f'the curve {curve.name} is made of runs with different connectors')
  role = roles.pop()
  if role in study.roles:
    other = study.called[ROLES[role]]
    raise UserError(
      f'{other!r} and {curve.name!r} are both {ROLES[role]}: name the curves to take, --curves=A,B'
    )
  taken = {*ROLES.values(), *study.called}
  name = ROLES[role] if role else curve.name
  while not role and name in taken:  # a name must not look like a role
    name += ' (other)'
  named = dataclasses.replace(curve, name=name)
  study.curves.append(named)
  study.called[name], study.identity[name] = curve.name, identities[0]
  if role:
    study.roles[role] = named


def _identity(run: runs_lib.Run) -> dict[str, Any]:
  stored = run.config()
  if stored is None:
    raise UserError(f'{run.config_file}: no such file: it names the connector: put it back')
  lacking = [field for field in _ROLE_FIELDS if field not in stored.identity]
  if lacking:
    raise UserError(f'{run.config_file}: `$.identity`: lacks {", ".join(lacking)}: put it back')
  return stored.identity


def _by_data(folders: list[str]) -> list[list[str]]:
  """Groups folders on the same rows."""
  groups: dict[str, list[str]] = {}
  done = {run.folder: run.result.data_content for run in runs_lib.load(folders) if run.result}
  first = next(iter(done.values()))
  for folder in folders:  # `runs.load` refuses one without a finished run
    content = json.dumps(done.get(folder, first), sort_keys=True)
    groups.setdefault(content, []).append(folder)
  return list(groups.values())


def _merged(groups: list[list[Curve]]) -> list[Curve]:
  """Joins curves of several splits, whose runs get the key (split, seed) in place of the seed."""
  if len(groups) == 1:
    return groups[0]
  parts: dict[tuple, dict[str, list[tuple[int, Cell]]]] = {}
  for i, curves in enumerate(groups):
    for curve in curves:
      by_size = parts.setdefault((curve.name, curve.backbone, curve.connector), {})
      for cell in curve.cells:
        by_size.setdefault(cell.size, []).append((i, cell))
  out = []
  for key, by_size in parts.items():
    cells = [
      dataclasses.replace(
        same_size[0][1],
        compute=statistics.fmean(cell.compute for _, cell in same_size),
        runs={(i, seed): run for i, cell in same_size for seed, run in cell.runs.items()},
      )
      for same_size in by_size.values()
    ]
    out.append(Curve(*key, tuple(sorted(cells, key=lambda cell: cell.compute))))
  return out


# Description of the runs.


def described(study: Study) -> dict[str, Any]:
  """Describes the runs for a page: data, devices, settings, and the mean AUC of every cell.

  `planted` holds the test AUC of the labels' own probabilities (bayes_auc) and of the best additive
  predictor (linear_auc); `closed` is the share of the way from this to that. None if not planted.
  """
  results = [run.result for run in study.finished]
  bayes = results[0].bayes if study.splits == 1 else None
  test = {'bayes_auc': bayes.bayes_auc, 'linear_auc': bayes.linear_auc} if bayes else None
  return {
    'dataset': results[0].dataset,
    'sweeps': study.folders,
    'splits': study.splits,
    'rows_test': sorted({r.rows for r in results}),
    'seeds': sorted({run.seed for run in study.finished}),
    'runs': len(study.finished),
    'devices': sorted({r.devices_text for r in results}),
    'versions': sorted({r.versions_text for r in results}),
    'planted': test,
    'settings': _settings(study),
    'curves': [_curve(study, curve, test) for curve in study.curves],
    'inputs': curves_lib.inputs(study.folders, study.finished),
  }


def _settings(study: Study) -> dict[str, Any]:
  """Returns the fields not at their default that all curves share, without size and seed."""
  default = config_lib.identity(fields.Config())
  first, *others = study.identity.values()
  return {
    k: v
    for k, v in first.items()
    if v != default.get(k)
    and k not in ('seed', 'model.depth', 'model.dim')
    and all(other.get(k) == v for other in others)
  }


def _curve(study: Study, curve: Curve, test: dict[str, float] | None) -> dict[str, Any]:
  rates = {
    tuple((k, v) for k, v in sorted(run.overrides.items()) if k.startswith('optim.'))
    for cell in curve.cells
    for run in cell.runs.values()
  }
  cells = []
  for cell in curve.cells:
    auc = statistics.fmean(cell.aucs.values())
    room = test and test['bayes_auc'] - test['linear_auc']
    closed = (auc - test['linear_auc']) / room if room else None
    cells.append({'size': cell.size, 'auc': auc, 'runs': len(cell.runs), 'closed': closed})
  return {
    'name': curve.name,
    'called': study.called[curve.name],
    'backbone': curve.backbone,
    'connector': curve.connector,
    'rates': [dict(x) for x in sorted(rates, key=str)],
    'cells': cells,
  }
