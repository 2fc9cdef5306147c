# SPDX-License-Identifier: Apache-2.0
"""Whole runs through the command: result, resume after kill -9, mistakes."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import forked
import numpy as np
import pytest
from tiny_experiment import EXPERIMENT

from deres_jax import config
from deres_jax.core import files
from deres_jax.core.errors import UserError
from deres_jax.metrics import exact
from deres_jax.training import loop
from deres_jax.training import run as run_lib
from deres_jax.training.logs import metrics_file
from deres_jax.training.workdir import bind_workdir

REPO = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def experiment(tmp_path_factory):
  file = tmp_path_factory.mktemp('experiment') / 'tiny.py'
  file.write_text(EXPERIMENT)
  return file


def command(experiment, workdir, data, *more):
  return [
    *(sys.executable, '-m', 'deres_jax.main', f'--config={experiment}'),
    *(
      f'--workdir={workdir}',
      f'--config.data.path={data}',
      '--config.mesh.devices=1',
      *more,
    ),
  ]


def call(*args):
  return forked.call(command(*args))


@pytest.fixture(scope='module')
def finished(experiment, planted, tmp_path_factory):
  """An undisturbed run."""
  workdir = tmp_path_factory.mktemp('run') / 'w'
  subprocess.run(command(experiment, workdir, planted), cwd=REPO, check=True)
  return workdir


def test_a_second_start_compiles_nothing(experiment, planted, tmp_path):
  """Small programs are kept too, and what is read computes what was compiled."""
  environ = {k: v for k, v in os.environ.items() if not k.startswith(('JAX_COMP', 'JAX_PERS'))}
  quick = '--config.model.backbone=lr', '--config.model.embed_dim=1', '--config.train.epochs=0.2'
  kept, logits = [], []
  for name in ('first', 'second'):
    subprocess.run(
      command(experiment, tmp_path / name, planted, *quick),
      env=environ | {'XDG_CACHE_HOME': str(tmp_path / 'cache')},
      capture_output=True,
      cwd=REPO,
      check=True,
    )
    kept.append({p.name for p in (tmp_path / 'cache' / 'deres_jax' / 'xla').iterdir()})
    logits.append(np.load(tmp_path / name / 'test_logits.npy'))
  assert kept[0] == kept[1]
  assert {'jit_start', 'jit__lambda'} <= {name.partition('-')[0] for name in kept[0]}
  np.testing.assert_array_equal(*logits)


def lines(workdir):
  """metrics.jsonl without what the clock gave."""
  out = [json.loads(x) for x in (workdir / 'metrics.jsonl').read_text().splitlines()]
  for x in out:
    x.pop('rows_per_second', None)
  return out


def test_result_holds_what_the_interface_promises(finished, planted):
  result = json.loads((finished / 'result.json').read_text())
  promised = {
    'config_hash', 'seed', 'backbone', 'connector', 'depth', 'dim', 'auc', 'logloss', 'auc_se',
    'params_dense', 'params_embedding', 'flops_forward_per_row', 'flops_connector_extra',
    'train_flops', 'rows_seen', 'rows_per_second', 'steps', 'wall_seconds', 'device', 'versions',
    'test_logits',
  }  # fmt: skip
  assert promised <= result.keys()
  assert (result['connector'], result['depth'], result['dim']) == ('deres', 1, 8)
  assert result['rows_seen'] == 12_000 and result['steps'] == 94
  logits_N = np.load(result['test_logits'])
  assert logits_N.dtype == np.float32 and logits_N.shape == (1500,)
  assert result['planted']['splits']['test']['bayes_auc'] > result['auc'] > 0.5
  again = json.loads((finished / 'config.json').read_text())
  assert again['config_hash'] == result['config_hash'] and again['config']['model']['dim'] == 8


def test_reported_figures_are_those_of_the_stored_logits(finished, planted):
  """Labels are read here from the records themselves, not by the trainer's reader."""
  import tensorflow_datasets as tfds

  schema = json.loads((planted / 'schema.json').read_text())
  source = tfds.builder_from_directory(planted / schema['tfds']).as_data_source('test')
  labels_N = np.concatenate([source[i]['label'] for i in range(len(source))])
  result = json.loads((finished / 'result.json').read_text())
  figures = exact.evaluate_logits(labels_N, np.load(result['test_logits']))
  assert {k: result[k] for k in figures} == figures


def test_the_best_validation_checkpoint_is_the_one_tested(finished):
  validation = [x for x in lines(finished) if x['split'] == 'validation']
  best = max(validation, key=lambda x: (x['auc'], -x['step']))
  result = json.loads((finished / 'result.json').read_text())
  assert result['step_chosen'] == best['step'] and result['auc_validation'] == best['auc']
  assert [x['step'] for x in validation] == [24, 48, 72, 94]
  kept = {int(p.name) for p in (finished / 'checkpoints').iterdir()}
  assert kept == {best['step'], 91, 94}


def test_every_step_is_logged_once_and_events_are_there(finished):
  steps = [x['step'] for x in lines(finished) if x['split'] == 'train']
  assert steps == sorted({*range(5, 95, 5), *range(7, 95, 7), 24, 48, 72, 94})
  assert sum(x['rows'] for x in lines(finished) if x['split'] == 'train') == 12_000
  assert list((finished / 'tensorboard').glob('events.*'))


def parameters(workdir):
  """Every array of the last checkpoint, as bytes by path."""
  from deres_jax.data import batches as batches_lib
  from deres_jax.training import step
  from deres_jax.training.checkpoints.store import Checkpoints

  raw = json.loads((workdir / 'config.json').read_text())['config']
  raw['mesh']['devices'] = 1
  c = config.resolve(raw)
  run = run_lib.build_run(c)
  checkpoints = Checkpoints(workdir / 'checkpoints')
  abstract = step.abstract_state(run.spec), step.abstract_stream(run.spec)
  state, _, clock = checkpoints.restore(checkpoints.latest(), *abstract)
  checkpoints.close()
  assert isinstance(run.train, batches_lib.Batches)
  import jax

  leaves = jax.tree_util.tree_leaves_with_path(state)
  return {jax.tree_util.keystr(k): np.asarray(v).tobytes() for k, v in leaves}, clock


def kill_after(args, lines_seen):
  """Starts the run, kills it once metrics.jsonl has `lines_seen` lines; whether it was killed."""
  workdir = pathlib.Path(args[1])
  process = subprocess.Popen(command(*args), stderr=subprocess.DEVNULL, cwd=REPO)
  file = workdir / 'metrics.jsonl'
  deadline = time.monotonic() + 120
  while process.poll() is None and time.monotonic() < deadline:
    if file.exists() and file.read_bytes().count(b'\n') >= lines_seen:
      os.kill(process.pid, signal.SIGKILL)
      break
    time.sleep(0.002)
  return process.wait() == -signal.SIGKILL


def test_a_killed_run_goes_on_and_ends_bit_equal(experiment, planted, finished, tmp_path):
  """kill -9 early, in the middle and late; the same command finishes each time."""
  workdir = tmp_path / 'w'
  args = (experiment, workdir, planted)
  killed = [kill_after(args, seen) for seen in (2, 14, 33)]
  assert any(killed)
  done = call(*args)
  assert done.returncode == 0, done.stderr
  assert 'resuming at step' in done.stderr
  (mine, clock), (theirs, whole) = parameters(workdir), parameters(finished)
  assert mine.keys() == theirs.keys()
  assert all(mine[k] == theirs[k] for k in mine), [k for k in mine if mine[k] != theirs[k]]
  assert lines(workdir) == lines(finished)
  assert clock.rows_seen == whole.rows_seen
  a, b = (json.loads((w / 'result.json').read_text()) for w in (workdir, finished))
  for changing in ('wall_seconds', 'rows_per_second', 'test_logits', 'audit'):
    a.pop(changing), b.pop(changing)
  assert a == b


def test_a_finished_run_is_not_run_again(experiment, planted, finished):
  before = (finished / 'result.json').stat().st_mtime_ns
  done = call(experiment, finished, planted)
  assert done.returncode == 0 and 'test auc' in done.stdout
  assert (finished / 'result.json').stat().st_mtime_ns == before


def test_eval_mode_repeats_the_test_figures(experiment, planted, finished):
  done = call(experiment, finished, planted, '--mode=eval')
  assert done.returncode == 0, done.stderr
  result = json.loads((finished / 'result.json').read_text())
  test = json.loads(done.stdout)['test']
  assert {k: result[k] for k in test} == test


MISTAKES = {
  'misspelt key': (['--config.model.dept=3'], ['unknown config field', 'dept', 'depth']),
  'wrong type': (['--config.model.depth=abc'], ['model.depth', 'abc']),
  'missing data': (['--config.data.path=/nowhere/at/all'], ['/nowhere/at/all', 'build']),
  'mesh': (['--config.mesh.devices=99'], ['99', 'devices']),
  'edited config': (['--config.optim.table_lr=0.2'], ['optim.table_lr: 0.1 -> 0.2', 'workdir']),
  'unknown flag': (['--workdirr=x'], ['workdirr']),
  'stray argument': (['depth=3'], ['depth=3']),
  'connector': (['--config.model.connector=dres'], ["'dres'", 'attnres, ', 'deres, ', 'prenorm']),
  'bucket': (['--workdir=gs://bucket/run'], ['gs://bucket/run', 'folder', 'mount']),
  'profile': (['--profile=0:3'], ["'0:3'", 'START:STEPS']),
  'mode': (['--mode=fly'], ['mode', 'fly', 'eval']),
  'no such experiment': (['--config=nowhere.py'], ['nowhere.py']),
}


@pytest.mark.parametrize('name', MISTAKES)
def test_a_mistake_costs_one_line_and_code_2(experiment, planted, finished, name):
  more, words = MISTAKES[name]
  before = sorted(p for p in finished.rglob('*'))
  done = call(experiment, finished, planted, *more)
  said = done.stderr.strip()
  assert done.returncode == 2, said
  assert said.startswith('error: ') and '\n' not in said and all(w in said for w in words), said
  assert sorted(p for p in finished.rglob('*')) == before


def test_a_workdir_of_other_data_is_refused(planted, tmp_path):
  (tmp_path / 'config.json').write_text('{}')
  c = config.resolve(config.base(f'data.path={planted},mesh.devices=1,model.depth=1'))
  run = run_lib.build_run(c)
  content = {'config': config.as_dict(c), 'identity': config.identity(c)}
  content |= {'data_content': {'train': 'other'}}
  files.write_json(tmp_path / 'config.json', content)
  with pytest.raises(UserError, match='started on other data'):
    bind_workdir(run.config, run.schema, tmp_path)


def test_a_loss_that_is_not_finite_stops_the_run(planted, tmp_path):
  overrides = f'data.path={planted},mesh.devices=1,model.depth=1,model.dim=8,model.heads=2'
  overrides += ',optim.table_lr=1e15,optim.dense_lr=1e15,data.batch_size=128,train.log_steps=1'
  with pytest.raises(UserError, match=r'step \d+ is not finite: .*; the last checkpoint'):
    loop.train(config.resolve(config.base(overrides)), tmp_path)


def test_a_torn_line_is_dropped_and_later_steps_are_cut(tmp_path):
  good = [{'step': s, 'split': 'train', 'auc': 0.5} for s in (1, 2, 3)]
  test = {'step': 2, 'split': 'test', 'auc': 0.7}  # written again by the run that resumes
  text = ''.join(json.dumps(x) + '\n' for x in [test, *good]) + '{"step": 4, "spl'
  (tmp_path / 'metrics.jsonl').write_text(text)
  record = metrics_file.Metrics(tmp_path, 2, 2)
  record.write(3, 'train', {'auc': 0.6, 'bad': float('nan')})
  record.close()
  got = [json.loads(x) for x in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
  assert got == [*good[:2], {'step': 3, 'split': 'train', 'auc': 0.6, 'bad': None}]
