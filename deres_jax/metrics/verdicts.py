# SPDX-License-Identifier: Apache-2.0
"""What a figure says of a claim, and how many seeds would say more. Rules are stated before runs.

A verdict is read off the 95 % interval that is printed beside it, and off nothing else:

  shown                the interval lies wholly on the claim's side
  not shown            it excludes an effect of the claimed size, or lies on the other side
  cannot be told here  neither: it holds both no effect and the claimed one

A claim without a size is taken at `MATTERS`. Each claim has one primary figure, named beforehand,
and is a question of its own, so its interval is not widened for the other claims; a claim of
several parts ('better than either') is shown only if each part is, which needs no adjustment
(intersection-union). Holm's p over the claims is given beside, and says what the page as a whole
can bear.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from scipy import special

SHOWN, NOT, UNTOLD, ABSENT = 'shown', 'not shown', 'cannot be told here', 'not run here'
MATTERS = 5e-4  # AUC: the smallest gaps between models that papers on Criteo and Avazu report
_LEVEL = 0.95
_MOST_SEEDS = 100_000


@dataclasses.dataclass(frozen=True)
class Verdict:
  """One of the four words above, and what to add to it."""

  word: str
  remark: str = ''


def effect(low: float | None, high: float | None, claimed: float | None) -> Verdict:
  """Of an effect that is claimed to be above 0, by `claimed` (None: no size is claimed)."""
  if low is None or high is None:
    return Verdict(UNTOLD, 'no interval from fewer than two paired seeds')
  size = MATTERS if claimed is None else claimed
  if low > 0:
    return Verdict(SHOWN, 'smaller than claimed' if claimed is not None and high < size else '')
  if high < 0:
    return Verdict(NOT, 'the other way')
  if high < size:
    what = 'the claimed size' if claimed is not None else f'{MATTERS} AUC'
    return Verdict(NOT, f'{what} is excluded')
  return Verdict(UNTOLD)


def together(parts: Sequence[Verdict]) -> Verdict:
  """Of a claim that is true if each part is."""
  words = [part.word for part in parts]
  for word in (NOT, ABSENT, UNTOLD):
    if word in words:
      return parts[words.index(word)]
  return next((part for part in parts if part.remark), parts[0])


def below(shares: Sequence[float], limit: float) -> Verdict:
  """Of a bound on exact figures: it holds at every size, or it is not shown."""
  held = sum(share < limit for share in shares)
  where = f'at {held} of {len(shares)} sizes' if held else 'at no size'
  return Verdict(SHOWN) if held == len(shares) else Verdict(NOT, where)


def margin(gain_low: float | None) -> float | None:
  """How much worse still counts as matching; None: there is no gain of depth to match.

  `MATTERS`, but never more than half of what the deeper model is sure to gain (the lower end of the
  interval of its gain): with more, the shallow model would match without any help.
  """
  return min(MATTERS, gain_low / 2) if gain_low is not None and gain_low > 0 else None


def no_worse(low: float | None, high: float | None, allowed: float | None) -> Verdict:
  """Of a claim to match: the shallow model less the deep one, and `margin` of the deep one."""
  if low is None or high is None:
    return Verdict(UNTOLD, 'no interval from fewer than two paired seeds')
  if allowed is None:
    return Verdict(UNTOLD, 'nothing to match: more layers are not shown to gain')
  if low > -allowed:
    return Verdict(SHOWN, 'and above' if low > 0 else '')
  return Verdict(NOT, 'worse by more than the margin') if high < -allowed else Verdict(UNTOLD)


def exponents(
  rises: bool,
  shared: dict[str, Any],
  free: dict[str, Any],
  shared_alpha_p: float | None,
  claimed: float,
) -> Verdict:
  """Of a ratio of exponents claimed to be `claimed` > 1: its F-profiles under one and free alphas.

  Under one alpha the ratio is one of slopes, whatever the exponents do (docs/scaling_laws.md). So a
  larger exponent is shown only if the ratio is above 1 under one alpha and under free ones; that
  there is none of the claimed size is told by either, by the first where one alpha is not rejected.

  Args:
    rises: whether the AUC of the reference is shown to rise with compute at all.
  """
  if not rises:
    return Verdict(UNTOLD, 'the AUC is not shown to rise with compute: there is no law to fit')
  (low, high), (free_low, free_high) = ends(shared), ends(free)
  one_alpha = shared_alpha_p is None or shared_alpha_p >= 0.05
  if low > 1 and free_low > 1:
    smaller = max(high, free_high) < claimed
    return Verdict(SHOWN, 'smaller than claimed' if smaller else '')
  if one_alpha and low <= 1 and high < claimed:
    return Verdict(NOT, 'the claimed ratio is excluded if there is one alpha')
  if free_low <= 1 and free_high < claimed:
    return Verdict(NOT, 'the claimed ratio is excluded')
  if low > 1 and one_alpha:
    return Verdict(UNTOLD, 'steeper if there is one alpha; that the exponents differ is not shown')
  return Verdict(UNTOLD)


def ends(interval: dict[str, Any]) -> tuple[float, float]:
  """Ends of an interval of fit.json, infinite where it is open."""
  low = -math.inf if interval['low_open'] or interval['low'] is None else interval['low']
  high = math.inf if interval['high_open'] or interval['high'] is None else interval['high']
  return low, high


# What it would take.


def power(seeds: int, sd: float, size: float) -> float:
  """Chance that the 95 % t interval of so many paired differences lies above 0.

  Differences are normal about `size` with standard deviation `sd`: t has the noncentral t
  distribution with n - 1 degrees of freedom and noncentrality size sqrt(n) / sd.
  """
  if sd == 0:
    return 1.0
  root = special.stdtrit(seeds - 1, (1 + _LEVEL) / 2)
  below_root = special.nctdtr(seeds - 1, size * math.sqrt(seeds) / sd, root)
  return 1.0 if math.isnan(below_root) else 1 - float(below_root)


def half_width(seeds: int, sd: float) -> float:
  """Half the width of the t interval of so many differences with that standard deviation."""
  return float(special.stdtrit(seeds - 1, (1 + _LEVEL) / 2)) * sd / math.sqrt(seeds)


def seeds_to_tell(
  sd: float | None, seeds: int, size: float, wanted: float = 0.8
) -> dict[str, Any] | None:
  """How many seeds tell an effect of `size` from none; None without a standard deviation.

  Args:
    sd: of the paired differences of so many `seeds`.

  Returns:
    power: fewest seeds with `power` of at least `wanted`; power_range: the same at both ends of the
      95 % interval of the standard deviation itself (chi-square). sure: fewest whose interval is
      narrower than `size`, so that it cannot hold both 0 and `size`. None: more than 100,000.
    size, sd: what it was reckoned with.
  """
  if sd is None or seeds < 2 or size <= 0:
    return None
  sds = [sd * math.sqrt((seeds - 1) / special.chdtri(seeds - 1, q)) for q in (0.025, 0.975)]

  def reach(sd):
    return _fewest(lambda n: power(n, sd, size) >= wanted)

  return {
    'power': reach(sd),
    'power_range': [reach(x) for x in sds],
    'sure': _fewest(lambda n: 2 * half_width(n, sd) < size),
    'size': size,
    'sd': sd,
  }


def _fewest(enough: Callable[[int], bool]) -> int | None:
  """The smallest n of 2 to 100,000 that is enough, for what more never spoils."""
  if not enough(_MOST_SEEDS):
    return None
  low, high = 1, _MOST_SEEDS
  while high - low > 1:
    middle = (low + high) // 2
    low, high = (low, middle) if enough(middle) else (middle, high)
  return high
