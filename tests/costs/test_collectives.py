# SPDX-License-Identifier: Apache-2.0
"""collectives.py against programs of 8 devices, hand-written lines, and the TPU's own compiler.

Shapes: D devices, K rows that a device needs of an owner, E row width.
"""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from deres_jax.costs import collectives, machines

D, K, E = 8, 64, 16
SHARDED = P('data')


def compiled(mesh, body, in_specs, out_specs, *arrays):
  """The text of a shard_map'ed body; arrays are (global shape, dtype)."""
  fn = jax.shard_map(body, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
  args = [
    jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
    for (shape, dtype), spec in zip(arrays, in_specs, strict=True)
  ]
  return jax.jit(fn).lower(*args).compile().as_text()


def cpu_mesh(*shape, names=('data',)):
  devices = np.array(jax.devices('cpu')[: int(np.prod(shape))]).reshape(shape)
  return Mesh(devices, names, axis_types=(AxisType.Auto,) * len(names))


def exchange(mesh):
  """The collectives of a training step on a sharded table."""

  def body(table, params, ids):
    requested = lax.all_to_all(ids, 'data', 0, 0, tiled=True)
    rows = lax.all_to_all(table.at[requested].get(mode='clip'), 'data', 0, 0, tiled=True)
    home = lax.all_to_all(rows * 2, 'data', 0, 0, tiled=True)
    return table.at[requested].add(home, mode='drop'), lax.psum(params * jnp.sum(rows), 'data')

  D = mesh.size
  return compiled(
    *(mesh, body, (SHARDED, P(), SHARDED), (SHARDED, P())),
    *(((D * 1000, E), jnp.float32), ((5000,), jnp.float32), ((D * D * K,), jnp.int32)),
  )


def only(text):
  (collective,) = collectives.parse(text)
  return collective


def check_exchange(text):
  program = collectives.parse(text)
  assert sorted(c.kind for c in program) == ['all-reduce', *['all-to-all'] * 3]
  assert {c.group_size for c in program} == {D}
  assert not any(c.in_loop for c in program)
  moved = sorted((c.dtype, c.operand_bytes) for c in program if c.kind == 'all-to-all')
  assert moved == [('f32', 4 * D * K * E)] * 2 + [('s32', 4 * D * K)]
  assert sorted({c.op_name.split('/')[-1] for c in program}) == ['all_to_all', 'psum']
  away = (D - 1) / D
  assert collectives.wire_bytes_by_kind(program) == {
    'all-to-all': pytest.approx(away * 4 * D * K * (2 * E + 1)),
    'all-reduce': pytest.approx(2 * away * 4 * 5000),
  }


def test_exchange_on_simulated_devices():
  text = exchange(cpu_mesh(D))
  assert '= (s32[64]{0}, s32[64]{0},' in text  # XLA:CPU's form: a tuple of D slices
  check_exchange(text)


def test_exchange_by_the_tpu_compiler():
  if not importlib.util.find_spec('libtpu'):
    pytest.skip('no libtpu: pip install libtpu')
  check_exchange(exchange(machines.mesh(machines.find('v5e-8'))[0]))


@pytest.mark.parametrize(
  ('op', 'kind', 'operand', 'result', 'wire'),
  [
    (functools.partial(lax.all_gather, tiled=True), 'all-gather', 1, 8, 7),
    (functools.partial(lax.psum_scatter, tiled=True), 'reduce-scatter', 8, 1, 7),
    (lax.psum, 'all-reduce', 1, 1, 2 * 7 / 8),
    (
      functools.partial(lax.all_to_all, split_axis=0, concat_axis=0, tiled=True),
      *('all-to-all', 1, 1, 7 / 8),
    ),
    (
      functools.partial(lax.ppermute, perm=[(i, (i + 1) % D) for i in range(D)]),
      *('collective-permute', 1, 1, 1),
    ),
  ],
)
def test_bytes_of_each_kind(op, kind, operand, result, wire):
  """In units of 64 rows of 16 floats; a reduce-scatter's shard is the unit, so 8 go in."""
  rows = 64 * (8 if kind == 'reduce-scatter' else 1)
  text = compiled(
    *(cpu_mesh(D), lambda x: op(x, 'data'), (SHARDED,), SHARDED),
    ((D * rows, 16), jnp.float32),
  )
  collective, unit = only(text), 64 * 16 * 4
  assert (collective.kind, collective.dtype, collective.group_size) == (kind, 'f32', D)
  assert (collective.operand_bytes, collective.result_bytes) == (operand * unit, result * unit)
  assert collectives.wire_bytes(collective) == pytest.approx(wire * unit)


def test_groups_of_a_mesh_of_two_axes():
  def body(x):
    return lax.psum(x, 'a'), lax.all_gather(x, 'b', tiled=True)

  text = compiled(
    *(cpu_mesh(2, 4, names=('a', 'b')), body, (P(),), (P(), P())), ((1000,), jnp.float32)
  )
  assert {c.kind: c.group_size for c in collectives.parse(text)} == {
    'all-reduce': 2,
    'all-gather': 4,
  }


def test_what_xla_makes_of_a_gather_on_a_sharded_table():
  mesh = cpu_mesh(D)
  table = jax.ShapeDtypeStruct((D * 1000, E), jnp.float32, sharding=NamedSharding(mesh, SHARDED))
  ids = jax.ShapeDtypeStruct((D * K,), jnp.int32, sharding=NamedSharding(mesh, SHARDED))
  text = jax.jit(lambda table, ids: table[ids]).lower(table, ids).compile().as_text()
  program = collectives.parse(text)
  assert program and {c.group_size for c in program} == {D}
  # Rows come to every device before each keeps its own: far more than (1 - 1 / D) K rows.
  assert sum(map(collectives.wire_bytes, program)) > (D - 1) * 4 * K * E


def test_one_device_sends_nothing():
  text = compiled(
    cpu_mesh(1), lambda x: lax.psum(x, 'data'), (SHARDED,), P(), ((1000,), jnp.float32)
  )
  assert collectives.wire_bytes_by_kind(collectives.parse(text)) == {}


def test_a_loop_is_marked():
  def body(x):
    once = lax.psum(x, 'data')
    return lax.scan(lambda c, _: (lax.psum(c, 'data') + once, None), x, None, length=5)[0]

  program = collectives.parse(compiled(cpu_mesh(D), body, (P(),), P(), ((100,), jnp.float32)))
  assert sorted(c.in_loop for c in program) == [False, True]


HEAD = 'HloModule jit_step, is_scheduled=true, num_partitions=16, replica_count=1\n'
BY_HAND = """
%ids = (s32[4,8]{1,0}, s32[4,8]{1,0}) all-to-all-start(%a), replica_groups={{0,1,2,3}}
%ids-done = s32[4,8]{1,0} all-to-all-done(%ids)
%ag = (bf16[128]{0:T(1024)(128)(2,1)}, bf16[512]{0:T(1024)}) all-gather-start(bf16[128]{0} %x), channel_id=2, replica_groups=[4,4]<=[16], dimensions={0}, metadata={op_name="jit(f)/all_gather"}
%add.clone {
  %y = f32[] add(%a, %b)
}

ENTRY main {
%agd = bf16[512]{0:T(1024)} all-gather-done((bf16[128]{0}, bf16[512]{0}) %ag)
%ar = (f32[10]{0}, f32[3,2]{1,0}) all-reduce-start(f32[10]{0} %p, f32[3,2]{1,0} %q), replica_groups={}, to_apply=%add
%ard = (f32[10]{0}, f32[3,2]{1,0}) all-reduce-done(%ar)
%cp = (f8e4m3fn[100]{0}, f8e4m3fn[100]{0}, u32[], u32[]) collective-permute-start(%x), source_target_pairs={{0,0},{1,1}}
%cpd = f8e4m3fn[100]{0} collective-permute-done(%cp)
%rs = f32[8]{0} reduce-scatter(%x), replica_groups=[2,8]<=[4,4]T(1,0), dimensions={0}, to_apply=%add
ROOT %r = pred[7]{0} ragged-all-to-all(%x, %y, %i, %s, %o, %t), replica_groups=[1,16]<=[16]
%b = u4[9]{0} collective-broadcast(%x), replica_groups={{0,1}}
%m = f32[8]{0} all-reduce(%x), replica_groups=mesh['axis_0'=8,'axis_1'=2] {'axis_0'}, to_apply=%add
%n = f32[8]{0} all-reduce(%x), replica_groups=mesh['a'=8,'b'=2] {'a':(2)4,'b'}, to_apply=%add
%not = f32[2] add(%all-gather, %all-reduce-done), metadata={op_name="all-reduce(x)"}
"""  # noqa: E501


def test_asynchronous_lines_by_hand():
  program = collectives.parse(HEAD + BY_HAND)
  assert [(c.name, c.kind, c.group_size, c.operand_bytes, c.result_bytes) for c in program] == [
    ('ids', 'all-to-all', 4, 128, 128),
    ('ag', 'all-gather', 4, 256, 1024),
    ('ar', 'all-reduce', 16, 64, 64),
    ('cp', 'collective-permute', 1, 100, 100),
    ('rs', 'reduce-scatter', 8, 256, 32),
    ('r', 'ragged-all-to-all', 16, 7, 7),
    ('b', 'collective-broadcast', 2, 5, 5),
    ('m', 'all-reduce', 8, 32, 32),
    ('n', 'all-reduce', 8, 32, 32),
  ]
  by_name = {c.name: c for c in program}
  assert by_name['ag'].op_name == 'jit(f)/all_gather' and by_name['ids'].op_name == ''
  assert by_name['ar'].shapes == ((10,), (3, 2))
  assert collectives.wire_bytes(by_name['cp']) == 0
  assert collectives.wire_bytes(by_name['b']) == 5


@pytest.mark.parametrize(
  'line',
  [
    '%x = f32[8]{0} all-gather(%a), replica_groups=<4>, dimensions={0}',
    '%x = token[] all-reduce(%a), replica_groups={}',
    '%x = f32[8]{0} collective-permute(%a)',
  ],
)
def test_what_is_not_understood_is_refused(line):
  with pytest.raises(ValueError):
    collectives.parse(HEAD + line)
