# SPDX-License-Identifier: Apache-2.0
"""Rejected rows: each is counted and written to a file with its file, line and reason."""

from pathlib import Path
from typing import NamedTuple

from data_pipelines.prepared.schema import REJECTS_FILE

MAX_RAW_CHARACTERS = 500
PRINTED = 5


class BadLine(NamedTuple):
  """A rejected row: 1-based line number in its file, the reason, the line without newline."""

  line: int
  reason: str
  raw: bytes


def printable(raw: bytes) -> str:
  """Returns the line as text, bad UTF-8 and control characters (except tabs) as escapes."""
  text = raw[: 4 * MAX_RAW_CHARACTERS].decode('utf-8', 'backslashreplace')
  text = ''.join(c if c == '\t' or c.isprintable() else f'\\x{ord(c):02x}' for c in text)
  return text[:MAX_RAW_CHARACTERS]


class Rejects:
  """Appends rejected rows to `folder/rejects.tsv`; without any there is no file.

  Columns: file, line, reason, raw line (last, because it may have tabs).
  """

  def __init__(self, folder: Path):
    self._path = folder / REJECTS_FILE
    self.count = 0
    self.first: list[tuple[str, BadLine]] = []  # with their files' names

  def add(self, file_name: str, bad_lines: list[BadLine]) -> None:
    """Writes the rejected rows of one chunk of one file."""
    if not bad_lines:
      return
    with open(self._path, 'a', encoding='utf-8', newline='\n') as file:
      for bad in bad_lines:
        file.write(f'{file_name}\t{bad.line}\t{bad.reason}\t{printable(bad.raw)}\n')
    self.count += len(bad_lines)
    self.first = (self.first + [(file_name, bad) for bad in bad_lines])[:PRINTED]
