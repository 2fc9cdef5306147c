# SPDX-License-Identifier: Apache-2.0
"""Rows that cannot be used: each is named by file and line, counted and kept aside."""

from pathlib import Path
from typing import NamedTuple

from data_pipelines.prepared.schema import REJECTS_FILE

MAX_RAW_CHARACTERS = 500
SHOWN = 5


class BadLine(NamedTuple):
  """A rejected row: 1-based line number in its file, the reason, the line without newline."""

  line: int
  reason: str
  raw: bytes


def printable(raw: bytes) -> str:
  """The line as text: bad UTF-8 and control characters (tab excepted) as backslash escapes."""
  text = raw[: 4 * MAX_RAW_CHARACTERS].decode('utf-8', 'backslashreplace')
  text = ''.join(c if c == '\t' or c.isprintable() else f'\\x{ord(c):02x}' for c in text)
  return text[:MAX_RAW_CHARACTERS]


class Rejects:
  """Appends rejected rows to `folder/rejects.tsv`; the file exists only if there are any.

  Columns: file, line, reason, raw line (last, so that its own tabs do no harm).
  """

  def __init__(self, folder: Path):
    self._path = folder / REJECTS_FILE
    self.count = 0
    self.first: list[tuple[str, BadLine]] = []  # with the names of their files

  def add(self, file_name: str, bad_lines: list[BadLine]) -> None:
    """Writes the rejected rows of one chunk of one file."""
    if not bad_lines:
      return
    with open(self._path, 'a', encoding='utf-8', newline='\n') as file:
      for bad in bad_lines:
        file.write(f'{file_name}\t{bad.line}\t{bad.reason}\t{printable(bad.raw)}\n')
    self.count += len(bad_lines)
    self.first = (self.first + [(file_name, bad) for bad in bad_lines])[:SHOWN]
