# SPDX-License-Identifier: Apache-2.0
"""A run from its config to result.json: the one place that owns the order of events.

On many hosts all processes run this code on the same steps. Each reads its part of every batch and
writes its part of a checkpoint; process 0 alone writes everything else.
"""

import contextlib
import dataclasses
import math
import pathlib
import shutil
import time
from typing import Any

import jax
import numpy as np

from deres_jax import config as config_lib
from deres_jax.config import diff, fields
from deres_jax.core import files
from deres_jax.core.errors import Retry, UserError
from deres_jax.data.feed import Prefetch, feed
from deres_jax.metrics.streaming import StreamState
from deres_jax.pod import processes
from deres_jax.training import evaluate, nonfinite, result, step
from deres_jax.training.checkpoints import store
from deres_jax.training.logs import metrics_file, profiling, progress, wandb
from deres_jax.training.run import Run, build_run
from deres_jax.training.workdir import bind_workdir, locked


@dataclasses.dataclass(frozen=True)
class RunServices:
  """What a run writes with and is watched by."""

  checkpoints: store.Checkpoints
  record: metrics_file.Metrics | metrics_file.NullWriter
  progress: progress.Progress | metrics_file.NullWriter
  stop: processes.Stop
  watchdog: processes.Watchdog
  profile: profiling.Window

  def close(self):
    """Waits for the save in progress."""
    with contextlib.ExitStack() as stack:  # all, whatever one of them raises
      for tool in (self.watchdog, self.checkpoints, self.record, self.progress, self.profile):
        stack.callback(tool.close)


def train(c: fields.Config, workdir: pathlib.Path) -> dict[str, Any]:
  """Trains, or goes on training, until result.json is written; returns its content.

  Order, and why:
    1. The workdir is locked; config and data are compared with what it was started with, before
       anything in it is touched.
    2. The newest checkpoint that is whole, if any, gives state, position, clock and the metrics
       under way.
    3. metrics.jsonl loses the lines after that step; they are written again.
    4. At an evaluation step: whether all was finite, training figures, then validation, then the
       checkpoint that carries the validation AUC. A crash between them repeats them all. The
       figures are on the disk before the checkpoint is.
    5. SIGTERM on any host: all save at the same step and end with code 75. What validation was due
       there is done first when the run goes on.
    6. The checkpoint with the best validation AUC is evaluated on the test split, once.
    7. result.json is written last, in one piece: it exists only for a finished run.

  Raises:
    Retry: stopped by SIGTERM; the same command goes on.
  """
  with processes.Stop() as stop, files.faults(workdir):
    run = build_run(c)
    with locked(workdir):
      finished = processes.on_process_0(lambda: bind_workdir(c, run.schema, workdir))
      if finished:
        return finished
      start, tools = _open(run, stop, workdir)
      try:
        clock = _loop(run, tools, start)
        return _finish(run, tools, clock, workdir)
      finally:
        tools.close()


def _open(run: Run, stop: processes.Stop, workdir: pathlib.Path) -> tuple[int, RunServices]:
  """The step to go on from, and the tools."""
  checkpoints = store.Checkpoints(workdir / 'checkpoints')
  found, lines = checkpoints.resume(step.abstract_state(run.spec), step.abstract_stream(run.spec))
  start = found or 0
  leads = processes.is_process_0()
  expected = checkpoints.clock(start).lines if start else 0
  c, nowhere = run.config, metrics_file.NullWriter()
  tools = RunServices(
    checkpoints,
    metrics_file.Metrics(
      workdir,
      start,
      expected,
      wandb.open_sinks(
        c.train.wandb, config_lib.config_hash(c), config_lib.identity(c), workdir, start
      ),
    )
    if leads
    else nowhere,
    progress.Progress(run.steps, start, run.eval_every) if leads else nowhere,
    stop,
    processes.Watchdog(c.mesh.stall_seconds if jax.process_count() > 1 else 0),
    profiling.Window(c.train.profile if leads else '', workdir / 'profile'),
  )
  screen = shutil.get_terminal_size().lines
  for line in (diff.text(c, max(8, screen - 4)), *lines, *tools.record.lost):
    tools.progress.line(line)
  return start, tools


def _start(run: Run, tools: RunServices, start: int) -> tuple[step.State, StreamState, store.Clock]:
  """State, metrics under way and clock at step `start`."""
  spec = run.spec
  if not start:
    return step.init_state(spec), step.init_stream(spec), store.Clock(0.0, 0)
  abstract = step.abstract_state(spec), step.abstract_stream(spec)
  state, total, clock = tools.checkpoints.restore(start, *abstract)
  return state, step.init_stream(spec, total), clock


def _loop(run: Run, tools: RunServices, start: int) -> store.Clock:
  """Steps start .. run.steps; where train.on_nan=rollback, with returns to the last checkpoint."""
  begin = _start(run, tools, start)
  if start:
    tools.progress.line(f'resuming at step {start} of {run.steps}')
  while True:
    clock, failed = _steps(run, tools, start, begin)
    if not failed:
      return clock
    at, start = tools.checkpoints.latest() or 0, failed
    tools.progress.line(
      f'step {failed} is not finite: back to the state of step {at}, on with batch {failed}'
    )
    state, stream, _ = _start(run, tools, at)
    # Its step is its place in the data: the batches since the checkpoint are left out.
    state = state._replace(step=jax.device_put(np.int32(failed), state.step.sharding))
    begin = state, stream, dataclasses.replace(clock, evaluated=not _due(run, failed))


def _due(run: Run, done: int) -> bool:
  """Whether validation is due after so many steps."""
  return done % run.eval_every == 0 or done == run.steps


def _steps(
  run: Run, tools: RunServices, start: int, begin: tuple[step.State, StreamState, store.Clock]
) -> tuple[store.Clock, int]:
  """Steps start .. run.steps with everything that happens between them.

  Returns:
    The clock at the end, and 0; or at a step that is to be rolled back, and that step.
  """
  c, spec = run.config, run.spec
  state, stream, clock = begin
  train_step, total = step.make_train_step(spec), step.make_sum_stream(spec)
  train_step = tools.profile.around(train_step, start)
  is_finite = nonfinite.make_finite_leaves(spec)
  began = time.monotonic()
  shown, shown_at, skipped = start, began, clock.skipped

  def now(done: int, evaluated: bool = True) -> store.Clock:
    spent = clock.wall_seconds + time.monotonic() - began
    rows, lines = run.train.examples_until(done), tools.record.lines
    return store.Clock(spent, rows, evaluated, lines, skipped, clock.rollbacks)

  if not clock.evaluated:
    auc = _validate(run, tools, state, start)
    tools.record.sync()
    tools.checkpoints.evaluated(start, now(start), auc)
  prefetch = Prefetch(c.data.threads, c.data.prefetch)
  batches = feed(run.train, spec.mesh, (start, run.steps), prefetch, lambda: tools.stop.requested)
  for done, device_batch in enumerate(batches, start + 1):
    state, stream = train_step(state, stream, device_batch.batch)
    tools.watchdog.beat()
    due = _due(run, done)
    saved = due or (c.train.checkpoint_steps and done % c.train.checkpoint_steps == 0)
    if saved or device_batch.stop or done % c.train.log_steps == 0:
      leaves = is_finite(state) if saved or device_batch.stop else None
      if failed := _failed(run, clock.rollbacks, state, leaves, done):
        return dataclasses.replace(now(failed), rollbacks=clock.rollbacks + 1), failed
      skipped = int(state.skipped)
    # The stream restarts wherever a run may resume, so that a resumed run writes equal lines.
    if saved or done % c.train.log_steps == 0:
      figures = jax.device_get(total(stream)).compute()
      stream = step.init_stream(spec)
      if c.train.on_nan != 'stop':
        figures |= {'steps_skipped': skipped, 'rollbacks': clock.rollbacks}
      seconds = time.monotonic() - shown_at
      speed = (run.train.examples_until(done) - run.train.examples_until(shown)) / seconds
      shown, shown_at = done, time.monotonic()
      tools.record.write(done, 'train', {**figures, 'rows_per_second': speed})
      tools.progress.step(
        done, f'loss {figures["logloss"]:.4f}  auc {figures["auc"]:.4f}  {speed:,.0f} rows/s'
      )
    else:
      tools.progress.step(done)
    if saved or device_batch.stop:
      evaluated, auc = not due, None
      if due:
        with contextlib.suppress(evaluate.Stopped):
          auc = _validate(run, tools, state, done)
          evaluated = True
      tools.record.sync()
      tools.checkpoints.save(done, state, total(stream), now(done, evaluated), auc)
      tools.watchdog.beat()
      shown_at = time.monotonic()
      if device_batch.stop or not evaluated:
        raise Retry(f'at step {done} of {run.steps}, saved: the same command goes on')
  return now(run.steps), 0


def _failed(run: Run, rollbacks: int, state: step.State, leaves: Any, done: int) -> int:
  """The step from which on the state is not to be used, or 0. All processes find the same.

  Args:
    leaves: of the state after `done` steps, which of it is finite; None: not asked.

  Raises:
    UserError: there is one, and the run must not go on past it.
  """
  t, spec = run.config.train, run.spec
  skipped, held = (int(x) for x in jax.device_get((state.skipped, state.step)))
  moved = nonfinite.first_of_state(leaves) if leaves is not None else None
  if skipped <= spec.nan_limit and moved is None:
    return 0
  failed = done if moved else held + 1
  if t.on_nan == 'rollback' and rollbacks < t.nan_bound:
    return failed
  where = f'{moved} after a step with finite gradients'
  if not moved:
    where = nonfinite.explain(spec, state, run.train, held)
  then = 'train.on_nan=skip or rollback goes on without them'
  if t.on_nan != 'stop':
    then = f'train.nan_bound above {t.nan_bound} goes on (train.on_nan={t.on_nan})'
  raise UserError(
    f'step {failed} is not finite: {where}; the last checkpoint, from before it, is kept: look at '
    f'these rows; in a new --workdir lower optim.dense_lr or optim.table_lr; in this one {then}'
  )


def _validate(run: Run, tools: RunServices, state: step.State, done: int) -> float | None:
  """Evaluates on the validation split and writes the figures; the AUC, if there is one."""
  figures, _ = _evaluate(run, tools, state.params, state.tables, done, 'validation')
  tools.record.write(done, 'validation', figures)
  tools.progress.line(
    f'step {done}/{run.steps}  validation auc {figures["auc"]:.5f} logloss {figures["logloss"]:.5f}'
  )
  return figures['auc'] if math.isfinite(figures['auc']) else None


def _evaluate(
  run: Run, tools: RunServices, params, tables, at: int, split: str
) -> tuple[dict[str, float], np.ndarray]:
  """Figures and logits of the state after `at` steps."""

  def logits(params, tables, batch):
    return run.logits(params, tables, np.int32(at), batch)

  prefetch = Prefetch(1, run.config.data.prefetch)
  stop_requested, beat = lambda: tools.stop.requested, tools.watchdog.beat
  batches, mesh = run.held_out(split), run.spec.mesh
  return evaluate.run(logits, params, tables, batches, mesh, prefetch, stop_requested, beat)


def _finish(run: Run, tools: RunServices, clock, workdir: pathlib.Path) -> dict[str, Any]:
  """The test split under the best checkpoint, and result.json."""
  best = tools.checkpoints.best()
  chosen = best[0] if best else tools.checkpoints.latest()
  params, tables = tools.checkpoints.restore_params(chosen, step.abstract_state(run.spec))
  tools.progress.line(f'evaluating step {chosen}, the best on validation, on the test split')
  figures, logits_N = _evaluate(run, tools, params, tables, chosen, 'test')
  tools.record.write(run.steps, 'test', figures)
  content = result.content(run.config, run.schema, run.spec, run.steps, clock, figures, workdir)
  content |= {'step_chosen': chosen, 'auc_validation': best[1] if best else None}
  if processes.is_process_0():
    np.save(workdir / 'test_logits.npy', logits_N)
    files.sync(workdir / 'test_logits.npy')
    files.write_json(workdir / 'result.json', content)
  return content


def evaluate_best(c: fields.Config, workdir: pathlib.Path) -> dict[str, Any]:
  """Figures of the best checkpoint on validation and test; writes eval.json, trains nothing."""
  if not (workdir / 'checkpoints').is_dir():
    raise UserError(f'workdir {workdir} holds no checkpoints: train first (--mode=train)')
  run = build_run(c)
  with locked(workdir), files.faults(workdir):
    processes.on_process_0(lambda: bind_workdir(c, run.schema, workdir))
    return _evaluate_best(run, workdir)


def _evaluate_best(run: Run, workdir: pathlib.Path) -> dict[str, Any]:
  checkpoints = store.Checkpoints(workdir / 'checkpoints')
  best = checkpoints.best()
  chosen = best[0] if best else checkpoints.latest()
  if chosen is None:
    raise UserError(f'workdir {workdir} holds no finished checkpoint: train on (--mode=train)')
  out = {'step': chosen}
  nowhere = metrics_file.NullWriter()
  with processes.Stop() as stop:
    off = processes.Watchdog(0), profiling.Window('', workdir)
    tools = RunServices(checkpoints, nowhere, nowhere, stop, *off)
    params, tables = checkpoints.restore_params(chosen, step.abstract_state(run.spec))
    try:
      for split in ('validation', 'test'):
        out[split], _ = _evaluate(run, tools, params, tables, chosen, split)
    finally:
      tools.close()
  if processes.is_process_0():
    files.write_json(workdir / 'eval.json', out)
  return out
