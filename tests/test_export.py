# SPDX-License-Identifier: Apache-2.0
"""A run as one file: raw rows have the probabilities that evaluation gave them."""

import csv
import gzip
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import zipfile

import jax
import numpy as np
import pytest
from made import feed_row

from data_pipelines import build
from data_pipelines.avazu_protocol import SPLIT_PROTOCOLS as AVAZU_SPLITS
from data_pipelines.criteo_parse import FIELD_NAMES
from data_pipelines.criteo_protocol import SPLIT_PROTOCOLS as CRITEO_SPLITS
from deres_jax import artifact, config, export, models, parallel, serving, train
from deres_jax.blocks import Blocks
from deres_jax.errors import UserError
from deres_jax.models.backbones import TOKEN_BACKBONES
from deres_jax.models.layers import Context
from deres_jax.schema import load_schema
from deres_jax.setup import abstract_rows, make_setup

REPO = pathlib.Path(__file__).resolve().parents[1]
TINY = (
  'model.depth=1,model.dim=8,model.heads=2,model.embed_dim=4,model.ffn_ratio=2,mlp.units=8,'
  'mlp.layers=1,deres.block_layers=1,data.batch_size=64,data.eval_batch_size=128,'
  'optim.table_init_std=1.0,train.steps=3,train.epochs=0.0,train.eval_steps=2,'
  'train.eval_epochs=0.0,mesh.devices=1,train.compilation_cache=False'
)


def trained(folder, workdir, more=''):
  """Three steps; returns the workdir."""
  train.train(config.resolve(config.base(f'{TINY},data.path={folder},{more}')), workdir)
  return workdir


def written(workdir, out, platforms=export.PLATFORMS):
  export.write(export.best_of(workdir, None), out, list(platforms))
  return serving.load(out)


def evaluated(workdir):
  """Probabilities of the test split, in the order of its rows."""
  return 1 / (1 + np.exp(-np.load(workdir / 'test_logits.npy').astype(np.float64)))


def assert_predicts(model, rows, workdir):
  got, want = model.predict(rows), evaluated(workdir)
  assert got.dtype == np.float32 and got.shape == want.shape == (len(rows),)
  assert np.ptp(want) > 0.01
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)


def ids_of(folder, split='test'):
  schema = load_schema(str(folder))
  blocks = Blocks(schema, split)
  count = -(-blocks.rows // schema.block_rows)
  return np.concatenate([blocks.read(i).ids for i in range(count)]).tolist()


def planted_rows(folder):
  names = load_schema(str(folder)).fields
  return [dict(zip(names, (str(i - 2) for i in ids), strict=True)) for ids in ids_of(folder)]


@pytest.fixture(scope='module')
def run(planted, tmp_path_factory):
  return trained(planted, tmp_path_factory.mktemp('run') / 'w')


@pytest.fixture(scope='module')
def file(run, tmp_path_factory):
  out = tmp_path_factory.mktemp('file') / 'model.zip'
  export.write(export.best_of(run, None), out, list(export.PLATFORMS))
  return out


def test_the_file_predicts_as_evaluation_did(planted, run, file):
  """1,500 rows: one full part and one that is padded; then few rows, one and none."""
  model, rows = serving.load(file), planted_rows(planted)
  assert_predicts(model, rows, run)
  whole = model.predict(rows)
  for few in (rows[:1], rows[:3], rows[100:164]):
    first = rows.index(few[0])
    np.testing.assert_allclose(model.predict(few), whole[first : first + len(few)], atol=1e-6)
  assert model.predict([]).shape == (0,) and model.predict([]).dtype == np.float32
  example = model.predict(model.description['example'])
  assert example.shape == (1,) and 0 < example[0] < 1


def test_the_file_says_what_it_is(planted, run, file):
  d = serving.load(file).description
  result = json.loads((run / 'result.json').read_text())
  assert d['platforms'] == ['cpu', 'cuda', 'tpu']
  assert (d['config_hash'], d['step']) == (result['config_hash'], result['step_chosen'])
  assert d['data_content'] == load_schema(str(planted)).content
  assert (d['backbone'], d['connector']) == ('onetrans', 'deres')
  assert [f['name'] for f in d['inputs']['fields']] == list(load_schema(str(planted)).fields)
  assert d['versions']['jax'] == jax.__version__
  with zipfile.ZipFile(file) as archive:
    assert set(archive.namelist()) == {*d['sha256'], artifact.DESCRIPTION}
    table = np.load(archive.open('weights/table_0.npy'), allow_pickle=False)
  best = export.best_of(run, None)
  assert table.shape == (best.setup.tables.rows, 4)
  # Row offset + id of each column, whatever the order in memory.
  in_memory = np.asarray(best.rows[0])
  numbers = np.arange(len(table), dtype=np.int32)
  np.testing.assert_array_equal(table, in_memory[best.setup.tables.places(numbers)])


def test_the_same_run_gives_the_same_bytes(run, file, tmp_path):
  export.write(export.best_of(run, None), tmp_path / 'again', list(export.PLATFORMS))
  assert (tmp_path / 'again').read_bytes() == file.read_bytes()


def test_serving_needs_little_more_than_jax(planted, file):
  """Neither flax nor orbax, nor what reads data and flags."""
  code = (
    'import sys\n'
    "for name in ('flax', 'orbax', 'optax', 'absl', 'grain', 'tensorflow_datasets',"
    " 'ml_collections', 'array_record', 'chex', 'scipy'):\n"
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
    'model.backbone=onetrans,model.depth=2,model.pyramid_events=2',
  ],
  ids=['din', 'onetrans'],
)
def test_histories_predict_as_evaluation_did(feed, tmp_path, more):
  workdir, schema = trained(feed, tmp_path / 'w', more), load_schema(str(feed))
  rows = [feed_row(schema, ids) for ids in ids_of(feed)]
  assert {0, 6} <= {len(row['events']) for row in rows}
  model = written(workdir, tmp_path / 'f')
  assert_predicts(model, rows, workdir)
  assert 0 < model.predict(model.description['example'])[0] < 1


def test_real_criteo_rows_predict_as_evaluation_did(samples, tmp_path):
  """Tables of two widths with linear weights; missing values and unknown categories."""
  with gzip.open(samples / 'criteo_sample.tsv.gz', 'rt') as file:
    lines = [line.rstrip('\n').split('\t') for line, _ in zip(file, range(4000), strict=False)]
  flags = ['--dataset=criteo', f'--raw={samples / "criteo_sample.tsv.gz"}', '--limit=4000']
  assert not build.main([*flags, f'--out={tmp_path / "data"}', '--min_count=3'])
  numbers = CRITEO_SPLITS['x4'].rows(len(lines), 0)['test']
  rows = [{k: v for k, v in zip(FIELD_NAMES, lines[i][1:], strict=True) if v} for i in numbers]
  ids = np.array(ids_of(tmp_path / 'data'))
  assert (ids[:, 13:] == 1).any() and min(map(len, rows)) < 39
  more = 'model.backbone=deepfm,model.embed_dim_of_few=50:2'
  workdir = trained(tmp_path / 'data', tmp_path / 'w', more)
  model = written(workdir, tmp_path / 'f')
  assert_predicts(model, rows, workdir)
  assert [w for w in model.description['weights'] if w.startswith('table_')] == [
    'table_0.kernel',
    'table_0',
    'table_1',
  ] or 'table_1' in model.description['weights']


def test_real_avazu_rows_predict_as_evaluation_did(samples, tmp_path):
  sample = samples / 'avazu_sample.csv.gz'
  if not sample.is_file():
    pytest.skip(f'no {sample.name} in {samples}')
  with gzip.open(sample, 'rt') as file:
    lines = [row for row, _ in zip(csv.DictReader(file), range(1999), strict=False)]
  flags = ['--dataset=avazu', f'--raw={sample}', f'--out={tmp_path / "data"}', '--limit=2000']
  assert not build.main(flags)
  numbers = AVAZU_SPLITS['x4'].rows(len(lines), 0)['test']
  rows = [{k: v for k, v in lines[i].items() if k not in ('id', 'click')} for i in numbers]
  workdir = trained(tmp_path / 'data', tmp_path / 'w', 'model.backbone=lr,model.embed_dim=1')
  assert_predicts(written(workdir, tmp_path / 'f'), rows, workdir)


def untrained(folder, more):
  """A run that never was: random weights for a config on a prepared folder."""
  c = config.resolve(config.base(f'{TINY},data.path={folder},train.kernels=off,{more}'))
  schema = load_schema(str(folder))
  setup = make_setup(c, schema, parallel.make_mesh(1), 10)
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(
    setup.model.init,
    jax.random.key(0),
    abstract_rows(setup.tables, setup.slot_tables, 1),
    Context(),
  )['params']
  params = jax.tree.map(lambda p: np.float32(0.4 * rng.normal(size=p.shape)), shapes)
  rows = tuple(np.float32(rng.normal(size=table.shape)) for table in setup.tables.parts)
  return export.Trained(c, schema, setup, params, rows, 4, None)


def check_symbolic(run):
  """Exports for any batch and every platform, and equals the model on rows gathered by NumPy."""
  function, weights = export.exported(run, list(export.PLATFORMS))
  assert function.platforms == export.PLATFORMS
  ids_aval = function.in_avals[-1]
  assert str(ids_aval.shape[0]) == 'b' and function.out_avals[0].shape == ids_aval.shape[:1]
  ids = np.array(ids_of_feed(run.schema))[:3]
  tables, S = run.setup.tables, ids.shape[1]
  numbers = tables.offsets[np.array(run.schema.columns)] + ids
  table = run.rows[0][tables.places(numbers.reshape(-1)).reshape(numbers.shape)]
  width = len(run.schema.fields)
  table[:, width:][ids[:, width:] == 0] = 0
  there = ids[:, width :: len(run.schema.sequence.attributes)] != 0
  assert S == len(run.schema.columns) and not there.all()
  ctx = Context(progress=np.float32(0.4), mask_BT=there)
  logits = jax.jit(run.setup.model.apply)({'params': run.params}, table, ctx)
  arrays = [np.concatenate(list(w.parts)) if w.shape else next(w.parts) for w in weights]
  got = function.call(arrays, ids.astype(np.int32))
  np.testing.assert_allclose(got, jax.nn.sigmoid(logits), rtol=0, atol=2e-6)


def ids_of_feed(schema):
  return ids_of(schema.path, 'train')


@pytest.mark.parametrize('backbone', sorted(models.BACKBONES))
def test_every_backbone_exports_for_any_batch(feed, backbone):
  more = 'model.embed_dim=1' if backbone == 'lr' else 'classic.fusion_heads=2'
  fixed = backbone in TOKEN_BACKBONES and backbone not in ('onetrans', 'transformer', 'hstu')
  more += ',model.tokenizer=slice,model.tokens=4' if fixed else ''
  check_symbolic(untrained(feed, f'model.backbone={backbone},{more}'))


@pytest.mark.parametrize('connector', sorted(models.CONNECTORS))
def test_every_connector_exports_for_any_batch(feed, connector):
  more = f'model.backbone=transformer,model.connector={connector},model.depth=2'
  function, _ = export.exported(untrained(feed, more), list(export.PLATFORMS))
  assert function.platforms == export.PLATFORMS and str(function.out_avals[0].shape) == '(b,)'
