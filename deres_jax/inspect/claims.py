# SPDX-License-Identifier: Apache-2.0
"""Verdicts on the paper's claims about forgetting from one trained model, by rules stated here.

Both follow from a 95 % interval over rows of data; neither covers other training seeds:

  negative weights   the mean weight of deep reads on early sources (`findings.deep_and_early`):
                     shown if the interval lies below 0, not shown if above, else undecided
  zeroing them       AUC of the untouched model less that with negative weights at 0, on the same
                     rows (DeLong), by `verdicts.judge_effect` without a claimed size
"""

from typing import Any

from deres_jax.inspect.findings import NEGATIVES
from deres_jax.metrics import verdicts
from deres_jax.metrics.verdicts import NOT_SHOWN, SHOWN, UNDECIDED


def claims(c: dict[str, Any]) -> list[dict[str, Any]]:
  """Returns figure, interval and verdict of each claim, from the other content of inspect.json."""
  return [_negative(c), _zeroing(c)]


def _claim(
  claim: str, measured: str, word: str, remark: str, figure=None, half=None
) -> dict[str, Any]:
  low, high = (None, None) if figure is None else (figure - half, figure + half)
  return {
    'claim': claim,
    'measured': measured,
    'figure': figure,
    'low': low,
    'high': high,
    'verdict': word,
    'remark': remark,
  }


def _why_undecidable(c: dict[str, Any]) -> str:
  """Returns why the claims do not apply to this model, or nothing."""
  recalls = [w for w in c['weights'] if w['kind'] == 'recall']
  if c['simplex']:
    return 'weights of a softmax cannot be negative'
  if not recalls:
    return 'this connector has no weights over earlier blocks'
  return ''


def _negative(c: dict[str, Any]) -> dict[str, Any]:
  claim = 'Deep layers give negative weights to early blocks'
  measured = 'mean weight of deep reads on early sources'
  early, reason = c['early'], _why_undecidable(c)
  if reason or early is None:
    return _claim(claim, measured, UNDECIDED, reason or 'no deep read has an early source')
  mean, half = early['mean'], early['interval']
  word = SHOWN if mean + half < 0 else NOT_SHOWN if mean - half > 0 else UNDECIDED
  remark = f'{early["share_negative"]:.0%} of these weights are negative'
  return _claim(claim, measured, word, remark, mean, half)


def _zeroing(c: dict[str, Any]) -> dict[str, Any]:
  claim = 'Zeroing the negative weights costs AUC'
  measured = 'AUC untouched less AUC with negative weights at 0'
  check = next((x for x in c['checks'] if x['change'] == NEGATIVES), None)
  if check is None:
    return _claim(claim, measured, UNDECIDED, _why_undecidable(c))
  recalls = [w for w in c['weights'] if w['kind'] in ('recall', 'pre_res')]
  if not any(_any_above_0(w['negative']) for w in recalls):
    return _claim(claim, measured, UNDECIDED, 'no weight is negative')
  cost, half = -check['difference'], check['interval']
  verdict = verdicts.judge_effect(cost - half, cost + half, None)
  return _claim(claim, measured, verdict.word, verdict.remark, cost, half)


def _any_above_0(shares: list) -> bool:
  return any(_any_above_0(x) if isinstance(x, list) else x > 0 for x in shares)
