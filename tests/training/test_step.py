# SPDX-License-Identifier: Apache-2.0
"""The step: any mesh, any micro-batch, the same numbers; and what it computes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from made import in_order, numbers, read_stream
from marks import slow

from deres_jax import config
from deres_jax.core.errors import UserError
from deres_jax.data import batches as batches_lib
from deres_jax.data.blocks import Blocks
from deres_jax.data.schema import load_schema
from deres_jax.embeddings import layout
from deres_jax.models.inputs import Context
from deres_jax.pod import mesh as mesh_lib
from deres_jax.training import step
from deres_jax.training.step_spec import make_step_spec, micro_batch

TINY = (
  'model.depth=2,model.dim=8,model.heads=2,model.embed_dim=4,model.ffn_ratio=2,'
  'data.batch_size=256,data.eval_batch_size=256,deres.block_layers=1,optim.table_lr=0.1,'
  # Adam turns a gradient that is zero but for rounding (the first query's) into a full step; a
  # large epsilon keeps the step as smooth as the gradient, so that runs can be compared.
  'optim.adam_eps=0.001'
)


def make(folder, devices=1, more='', steps=10):
  c = config.resolve(config.base(f'{TINY},{more}'))
  schema = load_schema(str(folder))
  mesh = mesh_lib.make_mesh(devices)
  spec = make_step_spec(c, schema, mesh, steps)
  blocks = Blocks(schema, 'train')
  return spec, batches_lib.Batches(blocks, spec.tables, c.data.batch_size, devices, 64, c.seed)


def run(spec, batches, steps):
  """Losses of every step, and the state at the end."""
  state, train, read = (
    step.init_state(spec),
    step.make_train_step(spec),
    read_stream,
  )
  losses_S = []
  for k in range(steps):
    stream = step.init_stream(spec)
    state, stream = train(state, stream, batches_lib.put(batches[k], spec.mesh))
    losses_S.append(read(stream)['logloss'])
  return np.array(losses_S), state


def assert_close(a, b, rtol, atol):
  for path, x in jax.tree_util.tree_leaves_with_path(a):
    y = {jax.tree_util.keystr(p): v for p, v in jax.tree_util.tree_leaves_with_path(b)}[
      jax.tree_util.keystr(path)
    ]
    np.testing.assert_allclose(x, y, rtol=rtol, atol=atol, err_msg=jax.tree_util.keystr(path))


NOISY = 'optim.table_l2=0.001,model.dropout=0.1,model.embed_dropout=0.1'


@pytest.fixture(scope='module')
def eight(planted):
  """(spec, batches, train step) on eight devices."""
  spec, batches = make(planted, 8)
  return spec, batches, step.make_train_step(spec)


@pytest.mark.parametrize(
  'more',
  [
    f'model.embed_dim_of_few=10:2/12:3,{NOISY}',
    slow(NOISY),
    slow('model.embed_dim_of_few=12:2,model.backbone=deepfm,mlp.units=8'),
    slow('optim.table_slots=bfloat16,optim.table=lazy_adam'),
  ],
  ids=['widths', 'one width', 'widths beside linear weights', 'bfloat16 slots'],
)
def test_eight_devices_train_like_one(planted, more):
  one, state_one = run(*make(planted, 1, more), steps=4)
  eight, state_eight = run(*make(planted, 8, more), steps=4)
  np.testing.assert_allclose(one, eight, rtol=1e-5)
  # A sum that differs in its last bit may be rounded the other way: by 2^-8 of itself.
  assert_close(state_one, state_eight, rtol=1e-2 if 'bfloat16' in more else 2e-3, atol=2e-5)
  assert len(state_one.tables) == 1 + more.count(':')
  assert (np.diff(one) < 0).any()


def test_narrow_rows_reach_the_model_through_a_map(planted):
  """Against rows put together by hand: each table's map, then the slots in the data's order."""
  spec, batches = make(planted, 1, 'model.embed_dim_of_few=10:2/12:3')
  state, batch = step.init_state(spec), batches[0]
  params = jax.device_get(state.params)
  assert params['table_1']['kernel'].shape == (3, 4) and params['table_2']['kernel'].shape == (2, 4)
  found = numbers(spec.tables, batch, 1, spec.column_tables)
  rows = np.zeros((256, 6, 4), np.float32)
  for s, t in enumerate(spec.column_tables):
    places = spec.tables.storage_index(found[:, s].astype(np.int32)) - spec.tables.table_offsets[t]
    x = np.asarray(state.tables[t])[places]
    rows[:, s] = x @ params[f'table_{t}']['kernel'] if t else x
  expected = spec.model.model.apply({'params': params['model']}, rows, Context())
  logits = step.make_eval_step(spec)(
    state.params, state.tables, np.int32(0), batches_lib.put(batch, spec.mesh)
  )
  np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_the_last_partial_batch_trains_on_its_rows_alone(eight):
  spec, batches, train = eight
  last = batches.per_epoch - 1
  assert 0 < batches.size(last) < 256
  batch = batches_lib.put(batches[last], spec.mesh)
  _, stream = train(step.init_state(spec), step.init_stream(spec), batch)
  assert read_stream(stream)['rows'] == batches.size(last)


@pytest.mark.parametrize('micro', [32, slow(64)])
def test_micro_batches_equal_the_whole_batch(planted, micro):
  more = 'model.dropout=0.2,model.embed_dropout=0.1,train.micro_batch='
  whole, state_whole = run(*make(planted, 1, f'{more}0'), steps=3)
  parts, state_parts = run(*make(planted, 1, f'{more}{micro}'), steps=3)
  np.testing.assert_allclose(whole, parts, rtol=1e-6)
  assert_close(state_whole.params, state_parts.params, rtol=1e-3, atol=1e-5)
  np.testing.assert_allclose(state_whole.tables[0], state_parts.tables[0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
  ('backbone', 'batch', 'want'),
  [('onetrans', 4096, 128), ('dnn', 4096, 2048), ('dnn', 1024, 1024), ('xdeepfm', 4096, 128)],
)
def test_micro_batch_sizes_on_cpus(backbone, batch, want):
  c = config.resolve(config.base(f'model.backbone={backbone},data.batch_size={batch}'))
  mesh = mesh_lib.make_mesh(1)
  assert micro_batch(c, mesh) == want
  chosen = dataclasses.replace(c, train=dataclasses.replace(c.train, micro_batch=64))
  assert micro_batch(chosen, mesh) == 64


def test_one_step_equals_a_plain_one(planted):
  """The same step written with a dense table and no mesh, micro-batch or unique ids."""
  spec, batches = make(planted, 8, 'optim.gate_lr_mult=3,optim.weight_decay=0.1')
  state = step.init_state(spec)
  params, table = jax.device_get(state.params), in_order(spec.tables, state.tables)
  batch = batches[0]
  ids = numbers(spec.tables, batch, 8)

  def loss(params, table):
    logits = spec.model.apply({'params': params}, table[ids], Context())
    return step.bce_sum(logits, batch.labels, batch.weights) / 256

  @jax.jit
  def plain_step(params, table):
    gp, gt = jax.grad(loss, argnums=(0, 1))(params, table)
    updates, _ = spec.optimizer.update(gp, spec.optimizer.init(params), params)
    return optax.apply_updates(params, updates), gt

  want_params, gt = jax.device_get(plain_step(params, jnp.asarray(table)))
  want_table = table - 0.1 * gt / (np.sqrt(np.mean(gt**2, -1, keepdims=True)) + 1e-8)
  train = step.make_train_step(spec)
  new, _ = train(state, step.init_stream(spec), batches_lib.put(batch, spec.mesh))
  assert_close(jax.device_get(new.params), want_params, rtol=1e-4, atol=1e-6)
  moved = np.abs(gt).sum(-1) > 0
  rows = in_order(spec.tables, new.tables)
  np.testing.assert_allclose(rows[moved], want_table[moved], rtol=1e-3, atol=1e-5)
  np.testing.assert_array_equal(rows[~moved], table[~moved])


def test_a_plain_pmap_step_gives_the_same_dense_part(planted):
  """jax.pmap's data-parallel step with the table on every device: parameters after three steps."""
  spec, batches = make(planted, 8, 'optim.weight_decay=0.1,optim.clip_norm=0.05')
  state = step.init_state(spec)
  params, table = jax.device_get(state.params), jnp.asarray(in_order(spec.tables, state.tables))
  sums = jnp.zeros(len(table))

  def loss(params, rows, labels):
    logits = spec.model.apply({'params': params}, rows, Context())
    return step.bce_sum(logits, labels, jnp.ones_like(labels)) / 256

  def one(params, opt, table, sums, ids, labels):
    g, g_rows = jax.grad(loss, argnums=(0, 1))(params, table[ids], labels)
    g = jax.lax.psum(g, 'd')
    dense = jax.lax.psum(jnp.zeros_like(table).at[ids].add(g_rows), 'd')
    updates, opt = spec.optimizer.update(g, opt, params)
    sums = sums + jnp.mean(dense**2, axis=-1)
    table = table - 0.1 * dense / (jnp.sqrt(sums) + 1e-8)[:, None]
    return optax.apply_updates(params, updates), opt, table, sums

  def everywhere(tree):
    return jax.tree.map(lambda x: jnp.stack([x] * 8), tree)

  plain = everywhere((params, spec.optimizer.init(params), table, sums))
  step_everywhere = jax.pmap(one, axis_name='d')
  train = step.make_train_step(spec)
  for k in range(3):
    batch = batches[k]
    ids = numbers(spec.tables, batch, 8).reshape(8, 32, -1)
    plain = step_everywhere(*plain, ids, batch.labels.reshape(8, 32))
    state, _ = train(state, step.init_stream(spec), batches_lib.put(batch, spec.mesh))
  first = jax.tree.map(lambda x: np.asarray(x[0]), plain)
  assert_close(jax.device_get(state.params), first[0], rtol=1e-4, atol=1e-6)
  assert_close(jax.device_get(state.opt), first[1], rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(in_order(spec.tables, state.tables), first[2], rtol=1e-3, atol=2e-6)


def test_the_state_is_created_sharded_and_stays_so(eight):
  spec, batches, train = eight
  state = step.init_state(spec)
  wanted = jax.tree.map(lambda x: x.sharding, step.abstract_state(spec))
  (table,) = state.tables
  assert table.addressable_shards[0].data.shape[0] == spec.tables.parts[0].size // 8
  old = table
  state, _ = train(state, step.init_stream(spec), batches_lib.put(batches[0], spec.mesh))
  assert old.is_deleted(), 'the state must be donated'
  for x, s in zip(jax.tree.leaves(state), jax.tree.leaves(wanted), strict=True):
    assert x.sharding.is_equivalent_to(s, x.ndim)


@pytest.mark.parametrize(
  ('kernels', 'table'),
  [
    ('auto', 'lazy_adam'),
    ('off', 'rowwise_adagrad'),
    slow('auto', 'rowwise_adagrad'),
    slow('off', 'lazy_adam'),
  ],
)
def test_a_step_copies_no_table(planted, kernels, table):
  """Tables and slots move in place, though the kernels' calls are opaque to XLA."""
  more = f'train.kernels={kernels},optim.table={table}'
  rows = 50_000_000
  spec, batches = make(planted, more=more)
  wide = dataclasses.replace(spec, tables=layout.Tables((rows,), spec.tables.dim))
  state, stream = step.abstract_state(wide), step.abstract_stream(wide, summed=False)
  batch = step.abstract_batch(wide, batches[0])
  compiled = step.make_train_step(wide).lower(state, stream, batch).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < rows  # a copy has two bytes a row or more


def test_dropout_noise_differs_by_step_and_is_off_in_evaluation(planted):
  spec, batches = make(planted, 1, 'model.dropout=0.5')
  evaluate = step.make_eval_step(spec)
  state = step.init_state(spec)
  batch = batches_lib.put(batches[0], spec.mesh)
  a, b = (np.asarray(evaluate(state.params, state.tables, np.int32(0), batch)) for _ in range(2))
  np.testing.assert_array_equal(a, b)
  one, two = (np.asarray(jax.random.key_data(_keys(spec, k))) for k in (0, 1))
  assert one.shape[0] == 256 and (one != two).any()
  assert len(np.unique(one, axis=0)) == 256


def _keys(spec, k):
  keys = jax.shard_map(
    lambda: step._example_keys(spec, jnp.int32(k), 256),
    mesh=spec.mesh,
    in_specs=(),
    out_specs=mesh_lib.BATCH,
    check_vma=False,
  )
  return jax.jit(keys)()


def test_evaluation_is_the_same_on_every_mesh(planted):
  out = []
  for devices in (1, 2, 8):
    spec, batches = make(planted, devices)
    state = step.init_state(spec)
    batch = batches_lib.put(batches[0], spec.mesh)
    out.append(
      np.asarray(step.make_eval_step(spec)(state.params, state.tables, np.int32(0), batch))
    )
  np.testing.assert_allclose(out[0], out[1], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(out[0], out[2], rtol=1e-5, atol=1e-6)


@pytest.fixture(scope='module')
def losses(planted):
  """Three losses of a pinned run."""
  return run(*make(planted, 1), steps=3)[0]


def test_bfloat16_trains_near_float32(planted, losses):
  rough, state = run(*make(planted, 1, 'model.dtype=bfloat16'), steps=3)
  np.testing.assert_allclose(losses, rough, rtol=2e-2)
  assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(state.params))


def test_golden_losses(losses):
  """If a change is meant to move them, say so in CHANGELOG."""
  np.testing.assert_allclose(losses, GOLDEN, rtol=1e-4)


GOLDEN = [0.610860, 0.602375, 0.625530]


def test_sizes_that_do_not_fit_are_named(planted):
  with pytest.raises(UserError, match=r'batch_size=100 is not divisible by the 8 devices'):
    make(planted, 8, 'data.batch_size=100')
  with pytest.raises(UserError, match=r'eval_batch_size=100 is not divisible by the 8 devices'):
    make(planted, 8, 'data.eval_batch_size=100')
  with pytest.raises(UserError, match=r'micro_batch=48 does not divide the 256 rows'):
    make(planted, 1, 'train.micro_batch=48')
  with pytest.raises(UserError, match=r'mesh.devices=9: there are only 8'):
    make(planted, 9)
  with pytest.raises(UserError, match=r'3 devices do not divide the table'):
    make(planted, 3, 'data.batch_size=300,data.eval_batch_size=300')
  with pytest.raises(UserError, match=r"unknown backbone .*'onetran'.* lr, .*onetrans"):
    make(planted, 1, 'model.backbone=onetran')
  with pytest.raises(
    UserError, match=r"unknown connector .*'dres'.* attnres, .*, deres, .*, prenorm"
  ):
    make(planted, 1, 'model.connector=dres')
  with pytest.raises(UserError, match=r'embed_dim=1 \(it is 4\)'):
    make(planted, 1, 'model.backbone=lr')
