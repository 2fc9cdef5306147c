# SPDX-License-Identifier: Apache-2.0
"""A run from its config to result.json: the one place that owns the order of events."""

import dataclasses
import json
import math
import pathlib
import platform
import time
from importlib import metadata
from typing import Any

import jax
import numpy as np

from deres_jax import checkpoint, data, evaluate, models, parallel, step, writer
from deres_jax import config as config_lib
from deres_jax import plan as plan_lib
from deres_jax.blocks import Blocks
from deres_jax.errors import UserError
from deres_jax.schema import Schema, load_schema

_PACKAGES = ('deres_jax', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')


@dataclasses.dataclass(frozen=True)
class Run:
  """The parts of a run: made from config and schema, before any training state exists."""

  config: config_lib.Config
  schema: Schema
  setup: step.Setup
  train: data.Batches
  steps: int
  eval_every: int


def assemble(c: config_lib.Config) -> Run:
  """Opens the data, makes the mesh and all parts of the step. Raises UserError."""
  schema = load_schema(c.data.path)
  mesh = parallel.make_mesh(c.mesh.devices)
  rows = schema.splits['train'].rows
  per_epoch = -(-rows // c.data.batch_size)
  steps = c.train.steps or math.ceil(c.train.epochs * per_epoch)
  eval_every = c.train.eval_steps or max(1, round(c.train.eval_epochs * per_epoch))
  layout = step.layout_of(schema)
  setup = step.make_setup(c, schema.vocab_sizes, layout, schema.click_rate, mesh, steps)
  train = _batches(c, schema, setup, 'train', c.data.batch_size, shuffle_seed=c.seed)
  return Run(c, schema, setup, train, steps, eval_every)


def _batches(c, schema, setup, split, batch_size, shuffle_seed=None) -> data.Batches:
  return data.Batches(
    Blocks(schema, split),
    setup.table,
    batch_size,
    setup.mesh.size,
    c.data.window_blocks,
    shuffle_seed,
  )


def train(c: config_lib.Config, workdir: pathlib.Path) -> dict[str, Any]:
  """Trains, or goes on training, until result.json is written; returns its content.

  Order, and why:
    1. Config and data are compared with what the workdir was started with, before anything in it
       is touched.
    2. The newest checkpoint, if any, gives state, position and clock.
    3. metrics.jsonl loses the lines after that step; they are written again.
    4. At an evaluation step: training figures, then validation, then the checkpoint that carries
       the validation AUC. A crash between them repeats them all.
    5. The checkpoint with the best validation AUC is evaluated on the test split, once.
    6. result.json is written last, in one piece: it exists only for a finished run.
  """
  run = assemble(c)
  workdir.mkdir(parents=True, exist_ok=True)
  _claim(run, workdir)
  result = workdir / 'result.json'
  if result.exists():
    return json.loads(result.read_text())

  checkpoints = checkpoint.Checkpoints(workdir / 'checkpoints')
  latest = checkpoints.latest()
  if latest is None:
    state, clock = step.init_state(run.setup), checkpoint.Clock(0.0, 0)
  else:
    state, clock = checkpoints.restore(latest, step.abstract_state(run.setup))
  record = writer.Metrics(workdir, latest or 0)
  progress = writer.Progress(run.steps, latest or 0)
  if latest:
    progress.line(f'resuming at step {latest} of {run.steps}')
  try:
    clock = _loop(run, state, clock, latest or 0, checkpoints, record, progress)
    del state  # donated to the loop
    best = checkpoints.best()
    chosen = best[0] if best else checkpoints.latest()
    params, rows = checkpoints.restore_params(chosen, step.abstract_state(run.setup))
    progress.line(f'evaluating step {chosen}, the best on validation, on the test split')
    figures, logits_N = _evaluate(run, params, rows, chosen, 'test')
    record.write(run.steps, 'test', figures)
    np.save(workdir / 'test_logits.npy', logits_N)
    content = _result(run, clock, chosen, best, figures, workdir)
    writer.write_json(result, content)
  finally:
    progress.close()
    record.close()
    checkpoints.close()
  return content


def _claim(run: Run, workdir: pathlib.Path):
  """Writes config.json, or compares with the one that is there."""
  file = workdir / 'config.json'
  mine = {
    'config_hash': config_lib.config_hash(run.config),
    'data_content': run.schema.content,
    'config': config_lib.as_dict(run.config),
    'identity': config_lib.identity(run.config),
  }
  if file.exists():
    old = json.loads(file.read_text())
    now = mine['identity']
    changed = [
      f'{k}: {old["identity"].get(k)!r} -> {now.get(k)!r}'
      for k in sorted({*old['identity'], *now})
      if old['identity'].get(k) != now.get(k)
    ]
    if changed:
      raise UserError(
        f'workdir {workdir} belongs to a run of another config ({"; ".join(changed)}): '
        'take another --workdir or the old config'
      )
    if old['data_content'] != run.schema.content:
      raise UserError(
        f'workdir {workdir} was started on other data than {run.schema.path}: '
        'take another --workdir or the old data'
      )
  writer.write_json(file, mine)


def _loop(run, state, clock, start, checkpoints, record, progress) -> checkpoint.Clock:
  """Steps start .. run.steps with everything that happens between them."""
  c, setup = run.config, run.setup
  train_step, read = step.make_train_step(setup), step.make_read_stream(setup)
  stream, began = step.init_stream(setup), time.monotonic()
  shown, shown_at = start, began
  batches = data.prefetch(
    lambda k: data.put(run.train[k], setup.mesh),
    start,
    run.steps,
    c.data.threads,
    c.data.prefetch,
  )
  for done, batch in enumerate(batches, start + 1):
    state, stream = train_step(state, stream, batch)
    evaluated = done % run.eval_every == 0 or done == run.steps
    saved = evaluated or (c.train.checkpoint_steps and done % c.train.checkpoint_steps == 0)
    # The stream restarts wherever a run may resume, so that a resumed run writes equal lines.
    if saved or done % c.train.log_steps == 0:
      figures = read(stream)
      stream = step.init_stream(setup)
      _check_finite(figures['logloss'], done)
      now = time.monotonic()
      speed = (run.train.rows_until(done) - run.train.rows_until(shown)) / (now - shown_at)
      shown, shown_at = done, now
      record.write(done, 'train', {**figures, 'rows_per_second': speed})
      progress.step(
        done, f'loss {figures["logloss"]:.4f}  auc {figures["auc"]:.4f}  {speed:,.0f} rows/s'
      )
    else:
      progress.step(done)
    if saved:
      auc = None
      if evaluated:
        figures, _ = _evaluate(run, state.params, state.rows, done, 'validation')
        record.write(done, 'validation', figures)
        auc = figures['auc'] if math.isfinite(figures['auc']) else None
        progress.line(
          f'step {done}/{run.steps}  validation auc {figures["auc"]:.5f} '
          f'logloss {figures["logloss"]:.5f}'
        )
      spent = clock.wall_seconds + time.monotonic() - began
      now_clock = checkpoint.Clock(spent, run.train.rows_until(done))
      checkpoints.save(done, state, now_clock, auc)
      shown_at = time.monotonic()
  return checkpoint.Clock(
    clock.wall_seconds + time.monotonic() - began, run.train.rows_until(run.steps)
  )


def _check_finite(loss: float, done: int):
  if not math.isfinite(loss):
    raise UserError(
      f'loss is {loss} at step {done}: lower optim.dense_lr or optim.table_lr; '
      'the last checkpoint is kept'
    )


def _evaluate(run: Run, params, rows, at: int, split: str) -> tuple[dict[str, float], np.ndarray]:
  """Figures and logits of the state after `at` steps."""
  c = run.config
  batches = _batches(c, run.schema, run.setup, split, c.data.eval_batch_size)
  eval_step = step.make_eval_step(run.setup)

  def logits(params, rows, batch):
    return eval_step(params, rows, np.int32(at), batch)

  return evaluate.run(logits, params, rows, batches, run.setup.mesh, c.data.prefetch)


def evaluate_best(c: config_lib.Config, workdir: pathlib.Path) -> dict[str, Any]:
  """Figures of the best checkpoint on validation and test; writes eval.json, trains nothing."""
  if not (workdir / 'checkpoints').is_dir():
    raise UserError(f'workdir {workdir} holds no checkpoints: train first (--mode=train)')
  run = assemble(c)
  _claim(run, workdir)
  checkpoints = checkpoint.Checkpoints(workdir / 'checkpoints')
  best = checkpoints.best()
  chosen = best[0] if best else checkpoints.latest()
  if chosen is None:
    raise UserError(f'workdir {workdir} holds no finished checkpoint: train on (--mode=train)')
  params, rows = checkpoints.restore_params(chosen, step.abstract_state(run.setup))
  out = {'step': chosen}
  for split in ('validation', 'test'):
    out[split], _ = _evaluate(run, params, rows, chosen, split)
  checkpoints.close()
  writer.write_json(workdir / 'eval.json', out)
  return out


def _result(run, clock, chosen, best, figures, workdir) -> dict[str, Any]:
  c, setup = run.config, run.setup
  plan = plan_lib.make(c, setup)
  device = setup.mesh.devices.flat[0]
  return {
    'config_hash': config_lib.config_hash(c),
    'seed': c.seed,
    'backbone': c.model.backbone,
    'connector': models.connector_of(c),
    'depth': c.model.depth,
    'dim': c.model.dim,
    **figures,
    'step_chosen': chosen,
    'auc_validation': best[1] if best else None,
    'params_dense': plan.params_dense,
    'params_embedding': plan.params_embedding,
    'flops_forward_per_row': plan.flops_forward_per_row,
    'flops_connector_extra': plan.flops_connector_extra,
    'train_flops': plan.flops_train_per_row * clock.rows_seen,
    'rows_seen': clock.rows_seen,
    'rows_per_second': clock.rows_seen / clock.wall_seconds,
    'steps': run.steps,
    'wall_seconds': clock.wall_seconds,
    'device': {
      'platform': device.platform,
      'kind': device.device_kind,
      'count': setup.mesh.size,
      'processes': jax.process_count(),
    },
    'versions': {
      'python': platform.python_version(),
      **{name: metadata.version(name) for name in _PACKAGES},
    },
    'dataset': run.schema.dataset,
    'data_content': run.schema.content,
    'planted': run.schema.planted,
    'test_logits': str((workdir / 'test_logits.npy').absolute()),
  }
