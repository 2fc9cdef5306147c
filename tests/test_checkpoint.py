# SPDX-License-Identifier: Apache-2.0
"""Latest and best are kept, found again and restored onto any mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deres_jax import parallel
from deres_jax.checkpoint import Checkpoints, Clock
from deres_jax.step import SPECS, State


def state(step, devices):
  mesh = parallel.make_mesh(devices)
  values = State(
    step=jnp.int32(step),
    params={'kernel': jnp.arange(6.0).reshape(2, 3) + step},
    opt=(jnp.float32(step), {'mu': jnp.full(3, 0.5)}),
    rows=(jnp.arange(16 * 3.0).reshape(16, 3) * step, jnp.ones((8, 2)) * step),
    slots=({'sum': jnp.ones(16) * step}, {'sum': jnp.full(8, step, jnp.bfloat16)}),
  )
  placed = [
    jax.device_put(part, parallel.sharding(mesh, spec))
    for part, spec in zip(values, SPECS, strict=True)
  ]
  return State(*placed)


STREAM = {'hits': jnp.arange(5), 'loss': jnp.float32(0.25)}


def abstract(tree):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


AUCS = {1: 0.6, 2: 0.8, 3: 0.8, 4: 0.7, 5: None}


@pytest.fixture
def folder(tmp_path):
  checkpoints = Checkpoints(tmp_path)
  for step, auc in AUCS.items():
    checkpoints.save(step, state(step, 4), STREAM, Clock(step * 1.5, step * 10), auc)
  checkpoints.close()
  return tmp_path


def test_the_latest_two_and_the_best_are_kept_and_no_others(folder):
  checkpoints = Checkpoints(folder)
  assert checkpoints.latest() == 5
  assert checkpoints.best()[1] == 0.8
  assert {p.name for p in folder.iterdir()} == {'2', '4', '5'} and checkpoints.best()[0] == 2
  checkpoints.close()


def test_an_unevaluated_checkpoint_is_never_the_best(tmp_path):
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(1, state(1, 1), STREAM, Clock(1.0, 1), None)
  assert checkpoints.best() is None and checkpoints.latest() == 1
  checkpoints.save(2, state(2, 1), STREAM, Clock(1.0, 1), 0.6)
  checkpoints.save(3, state(3, 1), STREAM, Clock(1.0, 1), 0.5)
  assert checkpoints.best() == (2, 0.6) and checkpoints.latest() == 3
  checkpoints.close()


@pytest.mark.parametrize('devices', [1, 2, 8])
def test_a_state_restores_bit_equal_onto_another_mesh(folder, devices):
  checkpoints = Checkpoints(folder)
  found, stream, clock = checkpoints.restore(5, abstract(state(0, devices)), abstract(STREAM))
  params, rows = checkpoints.restore_params(5, abstract(state(0, devices)))
  checkpoints.close()
  assert stream['hits'].tolist() == [0, 1, 2, 3, 4] and stream['loss'] == 0.25
  assert clock == Clock(7.5, 50)
  want = state(5, devices)
  assert jax.tree.structure(found) == jax.tree.structure(want)
  for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
    np.testing.assert_array_equal(x, y)
    assert x.sharding.is_equivalent_to(y.sharding, x.ndim)
  for x, y in zip(
    jax.tree.leaves((params, rows)), jax.tree.leaves((want.params, want.rows)), strict=True
  ):
    np.testing.assert_array_equal(x, y)
    assert x.sharding.is_equivalent_to(y.sharding, x.ndim)


def test_a_validation_is_made_up_for_without_another_save(tmp_path):
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(1, state(1, 1), STREAM, Clock(1.0, 1), 0.5)
  checkpoints.save(4, state(4, 1), STREAM, Clock(1.0, 1, evaluated=False), None)
  checkpoints.close()
  checkpoints = Checkpoints(tmp_path)
  _, _, clock = checkpoints.restore(4, abstract(state(0, 1)), abstract(STREAM))
  assert not clock.evaluated
  checkpoints.evaluated(4, Clock(2.0, 1), 0.7)
  assert checkpoints.best() == (4, 0.7)
  checkpoints.close()
  checkpoints = Checkpoints(tmp_path)
  assert checkpoints.best() == (4, 0.7)
  assert checkpoints.resume(abstract(state(0, 1)), abstract(STREAM)) == (4, [])
  assert checkpoints.restore(4, abstract(state(0, 1)), abstract(STREAM))[2] == Clock(2.0, 1)


def test_a_state_of_another_step_is_refused(tmp_path):
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(7, state(6, 1), STREAM, Clock(0.0, 0), None)
  with pytest.raises(RuntimeError, match=r'checkpoint 7 holds the state of step 6'):
    checkpoints.restore(7, abstract(state(0, 1)), abstract(STREAM))
  checkpoints.close()
