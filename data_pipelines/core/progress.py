# SPDX-License-Identifier: Apache-2.0
"""Progress of a phase: rows done, their rate and the time left."""

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bars

LINE_SECONDS = 5.0

Log = Callable[[str], None]


class Progress:
  """Counts rows of a phase.

  On a terminal it draws one line with a bar in place; elsewhere it logs a line every five seconds.
  """

  def __init__(self, log: Log, phase: str, total: float | None):
    """Args: where lines go, a word such as "reading", rows in all (None: not known)."""
    self._log, self._phase, self._total = log, phase, total
    self._began = self._logged = time.monotonic()
    self._bars = None
    console = Console()
    if console.is_terminal and not console.is_dumb_terminal:
      columns = BarColumn(bar_width=24), TextColumn('{task.description}')
      self._bars = Bars(*columns, console=console, transient=True, refresh_per_second=2)
      self._bar = self._bars.add_task(phase, total=1.0)
      self._bars.start()
    self.rows = 0

  def add(self, rows: int, share: float | None = None) -> None:
    """Counts `rows` more; `share` of all work is done, where rows in all are not known."""
    self.rows += rows
    now = time.monotonic()
    if self._bars is None and now - self._logged < LINE_SECONDS:
      return
    self._logged = now
    seconds = max(now - self._began, 1e-9)
    if share is None and self._total:
      share = self.rows / self._total
    text = f'{self._phase}: {self.rows:,} rows, {self.rows / seconds:,.0f} rows/s'
    if share:
      minutes, rest = divmod(round(seconds * (1 - share) / share), 60)
      text += f', {100 * share:.0f} %, {minutes}:{rest:02d} left'
    if self._bars is not None:
      self._bars.update(self._bar, completed=share or 0.0, description=text)
    else:
      self._log(text)

  def done(self) -> None:
    """Ends the phase: clears the bar and logs the rows and the time."""
    if self._bars is not None:
      self._bars.stop()
    self._log(f'{self._phase}: {self.rows:,} rows in {time.monotonic() - self._began:.1f} s')
