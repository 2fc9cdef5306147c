# SPDX-License-Identifier: Apache-2.0
"""What the compiled step sends over the network: few collectives, all of them O(batch), near the
least that docs/scaling_out.md derives.

Nothing runs: the step is compiled for 8 devices from shapes, and its text is read. The batch is
made up: 39 fields of Zipf ids, a million of them, 32,768 rows.
"""

import functools

import jax
import jax.numpy as jnp
import made
import masked_exchange
import numpy as np
import pytest

from deres_jax import config
from deres_jax.costs import collectives
from deres_jax.data import batches as batches_lib
from deres_jax.embeddings import exchange
from deres_jax.pod import mesh as mesh_lib
from deres_jax.training import step
from deres_jax.training.step_spec import make_step_spec

D, ROWS = 8, 32_768
BASE = f'data.batch_size={ROWS},data.eval_batch_size={ROWS},model.depth=1,deres.block_layers=1'
NARROW = 'model.embed_dim_of_few=2000:8'
ADAM = 'optim.table=lazy_adam'
# Bytes sent over the least, of tables and of dense gradients each; more is padding, K D / U.
LIMIT = 1.10


def vocabulary(rows, fields=39):
  """Sizes of fields in geometric steps from 10, `rows` of them altogether, but for rounding."""
  low, high = 10, rows
  for _ in range(60):
    middle = (low + high) / 2
    if np.geomspace(10, middle, fields).sum() < rows:
      low = middle
    else:
      high = middle
  return tuple(round(x) for x in np.geomspace(10, low, fields))


def spec_of(more='', rows=1_000_000):
  c = config.resolve(config.base(f'{BASE},{more}'))
  return make_step_spec(c, made.schema(vocabulary(rows)), mesh_lib.make_mesh(D), 100)


@functools.cache
def batch_of(more=''):
  """The first batch of made-up rows."""
  spec = spec_of(more)
  blocks = made.ZipfBlocks(vocabulary(1_000_000), 2 * ROWS)
  return batches_lib.Batches(blocks, spec.tables, ROWS, D, 64, 0)[0]


def compile_train(spec, batch):
  args = step.abstract_state(spec), step.abstract_stream(spec, summed=False)
  return step.make_train_step(spec).lower(*args, step.abstract_batch(spec, batch)).compile()


def found(compiled):
  return collectives.parse(compiled.as_text())


def parameters(spec):
  return sum(x.size for x in jax.tree.leaves(step.abstract_state(spec).params))


def least(spec, batch):
  """Bytes that have to leave a device in the mean: of tables, of dense parameters.

  From the ids of the rows themselves, whatever the exchange makes of them.
  """
  numbers = made.numbers(spec.tables, batch, D, spec.column_tables).reshape(D, ROWS // D, -1)
  tables = 0
  for t, table in enumerate(spec.tables.parts):
    slots = np.array(spec.column_tables) == t
    different = np.mean([len(np.unique(mine[:, slots])) for mine in numbers])
    tables += (1 - 1 / D) * different * (4 * table.dim + 4 * table.dim + 4)
  return tables, 2 * (1 - 1 / D) * 4 * (parameters(spec) + 1)


def check_train(spec, batch, collectives_found):
  """What is promised of a training step; AssertionError otherwise."""
  kinds = sorted(c.kind for c in collectives_found)
  tables = spec.tables.parts
  assert kinds == ['all-reduce', *['all-to-all'] * (3 * len(tables))]
  assert {c.group_size for c in collectives_found} == {D}
  assert not any(c.in_loop for c in collectives_found)
  # Ids to the owners, rows back, gradients home; one vector of all dense gradients.
  capacities = [ids.shape[1] for ids in batch.unique_ids]
  expected = [
    D * K * 4 * n
    for table, K in zip(tables, capacities, strict=True)
    for n in (1, *[table.dim] * 2)
  ]
  moved = [c.operand_bytes for c in collectives_found if c.kind == 'all-to-all']
  assert sorted(moved) == sorted(expected)
  (dense,) = (c.shapes for c in collectives_found if c.kind == 'all-reduce')
  assert dense == ((parameters(spec) + 1,),)  # and whether all is finite
  largest = max(table.size * table.dim * 4 for table in tables)
  assert max(c.operand_bytes for c in collectives_found) < largest / 4


@pytest.mark.parametrize('more', ['', NARROW, ADAM], ids=['one table', 'two widths', 'lazy Adam'])
def test_a_training_step_sends_little_more_than_it_must(more):
  spec, batch = spec_of(more), batch_of(more)
  seen = found(compile_train(spec, batch))
  check_train(spec, batch, seen)
  assert len(batch.unique_ids) == (2 if more == NARROW else 1)
  wire, (tables, dense) = collectives.wire_bytes_by_kind(seen), least(spec, batch)
  assert wire['all-reduce'] == pytest.approx(dense)
  assert tables <= wire['all-to-all'] <= LIMIT * tables


@pytest.mark.parametrize('more', ['', NARROW])
def test_an_evaluation_step_sends_ids_and_rows_alone(more):
  spec, batch = spec_of(more), batch_of(more)
  state = step.abstract_state(spec)
  at = jax.ShapeDtypeStruct(
    (), np.int32, sharding=mesh_lib.sharding(spec.mesh, mesh_lib.REPLICATED)
  )
  args = state.params, state.tables, at, step.abstract_batch(spec, batch)
  seen = found(step.make_eval_step(spec).lower(*args).compile())
  assert [c.kind for c in seen] == ['all-to-all'] * (2 * len(batch.unique_ids))
  expected = [
    D * ids.shape[1] * 4 * n
    for table, ids in zip(spec.tables.parts, batch.unique_ids, strict=True)
    for n in (1, table.dim)
  ]
  assert sorted(c.operand_bytes for c in seen) == sorted(expected)


def test_temporary_memory_does_not_grow_with_the_vocabulary():
  batch = batch_of()
  needed = []
  for rows in (100_000, 10_000_000):
    spec = spec_of(rows=rows)
    assert spec.tables.rows == pytest.approx(rows, rel=1e-3)
    needed.append(compile_train(spec, batch).memory_analysis().temp_size_in_bytes)
  assert min(needed) > 0 and max(needed) <= 1.01 * min(needed)


def masked(monkeypatch):
  """Ids to all and a masked sum instead of the exchange."""

  def lookup(rows, ids):
    owner = jnp.repeat(jnp.arange(D), ids.shape[0] // D)
    places = jnp.where(ids < rows.shape[0], owner * rows.shape[0] + ids, D * rows.shape[0])
    return masked_exchange.lookup(rows, places), places

  monkeypatch.setattr(exchange, 'lookup', lookup)
  monkeypatch.setattr(exchange, 'update', masked_exchange.update)


def in_parts(monkeypatch):
  """A collective in every turn of the loop over micro-batches."""
  whole = step.micro_grads

  def mixed(loss, *args):
    return whole(lambda p, x, *rest: loss(p, jax.lax.pmean(x, mesh_lib.AXIS), *rest), *args)

  monkeypatch.setattr(step, 'micro_grads', mixed)


def by_leaf(monkeypatch):
  """A sum for each dense parameter; XLA may join them to one of many arrays, or not."""
  monkeypatch.setattr(step, '_sum_over_devices', lambda tree: jax.lax.psum(tree, mesh_lib.AXIS))


def gathered(monkeypatch):
  """The whole table on every device."""

  def lookup(rows, ids):
    table = jax.lax.all_gather(rows, mesh_lib.AXIS, tiled=True)
    asked = jax.lax.all_to_all(ids, mesh_lib.AXIS, 0, 0, tiled=True)
    return table.at[ids].get(mode='clip'), asked

  monkeypatch.setattr(exchange, 'lookup', lookup)


@pytest.mark.parametrize(
  'broken',
  [masked, *(pytest.param(x, marks=pytest.mark.slow) for x in (in_parts, by_leaf, gathered))],
)
def test_a_step_that_sends_more_is_detected(monkeypatch, broken):
  spec, batch = spec_of(), batch_of()
  broken(monkeypatch)
  seen = found(compile_train(spec, batch))
  with pytest.raises(AssertionError):
    check_train(spec, batch, seen)
