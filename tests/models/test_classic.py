# SPDX-License-Identifier: Apache-2.0
"""Classic interaction models against loops, formulas and what they promise.

Shapes: B rows, S table rows of a row, F fields, L events, G attributes of an event, E row width.
"""

import dataclasses
import math

import formulas
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_classic as reference
from arrays import F32, KEY, B, E, F, assert_close, double, initial, normal, randomised, row_keys
from made import in_order, numbers, read_stream
from marks import slow

from deres_jax import config, models
from deres_jax.core.errors import UserError
from deres_jax.data import batches as batches_lib
from deres_jax.data.blocks import Blocks
from deres_jax.data.schema import load_schema
from deres_jax.embeddings import exchange
from deres_jax.embeddings import layout as layout_lib
from deres_jax.models import inputs, layers
from deres_jax.models.classic import CLASSICS
from deres_jax.pod import mesh as mesh_lib
from deres_jax.training import step
from deres_jax.training.step_spec import make_step_spec

FIELDS = models.Layout(F)
EVENTS = models.Layout(fields=4, events=5, event_fields=2, targets=(2, 0))

UNITS = 6
SMALL = (
  f'mlp.units={UNITS},mlp.layers=2,classic.cross_layers=2,classic.cin_layers=3,classic.cin_maps=3,'
  'classic.mask_blocks=2,classic.mask_units=4,classic.fusion_heads=3,classic.din_units=4,'
  'model.depth=2,model.dim=4,model.heads=2,model.connector=prenorm'
)

# Every model, with its switches.
ALL = [(backbone, '') for backbone in CLASSICS] + [
  ('dcnv2', 'classic.cross_rank=2'),
  ('finalmlp', 'classic.fusion_gate_units=3,classic.fusion_second_layers=3'),
]
WITH_MLP = [model for model in ALL if model[0] not in ('lr', 'fm')]
LINEAR = ('fm', 'deepfm', 'xdeepfm')

every_model = pytest.mark.parametrize(('backbone', 'more'), ALL)


def resolve(backbone, more=''):
  width = 1 if backbone == 'lr' else E
  return config.resolve(
    config.base(f'model.backbone={backbone},model.embed_dim={width},{SMALL},{more}')
  )


def build(backbone, more='', layout=EVENTS):
  return models.build(resolve(backbone, more), layout, prior_logit=-1.0)


def context(layout, rows=B):
  """Row 0 has no event, the last one all, the others some."""
  if not layout.events:
    return inputs.Context()
  there_BL = normal(rows, layout.events, seed=5) > 0
  there_BL[0], there_BL[-1] = False, True
  return inputs.Context(mask_BT=there_BL)


def made(backbone, more='', layout=EVENTS, rows=B):
  """A model, rows, their context and random parameters."""
  width = models.embedding_width(resolve(backbone, more).model)[0]
  rows_BSE = jnp.asarray(normal(rows, layout.slots, width), F32)
  module, ctx = build(backbone, more, layout), context(layout, rows)
  params = randomised(module, rows_BSE, ctx)
  return module, rows_BSE, ctx, jax.tree_util.tree_map_with_path(mostly_on, params)


def mostly_on(path, p):
  """Biases of hidden layers around 1, so that few ReLUs are dead."""
  name = jax.tree_util.keystr(path)
  return p + np.float32('layer_' in name and 'bias' in name)


def apply(module, params, rows_BSE, ctx):
  return np.asarray(jax.jit(module.apply)({'params': params}, rows_BSE, ctx))


def loop(backbone, more, layout, params, rows_BSE, there_BL):
  rows, c = np.asarray(rows_BSE, np.float64), resolve(backbone, more).classic
  return reference.logits(backbone, double(params), rows, there_BL, layout, c)


def zeroed(params, word):
  """Parameters with 0 wherever a name has this word."""
  return {k: jax.tree.map(np.zeros_like, p) if word in k else p for k, p in params.items()}


# Equations.


@pytest.mark.parametrize(
  ('backbone', 'more', 'layout'),
  [(*m, EVENTS) for m in ALL]
  + [(*m, FIELDS) for m in ALL if m[0] != 'din']
  + [('din', '', models.Layout(3, 4, 3, targets=(2, 0)))],  # the third attribute is no target's
)
def test_a_model_equals_its_loop(backbone, more, layout):
  """Also a row without events, whose means or history are zeros."""
  module, rows_BSE, ctx, params = made(backbone, more, layout)
  got_B = apply(module, params, rows_BSE, ctx)
  assert got_B.shape == (B,) and got_B.dtype == F32
  assert_close(got_B, loop(backbone, more, layout, params, rows_BSE, ctx.mask_BT))


def test_autoint_plus_adds_the_logit_of_hidden_layers_over_the_rows():
  module, rows_BSE, ctx, params = made('autoint_plus')
  rest = {name: p for name, p in params.items() if name != 'deep'}
  got_B = apply(module, params, rows_BSE, ctx) - apply(build('autoint'), rest, rows_BSE, ctx)
  assert_close(got_B, loop('dnn', '', EVENTS, params['deep'], rows_BSE, ctx.mask_BT))
  assert initial(module, rows_BSE, ctx)['deep']['bias'] == 0  # the head has the prior
  sizes = [p.size for p in jax.tree.leaves(params['deep'])]
  assert sum(sizes) == formulas.of_classic('mlp(X) + U + 1', resolve('dnn'), EVENTS)


# Sizes.

SIZES = {
  'small': ('', EVENTS),
  'large': (
    'mlp.units=8,mlp.layers=3,classic.cross_layers=3,classic.cross_rank=2,classic.cin_layers=2,'
    'classic.cin_maps=4,classic.mask_blocks=3,classic.mask_units=5,classic.mask_ratio=0.35,'
    'classic.fusion_heads=4,classic.fusion_gate_units=5,classic.fusion_second_layers=2,'
    'classic.din_units=7',
    models.Layout(fields=5, events=3, event_fields=4, targets=(0, 3)),
  ),
}


@pytest.mark.parametrize('sizes', SIZES)
@pytest.mark.parametrize('backbone', CLASSICS)
def test_parameters(backbone, sizes):
  more, layout = SIZES[sizes]
  more += ',model.embed_dim=5' if sizes == 'large' and backbone != 'lr' else ''
  c, (*_, params) = resolve(backbone, more), made(backbone, more, layout)
  stated = formulas.of_classic(CLASSICS[backbone].parameters, c, layout)
  assert sum(p.size for p in jax.tree.leaves(params)) == stated, (
    f'{backbone}: parameters={CLASSICS[backbone].parameters!r} of its row gives {stated}: state '
    'the formula of the module'
  )


# Learning.


def alive(path, p):
  """No hidden ReLU is dead: large biases, and weights above 0 behind the first layer."""
  name = jax.tree_util.keystr(path)
  if "layer_0']['kernel" in name:
    return p
  return np.abs(p) + 4 * ('layer_' in name and 'bias' in name)


@pytest.mark.parametrize(
  ('backbone', 'more', 'dtype'),
  [(*model, 'float32') for model in ALL]
  + [(slow if i % 3 else pytest.param)(*model, 'bfloat16') for i, model in enumerate(ALL)],
)
def test_every_parameter_and_every_table_row_learns(backbone, more, dtype):
  """Every entry of all of them, but for rows of events that are not there."""
  rows = 16
  module, rows_BSE, ctx, params = made(backbone, f'{more},model.dtype={dtype}', rows=rows)

  def loss(params, rows_BSE):
    return jnp.sum(jnp.sin(module.apply({'params': params}, rows_BSE, ctx)))

  value, (grads, g_BSE) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(
    jax.tree_util.tree_map_with_path(alive, params), rows_BSE
  )
  assert jnp.isfinite(value)
  for path, g in jax.tree_util.tree_leaves_with_path(grads):
    name = jax.tree_util.keystr(path)
    assert g.dtype == F32 and jnp.all(jnp.isfinite(g)) and jnp.all(g != 0), name
  assert jnp.all(jnp.isfinite(g_BSE))
  np.testing.assert_array_equal(g_BSE != 0, np.broadcast_to(~absent(ctx)[..., None], g_BSE.shape))


@pytest.mark.parametrize(('backbone', 'more'), WITH_MLP)
def test_in_bfloat16_all_products_but_the_logit_s_are(backbone, more):
  module, rows_BSE, ctx, params = made(backbone, f'{more},model.dtype=bfloat16')
  program = str(jax.make_jaxpr(module.apply)({'params': params}, rows_BSE, ctx))
  products = [line for line in program.splitlines() if ' = dot_general' in line]
  assert len(products) > 1 and sum(':f32' in line for line in products) == 1, products


def absent(ctx):
  """Table rows of events that are not there. [B, S]."""
  gone_BS = np.repeat(~ctx.mask_BT, EVENTS.event_fields, axis=1)
  return np.concatenate([np.zeros((len(gone_BS), EVENTS.fields), bool), gone_BS], axis=1)


# Starts.


def first_rows(c):
  """Rows of a table of their own, as a run starts with them. [B, S, E]."""
  tables = layout_lib.Tables((B * EVENTS.slots,), *models.embedding_width(c.model))
  (table,) = tables.parts
  start = jax.shard_map(
    lambda: exchange.init_tables(KEY, tables, c.optim.table_init_std)[0],
    mesh=mesh_lib.make_mesh(1),
    in_specs=(),
    out_specs=mesh_lib.TABLE,
    check_vma=False,
  )
  rows = in_order(tables, [jax.jit(start)()])[: table.rows]
  return rows.reshape(B, EVENTS.slots, table.dim)


@every_model
def test_the_first_logit_is_near_the_prior(backbone, more):
  """At the default sizes. MaskNet's norms make its inputs large, whatever the rows."""
  width = ',model.embed_dim=1' if backbone == 'lr' else ''
  c = config.resolve(config.base(f'model.backbone={backbone}{width},{more}'))
  module, rows_BSE, ctx = models.build(c, EVENTS, 0.7), first_rows(c), context(EVENTS)
  got_B = apply(module, initial(module, rows_BSE, ctx), rows_BSE, ctx)
  assert np.max(np.abs(got_B - 0.7)) < (0.5 if backbone == 'masknet' else 0.1)


# Linear weights: the last column of the table.


@pytest.mark.parametrize('backbone', models.BACKBONES)
def test_only_models_with_a_linear_part_have_a_column_of_zeros(backbone):
  c, linear = resolve(backbone), backbone in LINEAR
  columns = c.model.embed_dim + linear
  assert models.embedding_width(c.model) == (columns, linear)
  rows = np.asarray(first_rows(c)).reshape(-1, columns)
  vectors = rows[:, : columns - linear]
  assert np.all(vectors != 0) and np.all(rows[:, columns - linear :] == 0)
  assert np.std(vectors) == pytest.approx(0.01, rel=0.4)


@pytest.mark.parametrize('backbone', LINEAR)
def test_the_last_column_is_linear(backbone):
  module, rows_BFE, ctx, params = made(backbone, layout=FIELDS)
  added_BF = 3 * normal(B, F, seed=8)
  more_BFE = rows_BFE.at[..., -1].add(added_BF)
  got_B = apply(module, params, more_BFE, ctx) - apply(module, params, rows_BFE, ctx)
  np.testing.assert_allclose(got_B, np.sum(added_BF, axis=1), rtol=1e-5, atol=1e-5)


# What each model promises.


@pytest.mark.parametrize('backbone', ['fm', 'dnn'])
def test_fm_does_not_know_the_order_of_fields_and_dnn_does(backbone):
  module, rows_BFE, ctx, params = made(backbone, layout=FIELDS)
  other_BFE = rows_BFE[:, np.array([3, 0, 4, 2, 1])]
  moved_B = np.abs(apply(module, params, other_BFE, ctx) - apply(module, params, rows_BFE, ctx))
  assert np.all(moved_B < 1e-5) if backbone == 'fm' else np.all(moved_B > 1e-3)


@pytest.mark.parametrize('fields', [2, 3, 7])
def test_dlrm_reads_a_dot_of_every_pair(fields):
  *_, params = made('dlrm', layout=models.Layout(fields))
  assert params['mlp']['layer_0']['kernel'].shape == (fields * (fields - 1) // 2, UNITS)


@pytest.mark.parametrize('rank', [0, 2])
def test_dcnv2_without_cross_weights_is_linear_beside_the_hidden_layers(rank):
  module, rows_BFE, ctx, params = made('dcnv2', f'classic.cross_rank={rank}', FIELDS)
  params = zeroed(params, 'cross')
  p, x_BX = double(params), np.asarray(rows_BFE, np.float64).reshape(B, -1)
  want_B = [reference.logit(p, x_X, reference.mlp(p['mlp'], x_X)) for x_X in x_BX]
  assert_close(apply(module, params, rows_BFE, ctx), want_B)


@pytest.mark.parametrize('units', [0, 3])
def test_finalmlp_has_gates_if_asked_and_gates_of_zero_let_all_through(units):
  module, rows_BFE, ctx, params = made('finalmlp', f'classic.fusion_gate_units={units}', FIELDS)
  plain = {'first', 'second', 'fusion', 'kernel', 'bias'}
  gates = {
    f'{s}_{part}' for s in ('first', 'second') for part in ('context', 'gate_in', 'gate_out')
  }
  assert params.keys() == (plain | gates if units else plain)
  want_B = loop('finalmlp', '', FIELDS, {k: params[k] for k in plain}, rows_BFE, None)
  assert_close(apply(module, zeroed(params, 'gate'), rows_BFE, ctx), want_B)


def din_logits(order):
  """Of rows whose events, and their mask, stand in this order."""
  module, rows_BSE, ctx, params = made('din')
  fields, events = jnp.split(rows_BSE, [EVENTS.fields], axis=1)
  events = events.reshape(B, EVENTS.events, -1)[:, np.array(order)].reshape(B, -1, E)
  module = module.clone(layout=dataclasses.replace(EVENTS, events=len(order)))
  ctx = ctx.with_mask(ctx.mask_BT[:, order])
  return apply(module, params, jnp.concatenate([fields, events], axis=1), ctx)


def test_din_does_not_know_the_order_of_events():
  assert_close(din_logits([3, 0, 4, 2, 1]), din_logits([0, 1, 2, 3, 4]))


def test_din_does_not_normalise_weights():
  """Every event twice is twice the history."""
  _, rows_BSE, ctx, params = made('din')
  rows, p = np.asarray(rows_BSE, np.float64), double(params)
  want_B = [reference.din(p, rows[b], ctx.mask_BT[b], EVENTS, times=2) for b in range(B)]
  assert_close(din_logits([0, 1, 2, 3, 4] * 2), want_B)


@pytest.mark.parametrize('backbone', ['fm', 'dnn', 'din'])
def test_events_that_are_not_there_have_no_influence(backbone):
  module, rows_BSE, ctx, params = made(backbone)
  other_BSE = jnp.where(absent(ctx)[..., None], 1e3, rows_BSE)
  want_B = apply(module, params, rows_BSE, ctx)
  np.testing.assert_array_equal(apply(module, params, other_BSE, ctx), want_B)


@pytest.mark.parametrize('backbone', ['fm', 'dnn', 'din'])
def test_without_a_mask_all_events_are_there(backbone):
  module, rows_BSE, ctx, params = made(backbone)
  want_B = apply(module, params, rows_BSE, ctx.with_mask(np.ones_like(ctx.mask_BT)))
  assert_close(apply(module, params, rows_BSE, ctx.with_mask(None)), want_B)


# Dropout.

NOISY = ',mlp.dropout=0.3,model.embed_dropout=0.2'
EVERYTHING = 0.9999999  # of this rate, nothing is left of what it falls on


def keyed(rows):
  return inputs.Context(row_keys(rows), mask_BT=np.ones((rows, EVENTS.events), bool))


@every_model
def test_noise_needs_keys_and_differs_between_rows(backbone, more):
  rows = 8
  plain, rows_BSE, ctx, params = made(backbone, more, rows=rows)
  noisy = build(backbone, more + NOISY)
  programs = [
    str(jax.make_jaxpr(m.apply)({'params': params}, rows_BSE, ctx)) for m in (plain, noisy)
  ]
  assert programs[0] == programs[1]
  same_BSE = jnp.broadcast_to(rows_BSE[-1:], rows_BSE.shape)
  assert len(np.unique(apply(noisy, params, same_BSE, keyed(rows)))) > rows // 2


@every_model
def test_embed_dropout_falls_on_all_rows(backbone, more):
  module, rows_BSE, _, params = made(backbone, f'{more},model.embed_dropout={EVERYTHING}')
  want_B = loop(backbone, more, EVENTS, params, 0 * rows_BSE, keyed(B).mask_BT)
  assert_close(apply(module, params, rows_BSE, keyed(B)), want_B)


@pytest.mark.parametrize(('backbone', 'more'), WITH_MLP)
def test_mlp_dropout_falls_on_hidden_layers_alone(backbone, more):
  """Their outputs are the last inputs of the logit, and FinalMLP's two are all there is."""
  module, rows_BSE, _, params = made(backbone, f'{more},mlp.dropout={EVERYTHING}')
  got_B = apply(module, params, rows_BSE, keyed(B))
  params = zeroed(params, 'fusion')
  params['kernel'] = params['kernel'].copy()
  params['kernel'][-UNITS * (2 if backbone == 'finalmlp' else 1) :] = 0
  assert_close(got_B, loop(backbone, more, EVENTS, params, rows_BSE, keyed(B).mask_BT))


@pytest.mark.parametrize('backbone', ['lr', 'fm'])
def test_embed_dropout_keeps_the_mean_logit(backbone):
  """FM's too: two fields are dropped independently."""
  draws = 4000
  module, rows_BFE, _, params = made(backbone, 'model.embed_dropout=0.3', FIELDS)
  many = jnp.broadcast_to(rows_BFE[:1], (draws, *rows_BFE.shape[1:]))
  got = apply(module, params, many, inputs.Context(row_keys(draws)))
  (want,) = apply(module, params, rows_BFE[:1], inputs.Context())
  assert np.std(got) > 0.1
  assert np.mean(got) == pytest.approx(want, abs=5 * float(np.std(got)) / math.sqrt(draws))


def dropout_calls(backbone, more, monkeypatch):
  """Shape, rate and salt of every dropout of one forward pass; and the shape of the table rows."""
  calls, plain = [], layers.dropout
  module, rows_BSE, ctx, params = made(backbone, more)

  def spy(x, rate, ctx, salt):
    calls.append((x.shape, rate, salt))
    return plain(x, rate, ctx, salt)

  monkeypatch.setattr(layers, 'dropout', spy)
  jax.eval_shape(module.apply, {'params': params}, rows_BSE, ctx)
  return calls, rows_BSE.shape


@pytest.mark.parametrize(('backbone', 'more'), [*ALL, ('autoint_plus', 'model.head=mlp')])
def test_each_place_that_drops_draws_its_own_noise(backbone, more, monkeypatch):
  """Table rows once, at the table's rate; each hidden layer once, at theirs."""
  more = f'{more},mlp.layers=3{NOISY}'
  calls, _ = dropout_calls(backbone, more, monkeypatch)
  _, rates, salts = zip(*calls, strict=True)
  second = resolve(backbone, more).classic.fusion_second_layers
  hidden = {'lr': 0, 'fm': 0, 'finalmlp': 3 + second, 'autoint_plus': 3 + 3}
  assert len(set(salts)) == len(salts)
  assert rates.count(0.2) == 1 and rates.count(0.3) == hidden.get(backbone, 3)


@pytest.mark.parametrize('backbone', ['dnn', 'din', 'autoint_plus'])
def test_embed_dropout_falls_on_table_rows_before_a_mean_of_events(backbone, monkeypatch):
  calls, shape = dropout_calls(backbone, '', monkeypatch)
  assert [s for s, _, salt in calls if salt == layers.EMBED_SALT] == [shape]


# Mistakes.


@pytest.mark.parametrize(
  ('backbone', 'more', 'layout', 'words'),
  [
    ('lr', 'model.embed_dim=16', FIELDS, ['lr', 'model.embed_dim=1 ', '16']),
    ('din', '', FIELDS, ['din', 'sequences', 'dnn']),
    ('din', '', dataclasses.replace(EVENTS, targets=()), ['din', 'candidate']),
    ('finalmlp', 'mlp.units=7', FIELDS, ['mlp.units=7', 'classic.fusion_heads=3']),
    ('deepmf', '', FIELDS, ['deepmf', *models.BACKBONES]),
  ],
)
def test_a_model_that_cannot_be_built_says_why_in_one_line(backbone, more, layout, words):
  with pytest.raises(UserError) as e:
    build(backbone, more, layout)
  text = str(e.value)
  assert '\n' not in text and all(word in text for word in words), text


# Training.


def train(folder, devices, steps=6):
  """DeepFM on one batch again and again: losses, ids, and the table's rows before and after."""
  sizes = 'model.embed_dim=3,mlp.units=8,mlp.layers=2,data.batch_size=64,data.eval_batch_size=64'
  rates = 'optim.table_lr=0.1,optim.adam_eps=0.001'
  c = config.resolve(config.base(f'model.backbone=deepfm,{sizes},{rates}'))
  schema, mesh = load_schema(str(folder)), mesh_lib.make_mesh(devices)
  spec = make_step_spec(c, schema, mesh, steps)
  batches = batches_lib.Batches(Blocks(schema, 'train'), spec.tables, 64, devices, 64, c.seed)
  host_batch, state = batches[0], step.init_state(spec)
  batch = batches_lib.put(host_batch, mesh)
  one, read = step.make_train_step(spec), read_stream
  before, losses = in_order(spec.tables, state.tables), []
  for _ in range(steps):
    state, stream = one(state, step.init_stream(spec), batch)
    losses.append(read(stream)['logloss'])
  ids = np.unique(numbers(spec.tables, host_batch, devices))
  return np.array(losses), ids, before, in_order(spec.tables, state.tables)


def test_deepfm_learns_through_the_sharded_table(planted):
  """The same on 1 and 8 devices; linear weights of the batch's ids leave zero and no others do."""
  (one, ids, before, after), (eight, ids_8, _, after_8) = (train(planted, d) for d in (1, 8))
  np.testing.assert_allclose(one, eight, rtol=1e-5)
  assert np.all(np.diff(one) < 0) and one[-1] < one[0] - 0.05, one
  np.testing.assert_array_equal(ids, ids_8)
  np.testing.assert_allclose(after, after_8, rtol=1e-3, atol=1e-5)
  assert np.all(before[..., -1] == 0)
  np.testing.assert_array_equal(np.flatnonzero(after[..., -1]), ids)
