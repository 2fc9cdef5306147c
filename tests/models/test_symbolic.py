# SPDX-License-Identifier: Apache-2.0
"""Every model is exported for any number of rows and every platform."""

import jax
import numpy as np
import pytest
from made import ids_of

from deres_jax import config, export, models
from deres_jax.data.schema import load_schema
from deres_jax.models.backbones import TOKEN_BACKBONES
from deres_jax.models.inputs import Context
from deres_jax.pod import mesh as mesh_lib
from deres_jax.training.checkpoints.restore import Trained
from deres_jax.training.step_spec import abstract_embeddings, make_step_spec

TINY = (
  'model.depth=1,model.dim=8,model.heads=2,model.embed_dim=4,model.ffn_ratio=2,mlp.units=8,'
  'mlp.layers=1,deres.block_layers=1,classic.din_units=4,train.kernels=off'
)


def untrained(folder, more):
  """A run that never was: random weights for a config on a prepared folder."""
  c = config.resolve(config.base(f'{TINY},data.path={folder},{more}'))
  schema = load_schema(str(folder))
  spec = make_step_spec(c, schema, mesh_lib.make_mesh(1), 10)
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(
    spec.model.init,
    jax.random.key(0),
    abstract_embeddings(spec.tables, spec.column_tables, 1),
    Context(),
  )['params']
  params = jax.tree.map(lambda p: np.float32(0.4 * rng.normal(size=p.shape)), shapes)
  rows = tuple(np.float32(rng.normal(size=table.shape)) for table in spec.tables.parts)
  return Trained(c, schema, spec, params, rows, 4, None)


def check_symbolic(run):
  """Exports for any batch and every platform, and equals the model on rows gathered by NumPy."""
  function, weights = export.export_function(run, list(export.PLATFORMS))
  assert function.platforms == export.PLATFORMS
  ids_aval = function.in_avals[-1]
  assert str(ids_aval.shape[0]) == 'b' and function.out_avals[0].shape == ids_aval.shape[:1]
  ids = np.array(ids_of(run.schema.path))[:3]
  tables = run.spec.tables
  numbers = tables.column_offsets[np.array(run.schema.columns)] + ids
  table = run.tables[0][tables.storage_index(numbers.reshape(-1)).reshape(numbers.shape)]
  width = len(run.schema.fields)
  table[:, width:][ids[:, width:] == 0] = 0
  there = ids[:, width :: len(run.schema.sequence.attributes)] != 0  # as each event's first
  assert not there.all()
  ctx = Context(progress=np.float32(0.4), mask_BT=there)
  logits = jax.jit(run.spec.model.apply)({'params': run.params}, table, ctx)
  arrays = [np.concatenate(list(w.parts)) if w.shape else next(w.parts) for w in weights]
  got = function.call(arrays, ids.astype(np.int32))
  np.testing.assert_allclose(got, jax.nn.sigmoid(logits), rtol=0, atol=2e-6)


@pytest.mark.parametrize('backbone', sorted(models.BACKBONES))
def test_every_backbone_exports_for_any_batch(feed, backbone):
  more = 'model.embed_dim=1' if backbone == 'lr' else 'classic.fusion_heads=2'
  fixed = backbone in TOKEN_BACKBONES and backbone not in ('onetrans', 'transformer', 'hstu')
  more += ',model.tokenizer=slice,model.tokens=4' if fixed else ''
  check_symbolic(untrained(feed, f'model.backbone={backbone},{more}'))


@pytest.mark.parametrize('connector', sorted(models.CONNECTORS))
def test_every_connector_exports_for_any_batch(feed, connector):
  more = f'model.backbone=transformer,model.connector={connector}'
  function, _ = export.export_function(untrained(feed, more), list(export.PLATFORMS))
  assert function.platforms == export.PLATFORMS and str(function.out_avals[0].shape) == '(b,)'
