# SPDX-License-Identifier: Apache-2.0
"""Checks of rows beyond the layout of their table: impossible values, the header, the order."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_pipelines.prepared.rejects import BadLine
from data_pipelines.text.parser import Parsed, TextTable
from deres_jax.core.errors import UserError


def line_numbers(bad_lines: list[BadLine], first_line: int, lines: int) -> np.ndarray:
  """Returns the numbers of the lines that are valid rows, of `lines` lines from `first_line` on."""
  bad = np.array([line.line for line in bad_lines], np.int64)
  return np.delete(np.arange(first_line, first_line + lines), bad - first_line)


def reject_rows(
  parsed: Parsed,
  bad_lines: list[BadLine],
  faults: Mapping[int, str],
  data: bytes,
  first_line: int,
  lines: int,
) -> tuple[Parsed, list[BadLine]]:
  """Moves parsed rows that have faults to the rejected lines.

  Args:
    parsed, bad_lines, lines: the result of parser.parse(table, data, first_line).
    faults: reasons by row.
  """
  if not faults:
    return parsed, bad_lines
  line_N = line_numbers(bad_lines, first_line, lines)
  texts = data.split(b'\n')
  more = [
    BadLine(int(line_N[row]), reason, texts[line_N[row] - first_line])
    for row, reason in faults.items()
  ]
  valid_N = np.ones(len(line_N), bool)
  valid_N[list(faults)] = False
  return Parsed(*(values[valid_N] for values in parsed)), sorted([*bad_lines, *more])


def is_header(table: TextTable, first_line: bytes, path: Path) -> bool:
  """Returns whether the first line of a file is the table's header.

  Raises:
    UserError: it is the header of another table, whose columns would be mistaken for ours.
  """
  if first_line == table.header:
    return True
  names = [column.name for column in table.columns]
  header = first_line.decode('utf-8', 'backslashreplace').split(table.separator.decode())
  if 2 * len(set(header) & set(names)) < len(names):
    return False
  if len(header) != len(names):
    raise UserError(
      f'--raw={path}: its header names {len(header)} columns, expected {len(names)}: '
      f'{",".join(names)}; give the file with all columns'
    )
  k = next(k for k, name in enumerate(names) if header[k] != name)
  raise UserError(
    f'--raw={path}: its header names column {k + 1} {header[k]!r}, expected {names[k]!r}; '
    'give the file as it was published'
  )


class Fall(NamedTuple):
  """A line on which an ordered column's value is below that of the row before."""

  line: int
  before: int
  after: int


class Span(NamedTuple):
  """An ordered column over consecutive rows: first line, first and last value, first fall."""

  line: int
  first: int
  last: int
  fall: Fall | None


def span_of(values_N: np.ndarray, line_N: np.ndarray) -> Span:
  """Returns the span of at least one row."""
  fall = None
  falls = np.flatnonzero(values_N[1:] < values_N[:-1])
  if falls.size:
    i = int(falls[0]) + 1
    fall = Fall(int(line_N[i]), int(values_N[i - 1]), int(values_N[i]))
  return Span(int(line_N[0]), int(values_N[0]), int(values_N[-1]), fall)


def join(one: Span | None, other: Span | None, lines: int = 0) -> Span | None:
  """Returns the span of rows and those that follow; None is that of no rows.

  Args:
    lines: offset of the other's line numbers.
  """
  if other is None:
    return one
  fall = other.fall and other.fall._replace(line=lines + other.fall.line)
  other = other._replace(line=lines + other.line, fall=fall)
  if one is None:
    return other
  if one.fall is not None:
    fall = one.fall
  elif other.first < one.last:
    fall = Fall(other.line, one.last, other.first)
  return Span(one.line, one.first, other.last, fall)
