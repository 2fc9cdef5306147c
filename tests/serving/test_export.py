# SPDX-License-Identifier: Apache-2.0
"""Exported files: predictions from raw rows match evaluation."""

import csv
import gzip
import http.client
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import jax
import numpy as np
import pytest
from made import feed_row, ids_of

from data_pipelines import build
from data_pipelines.datasets.avazu import PROTOCOLS as AVAZU_PROTOCOLS
from data_pipelines.datasets.criteo import FIELD_NAMES
from data_pipelines.datasets.criteo import PROTOCOLS as CRITEO_PROTOCOLS
from deres_jax import config, export, serving
from deres_jax.core.errors import UserError
from deres_jax.data.schema import load_schema
from deres_jax.serving import artifact, recipes
from deres_jax.training import loop
from deres_jax.training.checkpoints import restore

REPO = pathlib.Path(__file__).resolve().parents[2]
TINY = (
  'model.depth=1,model.dim=8,model.heads=2,model.embed_dim=4,model.ffn_ratio=2,mlp.units=8,'
  'mlp.layers=1,deres.block_layers=1,data.batch_size=64,data.eval_batch_size=128,'
  'optim.table_init_std=1.0,train.steps=3,train.epochs=0.0,train.eval_steps=2,'
  'train.eval_epochs=0.0,mesh.devices=1,train.compilation_cache=False'
)


def train_in(folder, workdir, more=''):
  """Trains three steps; returns the workdir."""
  loop.train(config.resolve(config.base(f'{TINY},data.path={folder},{more}')), workdir)
  return workdir


def written(workdir, out, platforms=export.PLATFORMS):
  export.write(restore.load(workdir), out, list(platforms))
  return serving.load(out)


def evaluated(workdir):
  """Returns the probabilities of the test split from the run's logits."""
  return 1 / (1 + np.exp(-np.load(workdir / 'test_logits.npy').astype(np.float64)))


def assert_predicts(model, rows, workdir):
  got, want = model.predict(rows), evaluated(workdir)
  assert got.dtype == np.float32 and got.shape == want.shape == (len(rows),)
  assert np.ptp(want) > 0.01
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)


def planted_rows(folder):
  names = [field.name for field in load_schema(str(folder)).fields]
  return [dict(zip(names, (str(i - 2) for i in ids), strict=True)) for ids in ids_of(folder)]


@pytest.fixture(scope='module')
def run(planted, tmp_path_factory):
  return train_in(planted, tmp_path_factory.mktemp('run') / 'w')


@pytest.fixture(scope='module')
def file(run, tmp_path_factory):
  out = tmp_path_factory.mktemp('file') / 'model.zip'
  export.write(restore.load(run), out, list(export.PLATFORMS))
  return out


def test_predictions_match_evaluation(planted, run, file):
  """1,500 rows, in a full part and a padded one; then few rows, one, and none."""
  model, rows = serving.load(file), planted_rows(planted)
  assert_predicts(model, rows, run)
  whole = model.predict(rows)
  for few in (rows[:1], rows[:3], rows[100:164]):
    first = rows.index(few[0])
    np.testing.assert_allclose(model.predict(few), whole[first : first + len(few)], atol=1e-6)
  assert model.predict([]).shape == (0,) and model.predict([]).dtype == np.float32
  example = model.predict(model.description['example'])
  assert example.shape == (1,) and 0 < example[0] < 1


def test_the_description_identifies_the_run(planted, run, file):
  d = serving.load(file).description
  result = json.loads((run / 'result.json').read_text())
  assert d['platforms'] == ['cpu', 'cuda', 'tpu']
  assert (d['config_hash'], d['step']) == (result['config_hash'], result['step_chosen'])
  assert d['data_content'] == load_schema(str(planted)).content
  assert (d['backbone'], d['connector']) == ('onetrans', 'deres')
  assert [f['name'] for f in d['inputs']['fields']] == [
    field.name for field in load_schema(str(planted)).fields
  ]
  assert d['versions']['jax'] == jax.__version__
  with zipfile.ZipFile(file) as archive:
    assert set(archive.namelist()) == {*d['sha256'], artifact.DESCRIPTION}
    table = np.load(archive.open('weights/table_0.npy'), allow_pickle=False)
  best = restore.load(run)
  assert table.shape == (best.spec.tables.rows, 4)
  # Row offset + id of each column, for any order in memory.
  in_memory = np.asarray(best.tables[0])
  numbers = np.arange(len(table), dtype=np.int32)
  np.testing.assert_array_equal(table, in_memory[best.spec.tables.storage_index(numbers)])


def test_the_same_run_gives_the_same_bytes(run, file, tmp_path):
  export.write(restore.load(run), tmp_path / 'again', list(export.PLATFORMS))
  assert (tmp_path / 'again').read_bytes() == file.read_bytes()
  with zipfile.ZipFile(file) as archive:
    function = archive.read(artifact.FUNCTION)
  assert b'.py' not in function and b'deres_jax/' not in function, 'paths of this machine'


def test_serving_needs_little_more_than_jax(planted, file):
  """It imports neither flax nor orbax, nor libraries for data and flags."""
  code = (
    'import sys\n'
    "for name in ('flax', 'orbax', 'optax', 'absl', 'grain', 'tensorflow_datasets',"
    " 'ml_collections', 'array_record', 'chex', 'rich'):\n"
    '  sys.modules[name] = None\n'
    'from deres_jax import serving\n'
    f'model = serving.load({str(file)!r})\n'
    "print(model.predict(model.description['example'])[0])"
  )
  environ = {**os.environ, 'XLA_FLAGS': ''}
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, cwd=REPO, env=environ, check=False
  )
  assert done.returncode == 0, done.stderr
  model = serving.load(file)
  want = model.predict(model.description['example'])[0]
  assert float(done.stdout) == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize(
  'more',
  [
    'model.backbone=din,classic.din_units=4',
    'model.backbone=onetrans,model.pyramid_events=2',
  ],
  ids=['din', 'onetrans'],
)
def test_predictions_from_histories_match_evaluation(feed, tmp_path, more):
  workdir, schema = train_in(feed, tmp_path / 'w', more), load_schema(str(feed))
  rows = [feed_row(schema, ids) for ids in ids_of(feed)]
  assert {0, 6} <= {len(row['events']) for row in rows}
  model = written(workdir, tmp_path / 'f')
  assert_predicts(model, rows, workdir)
  assert 0 < model.predict(model.description['example'])[0] < 1


def test_predictions_of_real_criteo_rows_match_evaluation(samples, tmp_path):
  """Tables of two widths with linear weights; missing values and unknown categories."""
  with gzip.open(samples / 'criteo_sample.tsv.gz', 'rt') as file:
    lines = [line.rstrip('\n').split('\t') for line, _ in zip(file, range(4000), strict=False)]
  flags = ['--dataset=criteo', f'--raw={samples / "criteo_sample.tsv.gz"}', '--limit=4000']
  assert not build.main([*flags, f'--out={tmp_path / "data"}', '--min_count=3'])
  numbers = CRITEO_PROTOCOLS['x4'].split.rows(len(lines), 0)['test']
  rows = [{k: v for k, v in zip(FIELD_NAMES, lines[i][1:], strict=True) if v} for i in numbers]
  ids = np.array(ids_of(tmp_path / 'data'))
  assert (ids[:, 13:] == 1).any() and min(map(len, rows)) < 39
  more = 'model.backbone=deepfm,model.embed_dim_of_few=50:2'
  workdir = train_in(tmp_path / 'data', tmp_path / 'w', more)
  model = written(workdir, tmp_path / 'f')
  assert_predicts(model, rows, workdir)
  assert {'table_0', 'table_1'} <= set(model.description['weights'])


def test_predictions_of_real_avazu_rows_match_evaluation(samples, tmp_path):
  sample = samples / 'avazu_sample.csv.gz'
  if not sample.is_file():
    pytest.skip(f'no {sample.name} in {samples}')
  with gzip.open(sample, 'rt') as file:
    lines = [row for row, _ in zip(csv.DictReader(file), range(1999), strict=False)]
  flags = ['--dataset=avazu', f'--raw={sample}', f'--out={tmp_path / "data"}', '--limit=2000']
  assert not build.main(flags)
  numbers = AVAZU_PROTOCOLS['x4'].split.rows(len(lines), 0)['test']
  rows = [{k: v for k, v in lines[i].items() if k not in ('id', 'click')} for i in numbers]
  workdir = train_in(tmp_path / 'data', tmp_path / 'w', 'model.backbone=lr,model.embed_dim=1')
  assert_predicts(written(workdir, tmp_path / 'f'), rows, workdir)


def altered(file, out, change):
  """Writes a copy of the file whose members are `change(name, bytes)`."""
  with zipfile.ZipFile(file) as old, zipfile.ZipFile(out, 'w') as new:
    for name in old.namelist():
      new.writestr(name, change(name, old.read(name)))
  return out


def described(**changes):
  def change(name, data):
    return json.dumps(json.loads(data) | changes) if name == artifact.DESCRIPTION else data

  return change


def flipped(member):
  return lambda name, data: data[:-1] + bytes([data[-1] ^ 1]) if name == member else data


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    (described(format_version=2), "has format .'deres_jax.export', 2., expected .* 1."),
    (described(format='other'), "has format .'other', 1."),
    (
      described(calling_convention_version=1),
      'calling convention 1 of jax.export',
    ),
    (
      described(platforms=['tpu']),
      'is for tpu, but jax runs on cpu here: .*--platforms=cpu',
    ),
    (described(sha256={}), 'damaged, or no file of deres_jax.export'),
    (lambda name, data: '[]' if name == artifact.DESCRIPTION else data, 'damaged, or no file'),
    (flipped('weights/table_0.npy'), 'the checksum of weights/table_0.npy differs'),
    (flipped('vocabulary/f01.txt'), 'the checksum of vocabulary/f01.txt differs'),
    (flipped(artifact.FUNCTION), 'the checksum of function.bin differs'),
  ],
)
def test_a_damaged_or_foreign_archive_gives_a_one_line_error(file, tmp_path, change, words):
  with pytest.raises(UserError, match=words) as caught:
    serving.load(altered(file, tmp_path / 'f.zip', change))
  assert '\n' not in str(caught.value)


def test_a_truncated_or_foreign_file_gives_a_one_line_error(file, planted, tmp_path):
  data = file.read_bytes()
  for k, content in enumerate(
    [b'', b'no archive', data[: len(data) // 2], data[:100] + b'x' * 9 + data[109:]]
  ):
    path = tmp_path / f'{k}.zip'
    path.write_bytes(content)
    with pytest.raises(UserError, match=r'damaged, or no file of deres_jax.export'):
      serving.load(path)
  with pytest.raises(UserError, match=r'no such file: give what python -m deres_jax.export'):
    serving.load(planted)


def test_the_command_writes_the_file_or_ends_with_2(run, file, tmp_path):
  def call(*args):
    command = [sys.executable, '-m', 'deres_jax.export', f'--workdir={run}', *args]
    environ = {**os.environ, 'JAX_TRACEBACK_IN_LOCATIONS_LIMIT': '10'}  # tests have 0: conftest.py
    return subprocess.run(
      command, env=environ, cwd=REPO, capture_output=True, text=True, check=False
    )

  done = call(f'--out={tmp_path / "f"}')
  assert done.returncode == 0 and 'for cpu, cuda, tpu' in done.stdout, done.stderr
  assert (tmp_path / 'f').read_bytes() == file.read_bytes()
  done = call(f'--out={tmp_path}')
  assert done.returncode == 2 and done.stderr.count('\n') == 1, done.stderr


@pytest.mark.parametrize(
  ('flags', 'words'),
  [
    ({'out': '.'}, '--out=.: is a folder: give a file'),
    ({'out': 'gone/f'}, '--out=gone/f: there is no folder gone'),
    ({'platforms': ['cpu', 'gpu']}, '--platforms=cpu,gpu: expected some of cpu, cuda, tpu'),
    ({'platforms': []}, '--platforms=: expected some of'),
    ({'workdir': 'nowhere'}, '--workdir=nowhere: holds no config.json'),
    ({'data': 'nowhere'}, 'the prepared folder nowhere of the run is not here'),
  ],
)
def test_mistakes_give_a_one_line_error(run, tmp_path, monkeypatch, flags, words):
  monkeypatch.chdir(tmp_path)
  values = {'workdir': str(run), 'out': 'f', 'platforms': ['cpu'], 'data': None} | flags
  with pytest.raises(UserError, match=re.escape(words)) as caught:
    export.export_run(
      pathlib.Path(values['workdir']),
      values['out'],
      values['platforms'],
      values['data'],
    )
  assert '\n' not in str(caught.value) and not (tmp_path / 'f').exists()


def test_what_cannot_be_exported_gives_a_one_line_error(planted, feed, run, tmp_path):
  data = shutil.copytree(planted, tmp_path / 'data')
  with pytest.raises(UserError, match=r'holds other data than .* was trained on'):
    restore.load(run, str(feed))
  shutil.copy(run / 'config.json', tmp_path)
  with pytest.raises(UserError, match=r'holds no finished checkpoint: train on'):
    restore.load(tmp_path)
  vocabulary = data / 'vocabulary' / 'f02.txt'
  vocabulary.write_text(vocabulary.read_text() + 'more\n')
  moved = restore.load(run, str(data))
  with pytest.raises(UserError, match=r'f02.txt: is missing or altered'):
    export.write(moved, tmp_path / 'f', ['cpu'])
  assert not list(tmp_path.glob('f*'))


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    (lambda s: s.pop('recipes'), 'does not say how raw values become ids.*build it again'),
    (lambda s: s['recipes'].pop('item_id'), "damaged recipes .'item_id'"),
    (lambda s: s['recipes']['item_id'].update(kind='magic'), "kind is 'magic', expected one of"),
    (
      lambda s: s['recipes']['item_id'].update(column=7),
      r'`str`, got `int` - at `\$\[...\].column`',
    ),
    (lambda s: s['recipes']['gap']['tokens'].pop(), '15 edges and 15 tokens'),
    (lambda s: s['vocabulary'].pop('tag.txt'), 'tag.txt: is missing or altered'),
  ],
)
def test_damaged_recipes_give_a_one_line_error(feed, tmp_path, change, words):
  data = shutil.copytree(feed, tmp_path / 'data')
  content = json.loads((data / 'schema.json').read_text())
  change(content)
  (data / 'schema.json').write_text(json.dumps(content))
  schema = load_schema(str(data))
  with pytest.raises(UserError, match=words) as caught:
    recipes.example(recipes.inputs_of(schema), recipes.vocabularies_of(schema))
  assert '\n' not in str(caught.value)


def test_the_service_on_the_page_answers(planted, file, tmp_path):
  page = (REPO / 'docs' / 'serving.md').read_text()
  (code,) = (c for c in re.findall(r'```python\n(.*?)```', page, re.DOTALL) if 'http.server' in c)
  (tmp_path / 'serve.py').write_text(code)
  environ = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(REPO), *sys.path])}
  command = [sys.executable, str(tmp_path / 'serve.py'), str(file), '0']
  rows, model = planted_rows(planted)[:5], serving.load(file)
  with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as process:
    try:
      host, port = process.stdout.readline().strip().removeprefix('http://').split(':')

      def post(body):
        connection = http.client.HTTPConnection(host, int(port), timeout=60)
        connection.request('POST', '/', body)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())

      status, answer = post(json.dumps(rows))
      assert (host, status) == ('127.0.0.1', 200)
      np.testing.assert_allclose(answer['probability'], model.predict(rows), rtol=0, atol=1e-6)
      status, answer = post(json.dumps([{'f01': 1}]))
      assert status == 400 and answer['error'].startswith(
        'row 0: f01 is 1 (int): expected a string'
      )
      assert post('no JSON')[0] == 400
    finally:
      process.kill()
