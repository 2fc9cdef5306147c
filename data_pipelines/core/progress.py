# SPDX-License-Identifier: Apache-2.0
"""Progress lines: what is being done, how much of it, at what rate, and the time left."""

import os
import shutil
import sys
import time
from collections.abc import Callable

PROGRESS_SECONDS = 5.0
_BAR = 24

Log = Callable[[str], None]


class Progress:
  """Counts work in rows of a phase whose total may be unknown until it ends.

  On a terminal one line with a bar is drawn again and again; elsewhere a line comes every five
  seconds. A phase of less than that says nothing.
  """

  def __init__(self, log: Log, what: str, total: float | None):
    """Args: where lines go, a verb phrase such as "reading", rows in all (None: not known)."""
    self._log, self._what, self._total = log, what, total
    self._live = sys.stdout.isatty() and os.environ.get('TERM', '') not in ('', 'dumb')
    self._every = 0.5 if self._live else PROGRESS_SECONDS
    self._began = self._told = time.monotonic()
    self.rows = 0

  def add(self, rows: int, share: float | None = None) -> None:
    """`rows` more are done; `share` of the whole, where rows in all are not known."""
    self.rows += rows
    now = time.monotonic()
    if now - self._told < self._every:
      return
    self._told = now
    seconds = now - self._began
    if share is None and self._total:
      share = self.rows / self._total
    text = f'{self._what}: {self.rows:,} rows, {self.rows / seconds:,.0f} rows/s'
    if share:
      left = seconds * (1 - share) / share
      text += f', {100 * share:.0f} %, {_clock(left)} left'
    if self._live:
      filled = round(_BAR * (share or 0))
      line = f'[{"#" * filled}{"." * (_BAR - filled)}] {text}'
      # One that wraps could not be drawn over.
      print(f'\r{line[: shutil.get_terminal_size().columns - 1]}\033[K', end='', flush=True)
    else:
      self._log(text)

  def done(self) -> None:
    """Ends the phase: clears the bar, says the whole."""
    seconds = max(time.monotonic() - self._began, 1e-9)
    if self._live:
      print('\r\033[K', end='', flush=True)
    self._log(f'{self._what}: {self.rows:,} rows in {seconds:.1f} s')


def _clock(seconds: float) -> str:
  minutes, rest = divmod(round(seconds), 60)
  return f'{minutes}:{rest:02d}'
