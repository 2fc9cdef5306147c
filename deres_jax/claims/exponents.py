# SPDX-License-Identifier: Apache-2.0
"""The claim on exponents: laws of DeRes-P and OneTrans, and what sweep would tell them apart."""

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
  mine: Curve, base: Curve, others: list[Curve], gammas: tuple[float, float], match: str
) -> dict[str, Any]:
  """Figures and verdict, from the laws of these two curves alone.

  Other curves take no part in the verdict: one of them would move an alpha shared by all.

  Args:
    others: more curves to be tabulated. Curves with too few budgets take no part in any law.
    gammas: the paper's, of `mine` and of `base`.
    match: the sizes of `base` to match, as `analysis.Options.match`.

  Returns:
    verdict, remark, and `why` where there are too few budgets; else also shared, free (ratios of
    the exponents), curves (a line a curve), fit (what speaks for and against the law), to_match,
    to_tell. All intervals as in fit.json.
  """
  few = [curve for curve in (mine, base) if _budgets(curve) < family.MIN_BUDGETS]
  if few:
    remark = f'{few[0].name} has {_budgets(few[0])} budgets, a law needs {family.MIN_BUDGETS}'
    return {'verdict': verdicts.UNDECIDED, 'remark': remark, 'fitted': False}
  two = analysis.analyse([base, mine], analysis.Options(base.name, None, match, bootstraps=0))
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
  told = verdict.word != verdicts.UNDECIDED
  return {
    'verdict': verdict.word,
    'remark': verdict.remark,
    'fitted': True,
    'decades': two['decades'],
    'compute_reference': two['compute_reference'],
    'shared': ratios['saturating'],
    'free': ratios['saturating_free'],
    'shared_alpha_p': two['shared_alpha_p'],
    'curves': [_curve(two, curve) for curve in (base, mine)]
    + [_curve(_alone(curve), curve) for curve in others if _budgets(curve) >= family.MIN_BUDGETS],
    'noise': two['noise'],
    'fit': {
      name: {k: two['laws'][name][k] for k in ('aicc', 'lack_of_fit_p', 'boundary')}
      for name in ('saturating', 'saturating_free', 'log_linear')
    },
    'to_match': two['laws']['saturating']['match'],
    'warnings': [*two['warnings'], *paper.wide_intervals(two['laws']['saturating'])],
    'to_tell': None if told else _to_tell(two, base, (gammas[1], gammas[0])),
  }


def _budgets(curve: Curve) -> int:
  return len({cell.compute for cell in curve.cells})


def _alone(curve: Curve) -> dict[str, Any]:
  return analysis.analyse([curve], analysis.Options(curve.name, bootstraps=0))


def _curve(found: dict[str, Any], curve: Curve) -> dict[str, Any]:
  """Of free alphas, which no other curve moves, and the gain of a doubling at its own middle."""
  [line] = [x for x in found['laws']['saturating_free']['curves'] if x['curve'] == curve.name]
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
  """The cheapest sweep whose free exponents would differ at the paper's gammas; see `power`.

  At the noise of these runs and the gap between alpha and the smallest budget's AUC that the fit
  shows. None where the fit shows no such gap, or no noise; `cheapest` None: none up to 40 seeds
  and two more decades.
  """
  law = two['laws']['saturating']
  [own] = [x for x in law['curves'] if x['curve'] == base.name]
  noise = two['noise']['seed_sd'] or two['noise']['residual_sd']
  gap, gamma = own['gap_at_reference'], own['gamma']['estimate']
  if gap is None or not noise:
    return None
  gap *= (two['compute_reference'] / own['compute'][0]) ** gamma
  if not 0 < gap <= 0.3:
    return None
  truth = power.Truth(gammas, noise, gap)
  budgets = _budgets(base)
  decades = [two['decades'] + more for more in _MORE_DECADES]

  def line(seeds: int, reach: float) -> dict[str, Any]:
    [found] = power.power_table(truth, [seeds], [budgets], [reach], _TRIALS, 0, 'saturating_free')
    return found

  tried = [line(_SEEDS[-1], reach) for reach in decades]
  if power.cheapest(tried):  # the most seeds are enough: from few runs to many, which are?
    for seeds, reach in itertools.product(_SEEDS[:-1], decades):
      tried.append(line(seeds, reach))
      if tried[-1]['power'] >= 0.8:
        break
  return {
    'noise_sd': noise,
    'gap': gap,
    'tried': [{k: x[k] for k in ('seeds', 'budgets', 'decades', 'runs', 'power')} for x in tried],
    'cheapest': power.cheapest(tried),
  }
