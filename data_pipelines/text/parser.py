# SPDX-License-Identifier: Apache-2.0
"""Vectorised parser of click logs: one row a line, a label, integers and hexadecimal ids.

NumPy parses a chunk at once: it finds the separators, keeps the lines that have all columns, then
turns eight characters at a time, held in one uint64, into a number. Only a bad line is read again,
by `explain`, to say what is wrong with it.

Shapes: N whole lines, I integer columns, C hexadecimal columns.
"""

import dataclasses
import re
from typing import NamedTuple

import numpy as np

from data_pipelines.prepared.rejects import BadLine

MAX_DIGITS = 18  # any 18-digit integer fits int64
HEX_DIGITS = 8

LABEL, INTEGER, HEX, TEXT = 'label', 'integer', 'hex', 'text'  # kinds; TEXT is not read

_NEWLINE, _RETURN, _MINUS, _ZERO = b'\n\r-0'
_WORD = 8  # characters that one uint64 holds
_FRONT = b'\0' * _WORD  # so that eight characters can be read up to the end of the first value
_BACK = b'\0' * 32
_SHOWN_CHARACTERS = 30


@dataclasses.dataclass(frozen=True)
class Column:
  """A column of a raw file."""

  name: str
  kind: str


@dataclasses.dataclass(frozen=True)
class TextTable:
  """Layout of a raw file.

  Attributes:
    separator: one byte, b'\\t' or b','.
    columns: in file order; exactly one LABEL.
    required: whether an empty value rejects the row; else it is a missing one.
  """

  separator: bytes
  columns: tuple[Column, ...]
  required: bool

  def positions(self, kind: str) -> list[int]:
    """Returns the numbers of the columns of one kind."""
    return [i for i, column in enumerate(self.columns) if column.kind == kind]

  @property
  def header(self) -> bytes:
    """The header line, without newline."""
    return self.separator.join(column.name.encode('ascii') for column in self.columns)


class Parsed(NamedTuple):
  """The valid rows of a chunk. A missing value is 0.

  label_N: uint8 [rows]. ints_NI: int64 [rows, integer columns]. hexes_NC: uint32 [rows, hex
  columns]. ints_missing_NI, hexes_missing_NC: bool, like the values.
  """

  label_N: np.ndarray
  ints_NI: np.ndarray
  ints_missing_NI: np.ndarray
  hexes_NC: np.ndarray
  hexes_missing_NC: np.ndarray


def parse(table: TextTable, data: bytes, first_line: int) -> tuple[Parsed, list[BadLine], int]:
  """Parses whole lines.

  Args:
    table: the layout.
    data: lines that end in newline (or carriage return and newline); the last may lack it.
    first_line: 1-based number in the file of the first line.

  Returns:
    The valid rows in order, the rejected lines in order, and the number of lines.
  """
  columns = len(table.columns)
  if not data.endswith(b'\n'):
    data += b'\n'
  padded = _FRONT + data + _BACK
  buf = np.frombuffer(padded, np.uint8)
  # Eight characters from any byte on, without a copy.
  words = np.ndarray((len(padded) - _WORD + 1,), '<u8', buffer=padded, strides=(1,))
  text = buf[_WORD : _WORD + len(data)]
  separators = np.flatnonzero((text == ord(table.separator)) | (text == _NEWLINE)) + _WORD
  newline_L = np.flatnonzero(buf[separators] == _NEWLINE)  # index into separators, by line
  whole_L = np.diff(newline_L, prepend=-1) == columns
  line_end_L = separators[newline_L]
  if b'\0' in data:
    whole_L[np.searchsorted(line_end_L, np.flatnonzero(text == 0) + _WORD)] = False
  line_start_L = np.concatenate(([_WORD], line_end_L[:-1] + 1))
  if whole_L.all():
    end_NK = separators.reshape(-1, columns)
  else:
    first_N = newline_L[whole_L] - (columns - 1)
    end_NK = separators[first_N[:, None] + np.arange(columns)]
  start_NK = np.empty_like(end_NK)
  start_NK[:, 0] = line_start_L[whole_L]
  start_NK[:, 1:] = end_NK[:, :-1] + 1
  last_N = end_NK[:, -1]
  end_NK[:, -1] -= (last_N > start_NK[:, -1]) & (buf[last_N - 1] == _RETURN)

  parsed, valid_N = _values(table, buf, words, start_NK, end_NK)
  good_L = whole_L.copy()
  good_L[whole_L] = valid_N
  bad_lines = []
  for i in np.flatnonzero(~good_L).tolist():
    raw = padded[line_start_L[i] : line_end_L[i]]
    reason = explain(table, raw)
    if reason is None:
      raise AssertionError(f'line {first_line + i}: rejected for no reason: {raw!r}')
    bad_lines.append(BadLine(first_line + i, reason, raw))
  if not valid_N.all():
    parsed = Parsed(*(values[valid_N] for values in parsed))
  return parsed, bad_lines, len(good_L)


def _values(table: TextTable, buf: np.ndarray, words: np.ndarray, start_NK, end_NK):
  """Reads the values between start and end: the rows, and which of them are valid, bool [rows]."""
  (k,) = table.positions(LABEL)
  label_N = buf[start_NK[:, k]] - np.uint8(_ZERO)
  valid_N = (label_N <= 1) & (end_NK[:, k] - start_NK[:, k] == 1)
  values = []
  for kind, read in ((INTEGER, _integers), (HEX, _hexes)):
    which = table.positions(kind)
    # Neighbouring columns are taken as a slice, which is faster than a list.
    if which and which == list(range(which[0], which[-1] + 1)):
      which = slice(which[0], which[-1] + 1)
    start = np.ascontiguousarray(start_NK[:, which])
    end = np.ascontiguousarray(end_NK[:, which])
    value, bad = read(buf, words, start, end)
    missing = start == end
    values += [value, missing]
    if table.required:
      bad |= missing
    valid_N[np.flatnonzero(bad) // max(1, bad.shape[1])] = False
  return Parsed(label_N, *values), valid_N


def _repeat(byte: int) -> np.uint64:
  return np.uint64(int.from_bytes(bytes([byte] * _WORD), 'little'))


def _at_least(c: np.ndarray, limit: int) -> np.ndarray:
  """Sets the high bit of each byte of at least `limit`; all bytes of c must be below 0x80."""
  return c + _repeat(0x80 - limit)


_HIGH = _repeat(0x80)
_ZEROS = _repeat(_ZERO)
# _TAIL[n] covers the last n of eight characters.
_TAIL = np.array([(1 << 64) - (1 << (64 - 8 * n)) for n in range(_WORD + 1)], np.uint64)


def _integers(buf: np.ndarray, words: np.ndarray, start: np.ndarray, end: np.ndarray):
  """Reads decimal integers (empty: 0): int64 values and which are malformed, both like start."""
  u = np.uint64
  negative = (buf[start] == _MINUS) & (start != end)
  digits = end - start - negative
  tail = _TAIL[np.minimum(digits, _WORD)]
  c = words[end - _WORD]
  c = (c & tail) | (_ZEROS & ~tail)
  x = c ^ _ZEROS  # a digit becomes its value, everything else more than 9
  bad = (x | (x & ~_HIGH) + _repeat(0x80 - 10)) & _HIGH != 0
  bad |= (digits == 0) & negative
  # Neighbours are joined: 8 digits, 4 numbers of 2, 2 of 4, 1 of 8 (the first is the lowest byte).
  x = (x * u(10) + (x >> u(8))) & u(0x00FF00FF00FF00FF)
  x = (x * u(100) + (x >> u(16))) & u(0x0000FFFF0000FFFF)
  x = (x * u(10_000) + (x >> u(32))) & u(0x00000000FFFFFFFF)
  value = x.astype(np.int64)
  long = digits > _WORD
  if long.any():
    value[long], bad[long] = _long_integers(buf, (start + negative)[long], digits[long])
  np.negative(value, out=value, where=negative)
  value[bad] = 0
  return value, bad


def _long_integers(buf: np.ndarray, start: np.ndarray, digits: np.ndarray):
  """Reads integers of more than eight digits, without sign: [n] values and which are malformed."""
  bad = digits > MAX_DIGITS
  value = np.zeros(start.shape, np.int64)
  for k in range(min(MAX_DIGITS, int(digits.max()))):
    inside = ~bad & (digits > k)
    digit = buf[np.where(inside, start + k, 0)] - np.uint8(_ZERO)
    bad |= inside & (digit > 9)
    value = np.where(inside, value * 10 + digit, value)
  return value, bad


def _hexes(buf: np.ndarray, words: np.ndarray, start: np.ndarray, end: np.ndarray):
  """Reads eight hex digits (empty: 0): uint32 values and which are malformed, both like start."""
  del buf
  u = np.uint64
  length = end - start
  c = words[start]
  low = c & ~_HIGH
  small = low | _repeat(0x20)  # lower case
  digit = _at_least(low, 0x30) & ~_at_least(low, 0x3A)
  letter = _at_least(small, 0x61) & ~_at_least(small, 0x67)
  bad = ((digit | letter) & ~c & _HIGH != _HIGH) | (length != HEX_DIGITS)
  bad &= length != 0
  x = (c & _repeat(0x0F)) + ((c >> u(6)) & _repeat(0x01)) * u(9)
  x = ((x << u(4)) | (x >> u(8))) & u(0x00FF00FF00FF00FF)
  x = ((x << u(8)) | (x >> u(16))) & u(0x0000FFFF0000FFFF)
  value = ((x << u(16)) | (x >> u(32))).astype(np.uint32)
  value[length != HEX_DIGITS] = 0
  return value, bad


def explain(table: TextTable, raw: bytes) -> str | None:
  """Says what is wrong with a line (without its newline); None for a valid row. Slow."""
  line = raw.removesuffix(b'\r')
  if not line:
    return 'empty line'
  if b'\0' in line:
    return 'embedded NUL byte'
  if line == table.header:
    return 'a second header'
  values = line.split(table.separator)
  if len(values) != len(table.columns):
    by = {b'\t': 'tab', b',': 'comma'}[table.separator]
    return f'expected {len(table.columns)} {by}-separated columns, found {len(values)}'
  for column, value in zip(table.columns, values, strict=True):
    reason = _explain_value(column, value, table.required)
    if reason:
      return reason
  return None


def _explain_value(column: Column, value: bytes, required: bool) -> str | None:
  if column.kind == LABEL:
    return None if value in (b'0', b'1') else f'label must be 0 or 1, found {_quoted(value)}'
  if column.kind == TEXT:
    return None
  if not value:
    return f'{column.name}: empty' if required else None
  if column.kind == HEX:
    if re.fullmatch(rb'[0-9a-fA-F]{8}', value):
      return None
    return f'{column.name}: not {HEX_DIGITS} hex digits: {_quoted(value)}'
  if not re.fullmatch(rb'-?[0-9]+', value):
    return f'{column.name}: not an integer: {_quoted(value)}'
  if len(value.removeprefix(b'-')) > MAX_DIGITS:
    return f'{column.name}: integer of more than {MAX_DIGITS} digits: {_quoted(value)}'
  return None


def _quoted(value: bytes) -> str:
  text = value.decode('utf-8', 'backslashreplace')
  return repr(text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + '...')
