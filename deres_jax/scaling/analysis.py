# SPDX-License-Identifier: Apache-2.0
"""The figures and warnings of fit.json, from curves. Nothing is rendered here.

An interval is a dict estimate, low, high, low_open, high_open; an infinite end is null and open.
"""

import dataclasses
import math
from typing import Any

import numpy as np
from scipy import special

from deres_jax.compare import logits
from deres_jax.core.errors import UserError, choose
from deres_jax.metrics import paired
from deres_jax.scaling import caveats
from deres_jax.scaling.curves import Cell, Curve, problem
from deres_jax.scaling.laws import bootstrap, family, fits, intervals, targets
from deres_jax.scaling.laws.fits import LEVEL, Fit

METHOD = {
  'fit': 'weighted least squares over all connectors at once (variable projection over a grid of '
  'alpha and gamma, then Levenberg-Marquardt); weights: runs of a cell',
  'intervals': '95 % F-profile; variance of a run from all residuals, or from the cells about the '
  'curve alone where lack of fit has p < 0.05',
  'bootstrap': '95 % percentile intervals over refits; residual: residuals of all runs drawn anew; '
  'seeds: runs drawn within their cell',
  'scope': 'over training seeds, given this test split: its own sampling error is common to all '
  'runs and in no interval',
}


@dataclasses.dataclass(frozen=True)
class Options:
  """Options of the analysis.

  Attributes:
    reference: name of the curve to compare with; None: the first pre-norm one.
    baseline_auc: AUC_0 of the power law of the gain; None: without that law.
    match: 'largest' or fields of the reference's cells, such as 'depth=16' or 'depth=16,dim=128'.
    bootstraps: replicates of each bootstrap; 0: none.
    seed: of the bootstraps.
  """

  reference: str | None = None
  baseline_auc: float | None = None
  match: str = 'largest'
  bootstraps: int = 1000
  seed: int = 0


def reference_of(curves: list[Curve], name: str | None) -> Curve:
  """Returns the curve that others are compared with; raises UserError for an unknown name."""
  by_name = {curve.name: curve for curve in curves}
  if name is not None:
    return choose(name, by_name, 'reference (--reference)')
  return next((c for c in curves if c.connector == 'prenorm'), curves[0])


def analyse(curves: list[Curve], o: Options) -> dict[str, Any]:
  """Returns the content of fit.json, without its sources.

  Raises:
    UserError: a curve with fewer than four budgets, an unknown reference or match, or a baseline
      that is not below all AUCs.
  """
  reference = reference_of(curves, o.reference)
  goals = _goals(reference, o.match)
  p = problem(curves)
  names = ['saturating', 'saturating_free', 'log_linear']
  names += ['power_gain'] if o.baseline_auc is not None else []
  fitted = {name: fits.fit(p, family.form(name, p, o.baseline_auc)) for name in names}
  base = p.names.index(reference.name)
  reports = {name: _law(one, base, reference.cells, goals, o) for name, one in fitted.items()}
  shared = fitted['saturating']
  out = {
    'level': LEVEL,
    'method': METHOD,
    'reference': reference.name,
    'compute_reference': p.compute0,
    'decades': p.t_range / math.log(10),
    'noise': _noise(p, shared),
    'points': [_point(curve, cell) for curve in curves for cell in curve.cells],
    'laws': reports,
    'shared_alpha_p': fits.shared_alpha_p(shared, fitted['saturating_free']),
    'comparisons': comparisons(curves, reference),
    'shallower': [x for goal in goals for x in shallower(curves, reference, goal)],
  }
  return {**out, 'warnings': caveats.sentences(out)}


def _noise(p: family.Problem, shared: Fit) -> dict[str, Any]:
  pure = p.df_pure and float(p.pure_T[0]) / p.df_pure
  return {
    'seed_sd': p.scale * math.sqrt(pure) if p.df_pure else None,
    'df_seeds': p.df_pure,
    'residual_sd': p.scale * math.sqrt(float(shared.s2_T[0])) if shared.df_T[0] > 0 else None,
    'df_residual': int(shared.df_T[0]),
  }


def _point(curve: Curve, cell: Cell) -> dict[str, Any]:
  runs = list(cell.runs.values())
  aucs = [run.result.auc for run in runs]
  return {
    'curve': curve.name,
    'connector': curve.connector,
    'backbone': curve.backbone,
    'size': cell.size,
    'depth': cell.depth,
    'dim': cell.dim,
    'setting': cell.setting,
    'compute': cell.compute,
    'params': runs[0].result.params_dense,
    'auc': float(np.mean(aucs)),
    'auc_sd': float(np.std(aucs, ddof=1)) if len(aucs) > 1 else None,
    'runs': [
      {'id': run.id, 'sweep': run.folder, 'seed': run.seed, 'auc': run.result.auc} for run in runs
    ],
  }


# Laws.


def _law(
  fit: Fit,
  base: int,
  base_cells: tuple[Cell, ...],
  goals: list[Cell],
  o: Options,
) -> dict[str, Any]:
  p, f = fit.p, fit.f
  drawn = {}
  if o.bootstraps:
    for kind in ('residual', 'seeds') if p.df_pure else ('residual',):
      drawn[kind] = bootstrap.bootstrap(fit, kind, o.bootstraps, o.seed)

  def interval(target: targets.Target) -> dict[str, Any]:
    out = intervals.profile(fit, target).as_json()
    for kind, fits_B in drawn.items():
      ends = bootstrap.percentile(fits_B, target)
      out[f'bootstrap_{kind}'] = [x if math.isfinite(x) else None for x in ends]
    return out

  others = [k for k in range(len(p.names)) if k != base]
  return {
    'formula': _FORMULAS[f.name],
    'baseline_auc': o.baseline_auc if f.name == 'power_gain' else None,
    'parameters': int(fit.q_TQ.shape[1]),
    'aicc': fits.aicc(fit),
    'residual_sd': p.scale * math.sqrt(float(fit.s2_T[0])) if fit.df_T[0] > 0 else None,
    'df': int(fit.df_T[0]),
    'lack_of_fit_p': _number(fit.lack_T[0]),
    'boundary': fit.notes(),
    'alpha': interval(targets.alpha(p, f)) if f.kappas == 1 else None,
    'curves': [_curve(fit, k, interval) for k in range(len(p.names))],
    'against_reference': [
      {
        'curve': p.names[k],
        'ratio': interval(targets.ratio(p, f, k, base)),
        'difference': interval(targets.difference(p, f, k, base)),
      }
      for k in others
    ],
    'match': [_match(fit, k, base, goal, interval) for goal in goals for k in others],
    'extrapolation': fits.holdout_largest(fit),
    'line': _line(fit),
  }


_FORMULAS = {
  'saturating': 'AUC = alpha - beta_k C^-gamma_k, one alpha',
  'saturating_free': 'AUC = alpha_k - beta_k C^-gamma_k',
  'power_gain': 'AUC = AUC_0 + a_k C^gamma_k',
  'log_linear': 'AUC = a_k + b_k ln C; ratio and difference are of the slopes b_k',
}


def _number(x) -> float | None:
  return float(x) if math.isfinite(x) else None


def _curve(fit: Fit, k: int, interval) -> dict[str, Any]:
  p, f = fit.p, fit.f
  kappa, m, sigma = (float(x[0, k]) for x in fit.curve_params)
  alpha = float(fit.alpha_TK[0, k])
  level = p.centre + p.scale * m
  compute_N = np.exp(p.t_N[p.connector_N == k]) * p.compute0
  return {
    'curve': p.names[k],
    'compute': [float(compute_N.min()), float(compute_N.max())],
    'budgets': len(set(compute_N.tolist())),
    'gamma': None if f.name == 'log_linear' else interval(targets.gamma(p, f, k)),
    'alpha': interval(targets.alpha(p, f, k)) if f.kappas > 1 else _number(alpha),
    # beta C_0^-gamma: the distance to alpha at the reference compute.
    'gap_at_reference': _number(alpha - level),
    'auc_at_reference': level,
    'slope_per_doubling': interval(targets.slope_per_doubling(p, f, k)),
    'scaled': {'kappa': kappa, 'm': m, 'sigma': sigma},
  }


def _match(fit: Fit, k: int, base: int, goal: Cell, interval) -> dict[str, Any]:
  compute = interval(targets.compute_to_match(fit.p, fit.f, k, base, goal.compute))
  ends = ('estimate', 'low', 'high')
  ratio = {x: None if compute[x] is None else compute[x] / goal.compute for x in ends}
  budgets_N = np.exp(fit.p.t_N[fit.p.connector_N == k]) * fit.p.compute0
  estimate = compute['estimate']
  within = estimate is not None and budgets_N.min() <= estimate <= budgets_N.max()
  return {
    'curve': fit.p.names[k],
    'goal': goal.size,
    'goal_compute': goal.compute,
    'goal_auc': float(
      fit.predict(np.array([base]), np.array([fit.p.log_compute(goal.compute)]))[0, 0]
    ),
    'compute': compute,
    'share': ratio,
    'within_budgets': bool(within),
  }


def _line(fit: Fit) -> list[dict[str, Any]]:
  """Returns points of each fitted curve with the linearised 95 % band of its mean, for charts."""
  p = fit.p
  out, count = [], 60
  covariance_QQ = fit.covariance()[0]
  root = float(np.sqrt(special.fdtri(1, max(int(fit.df_T[0]), 1), LEVEL)))
  for k, name in enumerate(p.names):
    t_K = p.t_N[p.connector_N == k]
    t = np.linspace(t_K.min(), t_K.max(), count)
    which = np.full(count, k)
    grid = dataclasses.replace(
      p, connector_N=which, t_N=t, runs_N=np.ones(count, int), y_TN=np.zeros((1, count))
    )
    _, j_TNQ = family.Residuals(grid, fit.f)(fit.q_TQ, np.zeros(1, int))
    variance = np.einsum('nq,qr,nr->n', j_TNQ[0], covariance_QQ, j_TNQ[0])
    half = p.scale * root * np.sqrt(np.maximum(variance, 0))
    auc = fit.predict(which, t)[0]
    known = fit.df_T[0] > 0
    out.append({
      'curve': name,
      'compute': (p.compute0 * np.exp(t)).tolist(),
      'auc': auc.tolist(),
      'low': (auc - half).tolist() if known else None,
      'high': (auc + half).tolist() if known else None,
    })  # fmt: skip
  return out


# Comparisons without a law.


def _goals(reference: Curve, text: str) -> list[Cell]:
  """Returns the reference's cells that --match names."""
  if text == 'largest':
    return [reference.cells[-1]]
  fields = {}
  for item in text.split(','):
    name, _, value = item.partition('=')
    if name not in ('depth', 'dim') or not value.isdigit():
      raise UserError(f'--match={text}: expected largest, depth=N, dim=N or depth=N,dim=M')
    fields[name] = int(value)
  goals = [c for c in reference.cells if all(vars(c)[k] == v for k, v in fields.items())]
  if not goals:
    sizes = '; '.join(cell.size for cell in reference.cells)
    raise UserError(f'--match={text}: {reference.name} has no such size; it has {sizes}')
  return goals


def _with_holm(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
  adjusted = paired.holm([line['t_p'] for line in lines])
  return [{**line, 't_p_holm': p} for line, p in zip(lines, adjusted, strict=True)]


def comparisons(curves: list[Curve], reference: Curve) -> list[dict[str, Any]]:
  """Compares each curve with the reference at every size of both; Holm over all of these tests."""
  by_size = {cell.size: cell for cell in reference.cells}
  return _with_holm([
    {
      'curve': curve.name,
      'size': cell.size,
      'compute': cell.compute,
      'reference_compute': by_size[cell.size].compute,
      **paired.compare(cell.aucs, by_size[cell.size].aucs, LEVEL),
    }
    for curve in curves
    for cell in curve.cells
    if curve is not reference and cell.size in by_size
  ])  # fmt: skip


def shallower(curves: list[Curve], reference: Curve, goal: Cell) -> list[dict[str, Any]]:
  """Compares cells of the goal's width and less depth with the goal, paired by seed."""
  return _with_holm([
    {
      'curve': curve.name,
      'size': cell.size,
      'depth': cell.depth,
      'goal': goal.size,
      'goal_depth': goal.depth,
      'compute_share': cell.compute / goal.compute,
      **paired.compare(cell.aucs, goal.aucs, LEVEL),
    }
    for curve in curves
    for cell in curve.cells
    if curve is not reference and cell.dim == goal.dim and cell.depth < goal.depth
  ])  # fmt: skip


def delong(curves: list[Curve], reference: Curve, labels_N: np.ndarray) -> list[dict[str, Any]]:
  """Compares each run with the reference's of the same size and seed; Holm over all of them."""
  by_size = {cell.size: cell for cell in reference.cells}
  lines = [
    {
      'curve': curve.name,
      'size': cell.size,
      'seed': seed,
      **paired.delong(labels_N, logits.logits(run, labels_N), logits.logits(base, labels_N)),
    }
    for curve in curves
    for cell in curve.cells
    if curve is not reference and cell.size in by_size
    for seed, run in cell.runs.items()
    if (base := by_size[cell.size].runs.get(seed))
  ]
  adjusted = paired.holm([line['p'] for line in lines])
  return [{**line, 'p_holm': p} for line, p in zip(lines, adjusted, strict=True)]
