# SPDX-License-Identifier: Apache-2.0
"""topology.py and roofline.py: names, vendors' own totals, meshes, and the arithmetic of bounds."""

import dataclasses
import importlib.util
import json
import math
import os
import pathlib
import re
import subprocess
import sys

import pytest

from deres_jax.core.errors import UserError
from deres_jax.costs import machines, roofline

REPO = pathlib.Path(__file__).resolve().parents[2]

NAMES = [
  ('v5e-1', 'tpu', 1, 1),
  ('v5e-8', 'tpu', 8, 1),
  ('v5e-16', 'tpu', 16, 4),
  ('v6e-256', 'tpu', 256, 64),
  ('v5p-8', 'tpu', 4, 1),
  ('v5p-128', 'tpu', 64, 16),
  ('v4-32', 'tpu', 16, 4),
  ('h200-8', 'gpu', 8, 1),
  ('8xH200', 'gpu', 8, 1),
  ('h200-1', 'gpu', 1, 1),
  ('a100-8', 'gpu', 8, 1),
  ('h100-64', 'gpu', 64, 8),
  ('cpu-3', 'cpu', 3, 1),
]


@pytest.mark.parametrize(('name', 'platform', 'devices', 'hosts'), NAMES)
def test_names(name, platform, devices, hosts):
  t = machines.find(name)
  assert (t.platform, t.devices, t.hosts) == (platform, devices, hosts)
  assert t.notes and (t.name == name or name == '8xH200')
  assert machines.find(t.name) == t


@pytest.mark.parametrize(
  'name', ['', 'v5e', 'v5e-3', 'v5e-512', 'h200-12', 'h200-0', 'cpu-0', 'b200-8', 'v5e-8.0', '8x']
)
def test_unknown_names_list_what_is_known(name):
  with pytest.raises(UserError, match=r'v5e-\{1,4,8,.*h200-.*cpu-N'):
    machines.find(name)


@pytest.mark.parametrize(
  ('name', 'bisection', 'all_reduce', 'within'),
  [
    ('v5e-256', 1.6e12, 51.2e12, 1e-6),
    ('v6e-256', 3.2e12, 102.4e12, 1e-6),
    ('v4-8192', 24e12, 1.1e15, 0.13),  # the vendor rounds, and measures links a little slower
  ],
)
def test_totals_of_a_pod_are_the_vendors(name, bisection, all_reduce, within):
  """The vendor's figures of whole pods come out of the model's figures of one chip."""
  t = machines.find(name)
  n = t.devices
  # n / 2 devices get (n - 1) bytes rid of, n / 2 of them across the cut, in all_to_all's time.
  crossing = n / 2 * (n / 2) / ((n - 1) / t.all_to_all)
  assert crossing == pytest.approx(bisection, rel=within)
  assert n * t.all_reduce == pytest.approx(all_reduce, rel=within)


def test_a_mesh_of_chips_counted_by_hand():
  # 2 x 4: 10 links, both directions, 8 chips. Middle cut: 2 links carry 4 x X / 2 each way.
  all_to_all, all_reduce = machines.torus_bandwidth((2, 4), (False, False), 1.0)
  assert all_reduce == pytest.approx(2 * 10 / 8)
  assert all_to_all == pytest.approx((7 / 8) / (4 / 2 / 2))
  # A ring of 8: two links at the cut, two out of each.
  all_to_all, all_reduce = machines.torus_bandwidth((8,), (True,), 1.0)
  assert all_reduce == 2
  assert all_to_all == pytest.approx((7 / 8) / (4 / 2 / 2))
  # 2 x 2: the cut through the middle, 2 links for 2 x X / 2.
  assert machines.torus_bandwidth((2, 2), (False, False), 1.0) == pytest.approx((1.5, 2.0))
  assert machines.torus_bandwidth((1, 1), (False, False), 1.0) == (math.inf, math.inf)


def test_hosts_of_gpus():
  one, two = machines.find('h200-8'), machines.find('h200-16')
  assert one.all_to_all == one.all_reduce == 450e9
  # 8 of the 15 parts that a GPU sends go by its 50 GB/s card.
  assert two.all_to_all == pytest.approx(50e9 * 15 / 8)
  # The cards carry 2 * X / 2 / 8 of the 2 * X * 15 / 16: NVLink, 2 * X * 7 / 8, is slower.
  assert two.all_reduce == pytest.approx(450e9 * (15 / 16) / (7 / 8))
  assert machines.find('h100-64').memory == 80e9


def test_mesh_of_simulated_devices():
  mesh, note = machines.mesh(machines.find('cpu-4'))
  assert mesh.shape == {'data': 4} and 'XLA:CPU' in note
  assert [d.id for d in mesh.devices] == [0, 1, 2, 3]
  with pytest.raises(UserError, match='cpu-64 needs 64 simulated devices'):
    machines.mesh(machines.find('cpu-64'))


PROGRAM = """
import json, jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
from deres_jax.costs import collectives, machines
mesh, note = machines.mesh(machines.find('h200-64'))
fn = jax.shard_map(lambda x: jax.lax.all_to_all(x, 'data', 0, 0, tiled=True),
                   mesh=mesh, in_specs=P('data'), out_specs=P('data'))
x = jax.ShapeDtypeStruct((64 * 64 * 2, 16), jnp.float32, sharding=NamedSharding(mesh, P('data')))
collective, = collectives.parse(jax.jit(fn).lower(x).compile().as_text())
print(json.dumps([collective.kind, collective.group_size, collective.operand_bytes, note]))
"""


def test_a_process_of_its_own_compiles_for_64_devices():
  env = {k: v for k, v in os.environ.items() if k not in ('XLA_FLAGS', 'JAX_PLATFORMS')}
  done = subprocess.run(
    [sys.executable, '-c', PROGRAM], capture_output=True, text=True, cwd=REPO, env=env, check=False
  )
  assert done.returncode == 0, done.stderr
  kind, size, operand, note = json.loads(done.stdout)
  assert (kind, size, operand) == ('all-to-all', 64, 64 * 2 * 16 * 4)
  assert 'not what a gpu would' in note


@pytest.mark.parametrize('name', ['v5e-1', 'v5e-8', 'v5e-16', 'v5p-128', 'v6e-8', 'v4-8'])
def test_libtpu_knows_the_slices(name):
  if not importlib.util.find_spec('libtpu'):
    pytest.skip('no libtpu: pip install libtpu')
  t = machines.find(name)
  mesh, note = machines.mesh(t)
  assert mesh.size == t.devices and mesh.devices.flat[0].platform == 'tpu'
  assert 'libtpu' in note


WORK = roofline.Work(
  rows=80_000,
  flops={'float32': 2e12, 'bfloat16': 1e12},
  memory=roofline.memory_bytes(3e9, 1000, 64, 4, 5e8),
  wire={'all-to-all': 9e9, 'all-reduce': 1e9},
)


def test_bound_by_hand():
  machine = machines.find('h200-8')
  bound = roofline.bound(WORK, machine)
  assert WORK.memory == {'matmuls': 3e9, 'table': 1000 * (64 + 2 * 68), 'dense state': 1e9}
  assert bound.compute_seconds == pytest.approx(2e12 / 494.7e12 + 1e12 / 989.4e12)
  assert bound.memory_seconds == pytest.approx((4e9 + 200_000) / 4.8e12)
  assert bound.network_seconds == pytest.approx(10e9 / 450e9)
  assert bound.step_seconds == pytest.approx(bound.compute_seconds + bound.network_seconds)
  assert bound.rows_per_second == pytest.approx(80_000 / bound.step_seconds)
  assert bound.limit == 'network'
  assert any('NVLink' in line for line in roofline.assumptions(machine))


def test_one_device_has_no_network():
  bound = roofline.bound(dataclasses.replace(WORK, wire={}), machines.find('v5e-1'))
  assert bound.network_seconds == 0 and bound.limit == 'compute'
  assert bound.step_seconds == bound.compute_seconds == pytest.approx(3e12 / 197e12)


def test_each_kind_has_its_rate():
  t = machines.find('v5e-8')
  bound = roofline.bound(WORK, t)
  assert bound.network_seconds == pytest.approx(9e9 / t.all_to_all + 1e9 / t.all_reduce)
  assert t.all_to_all < t.all_reduce


def test_a_machine_without_figures_is_refused():
  with pytest.raises(ValueError, match='cpu-2'):
    roofline.bound(WORK, machines.find('cpu-2'))
  with pytest.raises(ValueError, match='float64'):
    roofline.bound(dataclasses.replace(WORK, flops={'float64': 1.0}), machines.find('v5e-8'))


def test_rates_in_the_docs_are_the_codes():
  page = (REPO / 'docs' / 'scaling_out.md').read_text()
  rows = re.findall(r'^\| `([\w-]+)` \| (\d+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$', page, re.M)
  assert len(rows) == 11
  for name, *figures in rows:
    t = machines.find(name)
    rates = t.memory_bandwidth / 1e12, t.all_to_all / 1e9, t.all_reduce / 1e9
    assert figures == [str(t.devices), f'{rates[0]:.2f}', f'{rates[1]:.1f}', f'{rates[2]:.1f}'], (
      name
    )
