# SPDX-License-Identifier: Apache-2.0
"""A run from its config to result.json, in the order in which it happens.

All processes of a run execute this code on the same steps. Each reads its slice of every batch and
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

# Everything that a step continues from: state, streaming metrics, time spent.
Position = tuple[step.State, StreamState, store.Clock]


@dataclasses.dataclass(frozen=True)
class RunServices:
  """The files, terminal and watchers of a run."""

  checkpoints: store.Checkpoints
  metrics: metrics_file.Metrics | metrics_file.NullWriter  # metrics.jsonl, TensorBoard, wandb
  progress: progress.Progress | metrics_file.NullWriter  # on the terminal
  stop: processes.Stop  # remembers SIGTERM
  watchdog: processes.Watchdog  # ends a process whose peers are lost
  profile: profiling.Window

  def stop_requested(self) -> bool:
    """Returns whether this process received SIGTERM."""
    return self.stop.requested

  def close(self):
    """Waits for the save in progress and closes all, even if one of them raises."""
    with contextlib.ExitStack() as stack:
      for service in (self.watchdog, self.checkpoints, self.metrics, self.progress, self.profile):
        stack.callback(service.close)


def train(c: fields.Config, workdir: pathlib.Path) -> dict[str, Any]:
  """Trains, or resumes training, until result.json is written; returns its content.

  The order of events, and why:
    1. The workdir is locked; config and data are compared with those it was started with, before
       anything in it is changed.
    2. The newest complete checkpoint, if any, gives the state, the position in the data, the clock
       and the streaming metrics.
    3. metrics.jsonl loses the lines after that step; they are written again.
    4. At an evaluation step: the check that all is finite, training figures, validation, then the
       checkpoint with the validation AUC. A crash between them repeats them all. The figures are on
       the disk before the checkpoint is.
    5. After SIGTERM on any host, all save at the same step and end with code 75. A validation that
       was due there is done first when the run resumes.
    6. The checkpoint with the best validation AUC is evaluated on the test split, once.
    7. result.json is written last, atomically: it exists only for a finished run.

  Raises:
    Retry: SIGTERM stopped the run; the same command resumes it.
  """
  with processes.Stop() as stop, files.faults(workdir):
    run = build_run(c)
    with locked(workdir):
      finished = processes.on_process_0(lambda: bind_workdir(c, run.schema, workdir))
      if finished:
        return finished
      start, services = _open_services(run, stop, workdir)
      try:
        clock = _train(run, services, start)
        return _finish(run, services, clock, workdir)
      finally:
        services.close()


def _open_services(
  run: Run, stop: processes.Stop, workdir: pathlib.Path
) -> tuple[int, RunServices]:
  """Finds the step to resume at, 0 if there is none, and opens what the run writes to."""
  c, writes = run.config, processes.is_process_0()
  abstract = step.abstract_state(run.spec), step.abstract_stream(run.spec)
  checkpoints = store.Checkpoints(workdir / 'checkpoints')
  newest, messages = checkpoints.resume(*abstract)
  start = newest or 0
  metrics = console = metrics_file.NullWriter()
  if writes:
    lines = checkpoints.clock(start).lines if start else 0
    identity = config_lib.identity(c)
    sinks = wandb.open_sinks(c.train.wandb, config_lib.config_hash(c), identity, workdir, start)
    metrics = metrics_file.Metrics(workdir, start, lines, sinks)
    console = progress.Progress(run.steps, start, run.eval_every)
  watchdog = processes.Watchdog(c.mesh.stall_seconds if jax.process_count() > 1 else 0)
  profile = profiling.Window(c.train.profile if writes else '', workdir / 'profile')
  height = max(8, shutil.get_terminal_size().lines - 4)
  for line in (diff.text(c, height), *messages, *metrics.lost):
    console.line(line)
  return start, RunServices(checkpoints, metrics, console, stop, watchdog, profile)


def _train(run: Run, services: RunServices, start: int) -> store.Clock:
  """Trains to the last step; with train.on_nan=rollback it may return to a checkpoint."""
  position = _restore(run, services, start)
  if start:
    services.progress.line(f'resuming at step {start} of {run.steps}')
  while True:
    clock, failed = _steps(run, services, start, position)
    if not failed:
      return clock
    saved, start = services.checkpoints.latest() or 0, failed
    services.progress.line(
      f'step {failed} is not finite: back to the state of step {saved}, on with batch {failed}'
    )
    state, stream, _ = _restore(run, services, saved)
    # `step` is also the position in the data: the batches since the checkpoint are left out.
    state = state._replace(step=jax.device_put(np.int32(failed), state.step.sharding))
    clock = dataclasses.replace(clock, evaluated=not _evaluation_due(run, failed))
    position = state, stream, clock


def _restore(run: Run, services: RunServices, at: int) -> Position:
  """Returns state, streaming metrics and clock after `at` steps, from its checkpoint if not 0."""
  spec = run.spec
  if not at:
    return step.init_state(spec), step.init_stream(spec), store.Clock(0.0, 0)
  abstract = step.abstract_state(spec), step.abstract_stream(spec)
  state, total, clock = services.checkpoints.restore(at, *abstract)
  return state, step.init_stream(spec, total), clock


def _evaluation_due(run: Run, done: int) -> bool:
  return done % run.eval_every == 0 or done == run.steps


def _steps(
  run: Run, services: RunServices, start: int, position: Position
) -> tuple[store.Clock, int]:
  """Runs steps start + 1 .. run.steps, with figures, evaluations and checkpoints between them.

  Returns:
    The clock at the end, and 0 or the first step that is not finite, which calls for a rollback.
  """
  data, t, spec = run.config.data, run.config.train, run.spec
  state, stream, clock = position
  train_step = services.profile.around(step.make_train_step(spec), start)
  sum_stream, finite_leaves = step.make_sum_stream(spec), nonfinite.make_finite_leaves(spec)
  began = time.monotonic()
  logged, logged_at, skipped = start, began, clock.skipped

  def now(done: int, evaluated: bool = True) -> store.Clock:
    seconds = clock.wall_seconds + time.monotonic() - began
    examples, lines = run.train.examples_until(done), services.metrics.lines
    return store.Clock(seconds, examples, evaluated, lines, skipped, clock.rollbacks)

  if not clock.evaluated:
    auc = _validate(run, services, state, start)
    services.metrics.sync()
    services.checkpoints.evaluated(start, now(start), auc)
  prefetch = Prefetch(data.threads, data.prefetch)
  batches = feed(run.train, spec.mesh, (start, run.steps), prefetch, services.stop_requested)
  for done, (batch, _, stop) in enumerate(batches, start + 1):
    state, stream = train_step(state, stream, batch)
    services.watchdog.beat()
    due = _evaluation_due(run, done)
    scheduled = due or (t.checkpoint_steps and done % t.checkpoint_steps == 0)
    save, log = scheduled or stop, scheduled or done % t.log_steps == 0
    if save or log:
      leaves = finite_leaves(state) if save else None
      if failed := _first_failed(run, state, leaves, done, clock.rollbacks):
        return dataclasses.replace(now(failed), rollbacks=clock.rollbacks + 1), failed
      skipped = int(state.skipped)
    if log:
      figures = jax.device_get(sum_stream(stream)).compute()
      # Starts anew wherever a run may resume, so that a resumed run writes the same lines.
      stream = step.init_stream(spec)
      if t.on_nan != 'stop':
        figures |= {'steps_skipped': skipped, 'rollbacks': clock.rollbacks}
      _log(run, services, figures, logged, done, time.monotonic() - logged_at)
      logged, logged_at = done, time.monotonic()
    else:
      services.progress.step(done)
    if save:
      evaluated, auc = not due, None
      with contextlib.suppress(evaluate.Stopped):
        if due:
          auc = _validate(run, services, state, done)
          evaluated = True
      services.metrics.sync()
      services.checkpoints.save(done, state, sum_stream(stream), now(done, evaluated), auc)
      services.watchdog.beat()
      logged_at = time.monotonic()
      if stop or not evaluated:
        raise Retry(f'at step {done} of {run.steps}, saved: the same command goes on')
  return now(run.steps), 0


def _first_failed(run: Run, state: step.State, leaves: Any, done: int, rollbacks: int) -> int:
  """Returns the first step whose state is not finite, or 0. Identical on all processes.

  Raises UserError if there is one and the run must not continue past it.

  Args:
    leaves: of the state after `done` steps, which arrays are finite; None: not checked.
  """
  t, spec = run.config.train, run.spec
  skipped, last_finite = (int(x) for x in jax.device_get((state.skipped, state.step)))
  array = nonfinite.first_of_state(leaves) if leaves is not None else None
  if skipped <= spec.nan_limit and array is None:
    return 0
  failed = done if array else last_finite + 1
  if t.on_nan == 'rollback' and rollbacks < t.nan_bound:
    return failed
  if array:
    where = f'{array} after a step with finite gradients'
  else:
    where = nonfinite.explain(spec, state, run.train, last_finite)
  then = 'train.on_nan=skip or rollback goes on without them'
  if t.on_nan != 'stop':
    then = f'train.nan_bound above {t.nan_bound} goes on (train.on_nan={t.on_nan})'
  raise UserError(
    f'step {failed} is not finite: {where}; the last checkpoint, from before it, is kept: look at '
    f'these rows; in a new --workdir lower optim.dense_lr or optim.table_lr; in this one {then}'
  )


def _log(run: Run, services: RunServices, figures: dict, before: int, done: int, seconds: float):
  """Writes the training figures of steps before + 1 .. done, which took `seconds`."""
  speed = (run.train.examples_until(done) - run.train.examples_until(before)) / seconds
  services.metrics.write(done, 'train', {**figures, 'rows_per_second': speed})
  services.progress.step(
    done, f'loss {figures["logloss"]:.4f}  auc {figures["auc"]:.4f}  {speed:,.0f} rows/s'
  )


def _validate(run: Run, services: RunServices, state: step.State, done: int) -> float | None:
  """Writes the figures of the validation split; returns the AUC, None if it is undefined."""
  figures, _ = _evaluate(run, services, state.params, state.tables, done, 'validation')
  services.metrics.write(done, 'validation', figures)
  services.progress.line(
    f'step {done}/{run.steps}  validation auc {figures["auc"]:.5f} logloss {figures["logloss"]:.5f}'
  )
  return figures['auc'] if math.isfinite(figures['auc']) else None


def _evaluate(
  run: Run, services: RunServices, params: Any, tables: tuple[jax.Array, ...], at: int, split: str
) -> tuple[dict[str, float], np.ndarray]:
  """Returns figures and logits of a split for the parameters after `at` steps."""
  return evaluate.evaluate(
    lambda batch: run.eval_step(params, tables, np.int32(at), batch),
    run.held_out(split),
    run.spec.mesh,
    Prefetch(1, run.config.data.prefetch),
    services.stop_requested,
    services.watchdog.beat,
  )


def _finish(
  run: Run, services: RunServices, clock: store.Clock, workdir: pathlib.Path
) -> dict[str, Any]:
  """Evaluates the best checkpoint on the test split and writes result.json."""
  chosen, auc = services.checkpoints.best() or (services.checkpoints.latest(), None)
  params, tables = services.checkpoints.restore_params(chosen, step.abstract_state(run.spec))
  services.progress.line(f'evaluating step {chosen}, the best on validation, on the test split')
  figures, logits_N = _evaluate(run, services, params, tables, chosen, 'test')
  services.metrics.write(run.steps, 'test', figures)
  content = result.content(run, clock, figures, workdir)
  content |= {'step_chosen': chosen, 'auc_validation': auc}
  if processes.is_process_0():
    np.save(workdir / 'test_logits.npy', logits_N)
    files.sync(workdir / 'test_logits.npy')
    files.write_json(workdir / 'result.json', content)
  return content


def evaluate_best(c: fields.Config, workdir: pathlib.Path) -> dict[str, Any]:
  """Evaluates a run's best checkpoint on validation and test; writes eval.json, trains nothing."""
  if not (workdir / 'checkpoints').is_dir():
    raise UserError(f'workdir {workdir} holds no checkpoints: train first (--mode=train)')
  run = build_run(c)
  with locked(workdir), files.faults(workdir), processes.Stop() as stop:
    processes.on_process_0(lambda: bind_workdir(c, run.schema, workdir))
    checkpoints, null = store.Checkpoints(workdir / 'checkpoints'), metrics_file.NullWriter()
    chosen, _ = checkpoints.best() or (checkpoints.latest(), None)
    if chosen is None:
      raise UserError(f'workdir {workdir} holds no finished checkpoint: train on (--mode=train)')
    watchdog, profile = processes.Watchdog(0), profiling.Window('', workdir)
    services = RunServices(checkpoints, null, null, stop, watchdog, profile)
    params, tables = checkpoints.restore_params(chosen, step.abstract_state(run.spec))
    figures = {'step': chosen}
    try:
      for split in ('validation', 'test'):
        figures[split], _ = _evaluate(run, services, params, tables, chosen, split)
    finally:
      services.close()
    if processes.is_process_0():
      files.write_json(workdir / 'eval.json', figures)
    return figures
