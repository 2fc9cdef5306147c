# SPDX-License-Identifier: Apache-2.0
"""The steps or the width with which a run trains for a given number of FLOPs.

A run's training FLOPs are those of a forward and backward pass of a row, times the rows it sees.
"""

import math
from collections.abc import Callable

from deres_jax.core.errors import UserError

TOLERANCE = 0.1  # largest relative distance from the budget that a width may have
_TRIES = 64  # widths in a row that a model may refuse: what divides it is smaller


def steps(budget: float, flops_per_row: float, rows_until: Callable[[int], int]) -> int:
  """The number of steps whose FLOPs are nearest to the budget; raises UserError below one.

  Args:
    rows_until: rows seen after so many steps.
  """
  first = flops_per_row * rows_until(1)
  if budget < first:
    raise UserError(
      f'one step takes {first:.4g} FLOPs, more than --flops_budget={budget:g}: '
      'raise it, or take smaller batches or a smaller model'
    )
  low, high = 1, 2
  while flops_per_row * rows_until(high) < budget:
    low, high = high, 2 * high
  while high - low > 1:
    middle = (low + high) // 2
    below = flops_per_row * rows_until(middle) < budget
    low, high = (middle, high) if below else (low, middle)
  return min(low, high, key=lambda n: abs(flops_per_row * rows_until(n) - budget))


def width(budget: float, unit: int, flops_of: Callable[[int], float | None]) -> int:
  """The multiple of `unit` whose FLOPs are nearest to the budget.

  Args:
    unit: attention heads, which divide a width.
    flops_of: training FLOPs at a width, rising with it; None for one that the model refuses.

  Raises:
    UserError: no width is within `TOLERANCE`, or the width changes nothing.
  """
  seen: dict[int, float] = {}

  def next_allowed(k: int, end: int) -> int | None:
    """The first k in k .. end - 1 whose width the model takes."""
    for n in range(k, min(end, k + _TRIES)):
      if n not in seen and (flops := flops_of(n * unit)) is not None:
        seen[n] = flops
      if n in seen:
        return n
    return None

  low = next_allowed(1, _TRIES)
  if low is None:
    raise UserError(f'no width of {unit} to {_TRIES * unit} is possible: set model.dim by hand')
  if budget < seen[low]:
    raise UserError(
      f'the smallest width, model.dim={low * unit}, takes {seen[low]:.4g} FLOPs, more than '
      f'--flops_budget={budget:g}: raise it or take fewer steps'
    )
  high = low
  while seen[high] < budget:
    before = high
    high = next_allowed(2 * high, 4 * high + _TRIES)
    if high is None or seen[high] <= seen[before]:
      raise UserError(
        f'model.dim={before * unit} takes {seen[before]:.4g} FLOPs and a greater one no more: '
        'the width does not set what this backbone computes: take --solve=steps'
      )
    low = before
  # Compute grows about as the square of the width; every other guess is the middle, lest one end
  # stays where it is.
  guesses = 0
  while high - low > 1:
    guess = (low + high) // 2
    if guesses % 2 == 0:
      ends = math.sqrt(seen[low]), math.sqrt(seen[high])
      guess = low + int((high - low) * (math.sqrt(budget) - ends[0]) / (ends[1] - ends[0]))
    guesses += 1
    guess = min(max(guess, low + 1), high - 1)
    middle = next_allowed(guess, high) or next_allowed(low + 1, guess)
    if middle is None:
      break
    low, high = (middle, high) if seen[middle] < budget else (low, middle)
  best = min(low, high, key=lambda k: abs(seen[k] - budget))
  if abs(seen[best] / budget - 1) > TOLERANCE:
    raise UserError(
      f'model.dim={low * unit} takes {seen[low]:.4g} FLOPs and {high * unit} {seen[high]:.4g}, '
      f'neither within {TOLERANCE:.0%} of --flops_budget={budget:g}: '
      'change it, or take fewer heads or other steps'
    )
  return best * unit
