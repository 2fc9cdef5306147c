# SPDX-License-Identifier: Apache-2.0
"""The claim on exponents: laws of DeRes-P and OneTrans, and a sweep to tell them apart."""

import itertools
from typing import Any

from deres_jax.claims import paper
from deres_jax.metrics import verdicts
from deres_jax.scaling import analysis
from deres_jax.scaling.curves import Curve
from deres_jax.scaling.laws import family, power

_SEEDS = (3, 5, 10, 20, 40)
_MORE_DECADES = (0.0, 1.0, 2.0)
_TRIALS = 200


def judge(
  curve: Curve, base: Curve, others: list[Curve], gammas: tuple[float, float], match: str
) -> dict[str, Any]:
  """Judges the ratio of two exponents from the laws of these two curves alone.

  Other curves take no part in the verdict: they would move the alpha shared by all.

  Args:
    others: more curves to tabulate, each with a law of its own if it has enough budgets.
    gammas: the exponents that the paper claims, of `curve` and of `base`.
    match: the sizes of `base` to match, as `analysis.Options.match`.

  Returns:
    verdict, remark, fitted; if fitted also shared, free (ratios of the exponents), curves, fit
    (AICc, lack of fit), to_match, to_tell. Intervals are as in fit.json.
  """
  few = [x for x in (curve, base) if _budgets(x) < family.MIN_BUDGETS]
  if few:
    remark = f'{few[0].name} has {_budgets(few[0])} budgets, a law needs {family.MIN_BUDGETS}'
    return {'verdict': verdicts.UNDECIDED, 'remark': remark, 'fitted': False}
  two = analysis.analyse([base, curve], analysis.Options(base.name, None, match, bootstraps=0))
  ratios = {
    name: two['laws'][name]['against_reference'][0]['ratio']
    for name in ('saturating', 'saturating_free')
  }
  slopes = {x['curve']: x['slope_per_doubling'] for x in two['laws']['saturating']['curves']}
  verdict = verdicts.judge_exponents(
    verdicts.interval_ends(slopes[base.name])[0] > 0,
    ratios['saturating'],
    ratios['saturating_free'],
    two['shared_alpha_p'],
    gammas[0] / gammas[1],
  )
  decided = verdict.word != verdicts.UNDECIDED
  return {
    'verdict': verdict.word,
    'remark': verdict.remark,
    'fitted': True,
    'decades': two['decades'],
    'compute_reference': two['compute_reference'],
    'shared': ratios['saturating'],
    'free': ratios['saturating_free'],
    'shared_alpha_p': two['shared_alpha_p'],
    'curves': [_curve(two, x) for x in (base, curve)]
    + [_curve(_alone(x), x) for x in others if _budgets(x) >= family.MIN_BUDGETS],
    'noise': two['noise'],
    'fit': {
      name: {k: two['laws'][name][k] for k in ('aicc', 'lack_of_fit_p', 'boundary')}
      for name in ('saturating', 'saturating_free', 'log_linear')
    },
    'to_match': two['laws']['saturating']['match'],
    'warnings': [*two['warnings'], *paper.wide_intervals(two['laws']['saturating'])],
    'to_tell': None if decided else _to_tell(two, base, (gammas[1], gammas[0])),
  }


def _budgets(curve: Curve) -> int:
  return len({cell.compute for cell in curve.cells})


def _alone(curve: Curve) -> dict[str, Any]:
  return analysis.analyse([curve], analysis.Options(curve.name, bootstraps=0))


def _curve(fit: dict[str, Any], curve: Curve) -> dict[str, Any]:
  """Returns a curve's figures under free alphas, which no other curve moves."""
  [line] = [x for x in fit['laws']['saturating_free']['curves'] if x['curve'] == curve.name]
  means = [sum(c.aucs.values()) / len(c.aucs) for c in curve.cells]
  steps = list(itertools.pairwise(means))
  return {
    'curve': curve.name,
    'budgets': _budgets(curve),
    'gamma': line['gamma'],
    'slope_per_doubling': line['slope_per_doubling'],
    'rises': sum(b > a for a, b in steps),
    'steps': len(steps),
  }


def _to_tell(
  two: dict[str, Any], base: Curve, gammas: tuple[float, float]
) -> dict[str, Any] | None:
  """Simulates sweeps (see `power`) to find the cheapest whose free exponents would differ.

  It takes the paper's gammas, the noise of these runs, and the fitted gap between alpha and the
  smallest budget's AUC. None without such a gap or noise. `cheapest` is None if 40 seeds and two
  more decades are not enough.
  """
  law = two['laws']['saturating']
  [base_law] = [x for x in law['curves'] if x['curve'] == base.name]
  noise = two['noise']['seed_sd'] or two['noise']['residual_sd']
  gap, gamma = base_law['gap_at_reference'], base_law['gamma']['estimate']
  if gap is None or not noise:
    return None
  gap *= (two['compute_reference'] / base_law['compute'][0]) ** gamma
  if not 0 < gap <= 0.3:
    return None
  truth = power.Truth(gammas, noise, gap)
  budgets = _budgets(base)
  decades = [two['decades'] + more for more in _MORE_DECADES]

  def line(seeds: int, reach: float) -> dict[str, Any]:
    [result] = power.power_table(truth, [seeds], [budgets], [reach], _TRIALS, 0, 'saturating_free')
    return result

  simulated = [line(_SEEDS[-1], reach) for reach in decades]
  if power.cheapest(simulated):  # the most seeds are enough: try fewer, from few to many
    for seeds, reach in itertools.product(_SEEDS[:-1], decades):
      simulated.append(line(seeds, reach))
      if simulated[-1]['power'] >= 0.8:
        break
  columns = ('seeds', 'budgets', 'decades', 'runs', 'power')
  return {
    'noise_sd': noise,
    'gap': gap,
    'tried': [{k: x[k] for k in columns} for x in simulated],
    'cheapest': power.cheapest(simulated),
  }
