# SPDX-License-Identifier: Apache-2.0
"""The numbers that the DeRes paper (arXiv 2606.07980) claims, and intervals too wide for them."""

import math
from typing import Any

GAMMAS = (0.118, 0.071)  # exponents of DeRes and OneTrans
RATIO = GAMMAS[0] / GAMMAS[1]
_ABSTRACT, _DIGESTS = 'abstract', 'digests of the full text'
# What arXiv 2606.07980 says; AUC differences as AUC (its +0.32 % is 0.0032).
CLAIMS: dict[str, dict[str, Any]] = {
  'gain': {'text': 'up to +32 (RelaImpr 2.27 %)', 'value': 0.0032, 'source': _ABSTRACT},
  'flops': {'text': 'under 5 %', 'value': 0.05, 'source': _ABSTRACT},
  'gamma': {
    'text': f'{GAMMAS[0]} against {GAMMAS[1]}, ratio {RATIO:.2f}',
    'value': RATIO,
    'source': _ABSTRACT,
  },
  'depth': {'text': '8 layers match 16', 'value': None, 'source': _ABSTRACT},
  'dual_p': {'text': 'better than either', 'value': None, 'source': _ABSTRACT},
  'dual_s': {'text': 'better than either', 'value': None, 'source': _ABSTRACT},
  'identity': {'text': 'identity better', 'value': None, 'source': _ABSTRACT},
  'silu': {'text': 'SiLU better, +8', 'value': 0.0008, 'source': _DIGESTS},
}
DEPTH = 16
TITLES = {
  'gain': 'AUC: DeRes-P over OneTrans',
  'flops': 'Extra FLOPs of DeRes-P',
  'gamma': 'Exponents of AUC against compute',
  'depth': 'Half the layers match',
  'dual_p': 'Dual against single paths, SiLU',
  'dual_s': 'Dual against single paths, Softmax',
  'identity': 'Identity against learnable residual',
  'silu': 'SiLU against Softmax',
}


def wide_intervals(law: dict[str, Any]) -> list[str]:
  """Returns warnings on the intervals of a law of fit.json that are wider than the claim."""
  gammas = [(x['curve'], x['gamma']) for x in law['curves']]
  ratios = [(x['curve'], x['ratio']) for x in law['against_reference']]
  difference = f'difference that the paper claims ({GAMMAS[0]} against {GAMMAS[1]})'
  step = f'step from 1 to the {RATIO:.2f} that the paper claims'
  return _wider('gamma', gammas, GAMMAS[0] - GAMMAS[1], difference) + _wider(
    'the ratio to the reference', ratios, RATIO - 1, step
  )


def _wider(
  what: str, intervals: list[tuple[str, dict[str, Any]]], claim: float, claimed: str
) -> list[str]:
  wide = [f'{name} {_text(x)}' for name, x in intervals if _width(x) > claim]
  return [f'Intervals of {what} that are wider than the {claimed}: {"; ".join(wide)}.'] * bool(wide)


def _width(interval: dict[str, Any]) -> float:
  if interval['low_open'] or interval['high_open'] or interval['estimate'] is None:
    return math.inf
  return interval['high'] - interval['low']


def _text(interval: dict[str, Any]) -> str:
  low, high = ('infinity' if interval[k] is None else f'{interval[k]:.3g}' for k in ('low', 'high'))
  return f'{low} to {high}{" (not bounded there)" if math.isinf(_width(interval)) else ""}'
