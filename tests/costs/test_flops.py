# SPDX-License-Identifier: Apache-2.0
"""flops.py against closed forms, against unrolled programs, and against XLA.

Shape letters: B batch, T tokens, D width, H heads, L layers, M hidden width.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax import lax

from deres_jax.costs import flops

P = jax.sharding.PartitionSpec


def spec(*shape, dtype=jnp.float32):
  return jax.ShapeDtypeStruct(shape, dtype)


def mlp(weights, x):
  for weight in weights[:-1]:
    x = jax.nn.relu(x @ weight)
  return x @ weights[-1]


MLP_WEIGHTS = [spec(32, 64), spec(64, 64), spec(64, 8)]
MLP_MATMUL = 2 * 16 * (32 * 64 + 64 * 64 + 64 * 8)


def test_matmul():
  result = flops.count(jnp.matmul, spec(3, 5), spec(5, 7))
  assert result.total == result.matmul == 2 * 3 * 5 * 7
  assert result.by_primitive == {'dot_general': 210}
  assert not result.unknown and not result.unbounded
  assert flops.count(jnp.matmul, spec(4, 3, 5), spec(4, 5, 7)).total == 4 * 210
  assert flops.count(jnp.dot, spec(9), spec(9)).total == 18
  int8 = functools.partial(jnp.matmul, preferred_element_type=jnp.int32)
  assert flops.count(int8, spec(3, 5, dtype=jnp.int8), spec(5, 7, dtype=jnp.int8)).total == 210


def test_attention_einsums():
  q_BTHD = spec(2, 10, 4, 8)
  scores = functools.partial(jnp.einsum, 'bthd,bshd->bhts')
  assert flops.count(scores, q_BTHD, q_BTHD).total == 2 * 2 * 4 * 10 * 10 * 8
  result = flops.count(jax.nn.dot_product_attention, q_BTHD, q_BTHD, q_BTHD)
  assert result.matmul == 2 * (2 * 2 * 4 * 10 * 10 * 8)
  assert result.by_primitive['exp'] == 2 * 4 * 10 * 10
  assert not result.unknown


def test_convolution():
  conv = functools.partial(lax.conv, window_strides=(1, 1), padding='VALID')
  result = flops.count(conv, spec(2, 3, 8, 8), spec(5, 3, 3, 3))
  assert result.total == result.matmul == 2 * (2 * 5 * 6 * 6) * (3 * 3 * 3)
  depthwise = functools.partial(
    lax.conv_general_dilated, window_strides=(1,), padding='SAME', feature_group_count=6
  )
  assert flops.count(depthwise, spec(2, 6, 9), spec(6, 1, 3)).total == 2 * (2 * 6 * 9) * 3


def test_elementwise_and_reductions():
  def one_each(x):
    return jnp.tanh(jnp.exp(x) * x + 1.0)

  assert flops.count(one_each, spec(3, 4)).by_primitive == dict.fromkeys(
    ['add', 'exp', 'mul', 'tanh'], 12
  )
  softmax = flops.count(functools.partial(jax.nn.softmax, axis=-1), spec(3, 4))
  assert softmax.by_primitive['reduce_max'] == softmax.by_primitive['reduce_sum'] == 12
  assert softmax.total == sum(softmax.by_primitive.values())
  assert flops.count(jnp.cumsum, spec(3, 4)).total == 12


def test_what_is_free():
  def moves(x, index, key):
    x = jnp.where(x > 0, x, 0).astype(jnp.bfloat16).reshape(4, 3).T
    x = jnp.concatenate([x, jnp.zeros((1, 4), x.dtype)])[index + 1]
    return jnp.sort(x), lax.top_k(x, 2), jax.random.bits(key, (3,)), jnp.argmax(x), index * 2

  key = jax.eval_shape(lambda: jax.random.key(0))
  result = flops.count(moves, spec(3, 4), spec(5, dtype=jnp.int32), key)
  assert result.total == 0
  assert not result.unknown


def test_scatter_add_counts_updates():
  def embed_grad(rows_BD, ids_B):
    return jnp.zeros((100, 8)).at[ids_B].add(rows_BD)

  result = flops.count(embed_grad, spec(16, 8), spec(16, dtype=jnp.int32))
  assert result.total == 16 * 8
  counts = lambda ids: jnp.zeros(100, jnp.int32).at[ids].add(1)  # noqa: E731
  assert flops.count(counts, spec(16, dtype=jnp.int32)).total == 0  # integers are not FLOP


def test_scan_is_the_unrolled_loop():
  def layer(x, weight):
    return jnp.tanh(x @ weight), None

  def unrolled(weights_L, x):
    for i in range(8):
      x, _ = layer(x, weights_L[i])
    return x

  def scanned(weights_L, x):
    return lax.scan(layer, x, weights_L)[0]

  args = spec(8, 32, 32), spec(16, 32)
  assert flops.count(scanned, *args) == flops.count(unrolled, *args)
  assert flops.count(scanned, *args).matmul == 8 * 2 * 16 * 32 * 32
  twice = lambda weights, x: lax.scan(lambda x, _: (scanned(weights, x), None), x, length=3)  # noqa: E731
  assert flops.count(twice, *args).total == 3 * flops.count(unrolled, *args).total


def test_gradient_is_twice_the_forward_on_top():
  def loss(weights, x):
    return jnp.mean(mlp(weights, x) ** 2)

  forward = flops.count(loss, MLP_WEIGHTS, spec(16, 32))
  assert forward.matmul == MLP_MATMUL
  both = flops.count(jax.value_and_grad(loss, argnums=(0, 1)), MLP_WEIGHTS, spec(16, 32))
  assert both.matmul == 3 * MLP_MATMUL
  # The gradient of the input of the first layer is not needed to train.
  train = flops.count(jax.value_and_grad(loss), MLP_WEIGHTS, spec(16, 32))
  assert train.matmul == 3 * MLP_MATMUL - 2 * 16 * 32 * 64
  assert not both.unknown


def test_remat_counts_what_runs_twice():
  def loss(x, weights, body):
    for weight in weights:
      x = body(x, weight)
    return jnp.sum(x)

  def two_matmuls(x, weight):
    return jnp.sin(jnp.sin(x @ weight) @ weight)

  weights = [spec(16, 16)] * 4
  grad = jax.grad(loss, argnums=(0, 1))
  plain = flops.count(functools.partial(grad, body=two_matmuls), spec(8, 16), weights)
  remat = jax.checkpoint(two_matmuls)
  again = flops.count(functools.partial(grad, body=remat), spec(8, 16), weights)
  forward = 4 * 2 * (2 * 8 * 16 * 16)
  assert plain.matmul == 3 * forward
  assert again.matmul == 4 * forward
  kept = jax.checkpoint(two_matmuls, policy=jax.checkpoint_policies.everything_saveable)
  saved = flops.count(functools.partial(grad, body=kept), spec(8, 16), weights)
  assert saved.matmul == 3 * forward


def test_vmap_and_jit_change_nothing():
  plain = flops.count(mlp, MLP_WEIGHTS, spec(16, 32))
  assert flops.count(jax.jit(mlp), MLP_WEIGHTS, spec(16, 32)) == plain
  vmapped = jax.vmap(mlp, in_axes=(None, 0))
  assert flops.count(vmapped, MLP_WEIGHTS, spec(16, 32)) == plain
  arrays = jax.tree.map(lambda s: jnp.zeros(s.shape), MLP_WEIGHTS)
  assert flops.count(mlp, arrays, jnp.zeros((16, 32))) == plain


def test_cond_counts_the_dearest_branch():
  def choose(x):
    return lax.switch(0, [jnp.sin, lambda x: x @ x, lambda x: x + x], x)

  assert flops.count(lambda i, x: lax.switch(i, [jnp.sin, lambda x: x @ x], x), 0, spec(8, 8)) == (
    flops.count(jnp.matmul, spec(8, 8), spec(8, 8))
  )
  scanned = flops.count(lambda x: lax.scan(lambda x, _: (choose(x), None), x, length=5), spec(8, 8))
  assert scanned.by_primitive == {'dot_general': 5 * 2 * 8**3}
  hidden = flops.count(
    lambda i, x: lax.switch(i, [lambda x: x @ x, jnp.linalg.cholesky], x), 0, spec(8, 8)
  )
  assert hidden.unknown == {'cholesky'}


def test_while_is_marked_as_a_lower_bound():
  def until_small(x):
    return lax.while_loop(lambda x: jnp.sum(x) > 1.0, lambda x: x * 0.5, x)

  result = flops.count(until_small, spec(10))
  assert result.unbounded
  assert result.by_primitive == {'mul': 10, 'reduce_sum': 10}
  fixed = flops.count(lambda x: lax.fori_loop(0, 7, lambda _, x: x * 0.5, x), spec(10))
  assert fixed.total == 70 and not fixed.unbounded


def test_custom_derivatives_are_walked():
  @jax.custom_vjp
  def double(x):
    return 2.0 * x

  double.defvjp(lambda x: (2.0 * x, None), lambda _, g: (g @ g.T @ g,))
  assert flops.count(double, spec(4, 4)).by_primitive == {'mul': 16}
  grad = flops.count(jax.grad(lambda x: jnp.sum(double(x))), spec(4, 4))
  assert grad.matmul == 2 * (2 * 4**3)
  assert flops.count(jax.nn.relu, spec(5)).by_primitive == {'max': 5}  # a custom_jvp


def test_shard_map_counts_all_devices():
  assert len(jax.devices()) >= 4, 'run the tests with 4 or more (simulated) devices'
  mesh = jax.make_mesh((2, 2), ('data', 'model'), axis_types=(jax.sharding.AxisType.Auto,) * 2)
  args = spec(16, 32), spec(32, 8)
  plain = flops.count(jnp.matmul, *args)

  def local_matmul(x, w):
    return lax.psum(x @ w, 'model')

  split = jax.shard_map(
    local_matmul,
    mesh=mesh,
    in_specs=(P('data', 'model'), P('model', None)),
    out_specs=P('data', None),
  )
  # Bytes count on each device: partial results, and what several devices hold, move more often.
  per_device = 4 * (8 * 16 + 16 * 8 + 8 * 8)
  assert flops.count(split, *args) == dataclasses.replace(plain, matmul_bytes=4 * per_device)
  # Every device of an axis that the inputs are not split over repeats the work.
  repeated = jax.shard_map(jnp.matmul, mesh=mesh, in_specs=(P('data'), P()), out_specs=P('data'))
  assert flops.count(repeated, *args).matmul == 2 * plain.matmul
  # Only the mapped axes multiply: the others stay with the compiler, on global shapes.
  partial = jax.shard_map(
    jnp.matmul,
    mesh=mesh,
    in_specs=(P('data'), P()),
    out_specs=P('data'),
    axis_names={'data'},
  )
  per_part = 4 * (8 * 32 + 32 * 8 + 8 * 8)
  counted = flops.count(jax.jit(partial), *args)
  assert counted == dataclasses.replace(plain, matmul_bytes=2 * per_part)


def test_what_cannot_be_counted_is_named():
  result = flops.count(lambda x: jnp.linalg.cholesky(x) @ x, spec(4, 4))
  assert result.unknown == {'cholesky'}
  assert result.matmul == 2 * 4**3
  assert 'fft' in flops.count(lambda x: jnp.abs(jnp.fft.fft(x)), spec(8)).unknown
  shape = jax.ShapeDtypeStruct((4,), jnp.float32)
  callback = functools.partial(jax.pure_callback, lambda x: x, shape)
  assert flops.count(callback, spec(4)).unknown == {'pure_callback'}
  complex_add = flops.count(jnp.add, spec(4, dtype=jnp.complex64), spec(4, dtype=jnp.complex64))
  assert complex_add.unknown == {'add'}


def test_tables_do_not_overlap():
  tables = [flops.ELEMENTWISE, flops.REDUCTIONS, flops.SCATTERS, flops.FREE]
  assert len(frozenset.union(*tables)) == sum(map(len, tables))


def test_agrees_with_xla_on_an_unrolled_mlp():
  def loss(weights, x):
    return jnp.mean(mlp(weights, x) ** 2)

  for fn in (loss, jax.value_and_grad(loss)):
    lowered = jax.jit(fn).lower(MLP_WEIGHTS, spec(16, 32))
    assert flops.count(fn, MLP_WEIGHTS, spec(16, 32)).total == pytest.approx(
      lowered.cost_analysis()['flops'], rel=0.03
    )


class Block(nn.Module):
  """A pre-norm transformer layer: 8 d^2 + 4 T d + 16 d^2 matmul FLOP per token."""

  heads: int

  @nn.compact
  def __call__(self, x_BTD, _=None):
    width = x_BTD.shape[-1]
    attention = nn.MultiHeadDotProductAttention(self.heads, dropout_rate=0.1, deterministic=False)
    x_BTD = x_BTD + attention(nn.RMSNorm()(x_BTD))
    h_BTM = nn.gelu(nn.Dense(4 * width)(nn.LayerNorm()(x_BTD)))
    return x_BTD + nn.Dropout(0.1, deterministic=False)(nn.Dense(width)(h_BTM)), None


class Tower(nn.Module):
  """Embedding, scanned and rematerialized blocks, logit head."""

  layers: int

  @nn.compact
  def __call__(self, ids_BT):
    x_BTD = nn.Embed(50, 16)(ids_BT)
    scanned = nn.scan(
      nn.remat(Block),
      variable_axes={'params': 0},
      split_rngs={'params': True, 'dropout': True},
      length=self.layers,
    )
    x_BTD, _ = scanned(4, name='blocks')(x_BTD, None)
    return nn.Dense(1)(nn.relu(x_BTD.mean(axis=1)))[:, 0]


def abstract(module, *args):
  key = jax.eval_shape(lambda: jax.random.key(0))
  keys = {'params': key, 'dropout': key}
  return jax.eval_shape(module.init, keys, *args), {'dropout': key}


def test_linen_block_is_24_d_squared_plus_4_t_d_per_token():
  batch, tokens, width = 2, 10, 16
  x_BTD = spec(batch, tokens, width)
  variables, rngs = abstract(Block(4), x_BTD)
  result = flops.count(lambda v, x, r: Block(4).apply(v, x, rngs=r), variables, x_BTD, rngs)
  assert result.matmul == batch * tokens * (24 * width**2 + 4 * tokens * width)
  assert 0 < result.total - result.matmul < result.matmul
  assert not result.unknown and not result.unbounded


def test_linen_train_step_through_scan_and_remat():
  batch, tokens, width, layers = 2, 10, 16, 3
  ids_BT = spec(batch, tokens, dtype=jnp.int32)
  variables, rngs = abstract(Tower(layers), ids_BT)

  def loss(variables, ids_BT, rngs):
    return jnp.mean(jax.nn.softplus(Tower(layers).apply(variables, ids_BT, rngs=rngs)))

  per_layer = batch * tokens * (24 * width**2 + 4 * tokens * width)
  head = 2 * batch * width
  forward = flops.count(loss, variables, ids_BT, rngs)
  assert forward.matmul == layers * per_layer + head
  train = flops.count(jax.value_and_grad(loss), variables, ids_BT, rngs)
  # Forward, forward again (but the last matmul, whose value no gradient needs), backward.
  last_matmul = batch * tokens * 8 * width**2
  assert train.matmul == layers * (4 * per_layer - last_matmul) + 3 * head
  assert train.by_primitive['scatter-add'] == batch * tokens * width  # the embedding rows
  assert not train.unknown and not train.unbounded


def test_matmul_bytes_and_types():
  half = jnp.bfloat16

  def two(x, w, v):
    return jnp.tanh(x @ w).astype(half) @ v

  x, w, v = spec(16, 32), spec(32, 64), spec(64, 8, dtype=half)
  counted = flops.count(two, x, w, v)
  assert counted.matmul_by_dtype == {'float32': 2 * 16 * 32 * 64, 'bfloat16': 2 * 16 * 64 * 8}
  first, second = 4 * (16 * 32 + 32 * 64 + 16 * 64), 2 * (16 * 64 + 64 * 8 + 16 * 8)
  assert counted.matmul_bytes == first + second
  mixed = functools.partial(jnp.einsum, 'ij,jk->ik', preferred_element_type=jnp.float32)
  assert flops.count(mixed, v.update(shape=(3, 5)), v.update(shape=(5, 7))).matmul_bytes == (
    2 * (3 * 5 + 5 * 7) + 4 * 3 * 7
  )


def test_matmul_bytes_of_loops_branches_and_gradients():
  def loop(x, w):
    return lax.scan(lambda c, _: (jnp.tanh(c @ w), None), x, None, length=5)[0]

  x, w = spec(16, 32), spec(32, 32)
  once = 4 * (2 * 16 * 32 + 32 * 32)
  assert flops.count(loop, x, w).matmul_bytes == 5 * once

  def branch(i, x, w):
    return lax.cond(i > 0, lambda: x @ w, lambda: x)

  counted = flops.count(branch, spec(dtype=jnp.int32), x, w)
  assert (counted.matmul_bytes, counted.matmul_by_dtype) == (once, {'float32': 2 * 16 * 32 * 32})
  looped = flops.count(
    lambda i, x, w: lax.scan(lambda c, _: (branch(i, c, w), None), x, None, length=3)[0],
    *(spec(dtype=jnp.int32), x, w),
  )
  assert looped.matmul_bytes == 3 * once
  assert looped.matmul_by_dtype == {'float32': looped.matmul} == {'float32': 3 * counted.matmul}
  both = jax.grad(lambda x, w: jnp.sum(jnp.tanh(x @ w)), argnums=(0, 1))
  assert flops.count(both, x, w).matmul_bytes == 3 * once
