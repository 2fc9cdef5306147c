# SPDX-License-Identifier: Apache-2.0
"""Damaged raw files: each fault is reported by file and line, or the file by a one-line error."""

import gzip
import os

import pytest
from invented_rows import criteo_lines, read_prepared

from data_pipelines import build
from data_pipelines.doctor import __main__ as doctor

GOOD = [line.encode() for line in criteo_lines(60)]
PLACE = 17  # 0-based, of the line that is changed


def prepare(raw, out) -> int:
  return build.main(['--dataset=criteo', f'--raw={raw}', f'--out={out}', '--min_count=1'])


def value(column: int, text: bytes) -> bytes:
  """A good line with one value changed."""
  values = GOOD[PLACE].split(b'\t')
  values[column] = text
  return b'\t'.join(values)


HEADER = b'\t'.join(
  [b'label', *(b'I%d' % i for i in range(1, 14)), *(b'C%d' % i for i in range(1, 27))]
)
# A replacement of one line, and the expected reason.
BAD_LINES = {
  'empty': (b'', 'empty line'),
  'only spaces': (b'   ', 'expected 40 tab-separated columns, found 1'),
  'one column too few': (GOOD[0].rpartition(b'\t')[0], '40 tab-separated columns, found 39'),
  'one column too many': (GOOD[0] + b'\tx', '40 tab-separated columns, found 41'),
  'comma separated': (GOOD[0].replace(b'\t', b','), 'expected 40 tab-separated columns, found 1'),
  'label 2': (value(0, b'2'), "label must be 0 or 1, found '2'"),
  'label 1.0': (value(0, b'1.0'), "label must be 0 or 1, found '1.0'"),
  'label missing': (value(0, b''), "label must be 0 or 1, found ''"),
  'label -1': (value(0, b'-1'), "label must be 0 or 1, found '-1'"),
  'NaN': (value(3, b'NaN'), "I3: not an integer: 'NaN'"),
  'inf': (value(3, b'inf'), "I3: not an integer: 'inf'"),
  'a float': (value(3, b'3.5'), "I3: not an integer: '3.5'"),
  'exponent': (value(3, b'1e5'), "I3: not an integer: '1e5'"),
  'plus sign': (value(3, b'+5'), "I3: not an integer: '+5'"),
  'lone minus': (value(3, b'-'), "I3: not an integer: '-'"),
  'huge integer': (value(13, b'9' * 30), 'I13: integer of more than 18 digits: '),
  'huge negative integer': (value(13, b'-' + b'9' * 19), 'I13: integer of more than 18 digits: '),
  'null token': (value(14, b'NULL'), "C1: not 8 hex digits: 'NULL'"),
  'non-hex category': (value(14, b'0000zzzz'), "C1: not 8 hex digits: '0000zzzz'"),
  'short category': (value(20, b'abc123'), "C7: not 8 hex digits: 'abc123'"),
  'long category': (value(20, b'0123456789abcdef'), "C7: not 8 hex digits: '0123456789abcdef'"),
  '0x category': (value(20, b'0x12abcd'), "C7: not 8 hex digits: '0x12abcd'"),
  'quoted category': (value(20, b'"0badcafe"'), "C7: not 8 hex digits: '\"0badcafe\"'"),
  'quote not closed': (value(20, b'"0badcaf'), "C7: not 8 hex digits: '\"0badcaf'"),
  'embedded NUL': (value(20, b'0000\0000'), 'embedded NUL byte'),
  'bad UTF-8': (value(39, b'\xff\xfe'), "C26: not 8 hex digits: '\\\\xff\\\\xfe'"),
  'UTF-8 letters': (value(39, 'é'.encode() * 4), "C26: not 8 hex digits: 'éééé'"),
  'carriage return inside': (value(5, b'1\r2'), "I5: not an integer: '1\\r2'"),
  'header in the middle': (HEADER, 'a second header'),
  'escape codes': (value(14, b'\x1b[31mred'), 'C1: not 8 hex digits: '),
}  # fmt: skip


@pytest.mark.parametrize('name', BAD_LINES)
def test_a_bad_line_is_reported_counted_and_stored(name, tmp_path, capsys):
  bad, reason = BAD_LINES[name]
  raw = tmp_path / 'rows.txt'
  raw.write_bytes(b'\n'.join([*GOOD[:PLACE], bad, *GOOD[PLACE:]]) + b'\n')
  assert prepare(raw, tmp_path / 'out') == 0
  printed = capsys.readouterr().out
  schema, blocks = read_prepared(tmp_path / 'out')
  counts = schema['raw']
  assert (counts['rows_read'], counts['rows_written'], counts['rows_rejected']) == (61, 60, 1)
  assert sum(len(label) for split in blocks.values() for _, label in split) == 60
  (line,) = (tmp_path / 'out/rejects.tsv').read_text().splitlines()
  file, number, why, kept = line.split('\t', 3)
  assert (file, number) == ('rows.txt', str(PLACE + 1)) and reason in why, why
  assert kept.isprintable() or '\t' in kept
  assert f'line {PLACE + 1}: {why}' in printed and 'rows rejected                1' in printed
  assert doctor.main([str(tmp_path / 'out')]) == 0


def crlf(lines):
  return b'\r\n'.join(lines) + b'\r\n'


def unterminated(lines):
  return b'\n'.join(lines)


def upper(lines):
  return b'\n'.join(line.upper() for line in lines) + b'\n'


def with_header(lines):
  return b'\n'.join([HEADER, *lines]) + b'\n'


def zipped(lines):
  return gzip.compress(b'\n'.join(lines) + b'\n')


def zipped_in_members(lines):
  half = len(lines) // 2
  return zipped(lines[:half]) + zipped(lines[half:])


FORMS = (crlf, unterminated, upper, with_header, zipped, zipped_in_members)


@pytest.mark.parametrize('form', FORMS, ids=lambda f: f.__name__)
def test_harmless_forms_of_the_same_rows(form, tmp_path):
  plain, other = tmp_path / 'plain', tmp_path / 'other'
  plain.write_bytes(b'\n'.join(GOOD) + b'\n')
  other.write_bytes(form(GOOD))
  assert prepare(plain, tmp_path / 'a') == prepare(other, tmp_path / 'b') == 0
  a, b = (read_prepared(tmp_path / name)[0] for name in 'ab')
  for split in ('train', 'validation', 'test'):
    assert a['splits'][split]['content_sha256'] == b['splits'][split]['content_sha256']
  assert b['raw']['rows_read'] == 60 and b['raw']['rows_rejected'] == 0


REFUSED = {
  'empty file': (b'', 'the file is empty'),
  'empty gzip': (gzip.compress(b''), 'holds no text'),
  'truncated gzip': (zipped(GOOD)[:-200], 'truncated or damaged gzip'),
  'damaged gzip': (zipped(GOOD)[:300] + b'\x55' * 40 + zipped(GOOD)[340:], 'damaged gzip'),
  'header only': (HEADER + b'\n', 'no valid row'),
  'header only, not ended': (HEADER, 'no valid row'),
  'newlines only': (b'\n' * 50, 'no valid row in the first 50 lines (line 1: empty line)'),
  'another kind of file': (b'%PDF-1.4\n' + bytes(range(256)) * 90, 'no valid row'),
  'UTF-16': ('\n'.join(criteo_lines(60)).encode('utf-16'), 'no valid row'),
  'one endless line': (b'1\t' * (10 << 20), 'longer than'),
  'too few rows': (b'\n'.join(GOOD[:9]), 'only 9 valid rows'),
  'a test file without labels': (
    b'\n'.join(line.partition(b'\t')[2] for line in GOOD),
    'expected 40 tab-separated columns, found 39',
  ),
}


@pytest.mark.parametrize('name', REFUSED)
def test_file_is_refused_in_one_line(name, tmp_path, capsys):
  data, expected = REFUSED[name]
  raw = tmp_path / 'raw'
  raw.write_bytes(data)
  assert prepare(raw, tmp_path / 'out') == 2
  error = capsys.readouterr().err
  assert error.startswith('error: ') and error.count('\n') == 1 and expected in error
  assert [p.name for p in tmp_path.iterdir()] == ['raw']


@pytest.mark.skipif(os.geteuid() == 0, reason='root may read everything')
def test_file_without_permission(tmp_path, capsys):
  raw = tmp_path / 'raw'
  raw.write_bytes(b'\n'.join(GOOD))
  raw.chmod(0)
  assert prepare(raw, tmp_path / 'out') == 2
  assert 'Permission denied' in capsys.readouterr().err


def test_permission_denied_is_one_line(tmp_path, capsys, monkeypatch):
  raw = tmp_path / 'raw'
  raw.write_bytes(b'\n'.join(GOOD))

  def denied(path):
    raise PermissionError(13, 'Permission denied', str(path))

  monkeypatch.setattr('data_pipelines.text.chunks._Hashed', denied)
  assert prepare(raw, tmp_path / 'out') == 2
  error = capsys.readouterr().err
  assert error.count('\n') == 1 and f'{raw}: Permission denied' in error
