# SPDX-License-Identifier: Apache-2.0
"""What a reader of fit.json has to know before quoting a figure, in plain sentences."""

import math
from typing import Any

CLAIM_GAMMAS = (0.118, 0.071)  # of DeRes and OneTrans, arXiv 2606.07980
CLAIM_RATIO = CLAIM_GAMMAS[0] / CLAIM_GAMMAS[1]
_DECADES = 2.0
_AICC = 2.0


def sentences(out: dict[str, Any]) -> list[str]:
  """Of the content of fit.json (`deres_jax.scaling.analysis.analyse`), most basic ones first."""
  law = out['laws']['saturating']
  said = []
  if out['decades'] < _DECADES:
    said.append(
      f'Compute spans {out["decades"]:.2f} decades, less than {_DECADES:.0f}: exponents are '
      'extrapolated from little curvature.'
    )
  if not out['noise']['df_seeds']:
    said.append('Every point is one run: noise is told from the curve only by trusting the curve.')
  said += [f'Shared alpha: {note}.' for note in law['boundary']]
  if law['lack_of_fit_p'] is not None and law['lack_of_fit_p'] < 0.05:
    said.append(
      f'Points scatter about the shared-alpha curves more than seeds do (lack of fit, p = '
      f'{law["lack_of_fit_p"]:.2g}): intervals use that scatter; compute alone does not decide '
      'the AUC here.'
    )
  if out['shared_alpha_p'] is not None and out['shared_alpha_p'] < 0.05:
    said.append(
      f'One alpha for all connectors is rejected (F test, p = {out["shared_alpha_p"]:.2g}): a '
      'larger gamma then need not mean a steeper curve; compare slopes per doubling instead.'
    )
  return said + _wide(law) + _as_good(out['laws'])


def _wide(law: dict[str, Any]) -> list[str]:
  """Intervals that are wider than the paper's claim."""
  gammas = [(x['curve'], x['gamma']) for x in law['curves']]
  ratios = [(x['curve'], x['ratio']) for x in law['against_reference']]
  difference = f'difference that the paper claims ({CLAIM_GAMMAS[0]} against {CLAIM_GAMMAS[1]})'
  step = f'step from 1 to the {CLAIM_RATIO:.2f} that the paper claims'
  return _wider('gamma', gammas, CLAIM_GAMMAS[0] - CLAIM_GAMMAS[1], difference) + _wider(
    'the ratio to the reference', ratios, CLAIM_RATIO - 1, step
  )


def _wider(
  what: str, intervals: list[tuple[str, dict[str, Any]]], claim: float, claimed: str
) -> list[str]:
  wide = [f'{name} {_wide_text(x)}' for name, x in intervals if _width(x) > claim]
  return [f'Intervals of {what} that are wider than the {claimed}: {"; ".join(wide)}.'] * bool(wide)


def _width(interval: dict[str, Any]) -> float:
  if interval['low_open'] or interval['high_open'] or interval['estimate'] is None:
    return math.inf
  return interval['high'] - interval['low']


def _wide_text(interval: dict[str, Any]) -> str:
  ends = [interval['low'], interval['high']]
  text = [f'{x:.3g}' if x is not None else 'infinity' for x in ends]
  is_open = ' (not bounded there)' if math.isinf(_width(interval)) else ''
  return f'{text[0]} to {text[1]}{is_open}'


def _as_good(reports: dict[str, Any]) -> list[str]:
  saturating, line = (reports[name]['aicc'] for name in ('saturating', 'log_linear'))
  if saturating is None or line is None:
    return ['There are too few runs to tell a saturating law from a straight line in ln C.']
  if line - saturating < _AICC:
    return [
      f'A straight line in ln C fits as well (AICc {line - saturating:+.1f} against the saturating '
      'law): whether the curves saturate, and so gamma, is not shown by these runs.'
    ]
  return []
