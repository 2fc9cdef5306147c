# SPDX-License-Identifier: Apache-2.0
"""Warnings that a reader of fit.json needs before quoting a figure, in plain sentences."""

from typing import Any

_DECADES = 2.0
_AICC = 2.0


def sentences(out: dict[str, Any]) -> list[str]:
  """Returns the warnings on the content of fit.json (`analysis.analyse`), most basic ones first."""
  law = out['laws']['saturating']
  warnings = []
  if out['decades'] < _DECADES:
    warnings.append(
      f'Compute spans {out["decades"]:.2f} decades, less than {_DECADES:.0f}: exponents are '
      'extrapolated from little curvature.'
    )
  if not out['noise']['df_seeds']:
    warnings.append(
      'Every point is one run: noise is told from the curve only by trusting the curve.'
    )
  warnings += [f'Shared alpha: {note}.' for note in law['boundary']]
  if law['lack_of_fit_p'] is not None and law['lack_of_fit_p'] < 0.05:
    warnings.append(
      f'Points scatter about the shared-alpha curves more than seeds do (lack of fit, p = '
      f'{law["lack_of_fit_p"]:.2g}): intervals use that scatter; compute alone does not decide '
      'the AUC here.'
    )
  if out['shared_alpha_p'] is not None and out['shared_alpha_p'] < 0.05:
    warnings.append(
      f'One alpha for all connectors is rejected (F test, p = {out["shared_alpha_p"]:.2g}): a '
      'larger gamma then need not mean a steeper curve; compare slopes per doubling instead.'
    )
  return warnings + _as_good(out['laws'])


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
