# SPDX-License-Identifier: Apache-2.0
"""The same run on any number of devices and processes, stopped and resumed anywhere.

Pods are real processes that meet on 127.0.0.1.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import quick
from marks import slow
from pod_state import describe

from deres_jax import config
from deres_jax.core import allocator
from deres_jax.core.errors import Retry
from deres_jax.training import evaluate, loop, step

REPO = pathlib.Path(__file__).resolve().parents[2]
LIMIT = 150  # seconds after which a pod counts as hanging

EXPERIMENT = """
from deres_jax.config import base


def get_config():
  return base(
    'model.depth=1,model.dim=8,model.heads=2,model.embed_dim=4,model.ffn_ratio=1,'
    'deres.block_layers=1,optim.table_lr=0.1,optim.adam_eps=0.001,model.dropout=0.1,'
    'model.embed_dim_of_few=12:2,'
    'data.batch_size=256,data.eval_batch_size=256,train.epochs=0.0,train.steps=16,'
    'train.eval_epochs=0.0,train.eval_steps=8,train.log_steps=4,train.compilation_cache=False'
  )
"""


def settings(planted, devices=0, more=''):
  space = {}
  exec(EXPERIMENT, space)  # our own text
  c = space['get_config']()
  config.update(c, f'data.path={planted},mesh.devices={devices},{more}')
  return config.resolve(c)


def pod(experiment, workdir, planted, processes, devices, *more):
  """Starts a pod of that run."""
  command = [sys.executable, '-m', 'deres_jax.pod', f'--processes={processes}']
  command += [f'--devices={devices}', '--grace=30', '--', f'--config={experiment}']
  flags = [f'--workdir={workdir}', f'--config.data.path={planted}', *more]
  environ = {**os.environ, 'PYTHONPATH': str(REPO), 'XLA_FLAGS': quick.XLA_FLAGS}
  environ[allocator.VARIABLE] = 'auto'
  return subprocess.Popen(
    [*command, *flags], cwd=REPO, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    text=True,
  )  # fmt: skip


def end(process):
  out, _ = process.communicate(timeout=LIMIT)
  return process.returncode, out


@pytest.fixture(scope='module')
def experiment(tmp_path_factory):
  file = tmp_path_factory.mktemp('experiment') / 'tiny.py'
  file.write_text(EXPERIMENT)
  return file


@pytest.fixture(scope='module')
def alone(planted, once):
  """Returns the workdir of the run on one device."""
  return once('alone', lambda folder: loop.train(settings(planted, 1), folder))


@pytest.fixture(scope='module')
def runs(alone, experiment, planted, once):
  """Returns a folder of workdirs of the same run: 4 devices, and 2 processes x 2."""

  def make(folder):
    several = pod(experiment, folder / '2x2', planted, 2, 2)
    try:
      loop.train(settings(planted, 4), folder / '4')
      code, out = end(several)
    finally:
      several.kill()
    assert code == 0, out
    assert out.count('test auc') == 1, out  # only one process prints

  return once('runs', make)


@pytest.fixture(scope='module')
def alone_described(alone):
  return describe(alone, 1)


def lines(workdir):
  got = [json.loads(x) for x in (workdir / 'metrics.jsonl').read_text().splitlines()]
  for x in got:
    x.pop('rows_per_second', None)
  return got


AUC = 3e-6  # rounding swaps a pair of rows, which is 1.2e-6 of them


@pytest.mark.parametrize('other', [slow('2'), slow('8'), '4', '2x2'])
def test_every_mesh_and_every_pod_trains_the_same(alone, runs, planted, other):
  if not (runs / other).exists():
    loop.train(settings(planted, int(other)), runs / other)
  one, many = lines(alone), lines(runs / other)
  assert [(x['step'], x['split']) for x in one] == [(x['step'], x['split']) for x in many]
  for a, b in zip(one, many, strict=True):
    assert (a['rows'], a['clicks']) == (b['rows'], b['clicks'])  # of the same batches
    assert b['logloss'] == pytest.approx(a['logloss'], rel=2e-6)
    assert b['auc'] == pytest.approx(a['auc'], abs=AUC)
  result, expected = (json.loads((w / 'result.json').read_text()) for w in (runs / other, alone))
  assert result['auc'] == pytest.approx(expected['auc'], abs=AUC)
  assert result['config_hash'] == expected['config_hash']
  a, b = (np.load(w / 'test_logits.npy') for w in (runs / other, alone))
  np.testing.assert_allclose(a, b, atol=2e-5)


def test_a_pod_writes_the_files_of_a_single_process(runs):
  names = [sorted(p.name for p in (runs / w).iterdir()) for w in ('4', '2x2')]
  assert names[0] == names[1]
  result = json.loads((runs / '2x2' / 'result.json').read_text())
  assert (result['device']['count'], result['device']['processes']) == (4, 2)
  assert result['allocator'] == ('jemalloc' if allocator.find() else allocator.name())


def described_by_pod(workdir, processes, devices):
  call = f'pod.run([{sys.executable!r}, "tests/helpers/pod_state.py", {str(workdir)!r}], '
  call += f'{processes}, {devices}, 30.0)'
  script = f'import sys; from deres_jax.pod import __main__ as pod; sys.exit({call})'
  environ = {**os.environ, 'PYTHONPATH': str(REPO), 'XLA_FLAGS': quick.XLA_FLAGS}
  done = subprocess.run(
    [sys.executable, '-c', script], cwd=REPO, env=environ, capture_output=True, text=True,
    timeout=LIMIT, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  return json.loads(next(x for x in done.stdout.splitlines() if '{' in x).split(' ', 1)[1])


def test_a_checkpoint_of_4_devices_restores_anywhere(runs):
  """Bit-equal arrays in the new mesh's shardings, and the same next batch."""
  wanted = describe(runs / '4', 4)
  assert wanted.pop('mesh') == 4 and wanted['step'] == 16
  assert wanted['stops'] == [False, True, True]
  assert sum('.tables' in k for k in wanted) == 2  # tables of two widths
  for found in (
    describe(runs / '4', 1),
    describe(runs / '4', 8),
    described_by_pod(runs / '4', 2, 1),
  ):
    assert found.pop('mesh') in (1, 8, 2)
    assert found == wanted


def test_a_checkpoint_of_two_processes_restores_on_one(runs):
  wanted = described_by_pod(runs / '2x2', 2, 2)
  found = describe(runs / '2x2', 1)
  assert (wanted.pop('mesh'), found.pop('mesh')) == (4, 1)
  assert found == wanted


# Stopping.


def stop_when(monkeypatch, place, name, call):
  """Sends SIGTERM to this process in the `call`-th call of `place.name` or of what it makes."""
  made, calls = getattr(place, name), []

  def now():
    calls.append(0)
    if len(calls) == call:
      os.kill(os.getpid(), signal.SIGTERM)

  if name.startswith('make_'):

    def patched(*args):
      fn = made(*args)
      return lambda *a: (now(), fn(*a))[1]
  else:

    def patched(*args):
      now()
      return made(*args)

  monkeypatch.setattr(place, name, patched)


@pytest.mark.parametrize(
  ('place', 'name', 'call', 'said', 'at'),
  [
    slow(step, 'make_train_step', 5, 'at step 6 of 16', 6),
    (step, 'make_train_step', 7, 'at step 8 of 16', 8),  # a step with validation
    # The next test has this stop, and one more.
    slow(evaluate, 'evaluate', 1, 'at step 8 of 16', 8),
    slow(evaluate, 'evaluate', 2, 'at step 16 of 16', 16),
    (evaluate, 'evaluate', 3, 'before the figures of a split', 16),
  ],
)
def test_sigterm_saves_and_the_same_command_goes_on(
  alone, alone_described, planted, tmp_path, monkeypatch, place, name, call, said, at
):
  """Result and metrics.jsonl are bit-equal to those of an uninterrupted run."""
  c, old = settings(planted, 1), signal.getsignal(signal.SIGTERM)
  with monkeypatch.context() as patch:
    stop_when(patch, place, name, call)
    with pytest.raises(Retry, match=f'{said}.*the same command goes on'):
      loop.train(c, tmp_path)
  assert signal.getsignal(signal.SIGTERM) == old
  assert not (tmp_path / 'result.json').exists()
  assert describe(tmp_path, 1)['step'] == at
  loop.train(c, tmp_path)
  assert lines(tmp_path) == lines(alone)
  assert describe(tmp_path, 1) == alone_described
  a, b = (json.loads((w / 'result.json').read_text()) for w in (tmp_path, alone))
  assert (a['auc'], a['step_chosen'], a['auc_validation']) == (
    b['auc'],
    b['step_chosen'],
    b['auc_validation'],
  )


def test_sigterm_in_a_postponed_validation_saves_nothing_and_loses_nothing(
  alone, alone_described, planted, tmp_path, monkeypatch
):
  """Stops twice in the same validation: in the first run, and after resuming."""
  c = settings(planted, 1)
  for said in ('at step 8 of 16', 'before the figures of a split'):
    with monkeypatch.context() as patch:
      stop_when(patch, evaluate, 'evaluate', 1)
      with pytest.raises(Retry, match=said):
        loop.train(c, tmp_path)
    assert describe(tmp_path, 1)['step'] == 8
  loop.train(c, tmp_path)
  assert lines(tmp_path) == lines(alone)
  assert describe(tmp_path, 1) == alone_described


def wait_for_lines(workdir, process, count):
  file, until = workdir / 'metrics.jsonl', time.monotonic() + LIMIT
  while not (file.exists() and file.read_bytes().count(b'\n') >= count):
    assert process.poll() is None and time.monotonic() < until, process.communicate()
    time.sleep(0.05)


def workers(process):
  """Returns the ids of the worker processes, by process number."""
  found = {}
  for folder in pathlib.Path('/proc').glob('[0-9]*'):
    try:
      command = (folder / 'cmdline').read_text().split('\0')
      parent = int((folder / 'stat').read_text().rsplit(')', 1)[1].split()[1])
    except (OSError, ValueError):
      continue
    mine = [x for x in command if x.startswith('--process=')]
    if mine and parent == process.pid:
      found[int(mine[0].partition('=')[2])] = int(folder.name)
  return found


@pytest.mark.skipif(sys.platform != 'linux', reason='finds the processes in /proc')
def test_a_pod_that_stops_and_loses_a_process_ends_like_an_undisturbed_one(
  experiment, planted, tmp_path
):
  """SIGTERM to one process, kill -9 of one, and the last steps on one process."""
  more = ['--config.train.steps=90', '--config.train.eval_steps=45']
  more += ['--config.mesh.heartbeat_seconds=10', '--config.train.checkpoint_steps=20']
  workdir = tmp_path / 'w'
  first = pod(experiment, workdir, planted, 2, 2, *more)
  wait_for_lines(workdir, first, 1)
  os.kill(workers(first)[1], signal.SIGTERM)
  code, out = end(first)
  assert code == 75, out
  said = [x for x in out.splitlines() if 'the same command goes on' in x]
  assert len(said) == 2 and said[0][4:] == said[1][4:], out  # both at the same step
  before = len(lines(workdir))
  second = pod(experiment, workdir, planted, 2, 2, *more)
  wait_for_lines(workdir, second, before + 8)
  began = time.monotonic()
  os.kill(workers(second)[1], signal.SIGKILL)
  code, out = end(second)
  assert code == 75 and time.monotonic() - began < 60, out
  assert 'resuming at step' in out and '[0] stopped: ' in out, out
  c = settings(planted, 1, 'train.steps=90,train.eval_steps=45,train.checkpoint_steps=20')
  loop.train(c, workdir)
  loop.train(c, tmp_path / 'undisturbed')
  a, b = lines(workdir), lines(tmp_path / 'undisturbed')
  assert [(x['step'], x['split'], x['rows']) for x in a] == [
    (x['step'], x['split'], x['rows']) for x in b
  ]
  np.testing.assert_allclose([x['logloss'] for x in a], [x['logloss'] for x in b], rtol=1e-4)
