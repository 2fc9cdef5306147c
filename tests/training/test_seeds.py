# SPDX-License-Identifier: Apache-2.0
"""Every random choice follows its seed: another seed changes it, the same one never does.

Elsewhere: two processes give equal bits (`test_train.py`), the order of rows (`test_data.py`),
planted data (`data_pipelines/test_synthetic.py`), bootstraps (`test_laws_intervals.py`), power
(`test_power.py`).
"""

import dataclasses

import jax
import jax.numpy as jnp
import made
import numpy as np

from deres_jax import config, sweep
from deres_jax.embeddings import optimizers
from deres_jax.pod import mesh as mesh_lib
from deres_jax.training import step
from deres_jax.training.step_spec import make_step_spec

SIZES = 'model.depth=1,model.dim=8,model.heads=2,model.embed_dim=4,data.batch_size=8'


def spec_of(seed, more=''):
  overrides = f'{SIZES},data.eval_batch_size=8,seed={seed}'
  c = config.resolve(config.base(','.join(filter(None, (overrides, more)))))
  return make_step_spec(c, made.schema((20, 30)), mesh_lib.make_mesh(1), 10)


def state(seed):
  found = step.init_state(spec_of(seed, 'deres.query_init=0.1,model.embed_dim_of_few=20:2'))
  leaves = jax.tree.leaves_with_path((found.params, found.tables))
  return {jax.tree_util.keystr(k): np.asarray(v) for k, v in leaves}


def test_every_initial_value_that_is_drawn_follows_the_seed():
  one, again, other = state(0), state(0), state(1)
  drawn = {k for k, v in one.items() if len(np.unique(v)) > 1}
  assert {"[0]['table_1']['kernel']", '[1][0]', '[1][1]'} <= drawn and len(drawn) > 8
  for k in one:
    np.testing.assert_array_equal(one[k], again[k])
    assert (k in drawn) == (one[k] != other[k]).any(), k
    if k in drawn:  # no value stays where it is: no part of an array is drawn by a fixed key
      assert (one[k] == other[k]).mean() < 0.5, k


def test_dropout_follows_the_seed():
  def keys(seed):
    spec = spec_of(seed)
    draw = jax.shard_map(
      lambda: jax.random.key_data(step._example_keys(spec, jnp.int32(3), 8)),
      mesh=spec.mesh,
      in_specs=(),
      out_specs=mesh_lib.BATCH,
      check_vma=False,
    )
    return np.asarray(jax.jit(draw)())

  np.testing.assert_array_equal(keys(0), keys(0))
  assert (keys(0) != keys(1)).any(axis=1).all()


def test_rounding_of_slots_follows_the_seed():
  x, at = jnp.linspace(1, 2, 500), jnp.arange(500)
  one = spec_of(0, 'optim.table_slots=bfloat16').sparse_optimizer

  def bits(optimizer, at_step, slot):
    return np.asarray(
      optimizers.round_stochastically(x, at, optimizer.salt(jnp.int32(at_step), slot))
    )

  other = spec_of(1, 'optim.table_slots=bfloat16').sparse_optimizer
  assert (one.seed, other.seed) == (0, 1)
  for optimizer in (one, other):
    np.testing.assert_array_equal(bits(optimizer, 3, 0), bits(optimizer, 3, 0))
  for a, b in (
    ((one, 3, 0), (other, 3, 0)),
    ((one, 3, 0), (one, 4, 0)),
    ((one, 3, 0), (one, 3, 1)),
  ):
    assert 0.2 < (bits(*a) != bits(*b)).mean() < 0.5
  # Neighbouring seeds are not neighbouring steps.
  assert all((bits(other, k, 0) != bits(one, k + 1, 0)).any() for k in range(4))
  assert dataclasses.replace(one, seed=1) == other


def test_a_subsample_follows_its_seed():
  grid = sweep.param('seed', range(40))
  one, again, other = (sweep.subsample(grid, 10, seed) for seed in (0, 0, 1))
  assert one == again != other
