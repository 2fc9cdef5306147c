# SPDX-License-Identifier: Apache-2.0
"""Behaviour sequences: event tokens, padding, causal attention, the pyramid, pooling; and settings
that cannot be.

Shapes: B rows, L events, G attributes of an event, F fields, E table-row width, T = L + F tokens,
D width, S = F + L G table rows.
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import reference_mixers as mixers
import reference_streams as streams
from arrays import F32, KEY, assert_close, double, leaf_shapes, normal, randomised
from marks import slow

from deres_jax import config, models
from deres_jax.config import fields as fields_lib
from deres_jax.core.errors import UserError
from deres_jax.models import inputs, layers, tokenizer
from deres_jax.models.backbones import onetrans

B, L, G, F, E, D, HEADS, RATIO = 3, 4, 2, 3, 3, 8, 2, 2
LAYOUT = models.Layout(F, L, G, targets=(1,))
ROWS = np.float32(normal(B, LAYOUT.slots, E))
# All events; two; none.
MASK = np.array([[True] * 4, [False, False, True, True], [False] * 4])
CTX = inputs.Context(mask_BT=MASK)
PADDED_BS = np.concatenate([np.zeros((B, F), bool), np.repeat(~MASK, G, axis=1)], axis=1)
MOVED = np.where(PADDED_BS[..., None], np.float32(100), ROWS)  # padding that says something


def resolve(**fields):
  """Fields of config.model, or 'section.field'."""
  c = config.base(
    f'model.depth=2,model.dim={D},model.heads={HEADS},model.ffn_ratio={RATIO},model.embed_dim={E},'
    'deres.block_layers=1,attnres.block_layers=1,residual.interval_layers=1,mlp.units=6,'
    'mlp.layers=2,mixer.wukong_units=6,mixer.wukong_rank=3,classic.cross_layers=2'
  )
  for name, value in fields.items():
    section, _, leaf = name.rpartition('.')
    c[section or 'model'][leaf] = value
  return config.resolve(c)


def build(layout=LAYOUT, **fields):
  return models.build(resolve(**fields), layout, prior_logit=-1.0)


def apply(module, params, rows=ROWS, ctx=CTX):
  return jax.jit(module.apply)({'params': params}, rows, ctx)


# The loops: tokens, sub-layers, connector, head. A token that a pyramid has dropped is NaN.


def tokens_of(params, rows, mask):
  events = rows[:, F:].reshape(B, L, G, E)
  events = np.where(mask[:, :, None, None], events, np.nan)
  x_BLD = mixers.event_tokens(params['events'], events)
  return np.concatenate([x_BLD, mixers.field_tokens(params['tokens'], rows[:, :F])], axis=1)


def padded(y_BQD):
  dropped = np.full((B, L + F - y_BQD.shape[1], D), np.nan)
  return np.concatenate([dropped, y_BQD], axis=1)


def attention_branch(params, own, causal, alive, stay, mask_BT, u_BTD):
  u_BTD, mask_BT = u_BTD[:, L - alive :], mask_BT[:, L - alive :]
  queries = stay + F
  return padded(mixers.mixed_attention(params, own, HEADS, causal, u_BTD, mask_BT, queries))


def feed_forward_branch(params, own, stay, u_BTD):
  return padded(mixers.mixed_feed_forward(params, own, u_BTD[:, L - stay :]))


def branches_of(stack, backbone, causal, events, mask):
  """events: how many stand before the first layer and after each."""
  mask_BT = np.concatenate([mask, np.ones((B, F), bool)], axis=1)
  branches, own = [], F if backbone == 'onetrans' else 0
  for l, (alive, stay) in enumerate(itertools.pairwise(events)):
    if backbone == 'hstu':
      branches.append(lambda u, p=stack[f'hstu_{l}']: mixers.hstu(p, HEADS, causal, u, mask_BT))
      continue
    attention = functools.partial(attention_branch, stack[f'attention_{l}'], own, causal)
    branches.append(functools.partial(attention, alive, stay, mask_BT))
    branches.append(functools.partial(feed_forward_branch, stack[f'ffn_{l}'], own, stay))
  return branches


def run_loops(params, c, connector, events):
  p = double(params)
  branches = branches_of(p['stack'], c.model.backbone, c.model.causal, events, MASK)
  x_BTD = tokens_of(p, np.float64(ROWS), MASK)
  _, x_BTD = connector(p['stack']['connector'], x_BTD, branches)
  return mixers.logit_head(p['head'], c.model.head, F, x_BTD)


def pre(p, x_BTD, branches):
  return reference.prenorm(p, 'rms', x_BTD, branches)


READERS = ['transformer', 'onetrans', 'hstu']


@pytest.mark.parametrize('causal', [False, True])
@pytest.mark.parametrize('backbone', READERS)
def test_a_whole_model_is_its_loops(backbone, causal):
  """The loops' padded events are NaN; the model's say something."""
  fields = {'backbone': backbone, 'causal': causal, 'connector': 'prenorm', 'head': 'concat'}
  module = build(**fields)
  params = randomised(module, ROWS, CTX)
  got_B = apply(module, params)
  assert_close(got_B, run_loops(params, resolve(**fields), pre, [L] * 3))
  np.testing.assert_array_equal(apply(module, params, MOVED), got_B)


@pytest.mark.parametrize('backbone', [*READERS, 'dnn'])
def test_without_a_mask_all_events_are_there(backbone):
  module = build(backbone=backbone)
  params = randomised(module, ROWS, CTX)
  every = inputs.Context(mask_BT=np.ones((B, L), bool))
  assert_close(apply(module, params, ctx=inputs.Context()), apply(module, params, ctx=every), 1e-6)


@pytest.mark.parametrize('causal', [False, True])
@pytest.mark.parametrize('mask', [None, 'left', 'gaps'])
@pytest.mark.parametrize('queries', [6, 5, 3])
@pytest.mark.parametrize('own', [0, 3])
def test_mixed_attention(own, queries, mask, causal):
  x_BTD = np.float32(normal(B, 6, D))
  mask_BT = {
    None: None,
    'left': np.arange(6) >= np.array([[0], [2], [3]]),
    'gaps': np.array([[1, 0, 1, 1, 1, 1], [0, 1, 0, 1, 1, 1], [1, 1, 0, 1, 1, 1]], bool),
  }[mask]
  module = layers.Attention(own, HEADS, causal, queries, F32, out_scale=1.0)
  ctx = inputs.Context(mask_BT=mask_BT)
  params = randomised(module, x_BTD, ctx)
  want_BQD = mixers.mixed_attention(
    double(params), own, HEADS, causal, np.float64(x_BTD), mask_BT, queries
  )
  got_BQD = np.asarray(module.apply({'params': params}, x_BTD, ctx))
  assert got_BQD.shape == (B, queries, D) and np.isfinite(got_BQD).all()
  there = np.ones((B, queries), bool) if mask is None else mask_BT[:, -queries:]
  assert_close(got_BQD[there], want_BQD[there])


def test_events_share_matrices_and_fields_have_their_own():
  module = build(backbone='onetrans')
  shapes = leaf_shapes(jax.eval_shape(lambda: module.init(KEY, ROWS, CTX))['params'])
  assert shapes['stack']['attention_0'] == {
    'qkv': {'kernel_shared': (D, 3 * D), 'kernel': (F, D, 3 * D)},
    'out': {'kernel': (D, D)},
  }
  assert shapes['stack']['ffn_1']['down'] == {
    'kernel_shared': (RATIO * D, D),
    'kernel': (F, RATIO * D, D),
  }
  assert shapes['events'] == {
    'map': {'kernel': (G * E, D)},
    'position': (L, D),
    'norm': {'scale': (1, D)},
  }


# Who sees whom.


@pytest.mark.parametrize('causal', [False, True])
@pytest.mark.parametrize('backbone', READERS)
def test_an_event_sees_no_later_one_and_fields_see_all(backbone, causal):
  module = build(backbone=backbone, causal=causal, connector='prenorm')
  params = randomised(module, ROWS, CTX)
  last = module.stack.sublayers[-1].name
  every = inputs.Context(mask_BT=np.ones((B, L), bool))

  @jax.jit
  def outputs(rows):
    _, state = module.apply(
      {'params': params}, rows, every, capture_intermediates=True, mutable=['intermediates']
    )
    return state['intermediates']['stack'][last]['__call__'][0]

  before_BTD = outputs(ROWS)
  for event in range(L):
    rows = ROWS.copy()
    rows[:, F + event * G] += 1
    moved_T = np.max(np.abs(outputs(rows) - before_BTD), axis=(0, 2))
    assert (moved_T[:event] == 0).all() if causal else (moved_T[:event] > 1e-5).all()
    assert (moved_T[event:] > 1e-5).all()


@pytest.mark.parametrize('causal', [False, True])
@pytest.mark.parametrize('backbone', READERS)
def test_rows_with_few_events_or_none_have_finite_gradients(backbone, causal):
  module = build(backbone=backbone, causal=causal, connector='prenorm', norm='layer')
  params = randomised(module, ROWS, CTX)

  @jax.jit
  @functools.partial(jax.jacrev, argnums=(0, 1))
  def slopes(params, rows):
    return module.apply({'params': params}, rows, CTX)

  by_params, by_rows = slopes(params, ROWS)
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(by_params))
  own_BBS = np.eye(B, dtype=bool)[..., None] & ~PADDED_BS
  np.testing.assert_array_equal(np.any(by_rows != 0, axis=-1), own_BBS)


# The pyramid.


@pytest.mark.parametrize(
  ('depth', 'events', 'last', 'want'),
  [
    (4, 100, 20, [80, 60, 40, 20]),
    (2, 6, 0, [3, 0]),
    (3, 10, 3, [8, 5, 3]),
    (3, 4, 4, [4, 4, 4]),
    (4, 2, 1, [2, 2, 1, 1]),
    (3, 7, -1, [7, 7, 7]),
    (1, 9, 2, [2]),
  ],
)
def test_events_fall_linearly_to_the_last_layer(depth, events, last, want):
  assert onetrans.pyramid(depth, events, last) == want


@pytest.mark.parametrize('backbone', ['transformer', 'onetrans'])
def test_tokens_that_stay_after_each_layer(backbone):
  module = build(backbone=backbone, pyramid_events=1, depth=3)

  def run():
    return module.init_with_output(KEY, ROWS, CTX, capture_intermediates=True)[1]

  stack = jax.eval_shape(run)['intermediates']['stack']
  for l, stay in enumerate([3, 2, 1]):
    for kind in ('attention', 'ffn'):
      assert stack[f'{kind}_{l}']['__call__'][0].shape == (B, stay + F, D)
  assert stack['__call__'][0][0].shape == (B, 1 + F, D)


@pytest.mark.parametrize('causal', [False, True])
def test_a_pyramid_that_drops_nothing_is_none(causal):
  fields = {'backbone': 'onetrans', 'causal': causal}
  plain, pyramid = build(**fields), build(**fields, pyramid_events=L)
  params = randomised(plain, ROWS, CTX)
  assert leaf_shapes(randomised(pyramid, ROWS, CTX)) == leaf_shapes(params)
  np.testing.assert_array_equal(apply(pyramid, params), apply(plain, params))


def deres(**switches):
  switches = dataclasses.asdict(fields_lib.DeRes(block_layers=1, **switches))
  return lambda p, x, branches: reference.deres(p, switches, 'rms', 2, x, branches)


def learnable(kind):
  return lambda p, x, branches: streams.learnable(p, 'rms', x, branches, kind)


PER_TOKEN = {'query': 'static_per_token', 'include_partial': True}
TOKEN_MEAN = {'compress': 'token_mean', 'include_partial': True}
# Divides by the size of what it recalls, which must not be 0 where an event is padded.
RECALL_SIZE = {'score_fn': 'sigmoid', 'silu_norm': 'rms'}
POINTWISE = {'path': 'attn', 'include_partial': True, 'silu_center': 1.2784645}
# Connector -> its loop.
LOOPS = {
  'prenorm': pre,
  'postnorm': lambda p, x, branches: streams.post_norm(p, 'rms', x, branches),
  'projected': mixers.projected,
  'siamese': lambda p, x, branches: streams.siamese(p, 'rms', x, branches),
  'interval': lambda p, x, branches: streams.interval(p, 'rms', x, branches, 2, 1),
  'scalar': learnable('scalar'),
  'vector': learnable('vector'),
  'matrix': learnable('matrix'),
  'rezero': lambda p, x, branches: streams.rezero(p, 'rms', x, branches),
  'layerscale': lambda p, x, branches: streams.layer_scale(p, 'rms', x, branches),
  'highway': lambda p, x, branches: streams.highway(p, 'rms', x, branches),
  'denseformer': lambda p, x, branches: streams.dense_former(p, 'rms', x, branches, 2),
  'hc': lambda p, x, branches: streams.hyper(p, 'rms', x, branches, 3),
  'mhc': lambda p, x, branches: streams.manifold(p, 'rms', x, branches, 3, 4, lite=False),
  'mhc_lite': lambda p, x, branches: streams.manifold(p, 'rms', x, branches, 3, 4, lite=True),
  'attnres': lambda p, x, branches: reference.block_attnres(p, 'rms', 2, x, branches),
  'attnres_full': lambda p, x, branches: reference.full_attnres(p, 'rms', x, branches),
  'attnres_pointwise': deres(**POINTWISE),
  'haares': lambda p, x, branches: mixers.haares(p, 'rms', 2, 2, x, branches),
  'deres': deres(),
  'deres_s': deres(score_fn='softmax', include_partial=True),
}


@pytest.mark.parametrize(
  ('connector', 'switches'),
  [(slow if i % 3 else pytest.param)(name, {}) for i, name in enumerate(models.CONNECTORS)]
  + [('deres', PER_TOKEN), ('deres', TOKEN_MEAN), ('deres', {**PER_TOKEN, **TOKEN_MEAN})]
  + [('deres', RECALL_SIZE)],
)
def test_a_pyramid_under_every_connector(connector, switches):
  """Its loop over all tokens, where those that were dropped are NaN; padding; gradients."""
  # Down to no event: nothing reads what the last layer makes of one.
  fields = {'backbone': 'onetrans', 'connector': connector, 'pyramid_events': 0}
  fields |= {'hyper.streams': 3, 'hyper.sinkhorn_iterations': 4}
  fields |= {f'deres.{name}': value for name, value in switches.items()}
  module = build(**fields)
  params = randomised(module, ROWS, CTX)

  @jax.jit
  @functools.partial(jax.grad, argnums=(0, 1), has_aux=True)
  def run(params, rows):
    logits_B = module.apply({'params': params}, rows, CTX)
    return jnp.sum(jnp.sin(logits_B)), logits_B

  (g_params, g_rows), logits_B = run(params, ROWS)
  for path, g in jax.tree_util.tree_leaves_with_path(g_params):
    assert np.isfinite(g).all() and (g != 0).any(), jax.tree_util.keystr(path)
  np.testing.assert_array_equal(np.any(g_rows != 0, axis=-1), ~PADDED_BS)
  np.testing.assert_array_equal(run(params, MOVED)[1], logits_B)
  if switches.get('compress') != 'token_mean':  # whose loop takes the mean over dropped tokens too
    loop = deres(**switches) if switches else LOOPS[connector]
    assert_close(logits_B, run_loops(params, resolve(**fields), loop, [L, 2, 0]), 3e-5)


@pytest.mark.parametrize('last', [0, 2])
@pytest.mark.parametrize('causal', [False, True])
@pytest.mark.parametrize('backbone', ['transformer', 'onetrans'])
def test_a_pyramid_is_its_loops(backbone, causal, last):
  """Two layers; the second may leave no event."""
  fields = {'backbone': backbone, 'causal': causal, 'pyramid_events': last}
  module = build(**fields, connector='prenorm')
  params = randomised(module, ROWS, CTX)
  events = [L, (L + last) // 2, last]
  assert_close(apply(module, params), run_loops(params, resolve(**fields), pre, events))


@pytest.mark.parametrize('backbone', READERS)
def test_bfloat16(backbone):
  pyramid = -1 if backbone == 'hstu' else 1
  low, full = (
    build(backbone=backbone, pyramid_events=pyramid, dtype=t) for t in ('bfloat16', 'float32')
  )
  params = randomised(full, ROWS, CTX)
  got_B = apply(low, params)
  assert got_B.dtype == F32
  assert_close(got_B, apply(full, params), 0.1)


# Models that read no sequences.


def test_pooling_is_a_mean_over_the_events_that_are_there():
  want = mixers.pooled(np.float64(ROWS[:, :F]), np.float64(ROWS[:, F:]).reshape(B, L, G, E), MASK)
  assert want.shape == (B, F + G, E)
  np.testing.assert_array_equal(want[2, F:], 0)
  assert_close(tokenizer.pooled(ROWS, LAYOUT, CTX), want)
  np.testing.assert_array_equal(
    tokenizer.pooled(MOVED, LAYOUT, CTX), tokenizer.pooled(ROWS, LAYOUT, CTX)
  )
  assert tokenizer.pooled(ROWS, models.Layout(LAYOUT.slots), inputs.Context()) is ROWS


@pytest.mark.parametrize(
  'backbone',
  ['rankmixer', 'unimixing_lite', 'autoint', 'autoint_plus', 'hiformer', 'wukong', 'dnn', 'deepfm'],
)
def test_a_history_is_further_fields_to_models_without_event_tokens(backbone):
  fields = {'backbone': backbone, 'tokenizer': 'slice' if 'mix' in backbone else 'field'}
  fields |= {'tokens': 4, 'connector': 'prenorm'}
  module, plain = build(**fields), build(models.Layout(F + G), **fields)
  params = randomised(module, ROWS, CTX)
  pooled = mixers.pooled(ROWS[:, :F], ROWS[:, F:].reshape(B, L, G, E), MASK)
  assert leaf_shapes(randomised(plain, pooled, inputs.Context())) == leaf_shapes(params)
  want_B = apply(plain, params, np.float32(pooled), inputs.Context())
  assert_close(apply(module, params), want_B)


# Settings that cannot be.


NO_EVENTS = models.Layout(F)


@pytest.mark.parametrize(
  ('layout', 'fields', 'words'),
  [
    (NO_EVENTS, {'pyramid_events': 2}, ['pyramid_events=2', 'events', '-1']),
    (NO_EVENTS, {'pyramid_events': 0}, ['pyramid_events=0', 'events', '-1']),
    (LAYOUT, {'pyramid_events': L + 1}, ['pyramid_events=5', '4 events']),
    (LAYOUT, {'backbone': 'hstu', 'pyramid_events': 2}, ['pyramid_events=2', 'hstu', 'onetrans']),
    (LAYOUT, {'backbone': 'rankmixer', 'pyramid_events': 2}, ['pyramid_events=2', 'rankmixer']),
    (LAYOUT, {'backbone': 'dnn', 'pyramid_events': 2}, ['pyramid_events=2', 'dnn', 'onetrans']),
    (LAYOUT, {'backbone': 'autoint', 'causal': True}, ['causal=True', 'autoint', 'hstu']),
    (LAYOUT, {'backbone': 'dnn', 'causal': True}, ['causal=True', 'dnn', 'transformer']),
    (NO_EVENTS, {'backbone': 'rankmixer'}, ['rankmixer', 'model.dim=8', '3 tokens']),
    (LAYOUT, {'backbone': 'rankmixer'}, ['rankmixer', 'model.dim=8', '5 tokens']),
    (
      NO_EVENTS,
      {'backbone': 'tokenmixer_large', 'tokenizer': 'global', 'tokens': 3},
      ['tokenmixer_large', 'model.dim=8', '3 tokens'],
    ),
    (
      NO_EVENTS,
      {'backbone': 'unimixer', 'mixer.unimixer_block': 5},
      ['mixer.unimixer_block=5', '3 x 8 = 24'],
    ),
    (
      NO_EVENTS,
      {'backbone': 'unimixing_lite', 'mixer.unimixer_block': 16},
      ['mixer.unimixer_block=16', '24'],
    ),
    (
      NO_EVENTS,
      {'backbone': 'wukong', 'mixer.wukong_interactions': 3},
      ['mixer.wukong_interactions=3', '1 to 2'],
    ),
    (
      NO_EVENTS,
      {'backbone': 'wukong', 'mixer.wukong_interactions': -1},
      ['mixer.wukong_interactions=-1'],
    ),
    (NO_EVENTS, {'backbone': 'din'}, ['din', 'sequences', 'dnn']),
    (
      NO_EVENTS,
      {'backbone': 'finalmlp', 'classic.fusion_heads': 4},
      ['mlp.units=6', 'classic.fusion_heads=4'],
    ),
    (
      LAYOUT,
      {'backbone': 'hstu', 'connector': 'haares'},
      ['haares', 'attnres.block_layers=1', 'hstu'],
    ),
    (NO_EVENTS, {'tokenizer': 'global', 'tokens': 1}, ['model.tokens=1', 'global']),
  ],
)
def test_settings_that_cannot_be(layout, fields, words):
  with pytest.raises(UserError) as e:
    build(layout, **{'backbone': 'onetrans', **fields})
  text = str(e.value)
  assert '\n' not in text and all(word in text for word in words), text
