# SPDX-License-Identifier: Apache-2.0
"""Token mixers, whole models of them and auxiliary losses against reference_mixers.py.

Shapes: B rows, T tokens, D width, F fields, E table-row width, N blocks, K head or block width.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
import reference_mixers as mixers
import reference_streams as streams
from arrays import (
  F32,
  PLAIN,
  B,
  D,
  E,
  F,
  T,
  assert_close,
  double,
  initial,
  leaf_shapes,
  normal,
  randomised,
  row_keys,
)
from made import in_order, numbers

from deres_jax import config, models
from deres_jax.data import batches as batches_lib
from deres_jax.data.blocks import Blocks
from deres_jax.data.schema import load_schema
from deres_jax.models import heads, layers, tokenizer
from deres_jax.models import inputs as inputs_lib
from deres_jax.models.backbones import autoint, hstu, rankmixer, unimixer, wukong
from deres_jax.pod import mesh as mesh_lib
from deres_jax.training import step
from deres_jax.training.step_spec import make_step_spec

HEADS, RATIO, ITERATIONS = 2, 2, 3  # few iterations leave columns off 1, so that an order shows
X_BTD = np.float32(normal(B, T, D))
ROWS = np.float32(normal(B, F, E, seed=7))
HALF_WAY = inputs_lib.Context(progress=0.5)
TAUS = {0.0: 1.0, 0.5: 0.525, 1.0: 0.05}  # progress -> temperature


def apply(module, params, *args, **kwargs):
  return jax.jit(functools.partial(module.apply, **kwargs))({'params': params}, *args)


# Sub-layers.


def mixing(lite=False, block=D // T, iterations=ITERATIONS):
  sizes = dict(block=block, bases=3 if lite else 0, rank=2, iterations=iterations)
  return dict(**sizes, tau_start=1.0, tau_end=0.05)


def unimixing_loop(params, x_BTD):
  return mixers.unimixing(params, x_BTD, TAUS[0.5], ITERATIONS)


# Name -> the module in a dtype, and its loop.
SUBLAYERS = {
  'headmix': (lambda dtype: rankmixer.HeadMix(), lambda p, x: mixers.head_mix(x, T)),
  'per_token_ffn': (
    lambda dtype: layers.FeedForward(T, RATIO, dtype, 1.0, use_bias=True),
    lambda p, x: mixers.mixed_feed_forward(p, T, x),
  ),
  'mix_and_revert': (
    lambda dtype: rankmixer.MixAndRevert(T, RATIO, dtype, 1.0),
    mixers.mix_and_revert,
  ),
  'unimixing': (lambda dtype: unimixer.UniMixing(**mixing(), dtype=dtype), unimixing_loop),
  'unimixing_lite': (
    lambda dtype: unimixer.UniMixing(**mixing(lite=True), dtype=dtype),
    unimixing_loop,
  ),
  'unimixer_block': (
    lambda dtype: unimixer.UniMixerBlock(T, RATIO, mixing(), dtype, 1.0),
    lambda p, x: mixers.unimixer_block(p, x, TAUS[0.5], ITERATIONS),
  ),
  'hstu': (
    lambda dtype: hstu.HstuLayer(HEADS, False, dtype),
    lambda p, x: mixers.hstu(p, HEADS, False, x),
  ),
  'wukong': (
    lambda dtype: wukong.WukongLayer(1, 3, 6, 2, dtype),
    lambda p, x: mixers.wukong(p, 1, x),
  ),
  'autoint': (
    lambda dtype: autoint.InteractingLayer(HEADS, dtype),
    lambda p, x: mixers.interacting(p, HEADS, x),
  ),
  'hiformer': (
    lambda dtype: autoint.CompositeAttention(T, HEADS, 3, dtype, 1.0),
    lambda p, x: mixers.composite_attention(p, HEADS, x),
  ),
}


def sublayer(name, dtype=F32):
  make, loop = SUBLAYERS[name]
  module = make(dtype)
  return module, {} if name == 'headmix' else randomised(module, X_BTD, HALF_WAY), loop


@pytest.mark.parametrize('name', SUBLAYERS)
def test_a_sublayer_computes_in_bfloat16_from_float32_parameters(name):
  module, params, loop = sublayer(name, jnp.bfloat16)
  x_BTD = X_BTD.astype(jnp.bfloat16)
  got_BTD = apply(module, params, x_BTD, HALF_WAY)
  assert got_BTD.dtype == jnp.bfloat16
  assert_close(got_BTD, loop(double(params), np.float64(x_BTD)), 0.06)


def deviation(leaf):
  return float(np.std(np.asarray(leaf)))


def test_starts():
  """Deviations that papers give; and maps that share a kernel start as if each had its own."""
  wide_BTD = jnp.zeros((1, 2, 64))
  c = config.resolve(config.base('model.depth=1,model.dim=64,model.ffn_ratio=3'))
  (block,) = rankmixer.tokenmixer(c, 2, 0, F32)
  params = initial(block.module(**block.sizes), wide_BTD, PLAIN)
  for part in ('mixed', 'reverted'):
    assert deviation(params[part]['down']['kernel']) == pytest.approx(0.01, rel=0.03)
    xavier = math.sqrt(2 / (64 + 3 * 64))
    assert deviation(params[part]['up']['kernel']) == pytest.approx(xavier, rel=0.03)
  params = initial(hstu.HstuLayer(2, False, F32), wide_BTD, PLAIN)
  assert deviation(params['uvqk']['kernel']) == pytest.approx(0.02, rel=0.03)
  params = initial(autoint.InteractingLayer(2, F32), wide_BTD, PLAIN)
  assert deviation(params['qkv']['kernel']) == pytest.approx(1 / 8, rel=0.03)
  params = initial(autoint.CompositeAttention(2, 2, 32, F32, 1.0), wide_BTD, PLAIN)
  assert deviation(params['down']) == pytest.approx(1 / math.sqrt(128), rel=0.03)
  assert deviation(params['up']) == pytest.approx(1 / math.sqrt(32), rel=0.03)


# HSTU.


@pytest.mark.parametrize('causal', [False, True])
def test_hstu_masks(causal):
  module = hstu.HstuLayer(HEADS, causal, F32)
  params = randomised(module, X_BTD, PLAIN)
  mask_BT = np.array([[True] * 4, [False, True, True, True], [False, False, True, True]])
  want_BTD = mixers.hstu(double(params), HEADS, causal, np.float64(X_BTD), mask_BT)
  got_BTD = apply(module, params, X_BTD, PLAIN.with_mask(mask_BT))
  assert_close(got_BTD, want_BTD)
  moved_BTD = np.where(mask_BT[..., None], X_BTD, 100.0)
  again_BTD = apply(module, params, moved_BTD, PLAIN.with_mask(mask_BT))
  np.testing.assert_array_equal(got_BTD[mask_BT], again_BTD[mask_BT])


def test_hstu_s_weights_are_not_normalised(monkeypatch):
  """SiLU(z) is z where z is large: three times the score is three times the sum, and a key that
  is masked is missing from it."""
  sums, join = [], layers.join_heads
  monkeypatch.setattr(layers, 'join_heads', lambda y: sums.append(join(y)) or sums[-1])
  module = hstu.HstuLayer(1, False, F32)
  params = randomised(module, X_BTD, PLAIN)
  params['uvqk']['kernel'][:, 2 * D :] = 0  # no q and k: the bias is the score

  def total(score, mask_T):
    p = {**params, 'bias': np.full((T, T), score, np.float32)}
    module.apply({'params': p}, X_BTD, PLAIN.with_mask(np.tile(mask_T, (B, 1))))
    return np.asarray(sums[-1])

  every = np.ones(T, bool)
  assert_close(total(60.0, every), 3 * total(20.0, every), 1e-6)
  assert_close(sum(total(20.0, every & (np.arange(T) == j)) for j in range(T)), total(20.0, every))


# RankMixer and UniMixer.


def test_head_mixing_is_its_own_inverse():
  mix = rankmixer.HeadMix()
  once_BTD = mix.apply({}, X_BTD, PLAIN)
  np.testing.assert_array_equal(mix.apply({}, once_BTD, PLAIN), X_BTD)
  assert np.any(once_BTD != X_BTD)


@pytest.mark.parametrize('n_heads', [1, 2, 4, 8])
def test_revert_undoes_a_mix(n_heads):
  mixed_BHM = rankmixer.mix(X_BTD, n_heads)
  np.testing.assert_array_equal(mixed_BHM, mixers.head_mix(X_BTD, n_heads))
  np.testing.assert_array_equal(rankmixer.revert(mixed_BHM, T), X_BTD)
  np.testing.assert_array_equal(mixers.revert(np.asarray(mixed_BHM), T), X_BTD)


@pytest.mark.parametrize('progress', TAUS)
@pytest.mark.parametrize('name', ['unimixing', 'unimixing_lite'])
def test_temperature_falls_with_progress(name, progress):
  module, params, _ = sublayer(name)
  got_BTD = apply(module, params, X_BTD, inputs_lib.Context(progress=jnp.float32(progress)))
  want_BTD = mixers.unimixing(double(params), np.float64(X_BTD), TAUS[progress], ITERATIONS)
  assert_close(got_BTD, want_BTD, 1e-4 if progress == 1 else 1e-5)


@pytest.mark.parametrize('progress', [0.0, 1.0])
def test_mixing_matrices_are_doubly_stochastic(monkeypatch, progress):
  """Rows from the first iteration on, columns as the iterations go."""
  seen, unimix = [], unimixer.unimix
  monkeypatch.setattr(unimixer, 'unimix', lambda *args: seen.append(args[1:]) or unimix(*args))
  params, errors = None, []
  for iterations in (1, 4, 16, 64):
    module = unimixer.UniMixing(**mixing(block=4, iterations=iterations), dtype=F32)
    params = params or randomised(module, X_BTD, PLAIN)
    module.apply({'params': params}, X_BTD, inputs_lib.Context(progress=progress))
    assert [m.shape for m in seen[-1]] == [(8, 4, 4), (8, 8)]
    for m in seen[-1]:
      assert np.all(m >= 0) and np.max(np.abs(np.sum(m, axis=-1) - 1)) < 1e-6
    errors.append(max(np.max(np.abs(np.sum(m, axis=-2) - 1)) for m in seen[-1]))
  assert errors == sorted(errors, reverse=True) and errors[0] > 50 * errors[-1], errors
  assert errors[-1] < (1e-6 if progress == 0 else 0.02), errors


def transposition():
  """Block (t, h) of the flat row goes to (h, t). [T T, T T]."""
  return np.eye(T * T, dtype=np.float32).reshape(T, T, T * T).swapaxes(0, 1).reshape(T * T, -1)


def test_head_mixing_is_a_unimixing():
  """Blocks of D / T, local matrices I and a permutation as the global one."""
  local_NKK = np.tile(np.eye(D // T, dtype=np.float32), (T * T, 1, 1))
  want_BTD = rankmixer.HeadMix().apply({}, X_BTD, PLAIN)
  np.testing.assert_array_equal(unimixer.unimix(X_BTD, local_NKK, transposition()), want_BTD)
  module = unimixer.UniMixing(**mixing(), dtype=F32)
  params = {'local_logits': 200 * local_NKK, 'global_logits': 200 * transposition()}
  got_BTD = module.apply({'params': params}, X_BTD, inputs_lib.Context(progress=0.0))
  np.testing.assert_array_equal(got_BTD, want_BTD)


# Tokenizers and heads.


@pytest.mark.parametrize('tokens', [2, 3, 4, 15])
@pytest.mark.parametrize(
  ('make', 'loop', 'groups'),
  [
    (tokenizer.Slices, mixers.slice_tokens, 0),
    (tokenizer.GlobalAndSlices, mixers.global_tokens, 1),
  ],
  ids=['slice', 'global'],
)
def test_slices(make, loop, groups, tokens):
  """15 numbers a row: even slices, a padded last one, and one number each."""
  module = make(tokens, D, F32)
  params = randomised(module, ROWS)
  slices = tokens - groups
  want = {'kernel': (slices, math.ceil(F * E / slices), D), 'bias': (slices, D)}
  assert leaf_shapes(params)['map'] == want
  got_BTD = apply(module, params, ROWS)
  assert got_BTD.shape == (B, tokens, D)
  assert_close(got_BTD, loop(double(params), np.float64(ROWS), tokens))


@pytest.mark.parametrize('fields', [T, 2])
@pytest.mark.parametrize('pool', ['mean', 'concat', 'global', 'mlp'])
def test_heads_pool_the_last_tokens(pool, fields):
  mlp = layers.Mlp(6, 2, 0.0, 1, F32) if pool == 'mlp' else None
  module = heads.LogitHead(pool, 0.0, fields, mlp)
  params = randomised(module, X_BTD, PLAIN)
  want_B = mixers.logit_head(double(params), pool, fields, np.float64(X_BTD))
  got_B = apply(module, params, X_BTD, PLAIN)
  assert got_B.dtype == F32
  assert_close(got_B, want_B)


# Whole models, with what goes with each in its paper.


SIZES = (
  f'model.depth=2,model.dim={D},model.heads={HEADS},model.ffn_ratio={RATIO},model.embed_dim={E},'
  f'model.tokens={T},mixer.hiformer_rank=3,mixer.wukong_rank=3,mixer.wukong_units=6,'
  f'mixer.wukong_layers=2,mixer.wukong_interactions=2,mixer.unimixer_block={D // T},'
  f'mixer.unimixer_bases=3,mixer.unimixer_rank=2,mixer.unimixer_iterations={ITERATIONS},'
  'mlp.units=6,mlp.layers=2,residual.interval_layers=1'
)


def build(overrides, backbone):
  c = config.resolve(config.base(f'{SIZES},{overrides},model.backbone={backbone}'))
  return models.build(c, models.Layout(F), prior_logit=-1.0)


def two_a_layer(first, second):
  """Branches of every layer from the loops of (parameters of all sub-layers, layer, input)."""
  return lambda p, depth: [
    functools.partial(loop, p, l) for l in range(depth) for loop in (first, second)
  ]


def one_a_layer(loop):
  return lambda p, depth: [functools.partial(loop, p, l) for l in range(depth)]


def unimixer_layer(p, l, x):
  return mixers.unimixer_block(p[f'block_{l}'], x, TAUS[0.5], ITERATIONS)


SLICE = ('model.tokenizer=slice', lambda p, rows: mixers.slice_tokens(p, rows, T))
GLOBAL = ('model.tokenizer=global', lambda p, rows: mixers.global_tokens(p, rows, T))
FIELD = ('model.tokenizer=field', mixers.field_tokens)
POST_LAYER = (
  'model.connector=postnorm,model.norm=layer',
  lambda p, x, branches: streams.post_norm(p['connector'], 'layer', x, branches),
)
SIAMESE = (
  'model.connector=siamese,model.norm=rms',
  lambda p, x, branches: streams.siamese(p['connector'], 'rms', x, branches),
)
PROJECTED = (
  'model.connector=projected',
  lambda p, x, branches: mixers.projected(p['connector'], x, branches),
)
BARE = (
  'model.connector=interval,model.norm=none',
  lambda p, x, branches: mixers.bare_interval(x, branches, 1),
)


def pre(norm):
  return (
    f'model.connector=prenorm,model.norm={norm}',
    lambda p, x, branches: reference.prenorm(p['connector'], norm, x, branches),
  )


ATTENTION = one_a_layer(lambda p, l, x: mixers.interacting(p[f'attention_{l}'], HEADS, x))
# Backbone -> tokenizer, branches, connector and head.
MODELS = {
  'rankmixer': (
    SLICE,
    two_a_layer(
      lambda p, l, x: mixers.head_mix(x, T),
      lambda p, l, x: mixers.mixed_feed_forward(p[f'ffn_{l}'], T, x),
    ),
    POST_LAYER,
    'mean',
  ),
  'tokenmixer_large': (
    GLOBAL,
    one_a_layer(lambda p, l, x: mixers.mix_and_revert(p[f'block_{l}'], x)),
    BARE,
    'global',
  ),
  'unimixer': (SLICE, one_a_layer(unimixer_layer), SIAMESE, 'mean'),
  'unimixing_lite': (SLICE, one_a_layer(unimixer_layer), SIAMESE, 'mean'),
  'hstu': (
    FIELD,
    one_a_layer(lambda p, l, x: mixers.hstu(p[f'hstu_{l}'], HEADS, False, x)),
    pre('layer'),
    'mean',
  ),
  'wukong': (
    FIELD,
    one_a_layer(lambda p, l, x: mixers.wukong(p[f'wukong_{l}'], 2, x)),
    POST_LAYER,
    'mlp',
  ),
  'autoint': (FIELD, ATTENTION, PROJECTED, 'concat'),
  'autoint_plus': (FIELD, ATTENTION, PROJECTED, 'concat'),
  'hiformer': (
    FIELD,
    two_a_layer(
      lambda p, l, x: mixers.composite_attention(p[f'attention_{l}'], HEADS, x),
      lambda p, l, x: mixers.mixed_feed_forward(p[f'ffn_{l}'], F, x),
    ),
    pre('rms'),
    'mean',
  ),
}


def whole(backbone, more=''):
  """A backbone's model as its paper has it."""
  (tokens, _), _, (connector, _), head = MODELS[backbone]
  return build(f'{tokens},{connector},model.head={head},{more}', backbone)


def run_loops(backbone, params, depth=2):
  """Inputs of all sub-layers and logits."""
  (_, tokens), branches, (_, connector), head = MODELS[backbone]
  p, rows = double(params), np.float64(ROWS)
  x_BTD = tokens(p['tokens'], rows)
  inputs, x_BTD = connector(p['stack'], x_BTD, branches(p['stack'], depth))
  logits_B = mixers.logit_head(p['head'], head, x_BTD.shape[1], x_BTD)
  if backbone == 'autoint_plus':
    deep = [{**p['deep'], 'v': mixers.mlp(p['deep']['mlp'], row.ravel())} for row in rows]
    logits_B = logits_B + [d['v'] @ d['kernel'] + d['bias'] for d in deep]
  return inputs, logits_B


@pytest.mark.parametrize('backbone', MODELS)
def test_a_whole_model_is_its_loops_in_order(backbone):
  module = whole(backbone)
  params = randomised(module, ROWS, HALF_WAY)
  got_B = apply(module, params, ROWS, HALF_WAY)
  want_B = run_loops(backbone, params)[1]
  assert np.std(want_B) > 1e-3  # nothing has died on the way
  assert_close(got_B, want_B)


@pytest.mark.parametrize('backbone', MODELS)
def test_dropout_is_off_in_evaluation(backbone, monkeypatch):
  rates = 'model.dropout=0.5,model.embed_dropout=0.5,mlp.dropout=0.5'
  plain, noisy = whole(backbone), whole(backbone, rates)
  params = randomised(plain, ROWS, PLAIN)

  salts, drop = [], layers.dropout

  def spy(x, rate, ctx, salt):
    salts.extend([salt] if rate else [])
    return drop(x, rate, ctx, salt)

  monkeypatch.setattr(layers, 'dropout', spy)

  def program(module, ctx):
    return str(jax.make_jaxpr(module.apply)({'params': params}, ROWS, ctx))

  training = inputs_lib.Context(row_keys(B))
  assert program(plain, PLAIN) == program(noisy, PLAIN)
  assert 'random_bits' not in program(plain, training) and 'random_bits' not in program(
    noisy, PLAIN
  )
  salts.clear()
  assert 'random_bits' in program(noisy, training)
  hidden = 2 if backbone in ('wukong', 'autoint_plus') else 0  # of the head, of the deep part
  assert len(set(salts)) == len(salts) == 1 + len(plain.stack.sublayers) + hidden


# Auxiliary losses.


@pytest.mark.parametrize('backbone', ['tokenmixer_large', 'rankmixer', 'wukong'])
def test_auxiliary_logits_are_read_between_layers(backbone):
  """A head of its own on what the first sub-layer of each later layer reads."""
  depth = 3
  module = whole(backbone, f'model.depth={depth},model.aux_weight=0.3')
  params = randomised(module, ROWS, PLAIN)
  assert {name for name in params if 'aux' in name} == {'aux_heads_0', 'aux_heads_1'}
  logits_B, aux = apply(module, params, ROWS, PLAIN, mutable=['aux'])
  inputs, want_B = run_loops(backbone, params, depth)
  assert_close(logits_B, want_B)
  per_layer, head = len(inputs) // depth, MODELS[backbone][-1]
  for l, got_B in enumerate(aux['aux']['logits'], start=1):
    u_BTD, p = inputs[l * per_layer], double(params[f'aux_heads_{l - 1}'])
    assert_close(got_B, mixers.logit_head(p, head, u_BTD.shape[1], u_BTD))
  assert len(aux['aux']['logits']) == depth - 1
  # Neither the weight nor the heads nor the collection touch the logits.
  kept = {name: params[name] for name in ('tokens', 'stack', 'head')}
  plain = whole(backbone, f'model.depth={depth}')
  assert leaf_shapes(randomised(plain, ROWS, PLAIN)) == leaf_shapes(kept)
  np.testing.assert_array_equal(apply(module, params, ROWS, PLAIN), logits_B)
  got_B, aux = apply(plain, kept, ROWS, PLAIN, mutable=['aux'])
  np.testing.assert_array_equal(got_B, logits_B)
  assert aux == {}


def test_training_adds_the_mean_of_the_auxiliary_losses(planted):
  """One step of a loss written here. With a huge epsilon Adam's first step is the gradient."""
  sizes = 'model.depth=3,model.dim=8,model.heads=2,model.embed_dim=4,model.ffn_ratio=1'
  more = 'model.backbone=transformer,model.connector=prenorm,model.aux_weight=0.5'
  rates = 'optim.dense_lr=1000.0,optim.adam_eps=1000.0,optim.clip_norm=0.0,data.batch_size=64'
  c = config.resolve(config.base(f'{sizes},{more},{rates},data.eval_batch_size=64'))
  schema = load_schema(str(planted))
  spec = make_step_spec(c, schema, mesh_lib.make_mesh(1), 10)
  batches = batches_lib.Batches(Blocks(schema, 'train'), spec.tables, 64, 1, 64, c.seed)
  batch, state = batches[0], step.init_state(spec)
  before = jax.device_get(state.params)
  rows_BFE = in_order(spec.tables, state.tables)[numbers(spec.tables, batch, 1)]

  def loss(params, weight):
    logits, aux = spec.model.apply({'params': params}, rows_BFE, PLAIN, mutable=['aux'])
    first, second = aux['aux']['logits']
    total = step.bce_sum(logits, batch.labels, batch.weights)
    for z in (first, second):
      total += weight / 2 * step.bce_sum(z, batch.labels, batch.weights)
    return total / 64

  grad = jax.jit(jax.grad(loss))

  def stepped(weight):
    optimizer = spec.optimizer
    updates, _ = optimizer.update(grad(before, weight), optimizer.init(before), before)
    return optax.apply_updates(before, updates)

  train = step.make_train_step(spec)
  new, _ = train(state, step.init_stream(spec), batches_lib.put(batch, spec.mesh))

  def apart(want):
    errors = jax.tree.map(lambda a, b: float(np.max(np.abs(a - b))), new.params, want)
    return max(jax.tree.leaves(errors))

  assert apart(stepped(0.5)) < 1e-5
  assert apart(stepped(0.4)) > 1e-3 and apart(stepped(1.0)) > 1e-3
