# SPDX-License-Identifier: Apache-2.0
"""Solves for the steps or the width with which a run trains for a given number of FLOPs.

Training FLOPs are those of a forward and backward pass of an example, times the examples of a run.
"""

import math
from collections.abc import Callable

from deres_jax.core.errors import UserError

TOLERANCE = 0.1  # largest relative distance of a width's FLOPs from the budget
_TRIES = 64  # widths in a row that a model may refuse: what must divide a width is smaller


def steps(budget: float, flops_per_row: float, rows_until: Callable[[int], int]) -> int:
  """Returns the number of steps whose FLOPs are nearest to the budget.

  Args:
    rows_until: number of examples after n steps.

  Raises:
    UserError: one step takes more than the budget.
  """

  def flops(n: int) -> float:
    return flops_per_row * rows_until(n)

  if budget < flops(1):
    raise UserError(
      f'one step takes {flops(1):.4g} FLOPs, more than --flops_budget={budget:g}: '
      'raise it, or take smaller batches or a smaller model'
    )
  low, high = 1, 2
  while flops(high) < budget:
    low, high = high, 2 * high
  while high - low > 1:
    middle = (low + high) // 2
    low, high = (middle, high) if flops(middle) < budget else (low, middle)
  return min(low, high, key=lambda n: abs(flops(n) - budget))


class _Widths:
  """FLOPs of the widths k * unit that a model allows, each computed once."""

  def __init__(self, unit: int, flops_of: Callable[[int], float | None]):
    self.unit, self._flops_of = unit, flops_of
    self.flops: dict[int, float] = {}

  def next_allowed(self, first: int, end: int) -> int | None:
    """Returns the first allowed k in first .. end - 1, of `_TRIES` at most."""
    for k in range(first, min(end, first + _TRIES)):
      if k not in self.flops and (flops := self._flops_of(k * self.unit)) is not None:
        self.flops[k] = flops
      if k in self.flops:
        return k
    return None


def width(budget: float, unit: int, flops_of: Callable[[int], float | None]) -> int:
  """Returns the multiple of `unit` whose FLOPs are nearest to the budget.

  Args:
    unit: attention heads, which divide a width.
    flops_of: training FLOPs of a width, which rise with it; None if the model refuses the width.

  Raises:
    UserError: no width is within `TOLERANCE`, or the FLOPs do not depend on the width.
  """
  widths = _Widths(unit, flops_of)
  low, high = _bracket(budget, widths)
  flops, guesses = widths.flops, 0
  while high - low > 1:
    # FLOPs grow about as the square of the width. Every other guess is the middle, so that neither
    # end stays where it is.
    guess = (low + high) // 2
    if guesses % 2 == 0:
      start, end = math.sqrt(flops[low]), math.sqrt(flops[high])
      guess = low + int((high - low) * (math.sqrt(budget) - start) / (end - start))
    guesses += 1
    guess = min(max(guess, low + 1), high - 1)
    middle = widths.next_allowed(guess, high) or widths.next_allowed(low + 1, guess)
    if middle is None:
      break
    low, high = (middle, high) if flops[middle] < budget else (low, middle)
  best = min(low, high, key=lambda k: abs(flops[k] - budget))
  if abs(flops[best] / budget - 1) > TOLERANCE:
    raise UserError(
      f'model.dim={low * unit} takes {flops[low]:.4g} FLOPs and {high * unit} {flops[high]:.4g}, '
      f'neither within {TOLERANCE:.0%} of --flops_budget={budget:g}: '
      'change it, or take fewer heads or other steps'
    )
  return best * unit


def _bracket(budget: float, widths: _Widths) -> tuple[int, int]:
  """Returns two allowed multiples, the FLOPs of the first below the budget, the other's not."""
  unit, flops = widths.unit, widths.flops
  low = widths.next_allowed(1, _TRIES)
  if low is None:
    raise UserError(f'no width of {unit} to {_TRIES * unit} is possible: set model.dim by hand')
  if budget < flops[low]:
    raise UserError(
      f'the smallest width, model.dim={low * unit}, takes {flops[low]:.4g} FLOPs, more than '
      f'--flops_budget={budget:g}: raise it or take fewer steps'
    )
  high = low
  while flops[high] < budget:
    low = high
    high = widths.next_allowed(2 * low, 4 * low + _TRIES)
    if high is None or flops[high] <= flops[low]:
      raise UserError(
        f'model.dim={low * unit} takes {flops[low]:.4g} FLOPs and a greater one no more: '
        'the width does not set what this backbone computes: take --solve=steps'
      )
  return low, high
