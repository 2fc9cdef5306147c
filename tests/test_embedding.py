# SPDX-License-Identifier: Apache-2.0
"""Sharded tables against plain NumPy ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deres_jax import embedding, parallel

SIZES = (700, 1500, 3)  # 2,203 rows: three groups, the last one partly empty
DIM = 4


def table():
  return embedding.Table(SIZES, DIM)


def on_mesh(devices, body, in_specs, out_specs):
  mesh = parallel.make_mesh(devices)
  return jax.jit(
    jax.shard_map(body, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
  )


def flat(rows):
  return np.asarray(rows).reshape(-1, *rows.shape[2:])


def ask(rng, devices, capacity, t):
  """For each device different ids, padded; the same id is asked for by several devices."""
  out = np.full((devices, capacity), t.padding, np.int32)
  for row in out:
    n = rng.integers(capacity // 2, capacity)
    row[:n] = rng.choice(t.rows, n, replace=False)
  out[:, 0] = 5  # every device asks for row 5
  for row in out:
    row[1:][row[1:] == 5] = t.padding
  return out


@pytest.mark.parametrize('devices', [1, 2, 8])
def test_lookup_equals_take(devices):
  t, rng = table(), np.random.default_rng(devices)
  rows = embedding.init_rows(jax.random.key(0), t, 1.0)
  ids = ask(rng, devices, 64, t)
  look = on_mesh(devices, embedding.lookup, (parallel.TABLE, parallel.BATCH), parallel.BATCH)
  found = np.asarray(look(rows, ids.reshape(-1))).reshape(devices, 64, DIM)
  real = ids < t.padding
  np.testing.assert_array_equal(found[real], flat(rows)[ids[real]])
  assert not found[~real].any()


def test_rows_are_the_same_on_every_mesh_and_start_with_the_asked_spread():
  t = table()
  one = embedding.init_rows(jax.random.key(3), t, 0.5)
  to = parallel.sharding(parallel.make_mesh(8), parallel.TABLE)
  eight = jax.jit(lambda: embedding.init_rows(jax.random.key(3), t, 0.5), out_shardings=to)()
  np.testing.assert_array_equal(one, eight)
  assert abs(float(jnp.std(one)) - 0.5) < 0.02
  assert {s.data.shape for s in eight.addressable_shards} == {(3, embedding.GROUP // 8, DIM)}


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


@pytest.mark.parametrize('l2', [0.0, 0.1])
@pytest.mark.parametrize('kind', ['rowwise_adagrad', 'lazy_adam'])
@pytest.mark.parametrize('devices', [1, 2, 8])
def test_update_equals_a_dense_reference(devices, kind, l2):
  """Three steps, rows asked for by several devices, untouched rows bit-equal."""
  t, rng = table(), np.random.default_rng(devices)
  optimizer = embedding.RowOptimizer(kind, eps=1e-8, l2=l2, b1=0.9, b2=0.999)
  rows = embedding.init_rows(jax.random.key(0), t, 1.0)
  slots = optimizer.init(t)
  begin = flat(rows)
  w = begin.astype(np.float64)
  mine = {k: flat(v).astype(np.float64) for k, v in slots.items()}

  def body(rows, slots, ids, g, step):
    return embedding.update(optimizer, rows, slots, ids, g, 0.1, step)

  specs = (parallel.TABLE, parallel.TABLE, parallel.BATCH, parallel.BATCH, parallel.REPLICATED)
  update = on_mesh(devices, body, specs, (parallel.TABLE, parallel.TABLE))
  touched = set()
  for step in range(3):
    ids = ask(rng, devices, 32, t).reshape(-1)
    g = rng.normal(size=(len(ids), DIM)).astype(np.float32)
    rows, slots = update(rows, slots, ids, g, jnp.int32(step))
    touched |= reference_update(kind, w, mine, ids, g, 0.1, step, 1e-8, l2, 0.9, 0.999)
  np.testing.assert_allclose(flat(rows), w, rtol=2e-5, atol=2e-6)
  for k, v in slots.items():
    np.testing.assert_allclose(flat(v), mine[k], rtol=2e-5, atol=2e-6)
  still = np.setdiff1d(np.arange(len(w)), list(touched))
  np.testing.assert_array_equal(flat(rows)[still], begin[still])


def test_rowwise_adagrad_equals_the_dense_optimizer():
  """Sparse steps are exact: the dense rule on the whole table, zero gradients included."""
  t, rng = table(), np.random.default_rng(0)
  optimizer = embedding.RowOptimizer('rowwise_adagrad', eps=1e-8, l2=0.0, b1=0.9, b2=0.999)
  rows = embedding.init_rows(jax.random.key(0), t, 1.0)
  dense_w, dense_s = rows.reshape(-1, DIM), jnp.zeros(t.padding)
  slots = optimizer.init(t)
  update = on_mesh(
    1,
    lambda *a: embedding.update(optimizer, *a, 0.1, jnp.int32(0)),
    (parallel.TABLE, parallel.TABLE, parallel.BATCH, parallel.BATCH),
    (parallel.TABLE, parallel.TABLE),
  )
  for _ in range(4):
    ids = rng.choice(t.rows, 50, replace=False).astype(np.int32)
    g = rng.normal(size=(50, DIM)).astype(np.float32)
    rows, slots = update(rows, slots, ids, g)
    dense_g = jnp.zeros((t.padding, DIM)).at[ids].set(g)
    dense_w, new = optimizer.apply(dense_w, {'sum': dense_s}, dense_g, 0.1, jnp.int32(0))
    dense_s = new['sum']
  np.testing.assert_allclose(rows.reshape(-1, DIM), dense_w, rtol=1e-6, atol=1e-7)


def test_merge_sums_equal_ids_and_keeps_every_one():
  ids = jnp.array([7, 3, 7, 99, 3, 7, 99, 1])
  g = jnp.arange(8.0)[:, None] * jnp.array([1.0, 10.0])
  merged, sums = embedding.merge(ids, g, 99)
  got = {int(i): np.asarray(s) for i, s in zip(merged, sums, strict=True) if i != 99}
  assert sorted(got) == [1, 3, 7] and len(set(merged.tolist()) - {99}) == 3
  for i, of in {1: [7], 3: [1, 4], 7: [0, 2, 5]}.items():
    np.testing.assert_allclose(got[i], [sum(of), 10 * sum(of)])


def test_ids_beyond_float32_survive():
  """Neighbours above 2^24 are different rows from asking to writing."""
  t = embedding.Table((2**24 + 4096,), 1)
  optimizer = embedding.RowOptimizer('rowwise_adagrad', eps=0.0, l2=0.0, b1=0.9, b2=0.999)
  ids = np.array([2**24, 2**24 + 1, 2**24 + 2, 2**24 + 3], np.int32)
  rows = jnp.zeros(t.shape)
  g = np.array([[1.0], [-1.0], [1.0], [-1.0]], np.float32)

  def body(rows, slots, ids, g):
    rows, slots = embedding.update(optimizer, rows, slots, ids, g, 1.0, jnp.int32(0))
    return embedding.lookup(rows, ids), rows

  specs = (parallel.TABLE, parallel.TABLE, parallel.BATCH, parallel.BATCH)
  run = on_mesh(2, body, specs, (parallel.BATCH, parallel.TABLE))
  read, rows = run(rows, optimizer.init(t), ids, g)
  np.testing.assert_array_equal(read[:, 0], [-1, 1, -1, 1])
  assert int(jnp.count_nonzero(rows)) == 4


def test_offsets_and_padding_lie_where_they_should():
  t = table()
  np.testing.assert_array_equal(t.offsets, [0, 700, 2200])
  assert t.rows == 2203 and t.padding == 3 * embedding.GROUP and t.shape == (3, 1024, DIM)
