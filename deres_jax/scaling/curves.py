# SPDX-License-Identifier: Apache-2.0
"""The runs of sweeps as points of scaling laws: which runs form a curve, and at what compute.

Runs of one curve differ only in sizes (depth, width, ..., length of training), learning rates and
seeds: a curve is a connector with its switches. Of the settings of `optim.*` at one size the one
with the best mean validation AUC is taken, as in `deres_jax.compare`.
"""

import csv
import dataclasses
import hashlib
import pathlib
import statistics
from typing import Any

from deres_jax.compare import runs as runs_lib
from deres_jax.config import overrides
from deres_jax.core import files
from deres_jax.core.errors import UserError, choose
from deres_jax.scaling.laws import family

_SIZES = (
  'model.depth', 'model.dim', 'model.heads', 'model.ffn_ratio', 'model.tokens', 'model.embed_dim',
)  # fmt: skip
COLUMNS = (
  'id', 'curve', 'connector', 'backbone', 'depth', 'dim', 'seed', 'flops', 'train_flops', 'params',
  'auc', 'auc_se', 'logloss', 'auc_validation', 'used', 'name', 'config',
)  # fmt: skip
COMPUTE = {'forward': 'flops_forward_per_row', 'train': 'train_flops'}


@dataclasses.dataclass(frozen=True)
class Cell:
  """Runs of one curve at one size, by seed."""

  size: str  # 'depth 8, dim 64'; the same text for cells of the same size
  depth: int
  dim: int
  compute: float
  setting: str  # the chosen one of the rates tried
  runs: dict[int, runs_lib.Run]

  @property
  def aucs(self) -> dict[int, float]:
    return {seed: run.result.auc for seed, run in self.runs.items()}


@dataclasses.dataclass(frozen=True)
class Curve:
  """A connector (and its switches) at several sizes."""

  name: str
  backbone: str
  connector: str
  cells: tuple[Cell, ...]  # by compute


def load(folders: list[str], compute: str, partial: bool) -> tuple[list[Curve], list[runs_lib.Run]]:
  """Reads sweeps: returns curves, in the order of the sweeps, and all finished runs.

  Raises:
    UserError: runs that are not comparable (`compare.runs.load`), sweeps on different data, or
      missing runs if not `partial`.
  """
  runs = runs_lib.load(folders)
  finished = [run for run in runs if run.result]
  missing = [run for run in runs if not run.result]
  if missing and not partial:
    raise UserError(
      f'{len(missing)} of {len(runs)} runs are not finished, {missing[0].id} ({missing[0].name}) '
      f'in {missing[0].folder} among them: finish the sweep, or say --partial'
    )
  other = [r for r in finished if r.result.data_content != finished[0].result.data_content]
  if other:
    raise UserError(
      f'{finished[0].folder} and {other[0].folder} are on different data: laws are fitted to runs '
      'on the same rows'
    )
  by_curve: dict[tuple, list[runs_lib.Run]] = {}
  for run in finished:
    by_curve.setdefault(_curve_key(run), []).append(run)
  names = _names(by_curve)
  figure = choose(compute, COMPUTE, 'compute (--compute)')
  curves = [
    Curve(names[key], key[0], key[1], _cells(names[key], runs, figure))
    for key, runs in by_curve.items()
  ]
  return curves, finished


def _is_size(field: str) -> bool:
  return field in _SIZES or field.startswith('train.')


def _curve_key(run: runs_lib.Run) -> tuple[str, str, str]:
  others = {
    k: v
    for k, v in sorted(run.overrides.items())
    if not _is_size(k)
    and not k.startswith('optim.')
    and k not in ('model.backbone', 'model.connector')
  }
  return run.result.backbone, run.result.connector, overrides.as_text(others)


def _names(by_curve: dict[tuple, list[runs_lib.Run]]) -> dict[tuple, str]:
  """Names each curve by the words that the names of its runs begin with."""
  out = {}
  for key, runs in by_curve.items():
    words = [run.name.split() for run in runs]
    shared = []
    for column in zip(*words, strict=False):
      if len(set(column)) > 1:
        break
      shared.append(column[0])
    # A point without a name has its fields for one, which end at the first that differs.
    name = ' '.join(shared).rstrip(',')
    out[key] = name if name and '=' not in name else f'{key[0]} {key[1]}'
  for key, name in list(out.items()):
    if list(out.values()).count(name) > 1:
      out[key] = ' '.join(filter(None, key))
  return out


def _cells(name: str, runs: list[runs_lib.Run], figure: str) -> tuple[Cell, ...]:
  by_size: dict[str, dict[str, list[runs_lib.Run]]] = {}
  for run in runs:
    by_size.setdefault(_size(run), {}).setdefault(run.setting, []).append(run)
  cells = []
  for size, by_setting in by_size.items():
    settings = [
      runs_lib.Setting(name, setting, {run.key: run for run in members}, 0)
      for setting, members in by_setting.items()
    ]
    best = runs_lib.chosen(settings)
    by_seed = _by_seed(name, size, best)
    result = next(iter(by_seed.values())).result
    compute = statistics.fmean(getattr(run.result, figure) for run in by_seed.values())
    cells.append(Cell(size, result.depth, result.dim, compute, best.text, by_seed))
  return tuple(sorted(cells, key=lambda cell: cell.compute))


def _by_seed(name: str, size: str, setting: runs_lib.Setting) -> dict[int, runs_lib.Run]:
  out = {}
  for run in setting.runs.values():
    other = out.setdefault(run.seed, run)
    if other is not run:
      raise UserError(
        f'{name} at {size} has seed {run.seed} twice, run {other.id} in {other.folder} and '
        f'{run.id} in {run.folder}: their configs differ in another field; take one of them'
      )
  return out


def _size(run: runs_lib.Run) -> str:
  more = {
    k: v
    for k, v in sorted(run.overrides.items())
    if _is_size(k) and k not in ('model.depth', 'model.dim')
  }
  head = f'depth {run.result.depth}, dim {run.result.dim}'
  return f'{head}, {overrides.as_text(more)}' if more else head


def problem(curves: list[Curve]) -> family.Problem:
  """Collects the runs of all curves; raises UserError as `family.problem`."""
  return family.problem([
    family.Observation(curve.name, cell.compute, auc, seed, cell.size)
    for curve in curves
    for cell in curve.cells
    for seed, auc in cell.aucs.items()
  ])  # fmt: skip


def write_csv(path: pathlib.Path, curves: list[Curve], finished: list[runs_lib.Run]):
  """Writes a row for every finished run; `used`: it is on a curve, its rates were chosen."""
  name_of = {id(r): c.name for c in curves for cell in c.cells for r in cell.runs.values()}
  with files.replacing(path) as partial, partial.open('w', newline='') as file:
    out = csv.writer(file)
    out.writerow(COLUMNS)
    for run in finished:
      curve = name_of.get(id(run), '')
      values = {'id': run.id, 'curve': curve, 'flops': run.result.flops_forward_per_row}
      values |= {'params': run.result.params_dense, 'used': int(bool(curve)), 'name': run.name}
      values |= {'seed': run.seed, 'config': run.config_file}
      out.writerow([values[c] if c in values else getattr(run.result, c) for c in COLUMNS])


def inputs(folders: list[str], finished: list[runs_lib.Run]) -> list[dict[str, Any]]:
  """Returns the path and SHA-256 of every file that was read."""
  paths = [pathlib.Path(folder) / 'sweep.json' for folder in folders]
  paths += [run.workdir / 'result.json' for run in finished]
  return [{'file': str(p), 'sha256': hashlib.sha256(p.read_bytes()).hexdigest()} for p in paths]
