# SPDX-License-Identifier: Apache-2.0
"""--mode=plan: figures of a mesh that is not here against closed formulas and by hand."""

import dataclasses
import math
import os
import pathlib
import re
import subprocess
import sys

import forked
import jax
import numpy as np
import pytest
from made import numbers
from marks import slow

from deres_jax import config
from deres_jax.core.errors import UserError
from deres_jax.costs import collectives, machines, roofline
from deres_jax.training import run as run_lib
from deres_jax.training import step
from deres_jax.training.plan import counts, on_mesh

REPO = pathlib.Path(__file__).resolve().parents[2]

EXPERIMENT = """
from deres_jax import config

def get_config(arg=''):
  c = config.base()
  c.data.batch_size = 512
  c.data.eval_batch_size = 512
  c.model.depth = 1
  c.model.dim = 8
  c.model.heads = 2
  c.model.embed_dim = 4
  c.deres.block_layers = 1
  return config.update(c, arg)
"""


@pytest.fixture(scope='module')
def experiment(tmp_path_factory):
  file = tmp_path_factory.mktemp('experiment') / 'tiny.py'
  file.write_text(EXPERIMENT)
  return file


def command(experiment, data, *more):
  """The finished process of a plan. No devices are set: the command has to do that."""
  env = {k: v for k, v in os.environ.items() if k not in ('XLA_FLAGS', 'JAX_PLATFORMS')}
  args = [sys.executable, '-m', 'deres_jax.main', f'--config={experiment}', '--mode=plan']
  args += [f'--config.data.path={data}', *more]
  return subprocess.run(args, capture_output=True, text=True, cwd=REPO, env=env, check=False)


def lines(text):
  """{name: value} of what a plan prints above its assumptions."""
  table = text.split('\nassumptions:')[0].split('\nwarning')[0]
  return dict(re.split(r'  +', line, maxsplit=1) for line in table.splitlines())


def number(text):
  """The first number of a text."""
  return float(re.search(r'-?[\d,]*\.?\d+(?:e[+-]\d+)?', text)[0].replace(',', ''))


def size(text):
  """Bytes of the first size of a text."""
  n, unit = re.search(r'([\d,.]+) (bytes|KiB|MiB|GiB)', text).groups()
  return float(n.replace(',', '')) * 1024 ** ['bytes', 'KiB', 'MiB', 'GiB'].index(unit)


PARTS = [
  *('machine', 'program', 'devices', 'dense parameters', 'table parameters'),
  *('forward FLOPs a row', 'training FLOPs a row', "connector's extra FLOPs"),
  *('dense state, a device', 'table, a device', 'table slots, a device', 'batch'),
  *('temporaries, a device', 'altogether, a device', 'table of width 4'),
  *('sent, a device and step', 'least for this batch', 'for full capacities'),
  *('compute', 'memory', 'network', 'step, at least', 'rows a second, at most'),
]


@pytest.mark.parametrize('name', ['v5e-8', 'h200-8', slow('v5p-128')])
def test_a_machine_that_is_not_here(experiment, planted, name):
  done = command(experiment, planted, f'--config.mesh.topology={name}')
  assert done.returncode == 0, done.stderr
  said, m = lines(done.stdout), machines.find(name)
  assert list(said) == PARTS
  D, E, N = m.devices, 4, 1024
  assert number(said['devices']) == D and said['machine'].startswith(f'{name}: {D} devices')
  P = number(said['dense parameters'])
  # The optimizer has two moments a parameter and a count of steps for each of two rates.
  assert size(said['dense state, a device']) == pytest.approx(12 * P, abs=70)
  assert size(said['table, a device']) == N * E * 4 / D
  assert size(said['table slots, a device']) == N * 4 / D
  assert 'fits, ' in said['altogether, a device']
  U, _, K = map(number, said['table of width 4'].split(','))
  assert U <= 512 / D * 6 and K >= U / D
  away = 1 - 1 / D
  wire = {
    'all-reduce': away * 8 * P,
    'all-to-all': away * D * K * (8 * E + 4),
  }
  if 'XLA:CPU' in said['program']:
    for kind, n in wire.items():
      (part,) = re.findall(rf'{kind} ([\d,.]+ \w+)', said['sent, a device and step'])
      assert size(part) == pytest.approx(n, rel=0.01)
  assert size(said['for full capacities']) == pytest.approx(sum(wire.values()), rel=0.01)
  least = away * (U * (8 * E + 4) + 8 * P)
  assert size(said['least for this batch']) == pytest.approx(least, rel=0.01)
  check_bound(said, m)
  for line in roofline.assumptions(m):
    assert f'  - {line}\n' in f'{done.stdout}\n'


def check_bound(said, m):
  """Milliseconds from the work that stands beside them and the machine's figures."""

  def ms(name):
    return number(said[name])

  def parts(name, unit):
    return {
      k: float(n) for k, n in re.findall(rf'([a-z- ]+?) ([\d.e+]+) {unit}(?:,|;| at|$)', name)
    }

  flops, float32 = said['compute'].split(' FLOP float32 at ')
  assert number(float32) == pytest.approx(m.flops['float32'], rel=1e-3)
  assert ms('compute') == pytest.approx(
    number(flops.split(': ')[1]) / m.flops['float32'] * 1e3, rel=0.01
  )
  moved = parts(said['memory'].split(': ')[1], 'B')
  assert [k.strip() for k in moved] == ['matmuls', 'table', 'dense state']
  assert ms('memory') == pytest.approx(sum(moved.values()) / m.memory_bandwidth * 1e3, rel=0.01)
  sent = parts(said['network'].split(': ')[1].split(';')[0], 'B')
  rate = {'all-to-all': m.all_to_all, 'all-reduce': m.all_reduce}
  seconds = sum(n / rate[kind.strip()] for kind, n in sent.items())
  assert ms('network') == pytest.approx(seconds * 1e3, rel=0.01)
  whole = max(ms('compute'), ms('memory')) + ms('network')
  assert ms('step, at least') == pytest.approx(whole, rel=0.01)
  rows = number(said['rows a second, at most'])
  assert rows == pytest.approx(512 / whole * 1e3, rel=0.01)
  longest = max(('compute', 'memory', 'network'), key=ms)
  assert said['rows a second, at most'].endswith(f'{longest} limits it')


def test_without_a_topology_nothing_is_compiled_trained_or_written(experiment, planted, tmp_path):
  workdir = tmp_path / 'none'
  done = command(experiment, planted, '--config.mesh.devices=1', f'--workdir={workdir}')
  assert done.returncode == 0, done.stderr
  assert list(lines(done.stdout)) == PARTS[2:11]
  assert not workdir.exists()


def planned(planted, more, name='cpu-8', machine=None):
  """(spec, batch, plan) on this process's eight devices, whatever machine they stand for."""
  c = config.resolve(config.base(f'data.path={planted},{BASE},{more}'))
  machine = machine or machines.find(name)
  mesh, note = machines.mesh(machines.find('cpu-8'))
  c = on_mesh.for_machine(c, machine)
  run = run_lib.build_run(c, mesh)
  batch = run.train[0]
  return run.spec, batch, on_mesh.make(c, run.spec, batch, machine, note)


BASE = (
  'model.depth=1,model.dim=8,model.heads=2,model.embed_dim=4,data.batch_size=512,'
  'data.eval_batch_size=512,deres.block_layers=1'
)
SLOTS = {
  'rowwise_adagrad,optim.table_slots=float32': lambda E: 4,
  'lazy_adam,optim.table_slots=bfloat16': lambda E: 4 * E,
}


@pytest.mark.parametrize('optimizer', SLOTS)
def test_bytes_of_two_tables_and_their_slots(planted, optimizer):
  more = f'optim.table={optimizer},model.embed_dim_of_few=12:2'
  spec, batch, p = planned(planted, more, 'h200-8')
  assert p.widths == (4, 2)
  slot, D, N = SLOTS[optimizer], 8, 1024
  assert p.base.bytes_table == N * (4 + 2) * 4 // D
  assert p.base.bytes_table_slots == N * (slot(4) + slot(2)) // D
  asked = [D * K for K in p.capacities]
  expected = sum(n * (4 * E + 2 * (4 * E + slot(E))) for n, E in zip(asked, p.widths, strict=True))
  assert p.work.memory['table'] == expected
  assert p.work.memory['dense state'] == 2 * p.base.bytes_dense_state
  away, P = 1 - 1 / D, p.base.params_dense
  sent = sum(n * (8 * E + 4) for n, E in zip(asked, p.widths, strict=True))
  assert p.wire == {
    'all-reduce': pytest.approx(away * 8 * (P + 1)),
    'all-to-all': pytest.approx(away * sent),
  }
  assert p.for_capacities == pytest.approx(sum(p.wire.values())) and p.least < p.for_capacities
  # The step keeps a table in place: beside state, batch and temporaries there is next to nothing.
  counted = p.base.bytes_dense_state + p.base.bytes_table + p.base.bytes_table_slots + p.bytes_batch
  stream = sum(math.prod(x.shape) * 4 for x in jax.tree.leaves(step.abstract_stream(spec)))
  assert p.bytes_total == pytest.approx(counted + p.bytes_temporary + stream, abs=1000)
  shapes = step.abstract_batch(spec, batch)
  assert [x.shape for x in jax.tree.leaves(shapes)] == [np.shape(x) for x in jax.tree.leaves(batch)]


def test_figures_are_those_of_the_rows(planted):
  spec, batch, p = planned(planted, '')
  (ids,) = batch.unique_ids
  rows = numbers(spec.tables, batch, 8).reshape(8, -1)
  different = [len(np.unique(mine)) for mine in rows]
  assert p.distinct == (np.mean(different),)
  assert p.capacities == (ids.shape[1],) and p.rows == 512
  assert p.bound is None and p.spare is None
  said = on_mesh.text(p)
  assert 'no bound' in said and 'memory of a device is not known' in said


def test_a_step_that_does_not_fit_reports_the_excess(planted):
  small = dataclasses.replace(machines.find('h200-8'), memory=100_000)
  _, _, p = planned(planted, '', machine=small)
  over = p.bytes_total - 100_000
  assert p.spare == -over < 0
  assert f'DOES NOT FIT, by {on_mesh.size(over)}' in on_mesh.text(p)


def test_a_compiler_that_gives_up_still_leaves_a_plan(planted, monkeypatch):
  """libtpu refuses to compile what does not fit, and says what it would need."""

  class Refuses:
    def lower(self, *args):
      raise jax.errors.JaxRuntimeError(
        'RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space '
        'hbm. Used 25.50G of 15.75G hbm. Exceeded hbm capacity by 9.75G.'
      )

  monkeypatch.setattr(step, 'make_train_step', lambda spec: Refuses())
  _, _, p = planned(planted, '', 'v5e-8')
  assert p.bytes_temporary is None and p.bytes_total == int(25.5 * 2**30)
  assert sum(p.wire.values()) == p.for_capacities
  said = on_mesh.text(p)
  assert 'at least 25.50 GiB: DOES NOT FIT, by 9.75 GiB' in said
  assert 'the compiler gave up' in said and 'no program to read' in said


@pytest.mark.parametrize(('name', 'width', 'copied'), [
  ('v5e-8', 56, False), ('v5e-8', 64, True), ('v5e-8', 128, False), ('h200-8', 64, False),
])  # fmt: skip
def test_widths_that_a_tpu_copies_are_named(planted, name, width, copied):
  _, _, p = planned(planted, '', name)
  said = on_mesh.text(dataclasses.replace(p, widths=(width,)))
  assert ('warning: rows of' in said) == copied


def test_data_for_less_than_a_batch_is_named(planted):
  _, _, p = planned(planted, '')
  assert p.real == p.rows and 'warning' not in on_mesh.text(p)
  assert 'only 100 rows' in on_mesh.text(dataclasses.replace(p, real=100))


def test_accelerators_take_the_whole_part_of_a_batch():
  c = config.resolve(config.base())
  assert on_mesh.for_machine(c, machines.find('v5e-8')).train.micro_batch == 0
  assert on_mesh.for_machine(c, machines.find('cpu-8')).train.micro_batch == -1
  small = config.resolve(config.base('train.micro_batch=32'))
  assert on_mesh.for_machine(small, machines.find('v5e-8')) == small


def test_the_exchange_by_hand():
  found = collectives.exchange_bytes(4, (100, 10), (16, 8), 1000)
  assert found == {
    'all-reduce': 2 * 0.75 * 4 * 1000,
    'all-to-all': 0.75 * (100 * (64 + 64 + 4) + 10 * (32 + 32 + 4)),
  }
  assert collectives.exchange_bytes(1, (100,), (16,), 1000) == {}


def test_the_plan_of_any_mesh_is_unchanged_by_the_machine(planted):
  spec, _, p = planned(planted, '')
  c = config.resolve(config.base(f'data.path={planted},{BASE}'))
  assert counts.make(c, spec) == p.base


def test_a_topology_is_not_given_beside_devices():
  with pytest.raises(UserError, match=r'mesh.topology=v5e-8 and mesh.devices=4'):
    config.resolve(config.base('mesh.topology=v5e-8,mesh.devices=4'))


MISTAKES = {
  'unknown': (['--config.mesh.topology=v9-8'], ["'v9-8'", 'v5e-{', 'h200-']),
  'batch': (
    ['--config.mesh.topology=v5e-16', '--config.data.batch_size=100'],
    ['data.batch_size=100', '16 devices', '96 or 112'],
  ),
  'not a plan': (['--config.mesh.topology=v5e-8', '--mode=train', '--workdir=w'], ['--mode=plan']),
  'both': (
    ['--config.mesh.topology=v5e-8', '--config.mesh.devices=8'],
    ['mesh.topology=v5e-8', 'mesh.devices=8'],
  ),
}


@pytest.mark.parametrize('name', MISTAKES)
def test_a_mistake_costs_one_line_and_code_2(experiment, planted, name):
  more, words = MISTAKES[name]
  args = [f'--config={experiment}', '--mode=plan', f'--config.data.path={planted}', *more]
  done = forked.call([sys.executable, '-m', 'deres_jax.main', *args])
  said = done.stderr.strip()
  assert done.returncode == 2, said
  assert said.startswith('error: ') and '\n' not in said and all(w in said for w in words), said
