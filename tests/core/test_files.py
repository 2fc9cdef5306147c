# SPDX-License-Identifier: Apache-2.0
"""Reading, replacing and locking files."""

import errno
import json
import os
import pathlib
import subprocess
import sys

import msgspec
import pytest

from deres_jax.core import cli, files
from deres_jax.core.errors import UserError


class Figures(msgspec.Struct):
  auc: float
  rows: int | None = None


BAD = {
  'empty': (b'', 'not valid JSON (Expecting value: line 1 column 1 (char 0)): run it again'),
  'cut': (b'{"auc": 0.', 'not valid JSON'),
  'binary': (b'\xff\xfe\x00', 'not valid JSON'),
  'NaN': (b'{"auc": NaN}', '`$.auc`: expected `float`, got `null`: run it again'),
  'half a character': (b'{"auc": 1, "x": "\\ud800"}', 'not valid JSON'),
  'two values': (b'{"auc": 1} {}', 'not valid JSON'),
  'no end': (b'{"x": ' + b'[' * 9999, 'not valid JSON'),
  'a list': (b'[]', '`$`: expected `object`, got `array`: run it again'),
  'null': (b'{"auc": null}', '`$.auc`: expected `float`, got `null`: run it again'),
  'text': (b'{"auc": 1, "rows": "7"}', '`$.rows`: expected `int | null`, got `str`'),
  'NaN in another field': (b'{"auc": null, "rows": NaN}', '`$.auc`: expected'),
  'infinite': (b'{"auc": 1e999}', '`$.auc`: number out of range'),
  'lacks a field': (b'{}', '`$`: object missing required field `auc`: run it again'),
}


@pytest.mark.parametrize('name', BAD)
def test_a_damaged_file_is_named_with_the_place_in_it(name, tmp_path):
  data, words = BAD[name]
  file = tmp_path / 'x.json'
  file.write_bytes(data)
  with pytest.raises(UserError) as e:
    files.read_json(file, Figures, 'run it again')
  assert str(e.value).startswith(f'{file}: {words}') and '\n' not in str(e.value)


def test_a_file_that_is_no_file_is_an_error(tmp_path):
  for path, words in ((tmp_path, 'Is a directory'), (tmp_path / 'x', 'No such file')):
    with pytest.raises(UserError, match=f'{words}[a-z ]*: run it again'):
      files.read_json(path, Figures, 'run it again')


def test_unknown_fields_are_ignored_and_whole_numbers_are_numbers(tmp_path):
  file = tmp_path / 'x.json'
  files.write_json(file, {'auc': 1, 'later': [None]})
  assert files.read_json(file, Figures, '') == Figures(1.0)
  assert files.read_json(file, dict, '') == {'auc': 1, 'later': [None]}


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
  file = tmp_path / 'x.json'
  files.write_json(file, {'é': 0.1})
  assert file.read_text() == json.dumps({'é': 0.1}, indent=1) + '\n'
  with pytest.raises(KeyError), files.replacing(file) as partial:
    partial.write_text('half')
    raise KeyError
  assert json.loads(file.read_text()) == {'é': 0.1}
  assert [p.name for p in tmp_path.iterdir()] == ['x.json']


def test_an_output_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
  (tmp_path / 'file').touch()
  for text, words in (
    ('none/x.md', 'there is no folder'),
    ('file/x.md', 'there is no folder'),
    ('x.txt', 'has another ending: give a file that ends in .md'),
    ('', 'is a folder'),
  ):
    with pytest.raises(UserError, match=f'^--out={tmp_path}.*{words}'):
      files.output_file(f'{tmp_path}/{text}', '.md')
  assert files.output_file(f'{tmp_path}/x.md', '.md') == tmp_path / 'x.md'
  assert files.output_folder(f'{tmp_path}/a/b') == tmp_path / 'a' / 'b'
  for text in ('file', 'file/a/b'):
    with pytest.raises(UserError, match=f'^--workdir={tmp_path}/{text}: .*file is a file'):
      files.output_folder(f'{tmp_path}/{text}', '--workdir')
  monkeypatch.setattr(os, 'access', lambda *_: False)
  for check in (files.output_file, files.output_folder):
    with pytest.raises(UserError, match=f'{tmp_path} cannot be written: get the right'):
      check(str(tmp_path / 'x'))
  assert [p.name for p in tmp_path.iterdir()] == ['file']


def test_a_command_turns_what_a_user_can_mend_into_one_line(capsys):
  def full(argv):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), '/a/b')

  with pytest.raises(SystemExit) as e:
    cli.guarded(full)([])
  assert e.value.code == 2
  assert capsys.readouterr().err == 'error: /a/b: No space left on device: free some space\n'

  def fault(argv):
    raise FileNotFoundError(errno.ENOENT, 'x', '/a/b')

  with pytest.raises(FileNotFoundError):
    cli.guarded(fault)([])


HOLDER = """
import pathlib, sys, time
from deres_jax.core import files
assert files.Lock(pathlib.Path(sys.argv[1])).take()
print(flush=True)
time.sleep(60)
"""


def test_a_lock_ends_with_its_process(tmp_path):
  path = tmp_path / 'lock'
  assert not files.is_locked(path)
  holder = subprocess.Popen([sys.executable, '-c', HOLDER, path], stdout=subprocess.PIPE)
  try:
    holder.stdout.readline()
    lock = files.Lock(path)
    assert files.is_locked(path) and not lock.take() and not lock.is_open()
    assert lock.holder().startswith(f'process {holder.pid} on ')
  finally:
    holder.kill()
    holder.wait()
  assert not files.is_locked(path) and lock.take() and files.is_locked(path)
  assert path.read_text().startswith(f'process {os.getpid()} on ')
  lock.close()
  assert not files.is_locked(pathlib.Path(path))
