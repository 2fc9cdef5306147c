# SPDX-License-Identifier: Apache-2.0
"""Sharded tables against plain NumPy ones and against the masked exchange."""

import jax
import jax.numpy as jnp
import masked_exchange
import numpy as np
import pytest
from made import in_order
from marks import slow
from scipy.special import erfinv

from deres_jax.embeddings import exchange, layout, optimizers
from deres_jax.kernels import library
from deres_jax.pod import mesh as mesh_lib

SIZES = (700, 1500, 3)  # 2,203 rows: three groups, the last one partly empty
DIM = 4


def tables(**more):
  return layout.Tables(SIZES, DIM, **more)


def on_mesh(devices, body, in_specs, out_specs):
  mesh = mesh_lib.make_mesh(devices)
  return jax.jit(
    jax.shard_map(body, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
  )


def drawn(key, t, std, devices=1):
  """Rows of the first table at the start."""
  body = lambda: exchange.init_tables(key, t, std)[0]  # noqa: E731
  return on_mesh(devices, body, (), mesh_lib.TABLE)()


def ask(rng, devices, capacity, t):
  """Ids [asker * owner, K]: different, ascending, padded; every device asks for number 5."""
  N = t.parts[0].size // devices
  wanted = rng.random((devices, t.rows)) < 0.5 * capacity / N
  wanted[:, 5] = True
  out = np.tile(np.arange(N, N + capacity, dtype=np.int32), (devices, devices, 1))
  for mine, row in zip(wanted, out, strict=True):
    places = np.sort(t.storage_index(np.flatnonzero(mine).astype(np.int32)))
    for owner in range(devices):
      here = places[places // N == owner] - owner * N
      assert len(here) < capacity
      row[owner, : len(here)] = here
  return out.reshape(-1, capacity)


def places_of(ids, devices, t):
  """Places over all devices' parts of what `ask` asked for, by asker. [asker * owner * K]."""
  N = t.parts[0].size // devices
  ids = ids.reshape(devices, devices, -1)
  over_all = ids + np.arange(devices, dtype=np.int32)[:, None] * N
  return np.where(ids < N, over_all, devices * N).reshape(-1).astype(np.int32)


def look(rows, ids):
  return exchange.lookup(rows, ids.reshape(-1))[0]


@pytest.mark.parametrize('devices', [1, 2, 8])
def test_lookup_equals_take(devices):
  t, rng = tables(), np.random.default_rng(devices)
  rows = drawn(jax.random.key(0), t, 1.0, devices)
  ids = ask(rng, devices, 400, t)
  run = on_mesh(devices, look, (mesh_lib.TABLE, mesh_lib.BATCH), mesh_lib.BATCH)
  found, places = np.asarray(run(rows, ids)), places_of(ids, devices, t)
  real = places < t.padding
  assert real.sum() > devices * 100
  np.testing.assert_array_equal(found[real], np.asarray(rows)[places[real]])
  assert not found[~real].any()
  plain = on_mesh(devices, masked_exchange.lookup, (mesh_lib.TABLE, mesh_lib.BATCH), mesh_lib.BATCH)
  np.testing.assert_array_equal(found, plain(rows, places))


def test_storage_is_a_bijection_that_spreads_neighbours():
  t = layout.Tables((700, 1500, 3, 5000), 8, 1, ((10, 2), (1000, 4)))
  assert [p.dim for p in t.parts] == [8, 5, 3] and t.table_of == (1, 0, 2, 0)
  assert [p.rows for p in t.parts] == [6500, 700, 3]
  numbers = np.arange(t.padding + 1, dtype=np.int32)
  places = t.storage_index(numbers)
  assert sorted(places) == numbers.tolist() and places[-1] == t.padding
  np.testing.assert_array_equal(t.global_ids(places), numbers)
  for table, (low, high) in zip(
    t.parts, zip(t.table_offsets, t.table_offsets[1:], strict=False), strict=True
  ):
    assert sorted(places[low:high]) == list(range(low, high))
    owners = (places[low:high] - low) // (table.size // 8)
    owner_of_bits = np.array([0, 4, 2, 6, 1, 5, 3, 7])
    np.testing.assert_array_equal(owners, owner_of_bits[(numbers[low:high] - low) % 8])
  np.testing.assert_array_equal(t.column_offsets, [7168, 0, 8192, 1500])
  assert t.shard_bounds(2).tolist() == [0, 3584, 7168, 7680, 8192, 8704, 9216]
  assert t.parameters == 6500 * 8 + 700 * 5 + 3 * 3


def test_rows_are_those_of_jax_on_every_mesh():
  key, t = jax.random.key(3), tables()
  one, eight = drawn(key, t, 0.5), drawn(key, t, 0.5, 8)
  np.testing.assert_array_equal(one, eight)
  assert {s.data.shape for s in eight.addressable_shards} == {(3 * 1024 // 8, DIM)}
  want = jax.jit(lambda: 0.5 * jax.random.normal(key, (3 * 1024, DIM)))()
  np.testing.assert_array_equal(in_order(t, [one]), want)


def test_rows_beyond_32_bits_of_elements_are_those_of_jax():
  """Row i of width E begins at element i * E, which needs two words."""
  i_R, width = np.array([0, 1, 2**28 - 1, 2**28, 2**28 + 5, 2**31 - 1], np.uint32), 16
  k1, k2 = jax.random.key_data(jax.random.key(7))
  got = jax.jit(exchange._normal, static_argnums=3)(k1, k2, i_R, width)
  places = i_R.astype(np.uint64)[:, None] * width + np.arange(width, dtype=np.uint64)
  high, low = (places >> 32).astype(np.uint32), (places & 0xFFFFFFFF).astype(np.uint32)
  bits = [
    _threefry(int(k1), int(k2), int(h), int(l)) for h, l in zip(high.flat, low.flat, strict=True)
  ]
  unit = (((np.array(bits, np.uint32) >> 9) | 0x3F800000).view(np.float32) - 1).astype(np.float64)
  want = np.sqrt(2) * erfinv(2 * unit - 1)
  np.testing.assert_allclose(np.asarray(got).reshape(-1), want, rtol=2e-4, atol=1e-5)


def _threefry(k0, k1, x0, x1):
  """Threefry-2x32 with 20 rounds (Salmon et al. 2011), as jax.random uses it; x ^ y."""
  mask, keys = 0xFFFFFFFF, (k0, k1, k0 ^ k1 ^ 0x1BD11BDA)
  x0, x1 = (x0 + k0) & mask, (x1 + k1) & mask
  for i, turns in enumerate([(13, 15, 26, 6), (17, 29, 16, 24)] * 2 + [(13, 15, 26, 6)]):
    for r in turns:
      x0 = (x0 + x1) & mask
      x1 = ((x1 << r) | (x1 >> (32 - r))) & mask ^ x0
    x0 = (x0 + keys[(i + 1) % 3]) & mask
    x1 = (x1 + keys[(i + 2) % 3] + i + 1) & mask
  return x0 ^ x1


def reference_update(kind, w, slots, ids, grads, lr, step, eps, l2, b1, b2):
  """Row by row: sums the gradients of a row over all who asked, then moves it. In place."""
  total = {}
  for i, g in zip(ids, grads, strict=True):
    if i < len(w):
      total[i] = total.get(i, 0) + g.astype(np.float64)
  for i, g in total.items():
    g = g + l2 * w[i]
    if kind == 'rowwise_adagrad':
      slots['sum'][i] += np.mean(g**2)
      w[i] -= lr * g / (np.sqrt(slots['sum'][i]) + eps)
    else:
      slots['m'][i] = b1 * slots['m'][i] + (1 - b1) * g
      slots['v'][i] = b2 * slots['v'][i] + (1 - b2) * g**2
      m, v = slots['m'][i] / (1 - b1 ** (step + 1)), slots['v'][i] / (1 - b2 ** (step + 1))
      w[i] -= lr * m / (np.sqrt(v) + eps)
  return set(total)


def moved(optimizer, devices, kernels=False):
  """(rows, slots, ids, g, step) -> new rows and slots, as a training step does it."""

  def body(rows, slots, ids, g, step):
    with library.using(kernels):
      _, asked = exchange.lookup(rows, ids.reshape(-1))
      return exchange.update(optimizer, rows, slots, asked, g, 0.1, step)

  specs = (mesh_lib.TABLE, mesh_lib.TABLE, mesh_lib.BATCH, mesh_lib.BATCH, mesh_lib.REPLICATED)
  return on_mesh(devices, body, specs, (mesh_lib.TABLE, mesh_lib.TABLE))


@pytest.mark.parametrize('l2', [0.0, 0.1])
@pytest.mark.parametrize('kind', ['rowwise_adagrad', 'lazy_adam'])
@pytest.mark.parametrize('devices', [1, slow(2), 8])
@pytest.mark.parametrize('kernels', [False, True])
def test_update_equals_a_dense_reference(kernels, devices, kind, l2):
  """Three steps, rows asked for by several devices, untouched rows bit-equal."""
  if kernels and library.missing():
    pytest.skip(library.missing())
  t, rng = tables(), np.random.default_rng(devices)
  optimizer = optimizers.SparseOptimizer(kind, eps=1e-8, l2=l2, b1=0.9, b2=0.999)
  rows = drawn(jax.random.key(0), t, 1.0, devices)
  slots = optimizer.init(rows)
  begin = np.asarray(rows)
  w = begin.astype(np.float64)
  mine = {k: np.array(v, np.float64) for k, v in slots.items()}
  plain = rows, slots
  update, touched = moved(optimizer, devices, kernels), set()
  masked = on_mesh(
    devices,
    lambda *a: masked_exchange.update(optimizer, *a[:4], 0.1, a[4]),
    (mesh_lib.TABLE, mesh_lib.TABLE, mesh_lib.BATCH, mesh_lib.BATCH, mesh_lib.REPLICATED),
    (mesh_lib.TABLE, mesh_lib.TABLE),
  )
  for step in range(3):
    ids = ask(rng, devices, 300, t)
    places = places_of(ids, devices, t)
    g = rng.normal(size=(len(places), DIM)).astype(np.float32)
    rows, slots = update(rows, slots, ids, g, jnp.int32(step))
    plain = masked(*plain, places, g, jnp.int32(step))
    touched |= reference_update(kind, w, mine, places, g, 0.1, step, 1e-8, l2, 0.9, 0.999)
  np.testing.assert_allclose(rows, w, rtol=2e-5, atol=2e-6)
  for k, v in slots.items():
    np.testing.assert_allclose(v, mine[k], rtol=2e-5, atol=2e-6)
  for x, y in zip(jax.tree.leaves((rows, slots)), jax.tree.leaves(plain), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6)
  still = np.setdiff1d(np.arange(len(w)), list(touched))
  assert len(still) > 100
  np.testing.assert_array_equal(np.asarray(rows)[still], begin[still])


def test_rowwise_adagrad_equals_the_dense_optimizer():
  """Sparse steps are exact: the dense rule on the whole table, zero gradients included."""
  t, rng = tables(), np.random.default_rng(0)
  optimizer = optimizers.SparseOptimizer('rowwise_adagrad', eps=1e-8, l2=0.0, b1=0.9, b2=0.999)
  rows = drawn(jax.random.key(0), t, 1.0)
  dense_w, dense_s = rows, jnp.zeros(t.padding)
  slots, update = optimizer.init(rows), moved(optimizer, 1)
  for _ in range(4):
    ids = np.sort(rng.choice(t.rows, 50, replace=False)).astype(np.int32)
    g = rng.normal(size=(50, DIM)).astype(np.float32)
    rows, slots = update(rows, slots, ids[None], g, jnp.int32(0))
    dense_g = jnp.zeros((t.padding, DIM)).at[ids].set(g)
    dense_w, new = optimizer.update(dense_w, {'sum': dense_s}, dense_g, 0.1, jnp.int32(0))
    dense_s = new['sum']
  np.testing.assert_allclose(rows, dense_w, rtol=1e-6, atol=1e-7)
  np.testing.assert_allclose(slots['sum'], dense_s, rtol=1e-6)


def test_merge_sums_equal_ids_and_keeps_every_one():
  ids = jnp.array([7, 3, 7, 99, 3, 7, 99, 1])
  g = jnp.arange(8.0)[:, None] * jnp.array([1.0, 10.0])
  merged, sums = exchange.merge(ids, g, 99)
  assert (np.diff(merged) > 0).all(), 'a scatter is told that they are different and ascending'
  got = {int(i): np.asarray(s) for i, s in zip(merged, sums, strict=True) if i < 99}
  assert sorted(got) == [1, 3, 7]
  for i, of in {1: [7], 3: [1, 4], 7: [0, 2, 5]}.items():
    np.testing.assert_allclose(got[i], [sum(of), 10 * sum(of)])


@pytest.mark.parametrize('devices', [1, 8])
def test_ids_beyond_float32_survive(devices):
  """Neighbours above 2^24 are different rows from asking to writing."""
  t = layout.Tables((2**24 + 4096,), 1)
  N = t.parts[0].size // devices
  optimizer = optimizers.SparseOptimizer('rowwise_adagrad', eps=0.0, l2=0.0, b1=0.9, b2=0.999)
  places = np.sort(t.storage_index(2**24 + np.arange(4, dtype=np.int32)))
  ids = np.tile(np.arange(N, N + 5, dtype=np.int32), (devices, devices, 1))
  for k, place in enumerate(places):
    ids[:, place // N, k] = place % N
  ids = np.sort(ids, axis=-1).reshape(-1, 5)
  rows, g = jnp.zeros(t.parts[0].shape), np.ones((devices * devices * 5, 1), np.float32)
  rows, _ = moved(optimizer, devices)(rows, optimizer.init(rows), ids, g, jnp.int32(0))
  found = in_order(t, [rows])[:, 0]
  np.testing.assert_allclose(found[2**24 : 2**24 + 4], -0.1, rtol=1e-6)
  assert np.count_nonzero(found) == 4


def rounded(x, rows, salt):
  return optimizers.from_bits(optimizers.round_stochastically(x, rows, jnp.int32(salt)))


def test_stochastic_rounding_keeps_the_mean_and_is_the_same_for_a_row():
  rows = jnp.arange(20_000)
  x = jnp.full((20_000, 2), 1 + 1 / 1024)  # an eighth of the way to the next bfloat16
  out = rounded(x, rows, 3)
  assert set(np.unique(out)) == {1.0, 1.0078125}
  assert abs(float(out.mean()) - (1 + 1 / 1024)) < 5e-5
  share = (np.asarray(out) > 1).mean(axis=0)
  assert abs(np.corrcoef(np.asarray(out).T)[0, 1]) < 0.03 and (abs(share - 0.125) < 0.01).all()
  np.testing.assert_array_equal(out[7:9], rounded(x[7:9], rows[7:9], 3))
  assert (out != rounded(x, rows, 4)).any()
  edges = jnp.array([[0.0, 1.0], [-2.0, 256.0], [jnp.inf, -jnp.inf]])  # bfloat16 as they are
  np.testing.assert_array_equal(rounded(edges, jnp.arange(3), 0), edges)
  assert np.isnan(rounded(jnp.array([jnp.nan]), jnp.arange(1), 0)[0])


@pytest.mark.parametrize('kind', ['rowwise_adagrad', 'lazy_adam'])
def test_bfloat16_slots_follow_float32_ones_where_rounding_to_nearest_would_not(kind):
  """300 steps of equal gradients: a sum grows by less than its last bit."""
  t = layout.Tables((2000,), DIM)
  exact, half = (
    optimizers.SparseOptimizer(kind, eps=1e-8, l2=0.0, b1=0.9, b2=0.999, dtype=d)
    for d in ('float32', 'bfloat16')
  )
  ids = np.sort(t.storage_index(np.arange(2000, dtype=np.int32)))[None]
  g = np.ones((2000, DIM), np.float32)
  ends = {}
  for optimizer in (exact, half):
    rows = jnp.zeros(t.parts[0].shape)
    slots, update = optimizer.init(rows), moved(optimizer, 1)
    for step in range(300):
      rows, slots = update(rows, slots, ids, g, jnp.int32(step))
    name = 'sum' if kind == 'rowwise_adagrad' else 'v'
    sums = optimizers.from_bits(slots[name]) if optimizer is half else slots[name]
    ends[optimizer.dtype] = (
      in_order(t, [sums])[:2000].astype(np.float64),
      in_order(t, [rows]),
    )
  assert slots[name].dtype == jnp.uint16
  (sums, w), (half_sums, half_w) = ends['float32'], ends['bfloat16']
  assert abs(half_sums.mean() / sums.mean() - 1) < 0.005
  np.testing.assert_allclose(half_w[:2000].mean(), w[:2000].mean(), rtol=0.01)


def test_offsets_and_padding():
  t = tables()
  np.testing.assert_array_equal(t.column_offsets, [0, 700, 2200])
  assert t.rows == 2203 and t.padding == 3 * layout.GROUP
  assert [p.shape for p in t.parts] == [(3 * 1024, DIM)]
