# SPDX-License-Identifier: Apache-2.0
"""Checkpoints are kept, restored onto any mesh, and refused if damaged or foreign."""

import contextlib
import errno
import gc
import os
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore
from damage import flip, rewrite, table
from orbax.checkpoint import v1 as ocp

from deres_jax.core.errors import UserError
from deres_jax.pod import mesh as mesh_lib
from deres_jax.training.checkpoints import manifest
from deres_jax.training.checkpoints.store import Checkpoints, Clock
from deres_jax.training.step import SPECS, State


def state(step, devices):
  mesh = mesh_lib.make_mesh(devices)
  values = State(
    step=jnp.int32(step),
    params={'kernel': jnp.arange(6.0).reshape(2, 3) + step},
    opt=(jnp.float32(step), {'mu': jnp.full(3, 0.5)}),
    tables=(jnp.arange(16 * 3.0).reshape(16, 3) * step, jnp.ones((8, 2)) * step),
    table_opt_state=({'sum': jnp.ones(16) * step}, {'sum': jnp.full(8, step, jnp.bfloat16)}),
  )
  placed = [
    jax.device_put(part, mesh_lib.sharding(mesh, spec))
    for part, spec in zip(values, SPECS, strict=True)
  ]
  return State(*placed)


STREAM = {'hits': jnp.arange(5), 'loss': jnp.float32(0.25)}


def abstract(tree):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


AUCS = {1: 0.6, 2: 0.8, 3: 0.8, 4: 0.7, 5: None}


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  folder = tmp_path_factory.mktemp('saved')
  checkpoints = Checkpoints(folder)
  for step, auc in AUCS.items():
    checkpoints.save(step, state(step, 4), STREAM, Clock(step * 1.5, step * 10), auc)
  checkpoints.close()
  return folder


@pytest.fixture
def folder(saved, tmp_path):
  shutil.copytree(saved, tmp_path / 'checkpoints')
  return tmp_path / 'checkpoints'


def test_the_latest_two_and_the_best_are_kept_and_no_others(folder):
  checkpoints = Checkpoints(folder)
  assert checkpoints.latest() == 5
  assert checkpoints.best()[1] == 0.8
  assert {p.name for p in folder.iterdir()} == {'2', '4', '5'} and checkpoints.best()[0] == 2
  checkpoints.close()


def test_a_save_leaves_nothing_in_memory(tmp_path):
  checkpoints = Checkpoints(tmp_path)

  def blocks_after(saves):
    for step in saves:
      checkpoints.save(step, state(step, 1), STREAM, Clock(1.0, 10), None)
      checkpoints.wait()
    gc.collect()
    return sys.getallocatedblocks()

  before = blocks_after(range(1, 31))
  left = blocks_after(range(31, 51)) - before
  assert left < 20 * 20, left  # some 6,000 where they are kept
  checkpoints.close()


def test_descriptions_of_folders_are_those_of_tensorstore():
  for more in ({}, {'file_io_locking': {'mode': 'non_atomic'}}):
    described = {'driver': 'file', 'path': '/some/where/', **more}
    spec = tensorstore.KvStore.Spec(described)
    assert spec.to_json() == described
    assert spec.to_json(include_defaults=True).keys() > described.keys()
  assert tensorstore.KvStore.Spec({'driver': 'memory'}).to_json() == {'driver': 'memory'}


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
    jax.tree.leaves((params, rows)), jax.tree.leaves((want.params, want.tables)), strict=True
  ):
    np.testing.assert_array_equal(x, y)
    assert x.sharding.is_equivalent_to(y.sharding, x.ndim)


def test_arrays_are_stored_by_the_names_that_earlier_versions_gave_them(folder):
  tree = manifest.read(folder / '5')['tree']
  names = {path.split("'")[1] for path in tree}
  assert names == {'step', 'params', 'opt', 'rows', 'slots', 'skipped', 'stream'}


def test_a_late_validation_amends_the_checkpoint(tmp_path):
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


# Damage, and what killed processes leave.


def names(folder):
  return {str(p.relative_to(folder)) for p in folder.rglob('*')}


def resumed(folder, devices=4):
  """Step and lines of a run that goes on here."""
  checkpoints = Checkpoints(folder)
  try:
    return checkpoints.resume(abstract(state(0, devices)), abstract(STREAM))
  finally:
    checkpoints.close()


DAMAGE = {
  'flipped bit': (lambda f: flip(table(f)), 'another checksum'),
  'cut': (lambda f: os.truncate(table(f), 100), 'bytes, not'),
  'gone': (lambda f: table(f).unlink(), 'No such file'),
  'no manifest': (lambda f: (f / 'manifest.json').unlink(), 'manifest.json is missing'),
  'cut manifest': (lambda f: os.truncate(f / 'manifest.json', 50), 'manifest.json cannot be read'),
  'manifest': (
    lambda f: (f / 'manifest.json').write_text(
      (f / 'manifest.json').read_text().replace('7.5', '7.6')
    ),
    'manifest.json is not what was written',
  ),
}


@pytest.mark.parametrize('how', DAMAGE)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_taken(folder, how):
  damage, word = DAMAGE[how]
  damage(folder / '5')
  before = {x.replace('5', 'damaged-5', 1) for x in names(folder) if x.startswith('5')}
  step, lines = resumed(folder)
  assert step == 4 and len(lines) == 1
  assert word in lines[0] and lines[0].endswith('set aside as damaged-5'), lines
  assert before <= names(folder)  # nothing is deleted
  checkpoints = Checkpoints(folder)
  assert checkpoints.latest() == 4
  found, _, clock = checkpoints.restore(4, abstract(state(0, 4)), abstract(STREAM))
  np.testing.assert_array_equal(found.tables[0], state(4, 4).tables[0])
  assert clock == Clock(6.0, 40)
  # The step comes again, and may be damaged again.
  checkpoints.save(5, state(5, 4), STREAM, Clock(7.5, 50), None)
  checkpoints.close()
  flip(table(folder / '5'))
  assert resumed(folder)[1][0].endswith('set aside as damaged-5.1')


def test_a_flipped_bit_anywhere_is_detected(folder):
  content, rng = manifest.read(folder / '5'), np.random.default_rng(0)
  assert set(content['files']) | {'manifest.json'} == {
    str(p.relative_to(folder / '5')) for p in (folder / '5').rglob('*') if p.is_file()
  }
  for name, (size, _) in content['files'].items():
    for bit in rng.integers(0, 8 * size, 3) if size else ():
      flip(folder / '5' / name, bit)
      with pytest.raises(manifest.Damaged, match=f'{name} has another checksum'):
        manifest.verify(folder / '5', content)
      flip(folder / '5' / name, bit)
  manifest.verify(folder / '5', content)
  for bit in rng.integers(0, 8 * (folder / '5' / 'manifest.json').stat().st_size, 200):
    flip(folder / '5' / 'manifest.json', bit)
    # As JSON a flip can only change how the same is written (a blank for a new line).
    with contextlib.suppress(manifest.Damaged):
      assert manifest.read(folder / '5') == content
    flip(folder / '5' / 'manifest.json', bit)


def test_nothing_is_changed_if_all_checkpoints_are_damaged(folder):
  for step in '245':
    flip(table(folder / step))
  before = names(folder)
  with pytest.raises(UserError, match=r'no checkpoint in .* is whole \(2: .*; 4: .*; 5: '):
    resumed(folder)
  assert names(folder) == before


def test_a_damaged_best_is_never_replaced_silently(folder):
  flip(table(folder / '2'))
  before = names(folder)
  checkpoints = Checkpoints(folder)
  with pytest.raises(UserError, match=r'2 is to be evaluated and is damaged .*another checksum'):
    checkpoints.restore_params(checkpoints.best()[0], abstract(state(0, 4)))
  (folder / '2' / 'manifest.json').unlink()
  with pytest.raises(UserError, match=r'best checkpoint is unknown.*2: manifest.json is missing'):
    Checkpoints(folder).best()
  assert names(folder) == before - {'2/manifest.json'}
  assert resumed(folder) == (5, [  # it says so, and goes on
    'checkpoint 2 is damaged (manifest.json is missing): set aside as damaged-2'
  ])  # fmt: skip
  assert Checkpoints(folder).best() == (4, 0.7)


def test_unfinished_saves_of_a_killed_process_are_deleted(folder):
  shutil.copytree(folder / '5', folder / '6.saving')
  shutil.copytree(folder / '5', folder / '7.saving.orbax-checkpoint-tmp')
  shutil.copytree(folder / '5', folder / '8.deleting')
  assert resumed(folder) == (5, [])
  assert {p.name for p in folder.iterdir()} == {'2', '4', '5'}


def test_old_ones_go_only_when_the_new_one_is_complete(folder, monkeypatch):
  seen, written = [], manifest.write
  checkpoints = Checkpoints(folder)

  def write(saving, content):
    seen.append({p.name for p in folder.iterdir()})
    written(saving, content)

  monkeypatch.setattr(manifest, 'write', write)
  checkpoints.save(6, state(6, 4), STREAM, Clock(9.0, 60), 0.9)
  checkpoints.wait()
  assert seen == [{'2', '4', '5', '6.saving'}]
  assert {p.name for p in folder.iterdir()} == {'5', '6'}
  checkpoints.close()


def test_a_full_disk_costs_one_line_and_no_checkpoint(folder, monkeypatch):
  checkpoints = Checkpoints(folder)

  def full(saving, content):
    raise OSError(errno.ENOSPC, 'No space left on device', str(saving / 'd'))

  with monkeypatch.context() as patch:
    patch.setattr(manifest, 'write', full)
    checkpoints.save(6, state(6, 4), STREAM, Clock(9.0, 60), 0.9)
    with pytest.raises(UserError, match=r'6.saving/d: No space left on device: free some space'):
      checkpoints.wait()
  checkpoints.close()
  assert resumed(folder) == (5, [])
  assert {p.name for p in folder.iterdir()} == {'2', '4', '5'}


# Checkpoints of other versions.


def test_other_versions(folder):
  versions = manifest.versions()
  rewrite(folder / '5', versions=versions | {'jax': versions['jax'] + '1'})
  assert resumed(folder) == (
    5, [f'the checkpoint is of other versions: jax {versions["jax"]}1 -> {versions["jax"]}']
  )  # fmt: skip
  for package in versions:
    rewrite(folder / '5', versions=versions | {package: '99.1'})
    before = names(folder)
    with pytest.raises(UserError, match=rf'other versions \({package} 99.1 -> '):
      resumed(folder)
    assert names(folder) == before
  rewrite(folder / '5', versions=versions, format=2)
  for action in (resumed, lambda folder: Checkpoints(folder).best()):
    with pytest.raises(UserError, match=r'5 is of format 2, this version reads format 1'):
      action(folder)


def test_another_state_is_reported_by_path_and_shape(folder):
  other = abstract(state(0, 1))._replace(
    params={'kernel': jax.ShapeDtypeStruct((2, 4), jnp.float32), 'bias': jnp.zeros(3)}
  )
  checkpoints, before = Checkpoints(folder), names(folder)
  differs = (
    r"\['params'\]\['bias'\]: none -> float32\[3\]; "
    r"\['params'\]\['kernel'\]: float32\[2, 3\] -> float32\[2, 4\]"
  )
  for action in (
    lambda: checkpoints.resume(other, abstract(STREAM)),
    lambda: checkpoints.restore_params(5, other),
  ):
    with pytest.raises(UserError, match=differs):
      action()
  assert names(folder) == before


def test_checkpoints_of_format_0_are_refused(tmp_path):
  with ocp.training.Checkpointer(tmp_path) as old:
    clock = {'wall_seconds': 1.0, 'rows_seen': 5, 'evaluated': True}
    old.save(3, {'x': jnp.ones(3)}, custom_metadata=clock)
  before = names(tmp_path)
  with pytest.raises(UserError, match=r'3 is of format 0, this version reads format 1'):
    Checkpoints(tmp_path)
  assert names(tmp_path) == before
