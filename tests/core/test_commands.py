# SPDX-License-Identifier: Apache-2.0
"""What all commands share: --help in one screen, experiments by name, config strings."""

import pathlib
import re

import forked
import pytest

from data_pipelines.core import cli as command_line
from deres_jax import config
from deres_jax.config import overrides
from deres_jax.core import cli
from deres_jax.core import experiments as experiments_lib
from deres_jax.core.errors import Retry, UserError
from deres_jax.pod import supervisor

REPO = pathlib.Path(__file__).resolve().parents[2]
COMMANDS = sorted(
  '.'.join(file.relative_to(REPO).with_suffix('').parts).removesuffix('.__main__')
  for folder in ('deres_jax', 'data_pipelines')
  for file in (REPO / folder).rglob('*.py')
  if "if __name__ == '__main__':" in file.read_text()
)


@pytest.fixture(scope='module')
def screens():
  """What every command prints for --help, beside its exit code."""
  with forked.calls() as call:
    return {command: call(command, ['--help']) for command in COMMANDS}


@pytest.mark.parametrize('command', COMMANDS)
def test_help_is_one_screen_and_no_mistake(screens, command):
  code, out, err = screens[command]
  lines = out.splitlines()
  assert code == 0 and not err, err
  assert len(lines) <= 24 and max(map(len, lines)) <= 80, out
  assert f'python -m {command}' in out


PAGE = (REPO / 'docs' / 'commands.md').read_text()


def rows(heading):
  """Cells of the first table after a heading, without its head."""
  lines = PAGE.partition(f'# {heading}\n')[2].split('\n#')[0].splitlines()
  table = [[c.strip() for c in x.split(' | ')] for x in lines if x.startswith('| ')]
  return [[cell.strip('| ') for cell in row] for row in table[1:]]


def test_the_page_names_every_command_and_flag(screens):
  documented = {row[0].strip('`'): row[1] for row in rows('Commands')}
  assert documented.keys() == set(COMMANDS)
  for command, cell in documented.items():
    own = set(re.findall(r'^  (?:-h, )?(--\w+)', screens[command][1], re.M)) - {'--help'}
    assert set(re.findall(r'--\w+', cell)) == own, command


def test_the_page_has_the_exit_codes(capsys):
  codes = [row[0] for row in rows('Exit codes')]
  ours = [0, cli.FAULT, cli.MISTAKE, cli.AGAIN, cli.INTERRUPTED]
  assert codes == [*map(str, ours), '128 + N']
  assert cli.code_of(UserError('x')) == cli.MISTAKE == 2
  assert cli.code_of(KeyboardInterrupt()) == cli.INTERRUPTED == 130
  assert cli.code_of(Retry('x')) == cli.AGAIN == 75
  assert cli.code_of(ValueError('x')) is None  # with its trace, which Python ends with 1
  assert supervisor.verdict(-9)[0] == 128 + 9
  capsys.readouterr()


@pytest.mark.parametrize('error', [UserError, Retry, KeyboardInterrupt])
def test_a_guarded_command_ends_with_one_line_and_a_code(error, capsys):
  def command(argv):
    raise error('what\nhappened')

  with pytest.raises(SystemExit) as e:
    cli.guarded(command)([])
  assert e.value.code == {UserError: 2, Retry: 75, KeyboardInterrupt: 130}[error]
  out, err = capsys.readouterr()
  assert not out and err.count('\n') == 1

  def build():
    raise UserError('what') if error is not KeyboardInterrupt else error

  assert command_line.guarded(build) == (130 if error is KeyboardInterrupt else 2)
  assert capsys.readouterr().err.count('\n') == 1


def test_a_fault_of_ours_keeps_its_trace():
  def command(argv):
    raise ValueError('ours')

  with pytest.raises(ValueError, match='ours'):
    cli.guarded(command)([])


def test_an_experiment_is_found_by_name_here_or_beside_the_package(tmp_path, monkeypatch):
  beside = str(REPO / 'experiments' / 'criteo_8l.py')
  monkeypatch.chdir(tmp_path)
  for name in ('criteo_8l', 'criteo_8l.py'):
    assert experiments_lib.find(name) == beside
  assert experiments_lib.find('criteo_8l:depth=2,a=b:c') == f'{beside}:depth=2,a=b:c'
  (tmp_path / 'experiments').mkdir()
  (tmp_path / 'experiments' / 'criteo_8l.py').touch()
  assert experiments_lib.find('criteo_8l') == 'experiments/criteo_8l.py'
  (tmp_path / 'criteo_8l.py').touch()  # a path is a path
  assert experiments_lib.find('criteo_8l.py:a=b') == 'criteo_8l.py:a=b'
  assert experiments_lib.find('criteo_8l') == 'experiments/criteo_8l.py'


@pytest.mark.parametrize('name', ['criteo_8', 'criteo_8.py', 'experiments/criteo_8.py', ''])
def test_an_unknown_experiment_is_answered_with_names(name):
  with pytest.raises(UserError) as e:
    experiments_lib.find(f'{name}:depth=2')
  text = str(e.value)
  assert text.startswith(f'--config={name}: no such file or experiment')
  assert ('did you mean criteo_8l' in text) == bool(name) and '\n' not in text
  assert all(file.stem in text for file in (REPO / 'experiments').glob('*.py'))


def test_only_the_value_of_config_is_looked_up():
  given = ['main', '--config.seed=1', '--config', 'social', '-config=criteo_lr:seed=3']
  found = experiments_lib.in_arguments([*given, '--', '--config=nowhere'])
  experiments = REPO / 'experiments'
  assert [pathlib.Path(x.partition('=')[2].partition(':')[0]).name for x in found][
    4
  ] == 'criteo_lr.py'
  assert found[4].endswith(':seed=3') and found[4].startswith('-config=')
  assert pathlib.Path(found[3]).resolve() == experiments / 'social.py'
  assert found[:3] == given[:3] and found[5:] == ['--', '--config=nowhere']


def test_a_short_name_is_the_one_field_that_has_it():
  """Every field but those of three names, which the docstring of overrides lists."""
  ambiguous = set()
  for section, node in config.base().items():
    for name in node if section != 'seed' else ():
      try:
        [(full, text)] = overrides.settings(config.base(), f'{name}=7')
      except UserError as e:
        assert f'{section}.{name}' in str(e) and ' or ' in str(e) and 'several' in str(e)
        ambiguous.add(name)
      else:
        assert (full, text) == (f'{section}.{name}', '7')
  listed = re.search(r'several sections \((.*?)\)', overrides.__doc__)[1]
  assert ambiguous == set(listed.split(', '))
  c = config.resolve(config.base('connector=mhc,depth=16,seed=3,dense_lr=1,deres.path=dual'))
  assert (c.model.connector, c.model.depth, c.seed, c.optim.dense_lr) == ('mhc', 16, 3, 1.0)


@pytest.mark.parametrize(
  ('text', 'words'),
  [
    ('dept=16', ["'dept'", 'did you mean model.depth?', 'sections are attnres']),
    ('zzz=1', ["unknown config field 'zzz': sections are"]),
    ('depth=deep', ["model.depth='deep'", 'int']),
    ('model=1', ['section', 'depth']),
    ('dropout=0.1', ['mlp.dropout or model.dropout']),
  ],
)
def test_a_wrong_config_string_is_one_line(text, words):
  with pytest.raises(UserError) as e:
    config.base(text)
  assert '\n' not in str(e.value) and all(word in str(e.value) for word in words), e.value
