# SPDX-License-Identifier: Apache-2.0
"""Scaling laws of finished sweeps: AUC against compute for each connector.

  python -m deres_jax.scaling --sweep=DIR1,DIR2 --out=DIR
  python -m deres_jax.scaling --power [--sweep=DIR] --out=DIR

The first writes DIR/fit.json (laws, intervals, compute to match, warnings: docs/scaling_laws.md),
DIR/runs.csv and DIR/report.html, a page of both, with its charts in DIR/scaling.pdf and .png, and
prints the exponents. The second simulates how many seeds, budgets and decades of compute tell two
exponents apart, at the noise of the sweep or at --noise_sd, and writes DIR/power.json.
"""

import dataclasses
import math
import pathlib
import platform
from importlib import metadata
from typing import Any

import numpy as np
from absl import app, flags

from deres_jax.compare import logits
from deres_jax.core import cli, files
from deres_jax.core.errors import UserError
from deres_jax.report import charts, markdown
from deres_jax.scaling import analysis
from deres_jax.scaling import curves as curves_lib
from deres_jax.scaling import page as page_lib
from deres_jax.scaling.laws import family, fits, power

_PACKAGES = ('deres_jax', 'numpy', 'scipy')


def versions() -> dict[str, str]:
  """Returns the versions of the packages that compute the figures."""
  return {
    'python': platform.python_version(),
    **{name: metadata.version(name) for name in _PACKAGES},
  }


def fit(
  folders: list[str],
  compute: str,
  only: list[str],
  baseline: str | None,
  partial: bool,
  data: str | None,
  options: analysis.Options,
) -> tuple[dict[str, Any], list[curves_lib.Curve], list]:
  """Returns the content of fit.json, its curves and all finished runs; raises UserError."""
  curves, finished = curves_lib.load(folders, compute, partial)
  base_auc, curves = _baseline(curves, baseline)
  names = [curve.name for curve in curves]
  unknown = [name for name in only if name not in names]
  if unknown:
    raise UserError(f'--curves={unknown[0]}: the sweeps have {", ".join(names)}')
  curves = [curve for curve in curves if not only or curve.name in only]
  if not curves:
    raise UserError('the sweeps hold nothing but the baseline: give sweeps with connectors')
  options = dataclasses.replace(options, baseline_auc=base_auc)
  result = finished[0].result
  labels_N = logits.labels(data, result.data_content) if data else None
  laws = analysis.analyse(curves, options)
  reference, delong = analysis.reference_of(curves, options.reference), None
  if labels_N is not None:
    delong = analysis.delong(curves, reference, labels_N)
  content = {
    'kind': 'deres_jax scaling laws',
    'sweeps': folders,
    'dataset': result.dataset,
    'data_content': result.data_content,
    'compute': compute,
    'compute_unit': 'FLOPs of a forward pass, a row' if compute == 'forward' else 'FLOPs of a run',
    'options': dataclasses.asdict(options),
    **laws,
    'delong': delong,
    'versions': versions(),
    'inputs': curves_lib.inputs(folders, finished),
  }
  return content, curves, finished


def _baseline(
  curves: list[curves_lib.Curve], text: str | None
) -> tuple[float | None, list[curves_lib.Curve]]:
  """Returns AUC_0, a number or the mean AUC of a curve, and the curves without that one."""
  if text is None:
    return None, curves
  try:
    return float(text), curves
  except ValueError:
    pass
  named = [curve for curve in curves if curve.name == text]
  if not named:
    names = ', '.join(curve.name for curve in curves)
    raise UserError(f'--baseline={text}: expected an AUC or one of {names}')
  aucs = [auc for cell in named[0].cells for auc in cell.aucs.values()]
  return float(np.mean(aucs)), [curve for curve in curves if curve.name != text]


def text(c: dict[str, Any]) -> str:
  """Returns the exponents, ratios, compute to match and warnings, for a terminal."""
  law = c['laws']['saturating']
  values = {
    'law': law,
    'width': max(len(curve['curve']) for curve in law['curves']),
    'ratios': {x['curve']: x['ratio'] for x in law['against_reference']},
  }
  return markdown.render('deres_jax.scaling', 'laws.txt', {**c, **values}).rstrip('\n')


def power_text(c: dict[str, Any]) -> str:
  """Returns the tables of a simulation, for a terminal."""
  return markdown.render('deres_jax.scaling', 'power.txt', c).rstrip('\n')


# The command.


def _define_flags():
  flags.DEFINE_list('sweep', [], 'Folders that deres_jax.sweep wrote, separated by commas.')
  flags.DEFINE_string('out', None, 'Folder for fit.json, runs.csv and report.html, or power.json.')
  flags.DEFINE_enum(
    'compute', 'forward', list(curves_lib.COMPUTE), 'C: forward, a row | train, a run.'
  )
  flags.DEFINE_string('reference', None, 'Curve to compare with; default: the first pre-norm one.')
  flags.DEFINE_list('curves', [], 'Only these curves, by name; default: all.')
  flags.DEFINE_string('baseline', None, 'AUC_0 of the power law of the gain: an AUC or a curve.')
  flags.DEFINE_string('match', 'largest', 'Size to match: largest, depth=16 or depth=16,dim=128.')
  flags.DEFINE_string('data', None, 'Prepared folder of the runs: DeLong on their stored logits.')
  flags.DEFINE_integer('bootstraps', 1000, 'Replicates of each bootstrap; 0: none.', 0)
  flags.DEFINE_integer('seed', 0, 'Of bootstraps and simulations.', 0)
  flags.DEFINE_bool('partial', False, 'Allow unfinished runs.')
  flags.DEFINE_bool('power', False, 'Simulate what it takes to tell two exponents apart.')
  flags.DEFINE_list('gammas', ['0.071', '0.118'], 'power: the two exponents.')
  flags.DEFINE_float('noise_sd', None, 'power: sd of a run over seeds; default: of the sweep.')
  flags.DEFINE_float('gap', None, 'power: alpha over the smallest AUC; default: of the sweep.')
  flags.DEFINE_list('seeds', ['1', '3', '5'], 'power: numbers of seeds.')
  flags.DEFINE_list('budgets', ['5', '10'], 'power: budgets of a connector.')
  flags.DEFINE_list('decades', ['1', '1.5', '2.5'], 'power: decades of compute.')
  flags.DEFINE_integer('trials', 300, 'power: simulated sweeps a line.', 1)


def _numbers(name: str, kind: type) -> list:
  values = flags.FLAGS[name].value
  try:
    return [kind(value) for value in values]
  except ValueError as e:
    what = 'whole numbers' if kind is int else 'numbers'
    raise UserError(f'--{name}={",".join(values)}: expected {what} separated by commas') from e


def _noise_and_gap(folders: list[str]) -> tuple[float, float]:
  """Returns the sd of a run and the reference's gap to alpha, as sweeps show them."""
  curves, _ = curves_lib.load(folders, flags.FLAGS.compute, flags.FLAGS.partial)
  only = flags.FLAGS.curves
  curves = [curve for curve in curves if not only or curve.name in only]
  p = curves_lib.problem(curves)
  fit = fits.fit(p, family.form('saturating', p))
  k = p.names.index(analysis.reference_of(curves, flags.FLAGS.reference).name)
  pure = float(p.pure_T[0]) / p.df_pure if p.df_pure else float(fit.s2_T[0])
  smallest = p.compute0 * math.exp(float(p.t_N[p.connector_N == k].min()))
  return p.scale * math.sqrt(pure), float(fit.alpha_TK[0, k]) - fit.auc(k, smallest)


def _power(out: pathlib.Path):
  f = flags.FLAGS
  gammas = _numbers('gammas', float)
  if len(gammas) != 2:
    raise UserError(f'--gammas={",".join(f.gammas)}: expected two exponents, such as 0.071,0.118')
  noise_sd, gap = f.noise_sd, f.gap
  if f.sweep:
    sweep_sd, sweep_gap = _noise_and_gap(f.sweep)
    noise_sd = sweep_sd if noise_sd is None else noise_sd
    gap = sweep_gap if gap is None else gap
    if not math.isfinite(gap):
      raise UserError('the sweep shows no saturation, alpha is infinite: say --gap=AUC')
  if noise_sd is None:
    raise UserError('--power needs the noise of a run: --sweep=DIR or --noise_sd=SD')
  truth = power.Truth(tuple(gammas), noise_sd, power.Truth().gap if gap is None else gap)
  grid = (_numbers('seeds', int), _numbers('budgets', int), _numbers('decades', float))
  tables = {}
  for law in ('saturating', 'saturating_free'):
    lines = power.power_table(truth, *grid, f.trials, f.seed, law)
    tables[law] = {'lines': lines, 'cheapest': power.cheapest(lines)}
  content = {
    'kind': 'deres_jax power of scaling laws',
    'truth': dataclasses.asdict(truth),
    'sweeps': f.sweep,
    'trials': f.trials,
    'seed': f.seed,
    'tables': tables,
    'versions': versions(),
  }
  out.mkdir(parents=True, exist_ok=True)
  files.write_json(out / 'power.json', content)
  print(f'{power_text(content)}\n{out / "power.json"}')


def main(argv: list[str]):
  """Runs the command: fits the laws of finished sweeps, or simulates their power."""
  cli.no_arguments(argv)
  f = flags.FLAGS
  if not f.out:
    raise UserError('no --out: give a folder for the results, --out=DIR')
  out = files.output_folder(f.out)
  if f.power:
    _power(out)
    return
  if not f.sweep:
    raise UserError('no --sweep: give folders that deres_jax.sweep wrote, --sweep=DIR1,DIR2')
  options = analysis.Options(f.reference, None, f.match, f.bootstraps, f.seed)
  content, curves, finished = fit(
    f.sweep, f.compute, f.curves, f.baseline, f.partial, f.data, options
  )
  page = page_lib.page(content, finished, out)
  out.mkdir(parents=True, exist_ok=True)
  files.write_json(out / 'fit.json', content)
  curves_lib.write_csv(out / 'runs.csv', curves, finished)
  charts.save(out / 'scaling', page_lib.figures(content, finished))
  files.write(out / 'report.html', page)
  print(f'{text(content)}\n{out / "report.html"}')


if __name__ == '__main__':
  _define_flags()
  app.run(cli.guarded(main), flags_parser=cli.parse)
