# SPDX-License-Identifier: Apache-2.0
"""Sweeps through the command: resume after kill -9, shards, failures, mistakes; and their parts."""

import contextlib
import dataclasses
import io
import json
import math
import os
import pathlib
import re
import signal
import subprocess
import sys
import textwrap
import time

import msgspec
import pytest
import swept
from absl import flags
from forked import call
from ml_collections import config_flags

from deres_jax import config, sweep
from deres_jax.config import fields
from deres_jax.core import files, terminal
from deres_jax.core.errors import UserError
from deres_jax.sweep import __main__ as sweep_command
from deres_jax.sweep import budget, costs, forecast, machine, runner
from deres_jax.sweep import folder as folder_lib
from deres_jax.sweep import points as points_lib

REPO = pathlib.Path(__file__).resolve().parents[2]

EXPERIMENT = """
from deres_jax import config
from deres_jax import sweep as grid

def get_config(arg=''):
  c = config.base()
  c.data.batch_size = 500
  c.data.eval_batch_size = 1500
  c.model.backbone = 'lr'
  c.model.embed_dim = 1
  c.train.steps, c.train.epochs = 4, 0.0
  c.train.eval_steps, c.train.eval_epochs = 2, 0.0
  return config.update(c, arg)
"""
RATES = """
def sweep():
  rates = [{'name': 'low', 'optim.table_lr': 0.1}, {'name': 'high', 'optim.table_lr': 0.2}]
  return grid.product(rates, grid.param('seed', [3]))
"""


@pytest.fixture(scope='module')
def data(planted, tmp_path_factory):
  """The planted data under a path that a config string could not hold."""
  link = tmp_path_factory.mktemp('link') / 'a,b=c d'
  link.symlink_to(planted)
  return link


def arguments(folder, points=RATES, string=''):
  """The command on an experiment with these points, and the folder of the sweep."""
  (folder / 'tiny.py').write_text(EXPERIMENT + points)
  out = folder / 'out'
  head = [sys.executable, '-m', 'deres_jax.sweep', f'--config={folder / "tiny.py"}{string}']
  return [*head, f'--out={out}', '--config.mesh.devices=1'], out


def wait_for(condition, seconds=120):
  deadline = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < deadline, 'waited in vain'
    time.sleep(0.01)


def workdirs(out):
  """Folders of the runs by the name of their point."""
  return {x['name']: out / 'runs' / x['id'] for x in json.loads((out / 'sweep.json').read_text())}


def times_finished(folder):
  return (folder / 'log.txt').read_text().count('\ntest auc')


@pytest.fixture(scope='module')
def killed(data, tmp_path_factory):
  """A sweep killed twice, then finished: the command, its folder, what calls 2 and 3 printed."""
  args, out = arguments(tmp_path_factory.mktemp('killed'))
  args += [f'--config.data.path={data}', '--jobs=1']
  # First the sweep alone: its run lives on. Then, in the second run, the sweep and that run.
  alone = subprocess.Popen(args, cwd=REPO, stdout=subprocess.DEVNULL)
  wait_for(lambda: list(out.glob('runs/*/log.txt')))
  time.sleep(0.3)  # from its log to its process
  alone.kill()
  assert alone.wait() == -signal.SIGKILL
  runs, said = workdirs(out), out.with_name('said.txt')
  with said.open('w') as stdout:
    group = subprocess.Popen(args, cwd=REPO, stdout=stdout, start_new_session=True)
    wait_for((runs['high'] / 'config.json').exists)
    os.killpg(group.pid, signal.SIGKILL)
    assert group.wait() == -signal.SIGKILL
  assert not (runs['high'] / 'result.json').exists()
  # At last the run alone: the sweep starts it once more.
  last = subprocess.Popen(args, cwd=REPO, text=True, stdout=subprocess.PIPE)
  wait_for(lambda: processes(runs['high']))
  os.kill(processes(runs['high'])[0], signal.SIGKILL)
  third, _ = last.communicate(timeout=300)
  assert last.returncode == 0, third
  return args, out, said.read_text(), third


def processes(folder):
  """Numbers of the processes that run in a workdir."""
  listed = subprocess.run(
    ['ps', '-axwwo', 'pid=,args='], capture_output=True, text=True, check=True
  )
  flag = f'--workdir={folder} '
  return [int(x.split()[0]) for x in listed.stdout.splitlines() if flag in x]


def test_a_killed_sweep_goes_on_and_runs_nothing_twice(killed):
  _, out, second, third = killed
  assert third.endswith('2 points: 2 done, 0 failed, 0 left\n')
  assert [times_finished(folder) for folder in workdirs(out).values()] == [1, 1]
  # The run whose sweep was killed went on under its lock: nobody else started it.
  starts = [x for x in (second + third).splitlines() if ' ... started' in x]
  assert [x.split(' (')[0] for x in starts] == ['[2/2] high'] * 3
  assert 'failed (killed by signal 9)' in third and 'started once more' in starts[2]
  assert not list(out.glob('runs/*/failed.json'))


def test_what_is_predicted_is_what_a_run_does(killed):
  """The forecast that orders runs and solves budgets, against result.json."""
  _, out, *_ = killed
  forecaster = forecast.Forecaster()
  for folder in workdirs(out).values():
    result = json.loads((folder / 'result.json').read_text())
    c = config.resolve(json.loads((folder / 'config.json').read_text())['config'])
    cost = forecaster.cost(c)
    assert (cost.train_flops, cost.steps) == (result['train_flops'], result['steps'])


def test_every_run_has_the_config_of_its_point(killed, data):
  _, out, *_ = killed
  listed = json.loads((out / 'sweep.json').read_text())
  assert [x['name'] for x in listed] == ['low', 'high']
  for x, rate in zip(listed, (0.1, 0.2), strict=True):
    assert x['seed'] == 3 and x['overrides'] == {'optim.table_lr': rate, 'seed': 3}
    result = json.loads((out / 'runs' / x['id'] / 'result.json').read_text())
    ran = json.loads((out / 'runs' / x['id'] / 'config.json').read_text())['config']
    assert (result['config_hash'], result['seed'], result['steps']) == (x['id'], 3, 4)
    assert (ran['optim']['table_lr'], ran['data']['path']) == (rate, str(data))


def test_a_finished_sweep_runs_nothing_and_lists_what_it_did(killed):
  args, out, *_ = killed
  runs = workdirs(out)
  before = {p: p.read_bytes() for p in out.rglob('*') if p.is_file()}
  again = call(args)
  assert again.returncode == 0 and '2 done before, 0 to run' in again.stdout
  listing = call([*args, '--list']).stdout.splitlines()
  assert [x.split()[:3] for x in listing] == [[p.name, k, 'done'] for k, p in runs.items()]
  assert 'optim.table_lr=0.2, seed=3' in listing[1]
  assert {p: p.read_bytes() for p in out.rglob('*') if p.is_file()} == before


def test_runs_on_other_data_are_not_taken_for_these(killed, data, tmp_path):
  args = killed[0]
  schema = json.loads((data / 'schema.json').read_text())
  schema['splits']['test']['content_sha256'] = 'other'
  (tmp_path / 'schema.json').write_text(json.dumps(schema))
  done = call([*args, f'--config.data.path={tmp_path}'])
  assert done.returncode == 2 and 'other data' in done.stderr and str(tmp_path) in done.stderr


def test_shards_share_a_folder_and_a_failure_stops_nothing(data, tmp_path):
  """Three points on two shards at once; the first of shard 0 cannot be built."""
  points = """
def sweep():
  bad = [{'name': 'bad', 'model.backbone': 'nope'}]
  return grid.chain(bad, grid.zipped(grid.param('name', 'ab'), grid.param('seed', [1, 2])))
"""
  args, out = arguments(tmp_path, points)
  args.append(f'--config.data.path={data}')
  both = [
    subprocess.Popen(
      [*args, f'--shard={i}/2'], cwd=REPO, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    for i in range(2)
  ]
  (said, _), (other, _) = (process.communicate(timeout=300) for process in both)
  assert [process.returncode for process in both] == [1, 0], said + other
  runs = workdirs(out)
  assert list(runs) == ['bad', 'a', 'b']
  assert [(folder / 'result.json').exists() for folder in runs.values()] == [False, True, True]
  assert [times_finished(folder) for folder in runs.values()] == [0, 1, 1]
  failure = next(x for x in said.splitlines() if 'failed (' in x)
  assert failure.startswith('[1/3] bad') and 'failed (exit 2): error: unknown backbone' in failure
  assert "'nope'" in failure and failure.endswith(f'log at {runs["bad"] / "log.txt"}')
  assert said.count('started') == 2 and '2 points: 1 done, 1 failed, 0 left' in said
  assert said.endswith(f'\nfailed: bad ({runs["bad"].name})\n')
  failed = json.loads((runs['bad'] / 'failed.json').read_text())
  assert (failed['name'], failed['how'], failed['attempts']) == ('bad', 'exit 2', 1)
  assert "'nope'" in failed['last_line'] and failed['log'] == str(runs['bad'] / 'log.txt')
  listed = call([*args, '--list']).stdout.splitlines()
  assert [x.split()[2] for x in listed] == ['failed', 'done', 'done']
  assert '(exit 2: error: unknown backbone' in listed[0]
  assert '[2/3] a' in other and '1 points: 1 done, 0 failed, 0 left' in other
  assert list(out.glob('*.partial')) == [] and list(out.glob('sweep-*')) == []


def test_sigterm_stops_the_runs(data, tmp_path):
  args, out = arguments(tmp_path)
  args.append(f'--config.data.path={data}')
  process = subprocess.Popen(
    [*args, '--jobs=1'], cwd=REPO, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
  )
  wait_for(lambda: list(out.glob('runs/*/log.txt')))
  process.terminate()
  said, error = process.communicate(timeout=120)
  assert process.returncode == 130 and error.startswith('interrupted')
  assert said.endswith('2 points: 0 done, 0 failed, 2 left\n')
  assert not files.is_locked(next(out.glob('runs/*/lock')))  # its process has ended


# Mistakes.

MISTAKES = {
  'unknown field': ("[{'seed': 1}, {'model.dept': 3}]", ['point 2', "'model.dept'", 'depth']),
  'unknown section': ("[{'modl.depth': 3}]", ["'modl'", 'model']),
  'below a value': ("[{'model.depth.x': 3}]", ["'model.depth.x'", "'depth' is a value"]),
  'a section': ("[{'model': 3}]", ['point 1', 'model', '3', 'section']),
  'wrong type': ("[{'model.depth': '3'}]", ['point 1', "model.depth='3'", 'int']),
  'wrong value': ("[{'model.dropout': 2.0}]", ['point 1', 'dropout=2.0']),
  'no dict': ("['model.depth']", ['point 1', "'model.depth'", 'dict']),
  'no name': ("[{'name': 3}]", ['point 1', 'name 3', 'text']),
  'one point twice': (
    "[{'name': 'x', 'seed': 1}, {'seed': 2}, {'name': 'y', 'seed': 1, 'data.threads': 2}]",
    ['points 1 (x;', 'and 3 (y;', 'one run'],
  ),
  'given and varied': ("[{'train.steps': 4}]", ['train.steps', 'varies']),
  'no points': ('[]', ['no points']),
  'returns nothing': ('None', ['sweep()', 'list of dicts']),
}


@pytest.mark.parametrize('name', MISTAKES)
def test_a_mistake_in_a_sweep_is_named_in_one_line(name, tmp_path):
  returned, words = MISTAKES[name]
  (tmp_path / 'x.py').write_text(f'def sweep():\n  return {returned}\n')
  with pytest.raises(UserError) as e:
    points(*sweep_command._load(str(tmp_path / 'x.py')), given=['train.steps'])
  text = str(e.value)
  assert '\n' not in text and all(word in text for word in words), text


COMMANDS = {
  'unknown field in the second point': (
    "[{'seed': 1}, {'model.dept': 3}]",
    '',
    [],
    ['point 2', "'model.dept'"],
  ),
  'given and varied': (
    "[{'optim.table_lr': 0.1}]",
    '',
    ['--config.optim.table_lr=0.1'],
    ['optim.table_lr', 'varies'],
  ),
  'given in the config string and varied': (
    "[{'optim.table_lr': 0.1}]",
    ':optim.table_lr=0.1',
    [],
    ['optim.table_lr', 'varies'],
  ),
  'bad shard': ("[{'seed': 1}]", '', ['--shard=2/2'], ['--shard=2/2', '0 <= i < n']),
  'no data': ("[{'seed': 1}]", '', ['--config.data.path='], ['data.path', 'data_pipelines.build']),
  'jobs': ("[{'seed': 1}]", '', ['--jobs=0'], ['--jobs=0', 'auto']),
  'memory': ("[{'seed': 1}]", '', ['--memory_gib=0'], ['--memory_gib=0', 'above 0']),
  'no budget': ("[{'seed': 1}]", '', ['--solve=width'], ['--solve=width', '--flops_budget']),
  'negative budget': ("[{'seed': 1}]", '', ['--flops_budget=-1'], ['--flops_budget=-1']),
  'budget and steps': (
    "[{'train.steps': 3}]",
    '',
    ['--flops_budget=1e9'],
    ['point 1', 'train.steps=3', '--flops_budget=1e+09'],
  ),
  'budget and given steps': (
    "[{'seed': 1}]",
    '',
    ['--flops_budget=1e9', '--config.train.steps=3'],
    ['point 1', 'train.steps=3'],
  ),
  'no experiment': ('[]', 'x', [], ['tiny.pyx']),
}


@pytest.mark.parametrize('name', COMMANDS)
def test_a_mistake_costs_one_line_and_code_2_and_runs_nothing(name, data, tmp_path):
  returned, string, more, words = COMMANDS[name]
  args, out = arguments(tmp_path, f'\ndef sweep():\n  return {returned}\n', string)
  one_line(call([*args, f'--config.data.path={data}', *more]), words)
  assert not out.exists()


def one_line(done, words):
  said = done.stderr.strip()
  assert done.returncode == 2, said
  assert said.startswith('error: ') and '\n' not in said and all(w in said for w in words), said


def test_what_is_missing_is_asked_for(tmp_path):
  args, out = arguments(tmp_path, '')
  one_line(call(args), ['tiny.py', 'no sweep()'])
  one_line(call([*args[:3], f'--out={out}']), ['no --config'])
  one_line(call([*args[:3], f'--out={out}', '--config=none.py']), ['--config=none.py', 'no such'])


def test_list_runs_and_writes_nothing(tmp_path):
  args, out = arguments(tmp_path, string=':train.steps=9')
  listed = call([*args, '--list'])
  lines = listed.stdout.splitlines()
  assert listed.returncode == 0 and [x.split()[1:4] for x in lines] == [
    ['low', 'to', 'do'],
    ['high', 'to', 'do'],
  ]
  assert all('train.steps=9, optim.table_lr=' in x for x in lines) and not out.exists()


def test_an_experiment_does_not_load_jax_through_sweep():
  code = "import sys; from deres_jax.sweep import __main__; sys.exit('jax' in sys.modules)"
  subprocess.run([sys.executable, '-c', code], cwd=REPO, check=True)


# Helpers.


def test_product_has_every_combination_and_joins_names():
  a, b = sweep.param('seed', [1, 2]), sweep.param('model.depth', [4, 8, 16])
  got = sweep.product(a, b)
  assert [(x['seed'], x['model.depth']) for x in got] == [
    (s, d) for s in (1, 2) for d in (4, 8, 16)
  ]
  c = [{'name': 'x'}, {'name': 'y', 'optim.dense_lr': 1.0}]
  assert sweep.product(sweep.product(a, b), c) == sweep.product(a, sweep.product(b, c))
  assert [x['name'] for x in sweep.product(c, [{'name': 'z'}])] == ['x z', 'y z']
  assert 'name' not in got[0] and sweep.product(a, []) == [] and sweep.product() == [{}]


def test_zipped_and_chain_keep_order_and_change_nothing():
  a, b = sweep.param('seed', [1, 2]), sweep.param('model.depth', [4, 8])
  assert sweep.zipped(a, b) == [{'seed': 1, 'model.depth': 4}, {'seed': 2, 'model.depth': 8}]
  assert sweep.chain(a, iter(b)) == [*a, *b]
  assert a == [{'seed': 1}, {'seed': 2}]
  for bad in (lambda: sweep.zipped(a, a), lambda: sweep.product(a, b, a)):
    with pytest.raises(UserError, match='sets seed in two factors'):
      bad()
  with pytest.raises(UserError, match=r'\[2, 1\]'):
    sweep.zipped(a, b[:1])


def test_a_subsample_is_a_fixed_draw_in_order():
  whole = sweep.product(sweep.param('seed', range(10)), sweep.param('model.depth', [4, 8]))
  got = sweep.subsample(iter(whole), 7, seed=1)
  assert len(got) == 7 and got == [p for p in whole if p in got]
  assert got == sweep.subsample(whole, 7, seed=1) != sweep.subsample(whole, 7, seed=2)
  assert sweep.subsample(whole, 20, seed=3) == whole
  drawn = {p['seed'] for seed in range(20) for p in sweep.subsample(whole, 1, seed)}
  assert len(drawn) > 5
  for n in (0, 21):
    with pytest.raises(UserError, match=rf'20 points got n={n}: take 1 to 20'):
      sweep.subsample(whole, n, seed=0)


# Points.


def points(*items, given=(), raw=None):
  return points_lib.resolve(raw or config.base().to_dict(), items, set(given), 'file')


def test_a_name_is_the_fields_without_the_seed():
  got = points({'seed': 1}, {'seed': 1, 'optim.dense_lr': 1, 'model.causal': True}, {'name': 'x'})
  assert [p.name for p in got] == ['file', 'optim.dense_lr=1.0, model.causal=true', 'x']
  assert [p.number for p in got] == [1, 2, 3]
  assert [p.config.seed for p in got] == [1, 1, 0]


def test_what_the_command_line_gave_is_listed_unless_it_is_operational():
  raw = config.base('train.epochs=2.0,data.path=here').to_dict()
  [point] = points({'model.depth': 4}, given=['train.epochs', 'data.path'], raw=raw)
  assert point.listed().overrides == {'train.epochs': 2.0, 'model.depth': 4}
  assert point.config.train.epochs == 2.0 and point.config.data.path == 'here'
  assert point.id == config.config_hash(point.config)


def test_flags_of_a_run_carry_every_field_exactly(tmp_path):
  """No field at its default, and strings that would break a config string."""
  (tmp_path / 'plain.py').write_text('from deres_jax import config\nget_config = config.base\n')

  def other(value):
    if isinstance(value, bool):
      return not value
    if isinstance(value, str):
      return value + 'X,y=z "q" \\ é'
    return value + 1 if isinstance(value, int) else value + 0.1

  def changed(node):
    pairs = ((f.name, getattr(node, f.name)) for f in dataclasses.fields(node))
    return dataclasses.replace(
      node, **{k: changed(v) if dataclasses.is_dataclass(v) else other(v) for k, v in pairs}
    )

  sections = (f.name for f in dataclasses.fields(fields.Config) if f.name != 'seed')
  whole = fields.Config()
  whole = dataclasses.replace(whole, seed=7, **{k: changed(getattr(whole, k)) for k in sections})
  whole = dataclasses.replace(whole, optim=dataclasses.replace(whole.optim, dense_lr=0.1 + 0.2))
  point = points_lib.Point(1, 'id', 'name', {}, whole)
  argv = sweep_command.command(str(tmp_path / 'plain.py'), tmp_path, point)[2:]
  holder = flags.FlagValues()
  read = config_flags.DEFINE_config_file('config', flag_values=holder, sys_argv=argv)
  flags.DEFINE_string('workdir', None, '', flag_values=holder)
  flags.DEFINE_string('distributed', None, '', flag_values=holder)
  holder(argv)
  assert read.value.to_dict() == config.as_dict(whole)


def test_an_extended_sweep_keeps_what_was_listed(tmp_path):
  one, two, three = points({'seed': 1}, {'seed': 2}, {'seed': 3})
  folder_lib.record(tmp_path, [two, one])
  folder_lib.record(tmp_path, [one, three])
  listed = json.loads((tmp_path / 'sweep.json').read_text())
  assert listed == msgspec.to_builtins([two.listed(), one.listed(), three.listed()])
  assert [x.name for x in tmp_path.iterdir()] == ['sweep.json']


@pytest.mark.parametrize('text', ['', '1', '1/', '-1/2', '2/2', '0/0', 'a/b', '0/2/3'])
def test_a_shard_is_an_index_below_a_number(text):
  with pytest.raises(UserError, match='0 <= i < n'):
    points_lib.shard(points({'seed': 1}), text)


def test_shards_are_a_partition():
  whole = points(*({'seed': i} for i in range(7)))
  parts = [points_lib.shard(whole, f'{i}/3') for i in range(3)]
  assert sorted((p for part in parts for p in part), key=lambda p: p.number) == whole
  assert [[p.number - 1 for p in part] for part in parts] == [[0, 3, 6], [1, 4], [2, 5]]


# The runner, with small programs in the place of runs.

FINISH = (  # in one piece, as a run does: who looks meanwhile must not find a part
  f'result = {swept.RESULT | {"auc": 0.5}}\n'
  'result |= {"config_hash": pathlib.Path.cwd().name, "cores": sorted(cores)}\n'
  'pathlib.Path("part").write_text(json.dumps(result)); os.replace("part", "result.json")'
)


def run(tmp_path, script, count=1, jobs=1, memory=math.inf, predicted=(), stream=None):
  """Runs `count` points; a program starts in its workdir. Returns the runner's answer.

  `predicted`: a cost for each point.
  """
  head = """
    import json, os, pathlib, sys, time
    cores = os.sched_getaffinity(0) if hasattr(os, 'sched_getaffinity') else [0]
    os.chdir(sys.argv[1])
    attempt = len(open('log.txt').read().split('begin')) if os.path.exists('log.txt') else 1
    print('begin', flush=True)
  """

  def program(point):
    code = textwrap.dedent(head) + script
    return [sys.executable, '-c', code, str(folder_lib.workdir(tmp_path, point))]

  some = points(*({'seed': i} for i in range(count)))
  by_id = {p.id: cost for p, cost in zip(some, predicted, strict=False)}
  limits, screen = runner.Limits(jobs, memory), terminal.Screen(stream or sys.stdout)
  work = runner.Runner(tmp_path, some, count, program, limits, by_id, screen)
  signal.signal(signal.SIGALRM, work.interrupt)
  signal.alarm(30)
  try:
    return work.run()
  except KeyboardInterrupt:
    pytest.fail('ran for 30 s')
  finally:
    signal.alarm(0)


@pytest.mark.parametrize(
  ('script', 'ok', 'starts', 'said'),
  [
    (f'if attempt == 1: sys.exit("boom")\n{FINISH}', True, 2, 'failed (exit 1): boom'),
    ('sys.exit("boom")', False, 2, 'failed (exit 1): boom'),
    ('print("mine\\n"); sys.exit(2)', False, 1, 'failed (exit 2): mine,'),
    ('os.kill(os.getpid(), 9)', False, 2, 'failed (killed by signal 9): begin,'),
    ('pass', False, 2, 'failed (exit 0): begin,'),
    (FINISH, True, 1, 'test auc 0.5000'),
  ],
)
def test_a_failed_run_is_tried_once_more_unless_it_is_a_mistake(
  tmp_path, capfd, script, ok, starts, said
):
  assert run(tmp_path, script) is ok
  out = capfd.readouterr().out
  assert out.count('started') == starts and said in out
  assert f'1 points: {int(ok)} done, {int(not ok)} failed, 0 left' in out
  [log] = tmp_path.glob('runs/*/log.txt')
  assert log.read_text().count('begin') == starts


ENDS = {
  # script: answer, starts, failed.json's end (or None), words
  'stopped': (
    f'sys.exit("saved") if attempt == 9 else sys.exit(75) if attempt < 3 else None\n{FINISH}',
    (True, 3, None, 'stopped (exit 75), goes on: begin'),
  ),
  'stopped is no failure': (
    f'sys.exit([75, 1, 75, 0][attempt - 1]) if attempt < 4 else None\n{FINISH}',
    (True, 4, None, 'failed (exit 1): begin'),
  ),
  'terminated': (
    f'if attempt == 1: os.kill(os.getpid(), 15)\n{FINISH}',
    (True, 2, None, 'stopped (killed by signal 15), goes on'),
  ),
  'stopped for ever': (
    'sys.exit(75)',
    (False, 4, 'exit 75, stopped 4 times', 'failed (exit 75, stopped 4 times)'),
  ),
  'interrupted': ('sys.exit(130)', (False, 1, None, '0 done, 0 failed, 1 left')),
}


@pytest.mark.parametrize('name', ENDS)
def test_a_stopped_run_goes_on_and_an_interrupted_one_is_left(tmp_path, capfd, monkeypatch, name):
  monkeypatch.setattr(runner, '_STOPS', 3)
  script, (ok, starts, failed, said) = ENDS[name]
  assert run(tmp_path, script) is ok
  out = capfd.readouterr().out
  assert out.count('... started') == starts and said in out
  [point] = points({'seed': 0})
  found = folder_lib.failure(tmp_path, point)
  assert (found and found.how) == failed
  assert folder_lib.state(tmp_path, point) == ('done' if ok else 'failed' if failed else 'to do')


def test_a_failure_is_kept_by_name_until_the_run_finishes(tmp_path, capfd):
  [point] = points({'seed': 0})
  file = folder_lib.workdir(tmp_path, point) / 'failed.json'
  assert not run(tmp_path, 'sys.exit("boom")')
  out = capfd.readouterr().out
  assert out.endswith(f'\nfailed: file ({point.id})\n')
  kept = json.loads(file.read_text())
  assert kept == {
    'id': point.id,
    'name': 'file',
    'seed': 0,
    'how': 'exit 1',
    'last_line': 'boom',
    'log': str(file.with_name('log.txt')),
    'attempts': 2,
  }
  assert '  failed ' in folder_lib.listing(tmp_path, [point])
  with contextlib.closing(folder_lib.lock(tmp_path, point)):
    assert folder_lib.state(tmp_path, point) == 'running'
  assert run(tmp_path, FINISH) and not file.exists()
  assert folder_lib.state(tmp_path, point) == 'done' and 'boom' not in folder_lib.listing(
    tmp_path, [point]
  )
  assert [x.name for x in file.parent.glob('failed*')] == []


def cost(flops, memory=0):
  return costs.Cost(flops, 10, memory)


def order(out):
  """Numbers of the points in the order in which they started."""
  return [int(x[1]) for x in out.splitlines() if '... started' in x]


def test_the_largest_starts_first_and_one_that_cannot_be_predicted_before_it(tmp_path, capfd):
  assert run(tmp_path, FINISH, 4, predicted=[cost(2.0), cost(9.0), cost(5.0)])
  out = capfd.readouterr().out
  assert order(out) == [4, 2, 3, 1]
  assert 'test auc 0.5000; about 0 s left' in out


# Runs that meet end well; one that is alone for half a second, too, and says so.
MEET = """
pathlib.Path('here').touch()
mates = lambda: [f for f in pathlib.Path('..').glob('*/here') if not (f.parent / 'gone').exists()]
for _ in range(50):
  if len(mates()) > 1: print('met')
  time.sleep(0.01)
pathlib.Path('gone').touch()
"""


@pytest.mark.skipif(machine.core_count() < 2, reason='one core')
def test_runs_start_together_only_where_their_memory_fits(tmp_path, capfd):
  big, small = cost(3.0, memory=70), cost(1.0, memory=30)
  assert run(tmp_path, MEET + FINISH, 3, 2, memory=100, predicted=[big, big, small])
  out = capfd.readouterr().out
  # The second big one waits for the first; the small one fits beside it.
  assert order(out) == [1, 3, 2] and 'warning' not in out
  met = [(tmp_path / 'runs' / p.id / 'log.txt').read_text().count('met') > 0 for p in three()]
  assert met[0] and met[2]
  assert run(
    tmp_path / 'alone', MEET + FINISH, 2, 2, memory=2**29, predicted=[cost(1.0, 2**30)] * 2
  )
  out = capfd.readouterr().out
  assert out.count('may need 1.0 GiB, more than the 0.5 GiB here: it runs alone') == 2
  assert not any('met' in f.read_text() for f in (tmp_path / 'alone').glob('runs/*/log.txt'))


def three():
  return points({'seed': 0}, {'seed': 1}, {'seed': 2})


@pytest.mark.skipif(not hasattr(os, 'sched_getaffinity'), reason='no affinity on this system')
def test_jobs_run_at_once_on_cores_of_their_own(tmp_path):
  mine = os.sched_getaffinity(0)
  if len(mine) < 2:
    pytest.skip('one core')
  meet = (  # one after the other would wait for ever
    'pathlib.Path("here").touch()\n'
    'while len(list(pathlib.Path("..").glob("*/here"))) < 2: time.sleep(0.01)\n'
  )
  assert run(tmp_path, meet + FINISH, count=2, jobs=2)
  a, b = (set(json.loads(f.read_text())['cores']) for f in tmp_path.glob('runs/*/result.json'))
  assert a and len(a) == len(b) and a.isdisjoint(b) and a | b <= mine
  assert os.sched_getaffinity(0) == mine
  with pytest.raises(UserError, match=rf'--jobs=99.*{len(mine)} cores'):
    machine.cores(99)


def test_a_run_in_other_hands_is_waited_for(tmp_path, capfd):
  """A process that holds the lock finishes the run; the sweep does the other one meanwhile."""
  first, second = points({'seed': 0}, {'seed': 1})
  folder = folder_lib.workdir(tmp_path, first)
  folder.mkdir(parents=True)
  code = f"""
import fcntl, json, time, pathlib
lock = open('lock', 'w')
fcntl.flock(lock, fcntl.LOCK_EX)
pathlib.Path('held').touch()
while not pathlib.Path('../{second.id}/result.json').exists(): time.sleep(0.01)
time.sleep(0.5)
pathlib.Path('part').write_text(json.dumps({swept.RESULT | {'config_hash': first.id}}))
pathlib.Path('part').rename('result.json')
"""
  other = subprocess.Popen([sys.executable, '-c', code], cwd=folder)
  with other:
    wait_for((folder / 'held').exists)
    assert run(tmp_path, FINISH, count=2)
  out = capfd.readouterr().out
  assert 'waiting for 1 runs of another process' in out
  assert f'[1/2] file ({first.id}) ... done by another process' in out
  assert out.count('started') == 1 and not (folder / 'log.txt').exists()


# The table.


class Terminal(io.StringIO):
  def isatty(self):
    return True


def drawings(stream):
  """What a terminal was sent, in parts between which it was cleared; without control codes."""
  parts = re.split(r'\r?\x1b\[2K(?:\x1b\[1A\x1b\[2K)*', stream.getvalue())
  return [re.sub(r'\x1b\[[\d;?]*[A-Za-z]', '', part).splitlines() for part in parts]


def test_a_terminal_shows_runs_in_place_and_lines_that_stay(tmp_path, monkeypatch):
  monkeypatch.setenv('COLUMNS', '80')
  monkeypatch.setenv('TERM', 'xterm')
  script = """
lines = [(3, 'train', 0.1), (4, 'validation', 0.61), (5, 'train', 0.2)]
with open('metrics.jsonl', 'w') as f:
  f.write('torn' + chr(10))
  for line in lines: f.write(json.dumps(dict(zip(('step', 'split', 'auc'), line))) + chr(10))
time.sleep(1.5)
"""
  stream = Terminal()
  assert run(tmp_path, script + FINISH, 1, predicted=[cost(1.0)], stream=stream)
  assert '\x1b[1m0 done, 1 running, 0 failed, 0 left; about ' in stream.getvalue()
  tables = [x for x in drawings(stream) if x and x[0].startswith('0 done, 1 running')]
  [row] = {x[1].split('  step ')[1] for x in tables if '  step ' in x[1]}
  assert row == f'5 of 10  validation auc 0.6100  file ({points({"seed": 0})[0].id})'
  lines = [line for x in drawings(stream) for line in x]
  assert [x for x in lines if '1 points: ' in x] == [
    '1 points: 0 done before, 1 to run',
    '1 points: 1 done, 0 failed, 0 left',
  ]
  assert drawings(stream)[-1] == []  # the table is gone


def test_a_table_fits_the_terminal(monkeypatch):
  for name, value in {'COLUMNS': '12', 'LINES': '4', 'TERM': 'xterm', 'NO_COLOR': '1'}.items():
    monkeypatch.setenv(name, value)
  stream = Terminal()
  screen = terminal.Screen(stream)
  assert screen.due()
  screen.line('a line that is longer than that')
  screen.show(['head 0123456789', '\x1b[2Jevil 日本語', 'c', 'd', 'e'])
  assert not screen.due()
  [lines] = drawings(stream)
  assert lines == [
    'a line that is longer than that',
    'head 0123456',
    '\\x1b[2Jevil ',
    '... and 3 mo',
  ]
  screen.close()
  assert drawings(stream)[-1] == []


@pytest.mark.parametrize('name', ['dumb', ''])
def test_a_dumb_terminal_gets_plain_lines(name, monkeypatch):
  monkeypatch.setenv('TERM', name)
  stream = Terminal()
  screen = terminal.Screen(stream)
  screen.line('text')
  screen.close()
  assert not screen.due() and stream.getvalue() == 'text\n'


def test_time_left_follows_what_was_done():
  def left(*args, jobs=1):
    return costs.seconds_left(*args, jobs)

  under = costs.Underway
  assert left([], [], [1.0]) is None and left([], [under(1.0, 0.0, 5.0)], []) is None
  assert left([(2.0, 20.0)], [], [1.0, 3.0]) == 40
  assert left([(2.0, 20.0)], [], [1.0, 3.0], jobs=2) == 30  # the longer one
  assert left([], [under(4.0, 0.25, 10.0)], [2.0]) == 30 + 20
  assert left([(1.0, 10.0)], [under(2.0, 0.0, 5.0)], []) == 15  # no step seen yet
  texts = [terminal.duration(x) for x in (0.4, 99, 100, 6000, 90_000, 200_000)]
  assert texts == ['0 s', '99 s', '2 min', '1 h 40 min', '25 h 00 min', '2 d 8 h']


# What the machine gives.


def test_jobs_by_machine(monkeypatch):
  def jobs(platform, asked=None, memory=100.0, largest=0, count=9, cores=4):
    monkeypatch.setattr(machine, 'platform', lambda: platform)
    monkeypatch.setattr(machine, 'core_count', lambda: cores)
    return sweep_command.limits(asked, memory, largest, count)

  assert jobs('cpu').jobs == 4 and jobs('cpu', count=3).jobs == 3
  assert jobs('cpu', largest=30).jobs == 3 and jobs('cpu', largest=300).jobs == 1
  assert jobs('cpu', asked=2, largest=300).jobs == 2  # the memory bound holds while they run
  assert [jobs(x).jobs for x in ('gpu', 'tpu', 'busy')] == [1, 1, 1]
  for name in ('XLA_CLIENT_MEM_FRACTION', 'XLA_PYTHON_CLIENT_PREALLOCATE'):
    monkeypatch.delenv(name, raising=False)
  assert jobs('gpu', asked=4).environ['XLA_CLIENT_MEM_FRACTION'] == '0.225'
  monkeypatch.setenv('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  assert 'XLA_CLIENT_MEM_FRACTION' not in jobs('gpu', asked=4).environ
  for platform, word in (('tpu', 'one process'), ('busy', 'holds it')):
    with pytest.raises(UserError, match=rf'--jobs=2 .*{word}'):
      jobs(platform, asked=2)


def test_a_container_s_limits_count(tmp_path, monkeypatch):
  whole, cores = machine.memory(), machine.core_count()
  assert whole > 2**28 and cores >= 1
  (tmp_path / 'cpu.max').write_text('150000 100000\n')
  (tmp_path / 'memory.max').write_text('1000000\n')
  monkeypatch.setattr(machine, '_groups', lambda controller: [tmp_path, tmp_path / 'none'])
  assert (machine.core_count(), machine.memory()) == (1, 1_000_000)
  (tmp_path / 'cpu.max').write_text('max 100000\n')
  (tmp_path / 'memory.max').write_text('max\n')
  assert machine.memory() >= whole and machine.core_count() >= cores


def test_no_accelerator_is_asked_where_jax_has_none(monkeypatch):
  monkeypatch.setattr(subprocess, 'run', lambda *a, **k: pytest.fail('asked'))
  assert machine.platform() == 'cpu'  # JAX_PLATFORMS
  monkeypatch.delenv('JAX_PLATFORMS')
  monkeypatch.setattr(machine, '_has_plugin', lambda: False)
  assert machine.platform() == 'cpu'


# Budgets.


def test_a_sweep_on_a_budget(data, tmp_path):
  """Through the command: two batch sizes, as many FLOPs."""
  args, out = arguments(
    tmp_path,
    """
def sweep():
  return grid.zipped(grid.param('name', 'ab'), grid.param('data.batch_size', [500, 700]))
""",
  )
  args += [f'--config.data.path={data}', '--flops_budget=3e5', '--config.train.eval_steps=100']
  done = call(args)
  assert done.returncode == 0, done.stdout + done.stderr
  for x in json.loads((out / 'sweep.json').read_text()):
    result = json.loads((out / 'runs' / x['id'] / 'result.json').read_text())
    steps = x['overrides']['train.steps']
    one = result['train_flops'] / result['rows_seen'] * x['overrides']['data.batch_size']
    assert result['steps'] == steps > 3 and x['overrides']['train.epochs'] == 0
    assert abs(result['train_flops'] - 3e5) <= one / 2
  costs_by_id = json.loads((out / 'costs.json').read_text())
  assert costs_by_id.keys() == {x['id'] for x in json.loads((out / 'sweep.json').read_text())}


def answers(data, text, what, budget_flops):
  c = config.base(f'data.batch_size=500,model.backbone=transformer,model.depth=1,{text}')
  c.data.path = str(data)
  raw = config.as_dict(config.resolve(c))
  [found] = forecast.answer({'configs': [raw], 'budget': budget_flops, 'solve': what})
  return raw, found


def test_a_width_on_a_budget(data):
  raw, found = answers(data, 'train.steps=3,train.epochs=0.0,model.heads=4', 'width', 1e9)
  assert found['error'] is None, found
  dim = found['solved']['model.dim']
  assert dim % 4 == 0

  forecaster = forecast.Forecaster()

  def flops(dim):
    raw['model']['dim'] = dim
    return forecaster.cost(config.resolve(raw)).train_flops

  distance = [abs(flops(x) - 1e9) for x in (dim - 4, dim, dim + 4)]
  assert distance[1] == min(distance) and distance[1] < 0.1 * 1e9


def test_steps_are_exact_to_a_step_over_short_last_batches():
  def rows_until(n):  # epochs of 3 batches: 4, 4 and 1 rows
    return n // 3 * 9 + min(n % 3 * 4, 9)

  for budget_flops in range(8, 200):
    n = budget.steps(budget_flops, 2.0, rows_until)
    best = min(range(1, 60), key=lambda k: abs(2.0 * rows_until(k) - budget_flops))
    assert rows_until(n) == rows_until(best)
  with pytest.raises(UserError, match='one step takes 8 FLOPs'):
    budget.steps(7.9, 2.0, rows_until)


def test_a_width_skips_what_a_model_refuses():
  asked = []

  def flops_of(dim):
    asked.append(dim)
    return None if dim % 24 else 10.0 * dim * dim + dim

  assert budget.width(10 * 240**2, 8, flops_of) == 240
  assert len([x for x in asked if x % 24 == 0]) < 12 and len(asked) <= len(set(asked)) + 4
  for what, unit, of, words in (
    (1e3, 8, flops_of, 'the smallest width, model.dim=24'),
    (10 * 36**2, 8, flops_of, 'model.dim=24 takes .* and 48 .* neither within 10%'),
    (1e9, 8, lambda dim: 5.0, 'takes 5 FLOPs and a greater one no more'),
    (1e9, 8, lambda dim: None, 'no width of 8 to 512 is possible'),
  ):
    with pytest.raises(UserError, match=words):
      budget.width(what, unit, of)


def test_an_impossible_point_is_named_and_takes_no_other_along(data, tmp_path, monkeypatch):
  monkeypatch.setattr(costs, '_ask', forecast.answer)  # in this process
  path = {'data.path': str(data), 'data.batch_size': 500, 'model.depth': 1}
  [bad, good] = points({'name': 'x', **path, 'model.backbone': 'nope'}, {'name': 'y', **path})
  assert costs.predict(tmp_path, [bad, good]).keys() == {good.id}
  with pytest.raises(UserError, match=r"point 1 \(x; .*unknown backbone .*'nope'"):
    costs.with_budget([good, bad][::-1], 1e12, 'steps')
  with pytest.raises(UserError, match=r'point 2 \(y; .*one step takes .* --flops_budget=10:'):
    costs.with_budget([good], 10, 'steps')
  # What was predicted is not asked again.
  monkeypatch.setattr(costs, '_ask', lambda request: pytest.fail('asked'))
  assert costs.predict(tmp_path, [good]).keys() == {good.id}


def test_costs_differ_where_more_than_seed_and_rates_do():
  same = points({'seed': 1, 'optim.dense_lr': 0.1}, {'seed': 2, 'optim.table_lr': 0.3})
  assert not costs.differ(same)
  for field in ({'model.depth': 3}, {'train.epochs': 2.0}, {'optim.table': 'lazy_adam'}):
    assert costs.differ([*same, *points(field)])
