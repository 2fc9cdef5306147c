# SPDX-License-Identifier: Apache-2.0
"""A profile of some steps of a run, for xprof or TensorBoard: jax.profiler's trace of a window."""

import pathlib
from collections.abc import Callable

import jax

from deres_jax.config.checks import window
from deres_jax.core.errors import UserError


def check(text: str, steps: int):
  """Raises UserError for a window that is not one, or not in a run of so many steps."""
  if text and window(text)[1] > steps:
    raise UserError(
      f'profile {text!r}: expected steps within the run, which has {steps}: steps '
      f'{window(text)[0]} to {window(text)[1]} are not all there'
    )


class Window:
  """Traces the steps of a window into `folder`; with an empty one it does nothing.

  What happens between the steps, an evaluation or a save, is in the trace too.
  """

  def __init__(self, text: str, folder: pathlib.Path):
    self._first, self._last = window(text) if text else (0, 0)
    self._folder, self._on = folder, False

  def around(self, train_step: Callable, start: int) -> Callable:
    """`train_step`, traced where it is one of the window's; the next one is step `start` + 1."""
    if not self._first or start >= self._last:
      return train_step
    number = start

    def traced(*arguments):
      nonlocal number
      number += 1
      if number == max(self._first, start + 1):
        jax.profiler.start_trace(self._folder)
        self._on = True
      with jax.profiler.StepTraceAnnotation('train', step_num=number):
        out = train_step(*arguments)
      if number == self._last:
        jax.block_until_ready(out)
        self.close()
      return out

    return traced

  def close(self):
    """Ends the trace, also of a run that ends within the window."""
    if self._on:
      self._on = False
      jax.profiler.stop_trace()
