# SPDX-License-Identifier: Apache-2.0
"""The progress of a run: a live line on a terminal, plain lines elsewhere."""

import sys
import time

from rich import progress
from rich.console import Console

from deres_jax.core import terminal

_PERIOD = 10.0  # least seconds between plain lines


class TimeLeft:
  """Estimates the time to the end of a run from what this start has done.

  Steps and evaluations are timed apart, because few evaluations may take most of the time. The
  first step is left out: it includes compilation.
  """

  def __init__(self, total: int, eval_every: int):
    self._total, self._every = total, eval_every
    self._last = None  # (step, time) when the clock was last read
    self._steps, self._seconds = 0, 0.0
    self._evaluation = None  # seconds of the last evaluation; the first includes compilation

  def step(self, step: int, now: float, synced: bool):
    """Records that `step` steps are done at `now`, before the evaluation that may be due.

    Args:
      synced: whether the device has finished them. Steps are dispatched ahead of it, so other times
        say little.
    """
    if self._last is None:
      self._last = step, now
      return
    before, then = self._last
    after_evaluation = before % self._every == 0
    if not synced and not after_evaluation:
      return
    if after_evaluation:
      self._evaluation = max(0.0, now - then - (step - before) * self._pace())
    else:
      self._steps, self._seconds = self._steps + step - before, self._seconds + now - then
    self._last = step, now

  def _pace(self) -> float:
    return self._seconds / self._steps if self._steps else 0.0

  def text(self, step: int) -> str:
    """Returns '12 min left' or '12 min and 9 evaluations left'; empty before the first estimate."""
    # If every step is evaluated, no step is timed alone: it counts as a part of its evaluation.
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
  """Shows the progress of a run on stderr; control characters go only to capable terminals."""

  def __init__(self, total: int, start: int, eval_every: int):
    self._total, self._left = total, TimeLeft(total, eval_every)
    self._printed = time.monotonic()
    self._live = None
    if terminal.is_live(sys.stderr):
      self._live = progress.Progress(
        progress.TextColumn('step'),
        progress.MofNCompleteColumn(),
        progress.BarColumn(),
        progress.TextColumn('{task.fields[left]}'),
        progress.TextColumn('{task.description}'),
        console=Console(stderr=True),  # follows NO_COLOR and COLUMNS
      )
      self._task = self._live.add_task('', total=total, completed=start, left='')
      self._live.start()

  def step(self, step: int, text: str = ''):
    """Shows that `step` steps are done. Off a terminal it prints a line every 10 s at most.

    Args:
      text: figures, shown until the next ones; given when the device has finished all steps.
    """
    now = time.monotonic()
    self._left.step(step, now, synced=bool(text))
    if self._live:
      new = {'description': text, 'left': self._left.text(step)} if text else {}
      self._live.update(self._task, completed=step, **new)
    elif text and now - self._printed > _PERIOD:
      self._printed = now
      self.line(f'step {step}/{self._total}  {text}  {self._left.text(step)}'.rstrip())

  def line(self, text: str):
    """Prints a line that stays."""
    if self._live:
      self._live.console.print(text, highlight=False, markup=False)
    else:
      print(text, file=sys.stderr, flush=True)

  def close(self):
    """Removes the live line; the others stay."""
    if self._live:
      self._live.stop()
