# SPDX-License-Identifier: Apache-2.0
"""Runs the points of a sweep as processes, several at a time, until each is done or has failed."""

import contextlib
import dataclasses
import math
import os
import pathlib
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from deres_jax.core import cli, files, terminal
from deres_jax.core.errors import printable
from deres_jax.core.run_files import Cost
from deres_jax.sweep import costs, machine
from deres_jax.sweep import folder as folder_lib
from deres_jax.sweep.points import Point

_POLL = 0.1  # seconds between checks of the processes
_PATIENCE = 10  # seconds that a run may take to end after SIGTERM
_STOPS = 10  # stops after which a run counts as failed
_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Limits:
  """Resources of the machine that runs may use."""

  jobs: int  # runs at a time; cores are split evenly
  memory: float = math.inf  # bytes of all runs together; one alone may take more
  environ: Mapping[str, str] | None = None  # of their processes; None: this process's


@dataclasses.dataclass(frozen=True)
class _Job:
  point: Point
  attempt: int
  process: subprocess.Popen
  log: pathlib.Path
  log_from: int  # bytes of earlier attempts
  began: float
  step_from: int  # steps of earlier attempts

  def seconds(self) -> float:
    return time.monotonic() - self.began

  def last_line(self) -> str:
    """Returns the last line that this attempt printed."""
    with self.log.open('rb') as f:
      f.seek(max(self.log_from, f.seek(0, os.SEEK_END) - 2**16))
      lines = f.read().decode(errors='replace').split('\n')
    last = next((x.strip() for x in reversed(lines) if x.strip()), 'it said nothing')
    return printable(last)[:1000]


class Runner:
  """Runs points, `limits.jobs` at a time and the most expensive first.

  Each process holds the lock of its run, so that two sweeps never write one workdir, not even after
  the sweep that started a run was killed. Locked runs are waited for. How a process ends:

    0 and result.json   done
    75, SIGTERM         stopped: started again, `_STOPS` times at most
    2                   a user's mistake: failed
    130, SIGINT         interrupted: left for the next command
    anything else       a fault: started once more, then failed
  """

  def __init__(
    self,
    out: pathlib.Path,
    points: list[Point],
    total: int,
    make_command: Callable[[Point], list[str]],
    limits: Limits,
    predicted: Mapping[str, Cost],
    screen: terminal.Screen,
  ):
    """Takes predicted costs by id; a point without one runs first, unbounded in memory."""
    self._out, self._points, self._total, self._command = out, points, total, make_command
    self._limits, self._costs, self._screen = limits, predicted, screen
    self._cores = machine.cores(limits.jobs)
    self._weight = costs.weights(points, predicted)
    todo = [p for p in points if not folder_lib.result(out, p)]
    todo.sort(key=lambda p: -predicted[p.id].train_flops if p.id in predicted else -math.inf)
    self._todo = [(p, 1) for p in todo]
    self._running: dict[int, _Job] = {}
    # Weight and seconds of finished runs, of earlier commands and of this one.
    results = ((p, folder_lib.result(out, p)) for p in points)
    self._before = [(self._weight[p.id], r.wall_seconds) for p, r in results if r]
    self._spent: list[tuple[float, float]] = []
    self._stops: Counter[str] = Counter()
    self._failed: dict[str, Point] = {}
    self._interrupted = False

  def interrupt(self, *_):
    """Handles a signal: `run` ends its processes and raises KeyboardInterrupt."""
    self._interrupted = True

  def run(self) -> bool:
    """Runs the points; returns whether all are done."""
    count, todo = len(self._points), len(self._todo)
    self._screen.line(f'{count} points: {count - todo} done before, {todo} to run')
    waited = False
    try:
      while (self._todo or self._running) and not self._interrupted:
        for slot in range(len(self._cores)):
          if slot not in self._running:
            self._start_one(slot)
        if self._todo and not self._running and not waited:
          self._screen.line(f'waiting for {len(self._todo)} runs of another process')
          waited = True
        if self._screen.due():
          self._screen.show(self._table())
        time.sleep(_POLL)
        for slot in [k for k, job in self._running.items() if job.process.poll() is not None]:
          self._end(self._running.pop(slot))
    finally:
      self._stop()
      all_done = self._sum_up()
    if self._interrupted:
      raise KeyboardInterrupt
    return all_done

  def _sum_up(self) -> bool:
    """Prints the last lines; returns whether all points are done."""
    missing = [p for p in self._points if not folder_lib.result(self._out, p)]
    failed = [f'{p.name} ({p.id})' for p in missing if p.id in self._failed]
    count, left = len(self._points), len(missing) - len(failed)
    done = count - len(missing)
    self._screen.line(f'{count} points: {done} done, {len(failed)} failed, {left} left')
    if failed:
      self._screen.line(f'failed: {", ".join(failed)}')
    self._screen.close()
    return not missing

  def _print(self, point: Point, event: str):
    head = f'[{point.number}/{self._total}] {point.name} ({point.id})'
    self._screen.line(f'{head} ... {event}')

  # Starting.

  def _start_one(self, slot: int):
    """Starts the first run that fits into memory and that no process has locked, if any."""
    for item in list(self._todo):
      point, attempt = item
      if not self._fits(point):
        continue
      lock = folder_lib.lock(self._out, point)
      if not lock:
        continue
      with contextlib.closing(lock):
        self._todo.remove(item)
        if folder_lib.result(self._out, point):
          folder_lib.forget_failure(self._out, point)
          self._print(point, 'done by another process')
          continue
        self._running[slot] = self._start(point, attempt, lock, self._cores[slot])
        return

  def _fits(self, point: Point) -> bool:
    """Returns whether a run fits into memory beside the running ones; one alone always does."""
    if not self._running:
      return True
    beside = [job.point for job in self._running.values()]
    return sum(self._memory(p) for p in [*beside, point]) <= self._limits.memory

  def _memory(self, point: Point) -> int:
    return self._costs[point.id].memory if point.id in self._costs else 0

  def _start(self, point: Point, attempt: int, lock: files.Lock, share: set[int] | None) -> _Job:
    needed, bound = self._memory(point), self._limits.memory
    if needed > bound:
      self._print(
        point,
        f'warning: may need {needed / _GIB:.1f} GiB, more than the {bound / _GIB:.1f} GiB here: '
        'it runs alone',
      )
    again = attempt > 1 or self._stops[point.id]
    self._print(point, ('started once more' if again else 'started') + self._left_text())
    path = folder_lib.workdir(self._out, point) / 'log.txt'
    all_cores = os.sched_getaffinity(0) if share else None
    with path.open('ab') as log:
      log_from = log.tell()
      if share:
        os.sched_setaffinity(0, share)  # the child inherits it
      process = subprocess.Popen(
        self._command(point),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=self._limits.environ,
        pass_fds=[lock.fileno()],  # the lock lives as long as the child
      )
      if share:
        os.sched_setaffinity(0, all_cores)
      step_from, _ = folder_lib.progress(self._out, point)
      return _Job(point, attempt, process, path, log_from, time.monotonic(), step_from)

  # Ending.

  def _end(self, job: _Job):
    code, point = job.process.returncode, job.point
    result = folder_lib.result(self._out, point)
    if code == 0 and result:
      folder_lib.forget_failure(self._out, point)
      self._spent.append((self._work(job), job.seconds()))
      auc = 'none' if result.auc is None else f'{result.auc:.4f}'
      self._print(point, f'done in {job.seconds():.0f} s, test auc {auc}{self._left_text()}')
      return
    how = f'exit {code}' if code >= 0 else f'killed by signal {-code}'
    if code in (cli.INTERRUPTED, -signal.SIGINT):
      self._print(point, f'interrupted ({how}): left for the next command')
      return
    if code in (cli.AGAIN, -signal.SIGTERM):
      self._stops[point.id] += 1
      if self._stops[point.id] <= _STOPS:
        self._print(point, f'stopped ({how}), goes on: {job.last_line()}')
        self._todo.insert(0, (point, job.attempt))
        return
      how += f', stopped {self._stops[point.id]} times'
    self._print(point, f'failed ({how}): {job.last_line()}, log at {job.log}')
    folder_lib.record_failure(self._out, point, how, job.last_line(), job.attempt)
    if code in (cli.MISTAKE, cli.AGAIN, -signal.SIGTERM) or job.attempt > 1:
      self._failed[point.id] = point
    else:
      self._todo.append((point, job.attempt + 1))

  def _stop(self):
    processes = [job.process for job in self._running.values()]
    for process in processes:
      process.terminate()
    for process in processes:
      try:
        process.wait(_PATIENCE)
      except subprocess.TimeoutExpired:
        process.kill()
        process.wait()

  # Showing.

  def _steps(self, point: Point) -> int:
    """Returns the length of a run in steps; 0: unknown."""
    return self._costs[point.id].steps if point.id in self._costs else point.config.train.steps

  def _work(self, job: _Job) -> float:
    """Returns the part of the run's weight that this attempt does, from its checkpoint on."""
    steps = self._steps(job.point)
    return self._weight[job.point.id] * (1 - job.step_from / steps if steps else 1)

  def _progress(self) -> list[tuple[_Job, int, int, float | None]]:
    """Returns each running job, its step, its length (0: unknown) and its validation AUC."""
    progress = ((job, folder_lib.progress(self._out, job.point)) for job in self._running.values())
    return [(job, step, self._steps(job.point), auc) for job, (step, auc) in progress]

  def _seconds_left(self, progress: Sequence) -> float | None:
    underway = []
    for job, step, steps, _ in progress:
      total = steps - job.step_from
      part = min(1.0, max(0, step - job.step_from) / total) if total > 0 else 0.0
      underway.append(costs.Underway(self._work(job), part, job.seconds()))
    todo = [self._weight[p.id] for p, _ in self._todo]
    return costs.seconds_left(self._spent or self._before, underway, todo, self._limits.jobs)

  def _left_text(self) -> str:
    left = self._seconds_left(self._progress())
    return f'; about {terminal.duration(left)} left' if left else ''

  def _table(self) -> list[str]:
    progress = self._progress()
    done = sum(1 for p in self._points if folder_lib.result(self._out, p))
    running, failed = len(self._running), len(self._failed)
    left = len(self._points) - done - running - failed
    seconds = self._seconds_left(progress)
    when = 'time left unknown' if seconds is None else f'about {terminal.duration(seconds)} left'
    lines = [f'{done} done, {running} running, {failed} failed, {left} left; {when}']
    for job, step, steps, auc in progress:
      text = f'  {terminal.duration(job.seconds()):>6}'
      if step:
        text += f'  step {step:,} of {steps:,}' if steps else f'  step {step:,}'
      if auc is not None:
        text += f'  validation auc {auc:.4f}'
      # Last: a long name is cut.
      lines.append(f'{text}  {job.point.name} ({job.point.id})')
    return lines
