# SPDX-License-Identifier: Apache-2.0
"""Damaged raw files: rows read = written + rejected, or a one-line error; never a crash."""

import contextlib
import io
import json
import shutil
from pathlib import Path

import pytest
from fuzzing import damaged, examples, mutated
from hypothesis import given
from hypothesis import strategies as st
from invented_rows import AVAZU_HEADER, avazu_lines, criteo_lines
from kuairand_rows import EARLY, LATE, USERS, VIDEOS, log_rows, write_folder

from data_pipelines import build
from data_pipelines.core import cli
from data_pipelines.datasets.avazu import AVAZU_TEXT
from data_pipelines.datasets.criteo import CRITEO_TEXT
from data_pipelines.datasets.kuairand.logs import log_table
from data_pipelines.describe import __main__ as describe
from data_pipelines.doctor import __main__ as doctor
from data_pipelines.text.parser import explain, parse

RAW = {
  'criteo': '\n'.join(criteo_lines(40)).encode() + b'\n',
  'avazu': '\n'.join([AVAZU_HEADER, *avazu_lines(40)]).encode() + b'\n',
}


@pytest.fixture(scope='module')
def logs(tmp_path_factory) -> Path:
  logs = {EARLY: log_rows(60, 1), LATE: log_rows(40, 2)}
  return write_folder(tmp_path_factory.mktemp('social') / 'raw', logs)


def command(*args) -> tuple[int, str, str]:
  """Runs a command; returns exit code, stdout and stderr."""
  out, error = io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
    code = build.main([str(a) for a in args])
  return code, out.getvalue(), error.getvalue()


def check(code: int, said: str, error: str, out: Path) -> None:
  """Checks for a complete folder whose rows add up, or a one-line error and no folder."""
  assert all(c.isprintable() or c in '\n\t' for c in said + error)
  if code == 2:
    assert error.startswith('error: ') and error.count('\n') == 1 and not out.exists()
    return
  assert code == 0, error
  raw = json.loads((out / 'schema.json').read_text())['raw']
  assert raw['rows_read'] == raw['rows_written'] + raw['rows_rejected']
  rejects = out / 'rejects.tsv'
  lines = rejects.read_bytes().count(b'\n') if rejects.exists() else 0
  assert lines == raw['rows_rejected']


TABLES = {'criteo': CRITEO_TEXT, 'avazu': AVAZU_TEXT, 'social': log_table('is_click')}


@pytest.mark.parametrize('name', TABLES)
@examples(150)
@given(rng=st.randoms(use_true_random=False))
def test_a_line_is_a_row_exactly_if_explain_finds_no_fault(name, logs, rng):
  """Compares with `explain`, which reads a line value by value."""
  text = RAW[name] if name in RAW else (logs / EARLY).read_bytes()
  data = damaged(text, rng)
  rows, bad, count = parse(TABLES[name], data, 1)
  lines = data.removesuffix(b'\n').split(b'\n')
  assert count == len(lines) == len(rows.label_N) + len(bad)
  wrong = [i for i, line in enumerate(lines, 1) if explain(TABLES[name], line) is not None]
  assert [line.line for line in bad] == wrong


@pytest.mark.parametrize('name', ['criteo', 'avazu', 'criteo_1tb'])
@examples(10)
@given(rng=st.randoms(use_true_random=False))
def test_a_build_from_a_damaged_file(name, tmp_path_factory, rng):
  folder = tmp_path_factory.mktemp('fuzz')
  raw = folder / 'raw'
  if name == 'criteo_1tb':
    raw.mkdir()
    for day in range(2):
      text = RAW['criteo']
      (raw / f'day_{day}').write_bytes(damaged(text, rng) if day == rng.randrange(2) else text)
  else:
    raw.write_bytes(damaged(RAW[name], rng))
  out = folder / 'out'
  check(*command(f'--dataset={name}', f'--raw={raw}', f'--out={out}', '--workers=1'), out)
  shutil.rmtree(folder)


@examples(20)
@given(rng=st.randoms(use_true_random=False))
def test_a_build_from_a_folder_with_a_damaged_file(logs, tmp_path_factory, rng):
  folder = tmp_path_factory.mktemp('fuzz')
  raw, out = folder / 'raw', folder / 'out'
  shutil.copytree(logs, raw)
  file = raw / rng.choice([EARLY, LATE, USERS, VIDEOS])
  file.write_bytes(damaged(file.read_bytes(), rng))
  check(*command('--dataset=social', f'--raw={raw}', f'--out={out}', '--workers=1'), out)
  shutil.rmtree(folder)


@pytest.fixture(scope='module')
def prepared(tmp_path_factory) -> Path:
  folder = tmp_path_factory.mktemp('prepared')
  (folder / 'raw').write_bytes(RAW['criteo'])
  assert not build.main(['--dataset=criteo', f'--raw={folder / "raw"}', f'--out={folder / "out"}'])
  return folder / 'out'


@pytest.mark.parametrize('look', [doctor, describe], ids=['doctor', 'describe'])
@examples(25)
@given(rng=st.randoms(use_true_random=False))
def test_a_damaged_schema_is_a_one_line_error(look, prepared, tmp_path_factory, rng):
  folder = tmp_path_factory.mktemp('fuzz') / 'out'
  shutil.copytree(prepared, folder)
  schema = mutated(json.loads((prepared / 'schema.json').read_text()), rng)
  (folder / 'schema.json').write_text(json.dumps(schema))
  before = sorted(folder.parent.rglob('*'))
  out, error = io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
    code = look.main([str(folder), '--workers=1'])
  assert code in (0, 2)
  assert code == 0 or (error.getvalue().startswith('error: ') and error.getvalue().count('\n') == 1)
  assert all(c.isprintable() or c in '\n\t' for c in out.getvalue() + error.getvalue())
  if look is doctor:
    assert sorted(folder.parent.rglob('*')) == before
  shutil.rmtree(folder.parent)


@examples(25)
@given(rng=st.randoms(use_true_random=False))
def test_a_build_into_a_folder_with_a_damaged_schema(prepared, tmp_path_factory, rng):
  folder = tmp_path_factory.mktemp('fuzz') / 'out'
  shutil.copytree(prepared, folder)
  schema = mutated(json.loads((prepared / 'schema.json').read_text()), rng)
  (folder / 'schema.json').write_text(json.dumps(schema))
  code, said, error = command(
    '--dataset=criteo', f'--raw={prepared.parent / "raw"}', f'--out={folder}', '--workers=1'
  )
  assert (code == 2 and error.startswith('error: ') and error.count('\n') == 1) or (
    code == 0 and 'already' in said and not error
  ), (code, said, error)
  assert json.loads((folder / 'schema.json').read_text()) == json.loads(json.dumps(schema))
  shutil.rmtree(folder.parent)


def spoil(schema, how):
  train = schema['splits']['train']
  if how == 'a file is null':
    train['files'] = dict.fromkeys(train['files'])
  elif how == 'a field is gone':
    del schema['fields'][-1]
  elif how == 'half a character':
    schema['build']['protocol'] = '\ud800'
  elif how == 'a raw file is null':
    schema['raw']['files'] = [None]
  elif how == 'ids without end':
    schema['fields'][20]['vocab_size'] = 2**50
  else:
    train['rows'] = {'NaN': float('nan'), 'negative': -1, 'too large': 10**400}[how]


@pytest.mark.parametrize(
  ('how', 'words'),
  [
    ('a file is null', '`$.splits.train.files[...]`: expected `object`, got `null`'),
    ('half a character', 'surrogates not allowed'),
    ('a raw file is null', '`$.raw.files[0]`: expected `object`, got `null`'),
    ('a field is gone', 'no rows of the 38 fields of schema.json'),
    ('NaN', '`$.splits.train.rows`: expected `int`, got `null`'),
    ('negative', '`$.splits.train.rows`: expected `int` >= 0'),
    ('too large', '`$.splits.train.rows`: expected `int` <= 9007199254740992'),
    ('ids without end', 'error: not enough memory (counts of the ids that schema.json names take '),
  ],
)
def test_damages_found_by_fuzzing_are_one_line_errors(prepared, tmp_path, capsys, how, words):
  shutil.copytree(prepared, tmp_path / 'out')
  schema = json.loads((prepared / 'schema.json').read_text())
  spoil(schema, how)
  (tmp_path / 'out' / 'schema.json').write_text(json.dumps(schema))
  assert describe.main([str(tmp_path / 'out'), '--workers=1']) == 2
  error = capsys.readouterr().err
  assert error.startswith('error: ') and error.count('\n') == 1 and words in error


def test_too_little_memory_is_a_one_line_error(capsys):
  def command():
    raise MemoryError('64 PiB')

  assert cli.guarded(command) == 2
  assert capsys.readouterr().err.startswith('error: not enough memory (64 PiB)')
