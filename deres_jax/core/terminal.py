# SPDX-License-Identifier: Apache-2.0
"""Lines that stay and, on a terminal, a table below them that is drawn anew in place."""

import os
import shutil
import time
import unicodedata
from collections.abc import Mapping, Sequence
from typing import TextIO

_PERIOD = 1.0  # seconds between drawings, at least
_BOLD, _PLAIN = '\x1b[1m', '\x1b[0m'


class Screen:
  """Where a sweep says what happens.

  Not on a terminal (or on a dumb one) `line` prints at once and `show` nothing. On a terminal both
  wait for the next drawing, once a second at most: one write clears the table, adds the new lines
  and draws the table below them.
  """

  def __init__(self, stream: TextIO, environ: Mapping[str, str] = os.environ):
    self._stream = stream
    self.live = stream.isatty() and environ.get('TERM', '') not in ('', 'dumb')
    self._bold = not environ.get('NO_COLOR')
    self._pending: list[str] = []
    self._height = 0  # lines of the table that is there
    self._drawn = -_PERIOD

  def line(self, text: str):
    """A line that stays."""
    if self.live:
      self._pending.append(text)
    else:
      print(text, file=self._stream, flush=True)

  def due(self) -> bool:
    """Whether a table would be drawn now."""
    return self.live and time.monotonic() - self._drawn >= _PERIOD

  def show(self, table: Sequence[str]):
    """Draws a table, the first line of it in bold, cut to the terminal."""
    self._drawn = time.monotonic()
    # Both are COLUMNS and LINES where the user sets them.
    columns, rows = shutil.get_terminal_size()
    if len(table) > rows - 1:
      hidden = len(table) - max(rows - 2, 0)
      table = [*table[: max(rows - 2, 0)], f'... and {hidden} more']
    table = [cut(text, columns - 1) for text in table]
    if table and self._bold:
      table[0] = f'{_BOLD}{table[0]}{_PLAIN}'
    up = f'\x1b[{self._height}A' if self._height else ''
    lines = [*self._pending, *table]
    self._stream.write(f'{up}\r\x1b[J' + ''.join(f'{text}\n' for text in lines))
    self._stream.flush()
    self._pending, self._height = [], len(table)

  def close(self):
    """Takes the table away; the lines stay."""
    if self.live:
      self.show([])


def cut(text: str, columns: int) -> str:
  """The start of a text that fits into so many columns, with nothing that moves the cursor."""
  out, width = '', 0
  for char in text:
    char = char if char.isprintable() else '?'
    wide = unicodedata.east_asian_width(char) in 'WF'
    width += 0 if unicodedata.combining(char) else 1 + wide
    if width > columns:
      break
    out += char
  return out


def duration(seconds: float) -> str:
  """'45 s', '12 min', '3 h 20 min', '2 d 4 h'"""
  minutes = round(seconds / 60)
  if seconds < 100:
    return f'{seconds:.0f} s'
  if minutes < 100:
    return f'{minutes} min'
  if minutes < 48 * 60:
    return f'{minutes // 60} h {minutes % 60:02} min'
  hours = round(seconds / 3600)
  return f'{hours // 24} d {hours % 24} h'
