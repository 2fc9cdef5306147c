# SPDX-License-Identifier: Apache-2.0
"""Profiles a window of steps with jax.profiler, for xprof or TensorBoard."""

import pathlib
from collections.abc import Callable

import jax

from deres_jax.config.checks import window
from deres_jax.core.errors import UserError


def check(text: str, steps: int):
  """Raises UserError if the window is malformed or does not lie within a run of `steps` steps."""
  if text and window(text)[1] > steps:
    first, last = window(text)
    raise UserError(
      f'profile {text!r}: expected steps within the run, which has {steps}: steps {first} to '
      f'{last} are not all there'
    )


class Window:
  """Traces a window of steps into `folder`; with an empty window it does nothing.

  The trace also contains evaluations and saves between the steps.
  """

  def __init__(self, text: str, folder: pathlib.Path):
    self._first, self._last = window(text) if text else (0, 0)
    self._folder, self._tracing = folder, False

  def around(self, train_step: Callable, start: int) -> Callable:
    """Returns `train_step`, traced within the window. Its next call is step `start` + 1."""
    if not self._first or start >= self._last:
      return train_step
    number = start

    def traced(*arguments):
      nonlocal number
      number += 1
      if number == max(self._first, start + 1):
        jax.profiler.start_trace(self._folder)
        self._tracing = True
      with jax.profiler.StepTraceAnnotation('train', step_num=number):
        out = train_step(*arguments)
      if number == self._last:
        jax.block_until_ready(out)
        self.close()
      return out

    return traced

  def close(self):
    """Ends the trace, also if the run ends within the window."""
    if self._tracing:
      self._tracing = False
      jax.profiler.stop_trace()
