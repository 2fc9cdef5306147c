# SPDX-License-Identifier: Apache-2.0
"""The vectorised Criteo parser against a slow one in plain Python."""

import gzip
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from invented_rows import concatenate, criteo_lines

from data_pipelines.datasets.criteo import CRITEO_TEXT
from data_pipelines.text.chunks import TextFile
from data_pipelines.text.parser import parse


def parse_slowly(data: bytes):
  """(valid rows as (label, ints, hexes) with None where missing, numbers of rejected lines)."""
  lines = data.split(b'\n')
  if lines[-1] == b'':
    lines.pop()
  rows, bad = [], []
  for number, line in enumerate(lines, 1):
    row = parse_line_slowly(line[:-1] if line.endswith(b'\r') else line)
    if row is None:
      bad.append(number)
    else:
      rows.append(row)
  return rows, bad


def parse_line_slowly(line: bytes):
  values = line.split(b'\t')
  if len(values) != 40 or values[0] not in (b'0', b'1'):
    return None
  ints, hexes = values[1:14], values[14:]
  if not all(v == b'' or re.fullmatch(rb'-?[0-9]{1,18}', v) for v in ints):
    return None
  if not all(v == b'' or re.fullmatch(rb'[0-9a-fA-F]{8}', v) for v in hexes):
    return None
  return (
    int(values[0]),
    [int(v) if v else None for v in ints],
    [int(v, 16) if v else None for v in hexes],
  )


def as_slow(rows):
  """Rows of the vectorised parser in the form of parse_slowly."""
  values_NF = np.concatenate((rows.ints_NI, rows.hexes_NC.astype(np.int64)), axis=1)
  missing_NF = np.concatenate((rows.ints_missing_NI, rows.hexes_missing_NC), axis=1)
  result = []
  for label, values, missing in zip(rows.label_N, values_NF, missing_NF, strict=True):
    assert not values[missing].any()
    shown = [None if m else int(v) for v, m in zip(values, missing, strict=True)]
    result.append((int(label), shown[:13], shown[13:]))
  return result


integers = st.one_of(
  st.just(b''),
  st.integers(-(10**18) + 1, 10**18 - 1).map(lambda v: str(v).encode()),
  st.integers(-3, 60).map(lambda v: str(v).encode()),
)
hexes = st.one_of(
  st.just(b''),
  st.integers(0, 2**32 - 1).map(lambda v: f'{v:08x}'.encode()),
  st.integers(0, 2**32 - 1).map(lambda v: f'{v:08X}'.encode()),
)
good_lines = st.tuples(
  st.sampled_from([b'0', b'1']),
  st.lists(integers, min_size=13, max_size=13),
  st.lists(hexes, min_size=26, max_size=26),
).map(lambda row: b'\t'.join([row[0], *row[1], *row[2]]))
ODD_VALUES = (
  *(b'', b'-', b'2', b'+5', b'1.5', b'007', b'-0', b' 1', b'\x00', b'\r', b'abc', b'xyz', b'-5'),
  *(b'1' * 18, b'1' * 19, b'-' + b'9' * 18, b'-' + b'9' * 19, b'1234567', b'123456789'),
  *(b'0000000g', b'g0000000', b'000/0000', b'000:0000', b'-0000001', b'\xff\xfe', b'9' * 40),
  *(b'/:@G`g12', b'--1', b'1-', b'1\r', b'0000000A\r', b'0000000\r', b'12:4', b'12/4'),
)
odd_values = st.one_of(
  st.sampled_from(ODD_VALUES),
  st.binary(max_size=12).filter(lambda b: b'\n' not in b),
)


@st.composite
def mangled_lines(draw):
  values = draw(good_lines).split(b'\t')
  kind = draw(st.sampled_from(['replace', 'drop', 'add', 'all', 'join']))
  place = draw(st.integers(0, 39))
  if kind == 'replace':
    values[place] = draw(odd_values)
  elif kind == 'drop':
    del values[place]
  elif kind == 'add':
    values.insert(place, draw(odd_values))
  elif kind == 'all':
    values = [draw(odd_values)]
  return (b' ' if kind == 'join' else b'\t').join(values)


@settings(max_examples=120, deadline=None)
@given(
  st.lists(st.one_of(good_lines, mangled_lines()), min_size=1, max_size=6),
  st.sampled_from([b'\n', b'\r\n']),
  st.booleans(),
)
def test_agrees_with_the_slow_parser(lines, newline, ends_open):
  data = newline.join(lines) + (b'' if ends_open else newline)
  if not data:
    return
  rows, bad_lines, count = parse(CRITEO_TEXT, data, 1)
  expected_rows, expected_bad = parse_slowly(data)
  assert as_slow(rows) == expected_rows
  assert [bad.line for bad in bad_lines] == expected_bad
  assert count == len(expected_rows) + len(expected_bad)
  assert all(bad.reason for bad in bad_lines)


def test_agrees_on_every_odd_value_in_every_kind_of_column():
  lines = []
  for place in (0, 1, 7, 13, 14, 20, 39):
    for value in ODD_VALUES:
      values = criteo_lines(1, seed=place)[0].encode().split(b'\t')
      values[place] = value
      lines.append(b'\t'.join(values))
  data = b'\n'.join(lines)
  rows, bad_lines, _ = parse(CRITEO_TEXT, data, 1)
  expected_rows, expected_bad = parse_slowly(data)
  assert as_slow(rows) == expected_rows
  assert [bad.line for bad in bad_lines] == expected_bad


def changed(place: int, value: str) -> str:
  values = criteo_lines(1)[0].split('\t')
  values[place] = value
  return '\t'.join(values)


@pytest.mark.parametrize(
  'line, reason',
  [
    ('', 'empty line'),
    ('1\t2', 'expected 40 tab-separated columns, found 2'),
    (criteo_lines(1)[0] + '\t', 'expected 40 tab-separated columns, found 41'),
    (changed(0, '2'), "label must be 0 or 1, found '2'"),
    (changed(0, ''), "label must be 0 or 1, found ''"),
    (changed(5, 'abc'), "I5: not an integer: 'abc'"),
    (changed(13, '1.5'), "I13: not an integer: '1.5'"),
    (changed(2, '9' * 19), "I2: integer of more than 18 digits: '9999999999999999999'"),
    (changed(16, 'xyz'), "C3: not 8 hex digits: 'xyz'"),
    (changed(39, '0123456789'), "C26: not 8 hex digits: '0123456789'"),
    (changed(20, '0000\x000000'), 'embedded NUL byte'),
  ],
)
def test_explain_says_what_is_wrong(line, reason):
  good = criteo_lines(1)[0]
  rows, bad_lines, count = parse(CRITEO_TEXT, f'{good}\n{line}\n{good}\n'.encode(), 100)
  assert count == 3 and len(rows.label_N) == 2
  assert [(bad.line, bad.reason) for bad in bad_lines] == [(101, reason)]


@pytest.mark.parametrize('zipped', [False, True])
def test_chunking_changes_nothing(tmp_path, zipped):
  lines = criteo_lines(60, seed=3)
  lines[17] = 'broken'
  data = '\n'.join(lines).encode()
  path = tmp_path / 'rows'
  path.write_bytes(gzip.compress(data) if zipped else data)
  whole, whole_bad, _ = parse(CRITEO_TEXT, data, 1)
  parts, bad, number = [], [], 1
  for chunk in TextFile(path).chunks(1000, None):
    rows, bad_lines, count = parse(CRITEO_TEXT, chunk.read(), number)
    parts.append(rows)
    bad += bad_lines
    number += count
  assert len(parts) > 5 and number == 61
  for one, many in zip(whole, concatenate(parts), strict=True):
    np.testing.assert_array_equal(one, many)
  assert bad == whole_bad
