# SPDX-License-Identifier: Apache-2.0
"""Progress of a phase: rows done, their rate and the time left."""

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bars

LINE_SECONDS, DRAW_SECONDS = 5.0, 0.5  # between lines, between drawings

Log = Callable[[str], None]


class Progress:
  """Counts rows of a phase. A context manager; a phase without errors ends with a line.

  On a terminal it draws one line with a bar in place; elsewhere it logs a line every five seconds.
  """

  def __init__(self, log: Log, phase: str, total: float | None):
    """Args: where lines go, a word such as "reading", rows in all (None: not known)."""
    self._log, self._phase, self._total = log, phase, total
    self._began = self._shown = time.monotonic()
    self._bars = None
    console = Console()
    if console.is_terminal and not console.is_dumb_terminal:
      columns = BarColumn(bar_width=24), TextColumn('{task.description}')
      self._bars = Bars(*columns, console=console, transient=True, auto_refresh=False)
      self._bar = self._bars.add_task(phase, total=1.0)
    self.rows = 0

  def __enter__(self) -> 'Progress':
    if self._bars is not None:
      self._bars.start()
    return self

  def __exit__(self, kind, error, trace) -> None:
    if self._bars is not None:
      self._bars.stop()
    if kind is None:
      seconds = time.monotonic() - self._began
      self._log(f'{self._phase}: {self.rows:,} rows in {seconds:.1f} s')

  def add(self, rows: int, share: float | None = None) -> None:
    """Counts `rows` more; `share` of all work is done, where rows in all are not known."""
    self.rows += rows
    now = time.monotonic()
    if now - self._shown < (LINE_SECONDS if self._bars is None else DRAW_SECONDS):
      return
    self._shown = now
    seconds = now - self._began
    if share is None and self._total:
      share = self.rows / self._total
    text = f'{self._phase}: {self.rows:,} rows, {self.rows / max(seconds, 1e-9):,.0f} rows/s'
    if share:
      minutes, rest = divmod(round(seconds * (1 - share) / share), 60)
      text += f', {100 * share:.0f} %, {minutes}:{rest:02d} left'
    if self._bars is not None:
      self._bars.update(self._bar, completed=share or 0.0, description=text, refresh=True)
    else:
      self._log(text)
