# SPDX-License-Identifier: Apache-2.0
"""Damaged files and outputs that cannot be written cost every command one line and code 2."""

import json
import shutil

import forked
import numpy as np
import pytest
import swept

from deres_jax import config
from deres_jax.core import files
from deres_jax.data.schema import load_schema

EXPERIMENT = """
import json, pathlib
from deres_jax.config import base as get_config

def sweep():
  return json.loads(pathlib.Path(__file__).with_suffix('.json').read_text())
"""


@pytest.fixture(scope='module')
def house(planted, tmp_path_factory):
  """Folders to be damaged: prepared data; a finished sweep on it; a finished run; an experiment."""
  house = tmp_path_factory.mktemp('house')
  shutil.copytree(planted, house / 'data')
  schema = load_schema(str(house / 'data'))
  content = {'data_content': schema.content}
  points = [*swept.points(depths=(2, 4), dims=(64,), seeds=1)]
  swept.folder(house / 'sweep', points, **content)
  swept.folder(house / 'deep', swept.points(depths=(2, 4, 8, 16), dims=(64,), seeds=1), **content)
  rng = np.random.default_rng(0)
  for workdir in house.glob('*/runs/*'):
    np.save(workdir / 'test_logits.npy', rng.standard_normal(1500).astype(np.float32))
  (house / 'grid.py').write_text(EXPERIMENT)
  (house / 'grid.json').write_text(json.dumps([fields for fields, _ in points]))
  frozen = config.resolve(config.base(f'data.path={house / "data"},{RUN}'))
  for name in ('run', 'low'):
    (house / name).mkdir()
    stored = {'config': config.as_dict(frozen), 'identity': config.identity(frozen)}
    stored = {'config_hash': config.config_hash(frozen), **content} | stored
    files.write_json(house / name / 'config.json', stored)
    result = swept.RESULT | {'config_hash': config.config_hash(frozen)} | content
    (house / name / 'result.json').write_text(json.dumps(result))
    lines = [{'step': s, 'split': 'validation', 'auc': 0.6 + s / 100} for s in (1, 2)]
    (house / name / 'metrics.jsonl').write_text(''.join(json.dumps(x) + '\n' for x in lines))
    (house / name / 'checkpoints').mkdir()
  (house / 'out').mkdir()
  return house


RUN = 'model.depth=1,model.dim=8,model.heads=2,model.embed_dim=4,mesh.devices=1'


@pytest.fixture(scope='module')
def call():
  with forked.calls() as call:
    yield call


def arguments(command, house, out=None):
  """The module and the arguments of a command on the folders of `house`."""
  run, low, sweep, deep, data = (house / x for x in ('run', 'low', 'sweep', 'deep', 'data'))
  experiment = [f'--config={house / "grid.py"}']
  training = [*experiment, *(f'--config.{x}' for x in f'data.path={data},{RUN}'.split(','))]
  sweeping = [*experiment, f'--config.data.path={data}', '--jobs=1']
  fit = ['--bootstraps=0', f'--data={data}']
  page, folder = out or house / 'out' / 'x.md', out or house / 'out'
  module, *more = {
    'train': ['main', *training, f'--workdir={out or run}'],
    'eval': ['main', *training, f'--workdir={run}', '--mode=eval'],
    'sweep': ['sweep', *sweeping, f'--out={out or sweep}'],
    'list': ['sweep', *sweeping, f'--out={sweep}', '--list'],
    'compare': ['compare', f'--sweeps={sweep}', f'--out={page}'],
    'scaling': ['scaling', f'--sweep={deep}', f'--out={folder}', *fit, '--curves=OneTrans'],
    'delong': ['scaling', f'--sweep={deep}', f'--out={folder}', *fit],
    'power': ['scaling', '--power', '--noise_sd=1e-4', '--trials=1', f'--out={folder}'],
    'claims': ['claims', f'--sweep={sweep}', f'--out={page}', f'--data={data}'],
    'inspect': ['inspect', f'--workdir={run}', f'--out={folder}'],
    'report': ['report', f'--workdir={run}', f'--baseline={low}', f'--out={page}'],
    'export': ['export', f'--workdir={run}', f'--out={page}'],
  }[command]
  return f'deres_jax.{module}', more


def files_of(folder):
  """Every file and its content, without locks, which say who held them."""
  return {
    p: p.read_bytes()
    for p in sorted(folder.rglob('*'))
    if p.is_file() and p.name not in ('lock', '.lock')
  }


def one_line(answer, *words):
  code, _, err = answer
  assert code == 2 and err.startswith('error: ') and err.count('\n') == 1, err
  assert len(err) < 4100 and all(word in err for word in words), err


MODELS = ('inspect', 'export')  # look into a trained run
# A file to damage, a number in it, and the commands that read it. The first reads every damage.
FILES = {
  'run/result.json': ('logloss', ('report', 'train')),
  'sweep/result.json': ('depth', ('list', 'sweep', 'compare', 'scaling', 'claims')),
  'run/config.json': (None, ('eval', 'train', *MODELS)),
  'sweep/config.json': (None, ('claims', 'sweep', 'scaling')),
  'sweep.json': ('seed', ('compare', 'sweep', 'scaling', 'claims')),
  'failed.json': ('attempts', ('list',)),
  'metrics.jsonl': ('step', ('report',)),
  'schema.json': ('block_rows', ('sweep', 'train', 'eval', 'scaling', 'claims', *MODELS)),
}
DAMAGES = ('cut', 'empty', 'binary', 'directory', 'other', 'foreign', 'null', 'NaN', 'text')
SOME = ('cut', 'directory', 'foreign')
CASES = [
  (name, command, damage)
  for name, (number, commands) in FILES.items()
  for i, command in enumerate(commands)
  for damage in (SOME if i else DAMAGES)
  if number or damage not in ('null', 'NaN', 'text')
]


def path_of(name, command, house):
  sweep = house / ('deep' if command in ('scaling', 'delong') else 'sweep')
  first = sorted((sweep / 'runs').iterdir())[0]
  return {
    'run/result.json': house / 'run' / 'result.json',
    'sweep/result.json': first / 'result.json',
    'run/config.json': house / 'run' / 'config.json',
    'sweep/config.json': first / 'config.json',
    'sweep.json': sweep / 'sweep.json',
    'failed.json': first / 'failed.json',
    'metrics.jsonl': house / 'run' / 'metrics.jsonl',
    'schema.json': house / 'data' / 'schema.json',
  }[name]


def damaged(data: bytes, damage: str, number: str) -> bytes:
  """The bytes of a JSON file, or of the first line of one, after a damage."""
  if damage in ('null', 'NaN', 'text'):
    first, *rest = data.splitlines() if number == 'step' else [data]
    value = json.loads(first)
    node = value[0] if isinstance(value, list) else value
    node[number] = {'null': None, 'NaN': float('nan'), 'text': '7'}[damage]
    return b'\n'.join([json.dumps(value).encode(), *rest])
  return {
    'cut': data[: len(data) * 2 // 3],
    'empty': b'\n' if number == 'step' else b'',
    'binary': bytes(range(256)),
    'other': b'[]' if data.lstrip()[:1] == b'{' else b'{}',
    'foreign': b'{"a": 1}' if data.lstrip()[:1] == b'{' else b'[{"a": 1}]',
  }[damage]


@pytest.fixture
def restored(house):
  """Puts everything back after a test, and says if a command changed what it should not."""
  before = files_of(house)
  yield before
  for path in house.rglob('*'):
    if path.is_dir() and path.suffix in ('.json', '.jsonl'):
      path.rmdir()
    elif path.is_file() and path not in before:
      path.unlink()
  for path, data in before.items():
    path.write_bytes(data)


@pytest.mark.parametrize(('name', 'command', 'damage'), CASES)
def test_a_damaged_file_is_one_line_and_code_2(house, call, restored, name, command, damage):
  number = FILES[name][0]
  path = path_of(name, command, house)
  if name == 'failed.json':
    path.with_name('result.json').unlink()
    failure = {'id': 'a', 'name': 'b', 'seed': 0, 'how': 'exit 1', 'last_line': 'x', 'log': 'y'}
    path.write_text(json.dumps({**failure, 'attempts': 2}))
  if name == 'run/config.json' or name == 'schema.json':
    (house / 'run' / 'result.json').unlink()
  data = path.read_bytes()
  path.unlink()
  if damage == 'directory':
    path.mkdir()
  else:
    path.write_bytes(damaged(data, damage, number))
  before = files_of(house)
  one_line(
    call(*arguments(command, house)), str(path.parent), '' if damage == 'directory' else path.name
  )
  assert files_of(house) == before


LOGITS = {
  'cut': lambda x, file: file.write_bytes(file.read_bytes()[:900]),
  'empty': lambda x, file: file.write_bytes(b''),
  'binary': lambda x, file: file.write_bytes(bytes(range(256))),
  'of objects': lambda x, file: np.save(file, np.array([{}, None]), allow_pickle=True),
  'of whole numbers': lambda x, file: np.save(file, x.astype(np.int32)),
  'of other rows': lambda x, file: np.save(file, x[:9]),
  'not finite': lambda x, file: np.save(file, np.where(x > 1, np.nan, x)),
  'several arrays': lambda x, file: np.savez(file.open('wb'), x),
}


@pytest.mark.parametrize(
  ('command', 'damage'), [*(('claims', damage) for damage in LOGITS), ('delong', 'cut')]
)
def test_damaged_logits_are_one_line_and_code_2(house, call, restored, command, damage):
  file = path_of('sweep/result.json', command, house).with_name('test_logits.npy')
  LOGITS[damage](np.load(file), file)
  before = files_of(house)
  one_line(call(*arguments(command, house)), str(file), 'leave --data out')
  assert files_of(house) == before


def test_without_damage_the_same_commands_end_well(house, call, restored):
  for command in ('list', 'sweep', 'compare', 'scaling', 'claims', 'report', 'train', 'power'):
    code, _, err = call(*arguments(command, house))
    assert code == 0, (command, err)


FILE_OUTS, FOLDER_OUTS = ('compare', 'claims', 'report', 'export'), ('scaling', 'power', 'inspect')


@pytest.mark.parametrize('command', [*FILE_OUTS, *FOLDER_OUTS, 'sweep', 'train'])
def test_an_output_that_cannot_be_written_is_one_line_and_code_2(house, call, restored, command):
  flag = '--workdir=' if command == 'train' else '--out='
  outs = [house / 'grid.py' / 'a', house / 'grid.json' / 'a' / 'x.md']
  outs += [house / 'none' / 'x.md', house / 'out'] if command in FILE_OUTS else [house / 'grid.py']
  for out in outs:
    one_line(call(*arguments(command, house, out)), f'{flag}{out}')
  assert files_of(house) == restored


@pytest.mark.parametrize('command', ['compare', 'claims', 'report', 'scaling', 'power', 'sweep'])
def test_a_full_disk_is_one_line_and_leaves_old_outputs(house, call, restored, command):
  for path in ('x.md', 'x.json', 'fit.json', 'report.html', 'runs.csv', 'power.json'):
    (house / 'out' / path).write_text('old')
  before = files_of(house)
  one_line(call(*arguments(command, house), 100), 'File too large: raise the limit')
  assert files_of(house) == before
