# SPDX-License-Identifier: Apache-2.0
"""Parser of the Criteo display-advertising text: label, I1..I13, C1..C26, tab-separated.

A chunk of some megabytes is parsed at once with numpy: find the separators, keep the lines that
have 40 columns, then read digits through look-up tables with a validity flag per row. Only a
line that was found bad is looked at again, by `explain`, to say what is wrong with it.
"""

import re
from typing import NamedTuple

import numpy as np

from data_pipelines.rejects import BadLine

NUM_INTEGERS = 13
NUM_CATEGORIES = 26
COLUMNS = 1 + NUM_INTEGERS + NUM_CATEGORIES
NUM_FIELDS = NUM_INTEGERS + NUM_CATEGORIES
FIELD_NAMES = tuple(f'I{i + 1}' for i in range(NUM_INTEGERS)) + tuple(
  f'C{i + 1}' for i in range(NUM_CATEGORIES)
)
MAX_DIGITS = 18  # any 18-digit integer fits int64
HEX_DIGITS = 8

_TAB, _NEWLINE, _RETURN, _MINUS, _ZERO = b'\t\n\r-0'
_PADDING = b'\0' * 32  # look-ups run past the end of short values

_SHOWN_CHARACTERS = 30


def _hex_pair_values() -> np.ndarray:
  """Value of two hex digits read as a little-endian uint16, or -1: int16 [65536]."""
  digits = b'0123456789abcdefABCDEF'
  table = np.full(1 << 16, -1, np.int16)
  for high in digits:
    for low in digits:
      table[high | low << 8] = int(bytes((high, low)), 16)
  return table


_HEX_PAIR = _hex_pair_values()


class Rows(NamedTuple):
  """Parsed rows. Where missing_NF is set, the value is 0.

  label_N: uint8 [rows]. ints_NI: int64 [rows, 13]. hexes_NC: uint32 [rows, 26].
  missing_NF: bool [rows, 39], fields in file order.
  """

  label_N: np.ndarray
  ints_NI: np.ndarray
  hexes_NC: np.ndarray
  missing_NF: np.ndarray


def concatenate(parts: list[Rows]) -> Rows:
  """The rows of all parts, in order. At least one part is needed."""
  return Rows(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def parse_chunk(data: bytes, first_line: int) -> tuple[Rows, list[BadLine], int]:
  """Parses whole lines.

  Args:
    data: lines that end in newline (or carriage return and newline); the last may lack it.
    first_line: 1-based number in the file of the first line.

  Returns:
    The valid rows in order, the rejected lines in order, and the number of lines.
  """
  if not data.endswith(b'\n'):
    data += b'\n'
  buf = np.frombuffer(data + _PADDING, np.uint8)
  text = buf[: len(data)]
  separators = np.flatnonzero((text == _TAB) | (text == _NEWLINE))
  newline_L = np.flatnonzero(text[separators] == _NEWLINE)  # index into separators, by line
  line_end_L = separators[newline_L]
  line_start_L = np.concatenate(([0], line_end_L[:-1] + 1))
  whole_L = np.diff(newline_L, prepend=-1) == COLUMNS

  first_N = newline_L[whole_L] - (COLUMNS - 1)
  end_NC = separators[first_N[:, None] + np.arange(COLUMNS)]
  start_NC = np.empty_like(end_NC)
  start_NC[:, 0] = line_start_L[whole_L]
  start_NC[:, 1:] = end_NC[:, :-1] + 1
  last_N = end_NC[:, -1]
  end_NC[:, -1] -= (last_N > start_NC[:, -1]) & (buf[last_N - 1] == _RETURN)

  rows, valid_N = _values(buf, start_NC, end_NC)
  good_L = whole_L
  good_L[whole_L] = valid_N
  bad_lines = []
  for i in np.flatnonzero(~good_L).tolist():
    raw = data[line_start_L[i] : line_end_L[i]]
    reason = explain(raw)
    if reason is None:
      raise AssertionError(f'line {first_line + i}: rejected for no reason: {raw!r}')
    bad_lines.append(BadLine(first_line + i, reason, raw))
  if bad_lines:
    rows = Rows(*(column[valid_N] for column in rows))
  return rows, bad_lines, len(good_L)


def _values(buf: np.ndarray, start_NC: np.ndarray, end_NC: np.ndarray):
  """Reads the values between start and end: the rows, and bool [rows], which of them hold."""
  last_integer = 1 + NUM_INTEGERS
  label_N = buf[start_NC[:, 0]] - np.uint8(_ZERO)
  label_valid_N = (label_N <= 1) & (end_NC[:, 0] - start_NC[:, 0] == 1)
  ints_NI, ints_valid_NI = _integers(buf, start_NC[:, 1:last_integer], end_NC[:, 1:last_integer])
  hexes_NC, hexes_valid_NC = _hexes(buf, start_NC[:, last_integer:], end_NC[:, last_integer:])
  missing_NF = start_NC[:, 1:] == end_NC[:, 1:]
  valid_N = label_valid_N & ints_valid_NI.all(axis=1) & hexes_valid_NC.all(axis=1)
  return Rows(label_N, ints_NI, hexes_NC, missing_NF), valid_N


def _integers(buf: np.ndarray, start: np.ndarray, end: np.ndarray):
  """Decimal integers, empty = 0: int64 values and validity, both shaped like start."""
  missing = start == end
  negative = (buf[start] == _MINUS) & ~missing
  start = start + negative
  digits = end - start
  valid = missing | ((digits >= 1) & (digits <= MAX_DIGITS))
  value = np.zeros(start.shape, np.int64)
  for k in range(min(MAX_DIGITS, digits.max(initial=0))):
    inside = digits > k
    digit = buf[start + k] - np.uint8(_ZERO)  # a byte below "0" wraps around to more than 9
    valid &= ~inside | (digit <= 9)
    value = np.where(inside, value * 10 + digit, value)
  return np.where(negative, -value, value), valid


def _hexes(buf: np.ndarray, start: np.ndarray, end: np.ndarray):
  """Eight hex digits, empty = 0: uint32 values and validity, both shaped like start."""
  missing = start == end
  windows = np.lib.stride_tricks.sliding_window_view(buf, HEX_DIGITS)
  pairs = _HEX_PAIR[windows[start].view('<u2')]  # [..., 4]
  valid = missing | ((end - start == HEX_DIGITS) & (pairs >= 0).all(axis=-1))
  value = np.zeros(start.shape, np.uint32)
  for k in range(HEX_DIGITS // 2):
    value = value << np.uint32(8) | pairs[..., k].astype(np.uint8)
  return np.where(missing, np.uint32(0), value), valid


def explain(raw: bytes) -> str | None:
  """What is wrong with a line (without its newline); None if it is a valid row. Slow."""
  line = raw.removesuffix(b'\r')
  if not line:
    return 'empty line'
  if b'\0' in line:
    return 'embedded NUL byte'
  values = line.split(b'\t')
  if len(values) != COLUMNS:
    return f'expected {COLUMNS} tab-separated columns, found {len(values)}'
  if values[0] not in (b'0', b'1'):
    return f'label must be 0 or 1, found {_quoted(values[0])}'
  for name, value in zip(FIELD_NAMES, values[1:], strict=True):
    if not value:
      continue
    if name.startswith('I'):
      if not re.fullmatch(rb'-?[0-9]+', value):
        return f'{name}: not an integer: {_quoted(value)}'
      if len(value.removeprefix(b'-')) > MAX_DIGITS:
        return f'{name}: integer of more than {MAX_DIGITS} digits: {_quoted(value)}'
    elif not re.fullmatch(rb'[0-9a-fA-F]{8}', value):
      return f'{name}: not {HEX_DIGITS} hex digits: {_quoted(value)}'
  return None


def _quoted(value: bytes) -> str:
  text = value.decode('utf-8', 'backslashreplace')
  return repr(text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + '...')
