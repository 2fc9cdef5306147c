# SPDX-License-Identifier: Apache-2.0
"""What a run can do besides training changes none of its numbers: a profile, W&B, TensorBoard."""

import dataclasses
import importlib
import importlib.util
import json
import pathlib

import numpy as np
import pytest

from deres_jax import config
from deres_jax.config import checks, fields
from deres_jax.core.errors import UserError
from deres_jax.pod import processes
from deres_jax.training import loop
from deres_jax.training import run as run_lib
from deres_jax.training.logs import metrics_file, profiling
from deres_jax.training.logs import wandb as wandb_lib

REPO = pathlib.Path(__file__).resolve().parents[2]
TINY = (
  'mesh.devices=1,batch_size=512,eval_batch_size=512,backbone=lr,embed_dim=1,table_lr=0.1,'
  'steps=9,epochs=0.0,eval_steps=4,eval_epochs=0.0,log_steps=2'
)


@pytest.fixture
def wandb(monkeypatch):
  """The stand-in for the package."""
  monkeypatch.syspath_prepend(REPO / 'tests' / 'fake_wandb')
  module = importlib.import_module('wandb')
  module.CALLS.clear()
  module.FAIL.clear()
  return module


def tiny(data, more=''):
  return config.resolve(config.base(f'{TINY},data.path={data}{more}'))


def identified(c):
  """What `WandB` takes of a config."""
  return 'ctr', config.config_hash(c), config.identity(c)


def numbers(workdir):
  """Figures of all lines and the test logits, without what the clock gave."""
  lines = [json.loads(x) for x in (workdir / 'metrics.jsonl').read_text().splitlines()]
  for x in lines:
    x.pop('rows_per_second', None)
  return lines, np.load(workdir / 'test_logits.npy').tobytes()


def test_profile_and_wandb_change_no_numbers(planted, tmp_path, wandb, capfd):
  plain, watched = tiny(planted), tiny(planted, ',profile=3:2,wandb=ctr')
  assert config.config_hash(plain) == config.config_hash(watched)
  loop.train(plain, tmp_path / 'plain')
  assert not wandb.CALLS  # nothing is sent unless asked for
  loop.train(watched, tmp_path / 'watched')
  assert numbers(tmp_path / 'plain') == numbers(tmp_path / 'watched')
  [trace] = (tmp_path / 'watched' / 'profile').rglob('*.xplane.pb')
  assert b'train' in trace.read_bytes()
  assert not (tmp_path / 'plain' / 'profile').exists()

  (name, settings), (_, metric), *logged, (last, code) = wandb.CALLS
  assert (name, metric, last, code) == ('init', ('*', 'step'), 'finish', 0)
  assert settings['project'] == 'ctr' and settings['resume'] == 'allow'
  assert settings['config']['model.embed_dim'] == 1 and 'data.path' not in settings['config']
  lines, _ = numbers(tmp_path / 'watched')
  sent = [(x['step'], {k.partition('/')[0] for k in x if k != 'step'}) for _, x in logged]
  assert sent == [(x['step'], {x['split']}) for x in lines]
  assert logged[-1][1]['test/auc'] == lines[-1]['auc']

  said = capfd.readouterr().err
  assert '\x1b' not in said and '\r' not in said  # not a terminal
  assert f'config {config.config_hash(plain)}: ' in said and 'steps' in said
  assert '  model.backbone ' in said and 'onetrans -> lr\n' in said


def test_a_run_that_goes_on_is_the_same_run_of_wandb(planted, tmp_path, wandb):
  first = tiny(planted, ',wandb=ctr')
  for c, workdir in (
    (first, 'a'),
    (dataclasses.replace(first, mesh=fields.Mesh()), 'a'),  # other devices, the same run
    (first, 'b'),
    (dataclasses.replace(first, seed=1), 'a'),
  ):
    wandb_lib.WandB(*identified(c), tmp_path / workdir).close()
  same, again, *others = [x['id'] for name, x in wandb.CALLS if name == 'init']
  assert same == again and len({same, *others}) == 3
  assert {x for name, x in wandb.CALLS if name == 'finish'} == {1}  # none of them was finished


@pytest.mark.parametrize(('fails', 'calls'), [('init', 1), ('log', 3), ('finish', 5)])
def test_a_failure_in_wandb_prints_one_line(planted, tmp_path, wandb, capsys, fails, calls):
  wandb.FAIL.add(fails)
  sink = wandb_lib.WandB(*identified(tiny(planted)), tmp_path)
  for step in (1, 2):
    sink.write(step, {'train/auc': 0.5})
  sink.close()
  warnings = [x for x in capsys.readouterr().err.splitlines() if 'the run goes on' in x]
  assert warnings == [
    f'wandb: ConnectionError: {fails}: no route: nothing more is sent, the run goes on'
  ]
  assert len(wandb.CALLS) == calls


def test_missing_wandb_is_a_user_error(planted, tmp_path, monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(UserError, match=r"train\.wandb='ctr'.*not installed: pip install wandb"):
    loop.train(tiny(planted, ',wandb=ctr'), tmp_path / 'w')
  assert not list((tmp_path / 'w').glob('*.json'))
  wandb_lib.check('')


def test_process_0_alone_writes_and_sends(planted, tmp_path, wandb, monkeypatch):
  monkeypatch.setattr(processes, 'is_process_0', lambda: False)
  run = run_lib.build_run(tiny(planted, ',profile=3:2,wandb=ctr'))
  with processes.Stop() as stop:
    _, services = loop._open_services(run, stop, tmp_path)
    services.close()
  assert isinstance(services.metrics, metrics_file.NullWriter) and not wandb.CALLS
  step = object()
  assert services.profile.around(step, 0) is step


@pytest.mark.parametrize('text', ['3', '0:2', '3:0', '-1:2', '3:2:1', 'a:b', '3:2.5', '3:1٣'])
def test_a_wrong_window_is_one_line(text):
  with pytest.raises(UserError, match='expected START:STEPS') as e:
    config.resolve(config.base(f'profile={text}'))
  assert '\n' not in str(e.value) and repr(text) in str(e.value)


def test_a_window_beyond_the_run_is_refused(planted):
  assert checks.window('8:2') == (8, 9)
  run_lib.build_run(tiny(planted, ',profile=8:2'))
  with pytest.raises(UserError, match='has 9: steps 9 to 10'):
    run_lib.build_run(tiny(planted, ',profile=9:2'))


def test_a_window_is_traced_once_from_where_the_run_is(monkeypatch, tmp_path):
  """Whatever step a run goes on from: before, within or after the window of steps 4 to 6."""
  events = []
  monkeypatch.setattr('jax.profiler.start_trace', lambda folder: events.append('start'))
  monkeypatch.setattr('jax.profiler.stop_trace', lambda: events.append('stop'))
  for start, until, expected in (
    (0, 9, [1, 2, 3, 'start', 4, 5, 6, 'stop', 7, 8, 9]),
    (4, 9, ['start', 5, 6, 'stop', 7, 8, 9]),
    (6, 9, [7, 8, 9]),
    (0, 5, [1, 2, 3, 'start', 4, 5, 'stop']),
  ):
    window = profiling.Window('4:3', tmp_path)
    step = window.around(events.append, start)
    for number in range(start + 1, until + 1):
      step(number)
    window.close()
    assert events == expected
    events.clear()
