# SPDX-License-Identifier: Apache-2.0
"""Lines that stay and, on a terminal, a table below them that is drawn anew in place."""

import os
import time
from collections.abc import Sequence
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from deres_jax.core.errors import printable

_PERIOD = 1.0  # seconds between drawings, at least


def is_live(stream: TextIO) -> bool:
  """Returns whether a stream is a terminal on which lines can be drawn anew."""
  return stream.isatty() and os.environ.get('TERM', '') not in ('', 'dumb')


class Screen:
  """Shows the lines and the table of a sweep. Elsewhere than on a terminal there is no table."""

  def __init__(self, stream: TextIO):
    self._stream, self._drawn = stream, -_PERIOD
    self._live = None
    if is_live(stream):
      # It knows NO_COLOR, COLUMNS and LINES.
      self._live = Live(console=Console(file=stream), auto_refresh=False, transient=True)

  @property
  def live(self) -> bool:
    """Whether a table is shown."""
    return self._live is not None

  def line(self, text: str):
    """Prints a line that stays."""
    if self._live:
      self._live.console.print(text, highlight=False, markup=False, soft_wrap=True)
    else:
      print(text, file=self._stream, flush=True)

  def due(self) -> bool:
    """Returns whether it is time to draw the table again."""
    return self.live and time.monotonic() - self._drawn >= _PERIOD

  def show(self, table: Sequence[str]):
    """Draws a table, the first line of it in bold, cut to the terminal."""
    self._drawn = time.monotonic()
    rows = self._live.console.height - 2
    if len(table) > rows + 1:
      table = [*table[:rows], f'... and {len(table) - rows} more']
    lines = [
      Text(printable(text), 'bold' if number == 0 else '', no_wrap=True, overflow='crop')
      for number, text in enumerate(table)
    ]
    self._live.start()
    self._live.update(Group(*lines), refresh=True)

  def close(self):
    """Takes the table away; the lines stay."""
    if self._live:
      self._live.stop()


def duration(seconds: float) -> str:
  """Returns '45 s', '12 min', '3 h 20 min' or '2 d 4 h'."""
  minutes = round(seconds / 60)
  if seconds < 100:
    return f'{seconds:.0f} s'
  if minutes < 100:
    return f'{minutes} min'
  if minutes < 48 * 60:
    return f'{minutes // 60} h {minutes % 60:02} min'
  hours = round(seconds / 3600)
  return f'{hours // 24} d {hours % 24} h'
