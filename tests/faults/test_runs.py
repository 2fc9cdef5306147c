# SPDX-License-Identifier: Apache-2.0
"""Runs whose files are damaged between two starts: a line, and the end that nobody disturbed."""

import os
import shutil
import signal

import pytest
from damage import flip, rewrite, table
from kills import end_of
from pod_state import describe

from deres_jax import config
from deres_jax.core.errors import Retry, UserError
from deres_jax.data.blocks import Blocks
from deres_jax.training import evaluate, loop, run, step
from deres_jax.training.checkpoints import store


def settings(data):
  return config.resolve(
    config.base(
      'model.backbone=lr,model.embed_dim=1,data.batch_size=128,data.eval_batch_size=512,'
      'train.epochs=0.0,train.steps=24,train.eval_epochs=0.0,train.eval_steps=12,'
      f'train.checkpoint_steps=4,train.log_steps=5,mesh.devices=1,data.path={data}'
    )
  )


class Cut(Exception):
  """Ends a run where a test wants it."""


def cut_off(monkeypatch, c, workdir, place=step, name='make_train_step', calls=22):
  """Runs until the so-many-th call of what `place.name` makes or is."""
  made, left = getattr(place, name), iter(range(calls - 1))

  def counted(fn):
    def call(*args):
      if next(left, None) is None:
        raise Cut
      return fn(*args)

    return call

  with monkeypatch.context() as patch:
    wrapped = (lambda *a: counted(made(*a))) if name.startswith('make_') else counted(made)
    patch.setattr(place, name, wrapped)
    with pytest.raises(Cut):
      loop.train(c, workdir)


@pytest.fixture(scope='module')
def whole(planted, tmp_path_factory):
  """Workdir of an undisturbed run."""
  workdir = tmp_path_factory.mktemp('whole') / 'w'
  loop.train(settings(planted), workdir)
  return workdir


@pytest.fixture(scope='module')
def stopped(planted, tmp_path_factory):
  """Workdir of a run that ended at step 21: checkpoints 12 (the best), 16 and 20."""
  workdir = tmp_path_factory.mktemp('stopped') / 'w'
  with pytest.MonkeyPatch.context() as patch:
    cut_off(patch, settings(planted), workdir)
  assert {p.name for p in (workdir / 'checkpoints').iterdir()} == {'12', '16', '20'}
  return workdir


@pytest.fixture
def workdir(stopped, tmp_path):
  shutil.copytree(stopped, tmp_path / 'w')
  return tmp_path / 'w'


def assert_equal(workdir, whole):
  assert end_of(workdir) == end_of(whole)
  assert describe(workdir, 1) == describe(whole, 1)


@pytest.mark.parametrize('damaged', [['20'], ['20', '16']])
def test_a_run_falls_back_to_an_older_checkpoint_and_ends_the_same(
  workdir, whole, planted, capsys, damaged
):
  for name in damaged:
    flip(table(workdir / 'checkpoints' / name))
  loop.train(settings(planted), workdir)
  said = capsys.readouterr().err
  for name in damaged:
    assert f'checkpoint {name} is damaged' in said and f'set aside as damaged-{name}' in said
  assert f'resuming at step {16 if damaged == ["20"] else 12} of 24' in said
  assert_equal(workdir, whole)


@pytest.mark.parametrize('how', ['deleted', 'emptied', 'cut'])
def test_lost_figures_are_reported_and_the_run_goes_on(workdir, whole, planted, capsys, how):
  record = workdir / 'metrics.jsonl'
  before = record.read_text().splitlines()
  if how == 'deleted':
    record.unlink()
  else:
    record.write_text('' if how == 'emptied' else '\n'.join(before[:2]) + '\n{"step": 10, "sp')
  loop.train(settings(planted), workdir)
  kept = {'deleted': 0, 'emptied': 0, 'cut': 2}[how]
  assert f'{record} has {kept} of 9 lines up to step 20' in capsys.readouterr().err
  mine, theirs = end_of(workdir), end_of(whole)
  assert mine.pop('lines') == theirs['lines'][:kept] + [
    x for x in theirs.pop('lines') if x['step'] > 20
  ]
  assert mine == theirs


def test_a_run_stopped_where_no_figures_are_due_has_lost_none(
  whole, planted, tmp_path, monkeypatch, capsys
):
  """A stop at step 7: between two lines of metrics.jsonl."""
  made, calls = step.make_train_step, []

  def make(spec):
    fn = made(spec)

    def call(*args):
      calls.append(0)
      if len(calls) == 6:
        signal.raise_signal(signal.SIGTERM)
      return fn(*args)

    return call

  c = settings(planted)
  with monkeypatch.context() as patch:
    patch.setattr(step, 'make_train_step', make)
    with pytest.raises(Retry, match='at step 7'):
      loop.train(c, tmp_path / 'w')
  loop.train(c, tmp_path / 'w')
  said = capsys.readouterr().err
  assert 'resuming at step 7' in said and 'gone' not in said
  assert_equal(tmp_path / 'w', whole)


def test_an_undamaged_run_prints_no_remark(workdir, whole, planted, capsys):
  loop.train(settings(planted), workdir)
  said = capsys.readouterr().err
  assert 'damaged' not in said and 'gone' not in said
  assert_equal(workdir, whole)


def test_a_damaged_best_ends_the_run_until_the_user_says_what_to_do(
  workdir, planted, monkeypatch, capsys
):
  """The best, 12, is neither the checkpoint that the run goes on from nor another's stand-in."""
  c, best = settings(planted), workdir / 'checkpoints' / '12'
  rewrite(best, auc=0.99)
  flip(table(best))
  for _ in range(2):
    with pytest.raises(UserError, match=r'12 is to be evaluated and is damaged .*another checksum'):
      loop.train(c, workdir)
  with pytest.raises(UserError, match='12 is to be evaluated and is damaged'):
    loop.evaluate_best(c, workdir)
  assert not (workdir / 'result.json').exists()
  assert {p.name for p in best.parent.iterdir()} == {'12', '20', '24'}
  best.rename(workdir / 'elsewhere')
  assert loop.train(c, workdir)['step_chosen'] == 24
  assert loop.evaluate_best(c, workdir)['step'] == 24


def test_lines_are_on_the_disk_before_a_checkpoint_is_begun(planted, tmp_path, monkeypatch):
  record, synced, steps = tmp_path / 'w' / 'metrics.jsonl', [], []
  sync, save = os.fsync, store.Checkpoints.save

  def fsync(number):
    sync(number)
    if os.fstat(number).st_ino == record.stat().st_ino:
      synced.append(record.read_bytes())

  def saving(self, step, *args):
    assert synced[-1] == record.read_bytes() and f'"step": {step},'.encode() in synced[-1]
    steps.append(step)
    save(self, step, *args)

  monkeypatch.setattr(store.Checkpoints, 'save', saving)
  (tmp_path / 'w').mkdir()
  record.touch()
  monkeypatch.setattr(os, 'fsync', fsync)
  cut_off(monkeypatch, settings(planted), tmp_path / 'w', calls=10)
  assert steps == [4, 8]


def test_data_altered_under_a_run_is_reported_and_mended(
  workdir, whole, planted, tmp_path, monkeypatch
):
  """One bit of the training records, under the same schema.json."""
  data = tmp_path / 'data'
  shutil.copytree(planted, data)
  c = settings(data)
  (record,) = [p for p in data.rglob('*') if 'train' in p.name and 'array_record' in p.name]
  flip(record)
  before = {p.name for p in (workdir / 'checkpoints').iterdir()}
  with pytest.raises(UserError, match=r'split train cannot be read .*doctor'):
    loop.train(c, workdir)
  assert {p.name for p in (workdir / 'checkpoints').iterdir()} == before
  flip(record)
  loop.train(c, workdir)
  assert_equal(workdir, whole)


def test_a_damaged_config_json_is_reported(workdir, planted):
  os.truncate(workdir / 'config.json', 30)
  with pytest.raises(UserError, match=r'config.json: not valid JSON .*put the file back'):
    loop.train(settings(planted), workdir)


def test_a_run_that_is_cut_off_in_its_test_evaluates_again(planted, whole, tmp_path, monkeypatch):
  cut_off(monkeypatch, settings(planted), tmp_path / 'w', evaluate, 'evaluate', 3)
  loop.train(settings(planted), tmp_path / 'w')
  assert_equal(tmp_path / 'w', whole)


def test_a_split_is_opened_once_a_run(planted, tmp_path, monkeypatch):
  """TFDS keeps some of every builder for ever: a run of many evaluations would grow."""
  opened = []

  def blocks(schema, split):
    opened.append(split)
    return Blocks(schema, split)

  monkeypatch.setattr(run, 'Blocks', blocks)
  loop.train(settings(planted), tmp_path / 'w')
  written = (tmp_path / 'w' / 'metrics.jsonl').read_text()
  assert written.count('"validation"') == 2
  assert opened == ['train', 'validation', 'test']
