# SPDX-License-Identifier: Apache-2.0
"""How far a run is: a live line on a terminal, plain lines otherwise."""

import os
import sys
import time

from rich import progress
from rich.console import Console

from deres_jax.core import terminal

_PERIOD = 10.0  # seconds between plain lines, at least


class TimeLeft:
  """Time to the end of a run, from what it has seen since it was started.

  Steps and evaluations are timed apart, because few evaluations may take most of the time. The
  first step counts for nothing: it is compiled.
  """

  def __init__(self, total: int, eval_every: int):
    self._total, self._every = total, eval_every
    self._at = None  # the last step at which the clock was read, and the clock
    self._steps, self._seconds = 0, 0.0
    self._evaluation = None  # seconds of the last one; the first compiles too

  def step(self, step: int, now: float, whole: bool):
    """`step` steps are done at `now`; an evaluation, if due, comes after it.

    Args:
      whole: all of them are done on the device. Steps run ahead of it, so other times tell little.
    """
    if self._at is None:
      self._at = step, now
      return
    before, then = self._at
    after_evaluation = before % self._every == 0
    if not whole and not after_evaluation:
      return
    if after_evaluation:
      self._evaluation = max(0.0, now - then - (step - before) * self._pace())
    else:
      self._steps, self._seconds = self._steps + step - before, self._seconds + now - then
    self._at = step, now

  def _pace(self) -> float:
    return self._seconds / self._steps if self._steps else 0.0

  def text(self, step: int) -> str:
    """'12 min left', '12 min and 9 evaluations left', or nothing where nothing is known yet."""
    # Where every step is evaluated, no step is timed alone: it counts as a part of its evaluation.
    if not self._steps and (self._every > 1 or self._evaluation is None):
      return ''
    # Multiples of eval_every from `step` on, the last step, and the test split.
    due = self._total // self._every - (step - 1) // self._every
    due += (self._total % self._every != 0) + 1
    seconds = self._pace() * (self._total - step)
    if self._evaluation is None:
      plural = 's' if due > 1 else ''
      return f'{terminal.duration(seconds)} and {due} evaluation{plural} left'
    return f'{terminal.duration(seconds + due * self._evaluation)} left'


class Progress:
  """Shows how far a run is, on stderr. No control characters but on a terminal that takes them."""

  def __init__(self, total: int, start: int, eval_every: int):
    self._total, self._left = total, TimeLeft(total, eval_every)
    self._last = time.monotonic()
    self._live = None
    if sys.stderr.isatty() and os.environ.get('TERM', '') not in ('', 'dumb'):
      self._live = progress.Progress(
        progress.TextColumn('step'),
        progress.MofNCompleteColumn(),
        progress.BarColumn(),
        progress.TextColumn('{task.fields[left]}'),
        progress.TextColumn('{task.description}'),
        console=Console(stderr=True),  # which knows NO_COLOR and COLUMNS
      )
      self._task = self._live.add_task('', total=total, completed=start, left='')
      self._live.start()

  def step(self, step: int, text: str = ''):
    """Shows that `step` steps are done. Without a terminal a line appears every 10 s at most.

    Args:
      text: figures, which stay until others come; with them the device has done all steps.
    """
    now = time.monotonic()
    self._left.step(step, now, whole=bool(text))
    if self._live:
      new = {'description': text, 'left': self._left.text(step)} if text else {}
      self._live.update(self._task, completed=step, **new)
    elif text and now - self._last > _PERIOD:
      self._last = now
      self.line(f'step {step}/{self._total}  {text}  {self._left.text(step)}'.rstrip())

  def line(self, text: str):
    """A line that stays."""
    if self._live:
      self._live.console.print(text, highlight=False, markup=False)
    else:
      print(text, file=sys.stderr, flush=True)

  def close(self):
    """Takes the live line away; the others stay."""
    if self._live:
      self._live.stop()
