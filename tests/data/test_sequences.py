# SPDX-License-Identifier: Apache-2.0
"""Behaviour sequences from a prepared folder through batches, steps and figures."""

import itertools
import json
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds
from made import in_order, numbers, read_stream

from deres_jax import config
from deres_jax.core.errors import UserError
from deres_jax.data import batches as batches_lib
from deres_jax.data.blocks import Blocks
from deres_jax.data.schema import load_schema
from deres_jax.embeddings import layout as layout_lib
from deres_jax.metrics import exact, grouped
from deres_jax.models import inputs
from deres_jax.pod import mesh as mesh_lib
from deres_jax.training import loop, step
from deres_jax.training.step_spec import layout_of, make_step_spec

TINY = (
  'model.depth=1,model.dim=8,model.heads=2,model.embed_dim=4,model.ffn_ratio=2,mlp.units=8,'
  'mlp.layers=1,classic.din_units=4,data.batch_size=64,data.eval_batch_size=64,'
  'model.connector=prenorm,optim.adam_eps=0.001'
)


def stored(folder, split):
  """Reads all rows of a split without the trainer's reader."""
  schema = json.loads((folder / 'schema.json').read_text())
  source = tfds.builder_from_directory(folder / schema['tfds']).as_data_source(split)
  return {
    name: np.concatenate([source[i][name] for i in range(len(source))])
    for name in ('ids', 'events', 'label', 'group')
  }


def batches_of(folder, split='train', seed=None, devices=1):
  schema = load_schema(str(folder))
  table = layout_lib.Tables(schema.vocab_sizes, 4)
  return batches_lib.Batches(Blocks(schema, split), table, 64, devices, 64, seed), table


def test_the_schema_names_the_fields_whose_ids_events_share(feed):
  schema = load_schema(str(feed))
  assert [x.name for x in schema.fields] == ['user_id', 'item_id', 'author', 'tag', 'hour']
  attributes = [x.name for x in schema.sequence.attributes]
  assert attributes == ['item_id', 'author', 'tag', 'kind', 'gap']
  assert schema.shared_columns == (1, 2, 3) and len(schema.vocab_sizes) == 7
  assert schema.group.name == 'user_id'
  assert schema.columns == (0, 1, 2, 3, 4, *(1, 2, 3, 5, 6) * 6)
  layout = layout_of(schema)
  assert (layout.fields, layout.events, layout.event_fields) == (5, 6, 5)
  assert layout.targets == (1, 2, 3) and layout.slots == len(schema.columns)


def test_batches_hold_events_as_ids_of_the_fields_they_share(feed):
  batches, table = batches_of(feed)
  rows = stored(feed, 'train')
  n = len(rows['label'])
  ids_NS = np.concatenate([rows['ids'], rows['events'].reshape(n, -1)], axis=1)
  columns = load_schema(str(feed)).columns
  assert (ids_NS[:, 5:] == 0).any() and (ids_NS[:, -1] > 0).any()
  for k in range(3):
    batch = batches[k]
    found = numbers(table, batch, 1)
    for i, j in itertools.product(range(64), range(len(columns))):
      id = ids_NS[64 * k + i, j]
      expected = table.column_offsets[columns[j]] + id if id else table.padding
      assert found[i, j] == expected
    there = rows['events'][64 * k : 64 * (k + 1), :, 0] != 0
    np.testing.assert_array_equal(batch.event_mask, there)
    np.testing.assert_array_equal(batches.examples(k).groups, rows['group'][64 * k : 64 * (k + 1)])


def state_after(folder, devices, more, steps=3):
  c = config.resolve(config.base(f'{TINY},{more}'))
  schema = load_schema(str(folder))
  spec = make_step_spec(c, schema, mesh_lib.make_mesh(devices), 10)
  batches = batches_lib.Batches(Blocks(schema, 'train'), spec.tables, 64, devices, 64, 1)
  state, stream = step.init_state(spec), step.init_stream(spec)
  one = step.make_train_step(spec)
  for k in range(steps):
    state, stream = one(state, stream, batches_lib.put(batches[k], spec.mesh))
  return spec, state, read_stream(stream)['logloss']


@pytest.mark.parametrize(
  'more',
  ['model.backbone=hstu', 'model.backbone=din'],
  ids=['hstu', 'din'],
)
def test_eight_devices_train_on_sequences_like_one(feed, more):
  _, one, loss = state_after(feed, 1, more)
  _, eight, loss_eight = state_after(feed, 8, more)
  assert loss == pytest.approx(loss_eight, rel=1e-5)
  np.testing.assert_allclose(one.tables[0], eight.tables[0], rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize('backbone', ['dnn', 'din'])
def test_steps_pass_the_event_mask_to_the_model(feed, backbone):
  more = f'model.backbone={backbone},optim.table_init_std=1.0'
  spec, _, loss = state_after(feed, 1, more, steps=1)
  state, batches = step.init_state(spec), batches_of(feed, seed=1)[0]
  batch = batches[0]
  table = in_order(spec.tables, state.tables)
  table = np.concatenate([table, np.ones((1, 4))])  # padding is not zero here
  rows_BSE = table[numbers(spec.tables, batch, 1)].astype(np.float32)

  def logits(mask):
    return np.asarray(
      spec.model.apply({'params': state.params}, rows_BSE, inputs.Context(mask_BT=mask))
    )

  expected = logits(batch.event_mask)
  assert exact.log_loss(batch.labels, expected) == pytest.approx(loss, rel=1e-5)
  assert np.abs(logits(None) - expected).max() > 1e-3
  found = step.make_eval_step(spec)(state.params, state.tables, np.int32(0), batch)
  np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize('backbone', ['hstu', 'din', 'dnn'])
def test_embeddings_used_only_by_histories_are_trained_and_padding_is_not(feed, backbone):
  spec, state, _ = state_after(feed, 1, f'model.backbone={backbone}')
  start = step.init_state(spec)
  moved = np.any(state.tables[0] != start.tables[0], axis=-1)
  moved = in_order(spec.tables, [moved])
  offsets, rows = spec.tables.column_offsets, spec.tables.rows
  assert not moved[rows:].any()  # the table's padding
  kind, gap = moved[offsets[5] : offsets[6]], moved[offsets[6] : rows]
  assert kind[2:].any() and gap[2:].any() and not kind[0] and not gap[0]


def test_a_run_reports_users_and_items(feed, tmp_path):
  text = f'{TINY},train.epochs=1.0,model.backbone=hstu,data.path={feed}'
  c = config.resolve(config.base(f'{text},mesh.devices=1'))
  result = loop.train(c, tmp_path / 'run')
  rows, schema = stored(feed, 'test'), json.loads((feed / 'schema.json').read_text())
  logits = np.load(result['test_logits'])
  borders = schema['items']['head_below'], schema['items']['torso_below']
  expected = grouped.gauc(rows['label'], logits, rows['group'])
  expected |= grouped.item_aucs(rows['label'], logits, rows['ids'][:, 1], 2, *borders)
  assert {name: result[name] for name in expected} == pytest.approx(expected, nan_ok=True)
  assert sum(result[f'rows_{part}'] for part in ('head', 'torso', 'tail')) == len(logits) == 160
  assert result['gauc_users'] == 0  # one row a user: no pair inside any


def test_a_pyramid_longer_than_the_history_is_refused(feed):
  with pytest.raises(UserError, match='a history of 6 events'):
    state_after(feed, 1, 'model.pyramid_events=7')


def spoiled(feed, tmp_path, change):
  schema = json.loads((feed / 'schema.json').read_text())
  change(schema)
  shutil.copytree(feed, tmp_path / 'data')
  (tmp_path / 'data' / 'schema.json').write_text(json.dumps(schema))
  return tmp_path / 'data'


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    (lambda s: s['sequence']['attributes'][0].update(field='nobody'), "'nobody' is named, but not"),
    (lambda s: s['sequence']['attributes'].reverse(), 'after one that does not'),
    (lambda s: s['sequence'].update(length=0), r'`\$.sequence.length`: expected `int` >= 1'),
    (lambda s: s['items'].update(field='nobody'), "'nobody' is named, but not in fields"),
    (lambda s: s.pop('group'), 'missing required field `group`'),
    (lambda s: s['sequence'].update(length=7), r'events int32\[1280, 6, 5\].* expects'),
    (lambda s: s['sequence']['attributes'][3].update(vocab_size=3), 'of an event is out of range'),
    (lambda s: s.update(group=None), r'group int32\[1280\], .* expects'),
  ],
)
def test_data_that_contradict_the_schema_are_refused(feed, tmp_path, change, words):
  with pytest.raises(UserError, match=words) as e:
    batches_of(spoiled(feed, tmp_path, change))
  assert '\n' not in str(e.value)
