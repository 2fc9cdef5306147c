# SPDX-License-Identifier: Apache-2.0
"""A NaN or an infinity is detected in its step, changes nothing, is explained, and is not saved."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import faulty
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from made import read_stream
from marks import slow

from deres_jax import config
from deres_jax.core.errors import UserError
from deres_jax.data import batches as batches_lib
from deres_jax.data import shuffle_plan
from deres_jax.data.blocks import Blocks
from deres_jax.data.schema import load_schema
from deres_jax.pod import mesh as mesh_lib
from deres_jax.training import evaluate, loop, nonfinite, step
from deres_jax.training import run as run_lib
from deres_jax.training.checkpoints.store import Checkpoints
from deres_jax.training.step_spec import make_step_spec

REPO = pathlib.Path(__file__).resolve().parents[2]
PER_EPOCH = 24  # batches of 256 of the 6,000 rows


def make(folder, devices, more=''):
  c = faulty.configured(folder, 'stop', more)
  schema = load_schema(str(folder))
  spec = make_step_spec(c, schema, mesh_lib.make_mesh(devices), 48)
  return spec, batches_lib.Batches(Blocks(schema, 'train'), spec.tables, 256, devices, 64, c.seed)


def host(tree):
  return {jax.tree_util.keystr(k): np.asarray(v) for k, v in jax.tree.leaves_with_path(tree)}


def same(a, b):
  a, b = host(a), host(b)
  return a.keys() == b.keys() and all(a[k].tobytes() == b[k].tobytes() for k in a)


def make_one_step(spec):
  train_step = step.make_train_step(spec)

  def one_step(state, batch):
    state, stream = train_step(state, step.init_stream(spec), batches_lib.put(batch, spec.mesh))
    return state, read_stream(stream)

  return one_step


@pytest.mark.parametrize(('devices', 'limit'), [(1, 0), (8, 1), slow(1, 1), slow(8, 0)])
def test_a_step_that_is_not_finite_changes_nothing(planted, devices, limit):
  """Nor do later ones beyond the limit; the step number goes on within it only."""
  more = f'train.on_nan=skip,train.nan_bound={limit},optim.table=lazy_adam'
  spec, batches = make(planted, devices, more)
  one_step = make_one_step(spec)
  state, _ = one_step(step.init_state(spec), batches[0])
  before = jax.device_get(state)
  bad = batches[1]._replace(labels=np.where(np.arange(256) == 200, np.nan, 0).astype(np.float32))
  state, figures = one_step(state, bad)
  after = jax.device_get(state)
  assert same(before._replace(step=0, skipped=0), after._replace(step=0, skipped=0))
  assert (after.step, after.skipped) == (1 + (limit > 0), 1) and figures['rows'] == 0
  state, figures = one_step(state, batches[2])
  moved = not same(jax.device_get(state.params), after.params)
  assert moved == (limit > 0) == (figures['rows'] == 256)
  assert int(state.step) == (3 if limit else 1) and int(state.skipped) == 1


@pytest.mark.parametrize('devices', [1, 8])
def test_an_infinite_loss_with_finite_gradients_is_detected(planted, devices):
  """On whatever device it is: an infinite logit of a row that is no click."""
  spec, batches = make(planted, devices)
  state = step.init_state(spec)
  state = state._replace(params={**state.params, 'bias': jnp.float32(jnp.inf)})
  quiet = batches[0]._replace(labels=(np.arange(256) != 200).astype(np.float32))
  state, _ = make_one_step(spec)(state, quiet)
  assert int(state.skipped) == 1
  said = nonfinite.explain(spec, state, batches, 0)
  assert said.startswith('parameter bias;')


def poison(state, batches, table_place=None, parameter=None):
  """The state with an infinity in one table row, or one dense parameter."""
  if parameter is None:
    rows = (state.tables[0].at[table_place, 1].set(jnp.inf), *state.tables[1:])
    return state._replace(tables=rows)
  bad = state.params[parameter].at[0].set(jnp.nan)
  return state._replace(params={**state.params, parameter: bad})


@pytest.mark.parametrize('devices', [1, 8])
def test_the_cause_is_named_with_its_rows(planted, devices, monkeypatch):
  spec, batches = make(planted, devices)
  state = step.init_state(spec)
  number = int(batches.examples(3).ids[faulty.ROW, 2])
  place = spec.tables.storage_index(np.array([number], np.int32))[0]
  block_n, row_n = batches.source_of(3)
  stored = f'{block_n[faulty.ROW]}:{row_n[faulty.ROW]}'

  said = nonfinite.explain(spec, poison(state, batches, place), batches, 3)
  name = batches.schema.fields[2].name
  assert f'table row of field {name}, id {number - batches.offset(2)};' in said
  assert 'batch 3 of epoch 0 of split train' in said and ':' in said

  said = nonfinite.explain(spec, poison(state, batches, parameter='kernel'), batches, 3)
  assert 'parameter kernel;' in said

  monkeypatch.setattr(step, 'bce_sum', faulty.bce_sum)
  monkeypatch.setattr(batches_lib.Batches, 'examples', faulty.examples_of({3}))
  said = nonfinite.explain(spec, state, batches, 3)
  assert said.startswith('gradient of parameter ') and said.endswith(f'block:row {stored}')
  said = nonfinite.explain(spec, state, batches, 4)
  assert 'exceeds float32' in said and 'from 2 blocks' in said


def test_the_whole_state_is_checked_before_it_is_saved(planted):
  spec, _ = make(planted, 1, 'optim.table_slots=bfloat16')
  state, check = step.init_state(spec), nonfinite.make_finite_leaves(spec)
  assert nonfinite.first_of_state(check(state)) is None
  slot = {
    'sum': state.table_opt_state[0]['sum'].at[7].set(jnp.uint16(0x7F80))
  }  # infinity in bfloat16
  assert (
    nonfinite.first_of_state(check(state._replace(table_opt_state=(slot,))))
    == 'state table_opt_state/0/sum'
  )
  assert nonfinite.first_of_state(check(poison(state, None, 9))) == 'state tables/0'


@pytest.mark.parametrize('window_blocks', [1, 64])
def test_rows_of_a_batch_are_found_where_they_are_stored(planted, window_blocks):
  schema = load_schema(str(planted))
  blocks, spec = Blocks(schema, 'train'), make(planted, 1)[0]
  batches = batches_lib.Batches(blocks, spec.tables, 256, 1, window_blocks, 3)
  halves = [
    batches_lib.Batches(blocks, spec.tables, 256, 2, window_blocks, 3, p, 2) for p in (0, 1)
  ]
  stored = [
    blocks.read(b).ids for b in range(shuffle_plan.ShufflePlan(4096, 6000, 256, 1, 3).blocks)
  ]
  for index in (0, PER_EPOCH - 1, PER_EPOCH + 7):
    block_n, row_n = batches.source_of(index)
    want = np.stack([stored[b][r] for b, r in zip(block_n, row_n, strict=True)])
    np.testing.assert_array_equal(batches.examples(index).ids - spec.tables.column_offsets, want)
    read = [half.source_of(index) for half in halves]
    np.testing.assert_array_equal(np.concatenate([r[1] for r in read]), row_n)


@pytest.fixture
def broken(monkeypatch):
  monkeypatch.setattr(step, 'bce_sum', faulty.bce_sum)
  monkeypatch.setattr(batches_lib.Batches, 'examples', faulty.examples_of(faulty.BATCHES))


def newest(workdir, folder, on_nan):
  run = run_lib.build_run(faulty.configured(folder, on_nan))
  checkpoints = Checkpoints(workdir / 'checkpoints')
  abstract = step.abstract_state(run.spec), step.abstract_stream(run.spec)
  state, _, clock = checkpoints.restore(checkpoints.latest(), *abstract)
  checkpoints.close()
  return state, clock


def lines(workdir):
  out = [json.loads(x) for x in (workdir / 'metrics.jsonl').read_text().splitlines()]
  return [{k: v for k, v in x.items() if k != 'rows_per_second'} for x in out]


def test_stop_keeps_the_checkpoint_before_and_says_what_and_where(planted, tmp_path, broken):
  with pytest.raises(UserError) as e:
    loop.train(faulty.configured(planted, 'stop'), tmp_path)
  said = str(e.value)
  assert said.startswith('step 10 is not finite: gradient of parameter ') and '\n' not in said
  assert 'batch 9 of epoch 0 of split train, rows stored as block:row ' in said
  state, _ = newest(tmp_path, planted, 'stop')
  assert int(state.step) == 6 and int(state.skipped) == 0
  assert max(x['step'] for x in lines(tmp_path)) == 8


def test_a_stopped_run_goes_on_as_one_that_skipped_from_the_start(planted, tmp_path, broken):
  with pytest.raises(UserError):
    loop.train(faulty.configured(planted, 'stop'), tmp_path / 'a')
  results = [loop.train(faulty.configured(planted, 'skip'), tmp_path / name) for name in 'ab']
  assert [r['steps_skipped'] for r in results] == [len(faulty.BATCHES)] * 2
  assert same(*(newest(tmp_path / name, planted, 'skip')[0] for name in 'ab'))
  with pytest.raises(UserError, match=r"train\.on_nan: 'skip' -> None"):
    loop.train(faulty.configured(planted, 'stop'), tmp_path / 'a')


def test_skip_stops_beyond_its_bound_and_goes_on_when_it_is_raised(planted, tmp_path, broken):
  with pytest.raises(UserError, match=r'step 22 is not finite.*nan_bound above 2 goes on'):
    loop.train(faulty.configured(planted, 'skip', 'train.nan_bound=2'), tmp_path)
  state, clock = newest(tmp_path, planted, 'skip')
  assert int(state.step) == 18 and int(state.skipped) == clock.skipped == 1
  assert loop.train(faulty.configured(planted, 'skip'), tmp_path)['steps_skipped'] == 3


def test_rollback_goes_on_from_the_checkpoint_after_the_batch(planted, tmp_path, broken):
  """Against the same steps by hand: those since the checkpoint are left out."""
  result = loop.train(faulty.configured(planted, 'rollback'), tmp_path)
  assert result['rollbacks'] == 3 and result['steps_skipped'] == 0
  run = run_lib.build_run(faulty.configured(planted, 'rollback'))
  train_step, state = step.make_train_step(run.spec), step.init_state(run.spec)
  saved = {*range(6, 49, 6), *range(14, 49, 14), 48}
  out = set()
  for b in faulty.BATCHES:
    out |= set(range(max(s for s in saved | {0} if s <= b), b + 1))
  for k in range(48):
    if k in out:
      continue
    state = state._replace(step=jnp.int32(k))
    batch = batches_lib.put(run.train[k], run.spec.mesh)
    state, _ = train_step(state, step.init_stream(run.spec), batch)
  found, clock = newest(tmp_path, planted, 'rollback')
  assert clock.rollbacks == 3 and int(found.step) == 48
  assert same(found._replace(step=0), state._replace(step=0))
  with pytest.raises(UserError, match=r'step 22 is not finite.*nan_bound above 2 goes on'):
    more = 'train.nan_bound=2'
    loop.train(faulty.configured(planted, 'rollback', more), tmp_path / 'bounded')


@pytest.mark.slow
@pytest.mark.parametrize('on_nan', ['skip', 'rollback'])
def test_kill_9_after_it_ends_in_the_same_bits(planted, tmp_path, broken, on_nan):
  args = [
    sys.executable,
    'tests/helpers/faulty.py',
    str(planted),
    str(tmp_path / 'a'),
    on_nan,
    '23',
  ]
  killed = subprocess.run(args, cwd=REPO, env=_environ(), capture_output=True, check=False)
  assert killed.returncode == -signal.SIGKILL, killed.stderr
  results = [loop.train(faulty.configured(planted, on_nan), tmp_path / name) for name in 'ab']
  assert same(*(newest(tmp_path / name, planted, on_nan)[0] for name in 'ab'))
  assert lines(tmp_path / 'a') == lines(tmp_path / 'b')
  for key in ('steps_skipped', 'rollbacks', 'auc', 'logloss'):
    assert results[0][key] == results[1][key]


def _environ():
  return {**os.environ, 'PYTHONPATH': str(REPO)}


def test_a_nan_logit_in_evaluation_is_a_one_line_error(planted):
  spec, _ = make(planted, 1)
  schema = load_schema(str(planted))
  batches = batches_lib.Batches(Blocks(schema, 'test'), spec.tables, 512, 1, 64, None)
  state = poison(step.init_state(spec), None, 3)
  eval_step = step.make_eval_step(spec)
  with pytest.raises(UserError, match=r'of 1500 logits are NaN in evaluation, the first in row'):
    evaluate.evaluate(
      lambda b: eval_step(state.params, state.tables, np.int32(0), b) * jnp.nan,
      batches, spec.mesh, loop.Prefetch(1, 2), bool, lambda: None,
    )  # fmt: skip


def test_config_hashes_from_before_on_nan_stay():
  stop, skip = (config.resolve(config.base(f'train.on_nan={x}')) for x in ('stop', 'skip'))
  assert 'train.on_nan' not in config.identity(stop) and 'train.on_nan' in config.identity(skip)
  assert config.config_hash(stop) != config.config_hash(skip)
