# SPDX-License-Identifier: Apache-2.0
"""Verdicts on claims, and how many seeds a clearer verdict would need. Rules come before the runs.

A verdict follows from the 95 % interval printed beside it, and from nothing else:

  shown                the interval lies wholly on the claim's side
  not shown            it excludes an effect of the claimed size, or lies on the other side
  cannot be told here  neither: it holds both no effect and the claimed one

A claim without a size counts as one of `MIN_EFFECT`. Each claim has one primary figure, named
beforehand, and is a question of its own: its interval is not widened for the other claims. A claim
of several parts ('better than either') is shown only if each part is, which needs no adjustment
(intersection-union test, Berger 1982). Holm's p-values over all claims, printed beside, cover the
page as a whole.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from scipy import special

from deres_jax.metrics import paired

SHOWN, NOT_SHOWN, UNDECIDED, NOT_RUN = 'shown', 'not shown', 'cannot be told here', 'not run here'
# AUC: the smallest gaps between models that papers on Criteo and Avazu report.
MIN_EFFECT = 5e-4
_LEVEL = 0.95
_MAX_SEEDS = 100_000


@dataclasses.dataclass(frozen=True)
class Verdict:
  """One of the four verdicts above and a remark on it."""

  word: str
  remark: str = ''


def judge_effect(low: float | None, high: float | None, claimed: float | None) -> Verdict:
  """Judges a claim that an effect is above 0.

  Args:
    low, high: 95 % interval of the effect, or None with fewer than two paired seeds.
    claimed: size of the claimed effect; None for a claim without a size.

  >>> judge_effect(0.0002, 0.0011, None)
  Verdict(word='shown', remark='')
  >>> judge_effect(-0.0004, 0.0003, claimed=0.001)
  Verdict(word='not shown', remark='the claimed size is excluded')
  >>> judge_effect(-0.0004, 0.0016, claimed=0.001).word
  'cannot be told here'
  """
  if low is None or high is None:
    return Verdict(UNDECIDED, 'no interval from fewer than two paired seeds')
  size = MIN_EFFECT if claimed is None else claimed
  if low > 0:
    return Verdict(SHOWN, 'smaller than claimed' if claimed is not None and high < size else '')
  if high < 0:
    return Verdict(NOT_SHOWN, 'the other way')
  if high < size:
    label = 'the claimed size' if claimed is not None else f'{MIN_EFFECT} AUC'
    return Verdict(NOT_SHOWN, f'{label} is excluded')
  return Verdict(UNDECIDED)


def judge_all(parts: Sequence[Verdict]) -> Verdict:
  """Judges a claim that holds if each of its parts does (intersection-union test, Berger 1982).

  >>> judge_all([Verdict('shown'), Verdict('cannot be told here')]).word
  'cannot be told here'
  """
  words = [part.word for part in parts]
  for word in (NOT_SHOWN, NOT_RUN, UNDECIDED):
    if word in words:
      return parts[words.index(word)]
  return next((part for part in parts if part.remark), parts[0])


def judge_bound(values: Sequence[float], limit: float) -> Verdict:
  """Judges a claim that every one of these exact figures, one a size, is below `limit`.

  >>> judge_bound([0.02, 0.06], 0.05)
  Verdict(word='not shown', remark='at 1 of 2 sizes')
  """
  below = sum(value < limit for value in values)
  if below == len(values):
    return Verdict(SHOWN)
  return Verdict(NOT_SHOWN, f'at {below} of {len(values)} sizes' if below else 'at no size')


def noninferiority_margin(gain_low: float | None) -> float | None:
  """Returns how much worse still counts as matching; None if depth gains nothing to match.

  `MIN_EFFECT`, but at most half of what the deeper model surely gains, `gain_low`, the lower
  end of the interval of its gain: with more, the shallow model would match without any help.

  >>> noninferiority_margin(0.0006)
  0.0003
  """
  return min(MIN_EFFECT, gain_low / 2) if gain_low is not None and gain_low > 0 else None


def judge_noninferiority(low: float | None, high: float | None, margin: float | None) -> Verdict:
  """Judges a claim that a shallow model matches a deep one.

  Args:
    low, high: 95 % interval of the shallow model's AUC less the deep one's.
    margin: `noninferiority_margin` of the deep model.

  >>> judge_noninferiority(-0.0002, 0.0004, margin=0.0003).word
  'shown'
  """
  if low is None or high is None:
    return Verdict(UNDECIDED, 'no interval from fewer than two paired seeds')
  if margin is None:
    return Verdict(UNDECIDED, 'nothing to match: more layers are not shown to gain')
  if low > -margin:
    return Verdict(SHOWN, 'and above' if low > 0 else '')
  if high < -margin:
    return Verdict(NOT_SHOWN, 'worse by more than the margin')
  return Verdict(UNDECIDED)


def judge_exponents(
  rises: bool,
  shared: dict[str, Any],
  free: dict[str, Any],
  shared_alpha_p: float | None,
  claimed: float,
) -> Verdict:
  """Judges a claim that the ratio of two scaling exponents is `claimed`, a number above 1.

  With one alpha for both curves the ratio is one of slopes, whatever the exponents are
  (docs/scaling_laws.md). So a larger exponent is shown only if the ratio is above 1 both with one
  alpha and with free ones. Either of the two can exclude the claimed size, the first only where
  one alpha is not rejected.

  Args:
    rises: whether the AUC of the reference is shown to rise with compute at all.
    shared, free: F-profile intervals of the ratio, as in fit.json, with one alpha and with two.
    shared_alpha_p: p of the test that one alpha serves both curves.

  >>> ratio = {'low': 1.2, 'high': 1.5, 'low_open': False, 'high_open': False}
  >>> judge_exponents(True, ratio, ratio, 0.4, claimed=1.66)
  Verdict(word='shown', remark='smaller than claimed')
  """
  if not rises:
    return Verdict(UNDECIDED, 'the AUC is not shown to rise with compute: there is no law to fit')
  (low, high), (free_low, free_high) = interval_ends(shared), interval_ends(free)
  one_alpha = shared_alpha_p is None or shared_alpha_p >= 0.05
  if low > 1 and free_low > 1:
    smaller = max(high, free_high) < claimed
    return Verdict(SHOWN, 'smaller than claimed' if smaller else '')
  if one_alpha and low <= 1 and high < claimed:
    return Verdict(NOT_SHOWN, 'the claimed ratio is excluded if there is one alpha')
  if free_low <= 1 and free_high < claimed:
    return Verdict(NOT_SHOWN, 'the claimed ratio is excluded')
  if low > 1 and one_alpha:
    remark = 'steeper if there is one alpha; that the exponents differ is not shown'
    return Verdict(UNDECIDED, remark)
  return Verdict(UNDECIDED)


def interval_ends(interval: dict[str, Any]) -> tuple[float, float]:
  """Returns the ends of an interval of fit.json, infinite where it is open.

  >>> interval_ends({'low': 1.2, 'low_open': False, 'high': None, 'high_open': True})
  (1.2, inf)
  """
  low = -math.inf if interval['low_open'] or interval['low'] is None else interval['low']
  high = math.inf if interval['high_open'] or interval['high'] is None else interval['high']
  return low, high


# How many seeds a verdict needs.


def t_test_power(seeds: int, sd: float, size: float) -> float:
  """Returns the probability that the 95 % t interval of `seeds` differences lies above 0.

  Differences are normal with mean `size` and standard deviation `sd`, so t has the noncentral t
  distribution with n - 1 degrees of freedom and noncentrality size sqrt(n) / sd (Cohen 1988).

  >>> round(t_test_power(seeds=5, sd=4e-4, size=5e-4), 3)
  0.562
  """
  if sd == 0:
    return 1.0
  critical = special.stdtrit(seeds - 1, (1 + _LEVEL) / 2)
  miss = special.nctdtr(seeds - 1, size * math.sqrt(seeds) / sd, critical)
  return 1.0 if math.isnan(miss) else 1 - float(miss)


def seeds_needed(
  sd: float | None, seeds: int, size: float, min_power: float = 0.8
) -> dict[str, Any] | None:
  """Returns how many seeds distinguish an effect of `size` from none, or None without an sd.

  Args:
    sd: standard deviation of the paired differences over `seeds` seeds.
    size: effect to distinguish from 0.
    min_power: smallest `t_test_power` that is enough.

  Returns:
    power: fewest seeds with enough power; power_range: the same at both ends of the 95 % interval
      of the standard deviation itself (chi-square). sure: fewest whose interval is narrower than
      `size`, so that it cannot hold both 0 and `size`. None: more than 100,000.
    size, sd: as given.

  >>> needed = seeds_needed(sd=4e-4, seeds=3, size=5e-4)
  >>> needed['power'], needed['sure']
  (8, 13)
  """
  if sd is None or seeds < 2 or size <= 0:
    return None
  sds = [sd * math.sqrt((seeds - 1) / special.chdtri(seeds - 1, q)) for q in (0.025, 0.975)]

  def powerful(sd):
    return _fewest(lambda n: t_test_power(n, sd, size) >= min_power)

  return {
    'power': powerful(sd),
    'power_range': [powerful(x) for x in sds],
    'sure': _fewest(lambda n: 2 * paired.t_half_width(n, sd) < size),
    'size': size,
    'sd': sd,
  }


def _fewest(enough: Callable[[int], bool]) -> int | None:
  """Returns the smallest n from 2 to 100,000 with enough(n), by bisection."""
  if not enough(_MAX_SEEDS):
    return None
  low, high = 1, _MAX_SEEDS
  while high - low > 1:
    middle = (low + high) // 2
    low, high = (low, middle) if enough(middle) else (middle, high)
  return high
