# SPDX-License-Identifier: Apache-2.0
"""Many runs of one experiment: its `sweep()` lists them, each runs in a process of its own.

  python -m deres_jax.sweep --config=experiments/X.py --out=DIR --config.data.path=DATA

The experiment file has, beside `get_config()`,

  from deres_jax import sweep as grid

  def sweep():
    models = [
      {'name': 'OneTrans', 'model.connector': 'prenorm'},
      {'name': 'DeRes', 'model.connector': 'deres'},
    ]
    rates = grid.param('optim.dense_lr', [1e-3, 3e-3])
    return grid.product(models, rates, grid.param('seed', [1, 2, 3]))

A point is a dict of config fields by dotted name; 'name' is its label in tables, without one the
fields themselves. Finished runs are skipped: the same command goes on after an interruption, and
several processes may share DIR.

  DIR/sweep.json          all points: id, name, seed, overrides
  DIR/runs/ID/            workdir of a run (ID: its config_hash) and log.txt, what it printed
"""

import collections
import dataclasses
import fcntl
import importlib.util
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable
from typing import IO, Any

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from deres_jax import cli, writer
from deres_jax import config as config_lib
from deres_jax.errors import UserError

Overrides = dict[str, Any]

# Lists of points: what a `sweep()` is made of.


def param(name: str, values: Iterable) -> list[Overrides]:
  """A point for every value of one field."""
  return [{name: value} for value in values]


def chain(*sweeps: Iterable[Overrides]) -> list[Overrides]:
  """The points of all, one list after the other."""
  return [point for sweep in sweeps for point in sweep]


def product(*sweeps: Iterable[Overrides]) -> list[Overrides]:
  """Every combination; the last list varies fastest, names are joined by a space."""
  out = [{}]
  for sweep in map(list, sweeps):
    out = [_join(a, b) for a in out for b in sweep]
  return out


def zipped(*sweeps: Iterable[Overrides]) -> list[Overrides]:
  """The first points of all as one, the second ones, ...; lists must be equal in length."""
  lists = [list(sweep) for sweep in sweeps]
  lengths = [len(x) for x in lists]
  if len(set(lengths)) > 1:
    raise UserError(f'zipped() got lists of {lengths} points: give lists of one length')
  return [product(*([point] for point in points))[0] for points in zip(*lists, strict=True)]


def _join(a: Overrides, b: Overrides) -> Overrides:
  both = sorted((a.keys() & b.keys()) - {'name'})
  if both:
    raise UserError(f'a sweep sets {", ".join(both)} in two factors: keep it in one of them')
  names = [x['name'] for x in (a, b) if 'name' in x]
  return {**a, **b, **({'name': ' '.join(names)} if names else {})}


# Points with their configs.


@dataclasses.dataclass(frozen=True)
class Point:
  """A run of the sweep, resolved."""

  number: int  # in the whole sweep, from 1
  id: str  # config_hash
  name: str
  overrides: Overrides  # what the sweep and the command line set: no operational fields
  config: config_lib.Config

  def listed(self) -> dict[str, Any]:
    """Its entry in sweep.json."""
    seed = self.config.seed
    return {'id': self.id, 'name': self.name, 'seed': seed, 'overrides': self.overrides}


def written(overrides: Overrides) -> str:
  """'model.depth=8, optim.dense_lr=0.003'"""
  return ', '.join(f'{k}={_text(v)}' for k, v in overrides.items())


def _text(value: Any) -> str:
  """As a flag takes it: exact for every type of field."""
  return str(value).lower() if isinstance(value, bool) else str(value)


def _flat(config: config_lib.Config) -> dict[str, Any]:
  """Every field by its dotted name."""
  out = {}
  for key, value in config_lib.as_dict(config).items():
    out |= {f'{key}.{k}': v for k, v in value.items()} if isinstance(value, dict) else {key: value}
  return out


def resolve(
  raw: dict[str, Any], sweep: Iterable[Overrides], given: set[str], default_name: str
) -> list[Point]:
  """Checks every point of a sweep before anything runs; raises UserError.

  Args:
    raw: the config as nested dicts, with what the command line changed.
    given: dotted names that the command line set; a sweep must not vary them.
    default_name: of a point that sets the seed at most.
  """
  points, seen = [], {}
  for number, item in enumerate(sweep, 1):
    if not isinstance(item, dict) or not all(isinstance(k, str) for k in item):
      raise UserError(f'sweep() point {number} is {item!r}: expected a dict of config fields')
    own = {k: v for k, v in item.items() if k != 'name'}
    both = sorted(own.keys() & given)
    if both:
      raise UserError(
        f'the command line sets {", ".join(both)}, which the sweep varies: '
        'drop the override or the field of the sweep'
      )
    try:
      config = config_lib.resolve(_with(raw, own))
    except UserError as e:
      raise UserError(f'sweep() point {number} ({written(own)}): {e}') from e
    flat, counted = _flat(config), config_lib.identity(config)
    name = item.get('name', written({k: flat[k] for k in own if k != 'seed'}) or default_name)
    if not isinstance(name, str) or not name or '\n' in name:
      raise UserError(f'sweep() point {number} has the name {name!r}: expected one line of text')
    overrides = {k: counted[k] for k in [*sorted(given), *own] if k in counted}
    point = Point(number, config_lib.config_hash(config), name, overrides, config)
    other = seen.setdefault(point.id, point)
    if other is not point:
      raise UserError(
        f'sweep() points {other.number} ({other.name}; {written(other.overrides)}) and {number} '
        f'({name}; {written(overrides)}) are one run: drop one, or vary a field that changes '
        'what is computed (data.path and the like do not)'
      )
    points.append(point)
  if not points:
    raise UserError('sweep() returned no points: return at least one dict of config fields')
  return points


def _with(raw: dict[str, Any], own: Overrides) -> dict[str, Any]:
  """A copy of `raw` with fields set by dotted name; config.resolve names what is unknown."""
  out = {k: dict(v) if isinstance(v, dict) else v for k, v in raw.items()}
  for name, value in own.items():
    *path, leaf = name.split('.')
    node = out
    for key in path:
      node = node.setdefault(key, {})
      if not isinstance(node, dict):
        raise UserError(f'unknown config field {name!r}: {key!r} is a value')
    node[leaf] = value
  return out


def shard(points: list[Point], text: str) -> list[Point]:
  """The points whose index % n is i, for 'i/n'."""
  match = re.fullmatch(r'(\d+)/(\d+)', text)
  i, n = map(int, match.groups()) if match else (0, 0)
  if i >= n:
    raise UserError(f'--shard={text}: expected i/n with 0 <= i < n, such as 0/4')
  return points[i::n]


# The folder.


def workdir(out: pathlib.Path, point: Point) -> pathlib.Path:
  return out / 'runs' / point.id


def result(out: pathlib.Path, point: Point) -> dict[str, Any] | None:
  """result.json of a finished run."""
  file = workdir(out, point) / 'result.json'
  return json.loads(file.read_text()) if file.is_file() else None


def record(out: pathlib.Path, points: list[Point]):
  """Writes sweep.json. Points of an earlier list stay; shards write the same content."""
  out.mkdir(parents=True, exist_ok=True)
  file = out / 'sweep.json'
  old = json.loads(file.read_text()) if file.is_file() else []
  union = {x['id']: x for x in [*old, *(p.listed() for p in points)]}
  # Under a name of its own: another shard may be writing too.
  mine = out / f'sweep-{uuid.uuid4().hex}.json'
  writer.write_json(mine, list(union.values()))
  os.replace(mine, file)


def check_data(out: pathlib.Path, points: list[Point]):
  """Raises UserError where there is no prepared data, or a run began on other data."""
  contents = {path: _content(path) for path in {p.config.data.path for p in points}}
  for point in points:
    file = workdir(out, point) / 'config.json'
    path = point.config.data.path
    if file.is_file() and json.loads(file.read_text())['data_content'] != contents[path]:
      raise UserError(
        f'{file.parent} ({point.name}) was run on other data than data.path={path}: '
        'take another --out or the old data'
      )


def _content(path: str) -> dict[str, str]:
  """Checksums of the splits of a prepared folder, as config.json of a run holds them."""
  file = pathlib.Path(path) / 'schema.json'
  if not path or not file.is_file():
    raise UserError(
      f'data.path={path!r}: holds no schema.json; give a prepared folder, '
      '--config.data.path=DIR (python -m data_pipelines.build makes one)'
    )
  try:
    splits = json.loads(file.read_text())['splits']
    return {name: split['content_sha256'] for name, split in splits.items()}
  except (ValueError, KeyError, TypeError, AttributeError) as e:
    raise UserError(f'{file}: damaged ({e}): build the folder again') from e


def listing(out: pathlib.Path, points: list[Point]) -> str:
  """A line for every point."""
  width = max(len(p.name) for p in points)
  return '\n'.join(
    f'{p.id}  {p.name:<{width}}  {"done " if result(out, p) else "to do"}  {written(p.overrides)}'
    for p in points
  )


# Running.

_POLL = 0.1  # seconds between looks at the processes
_PATIENCE = 10  # seconds that a run may take to end when told to


@dataclasses.dataclass(frozen=True)
class _Job:
  point: Point
  attempt: int
  process: subprocess.Popen
  log: pathlib.Path
  log_from: int  # bytes of earlier attempts
  began: float


def command(file: str, out: pathlib.Path, point: Point) -> list[str]:
  """The process of a run. It is given every field: an edit of `file` meanwhile changes nothing."""
  settings = [f'--config.{k}={_text(v)}' for k, v in _flat(point.config).items()]
  head = [sys.executable, '-m', 'deres_jax.main', f'--config={file}']
  # Sweeps that a launcher started side by side share points, not runs: each run is a whole.
  return [*head, f'--workdir={workdir(out, point)}', '--distributed=off', *settings]


class Runner:
  """Runs points, `jobs` at a time, until each is done or has failed.

  A run is locked by its process, so that two sweeps never write one workdir, not even when the
  sweep that started it was killed: a locked run is waited for. A run that fails is tried once
  more, unless its exit code says that a user's mistake stopped it.
  """

  def __init__(
    self,
    out: pathlib.Path,
    points: list[Point],
    total: int,
    make_command: Callable[[Point], list[str]],
    jobs: int,
  ):
    self._out, self._points, self._total, self._command = out, points, total, make_command
    self._cores = cores(jobs)
    self._todo = collections.deque((p, 1) for p in points if not result(out, p))
    self._running: dict[int, _Job] = {}
    self._failed: set[str] = set()
    self._interrupted = False

  def interrupt(self, *_):
    """A signal handler: `run` ends its processes and raises KeyboardInterrupt."""
    self._interrupted = True

  def run(self) -> bool:
    """True if all points are done at the end."""
    count, todo = len(self._points), len(self._todo)
    print(f'{count} points: {count - todo} done before, {todo} to run', flush=True)
    waited = False
    try:
      while (self._todo or self._running) and not self._interrupted:
        for slot in range(len(self._cores)):
          if slot not in self._running:
            self._start_one(slot)
        if self._todo and not self._running and not waited:
          print(f'waiting for {len(self._todo)} runs that another process has in hand', flush=True)
          waited = True
        time.sleep(_POLL)
        for slot in [k for k, job in self._running.items() if job.process.poll() is not None]:
          self._end(self._running.pop(slot))
    finally:
      self._stop()
      missing = [p.id for p in self._points if not result(self._out, p)]
      done, failed = count - len(missing), len(self._failed.intersection(missing))
      left = len(missing) - failed
      print(f'{count} points: {done} done, {failed} failed, {left} left', flush=True)
    if self._interrupted:
      raise KeyboardInterrupt
    return not missing

  def _say(self, point: Point, text: str):
    head = f'[{point.number}/{self._total}] {point.name} ({point.id})'
    print(f'{head} ... {text}', flush=True)

  def _start_one(self, slot: int):
    """Starts the first run that nobody has in hand, if there is one."""
    for _ in range(len(self._todo)):
      point, attempt = self._todo.popleft()
      folder = workdir(self._out, point)
      folder.mkdir(parents=True, exist_ok=True)
      with (folder / 'lock').open('w') as lock:
        if not _locked(lock):
          self._todo.append((point, attempt))
        elif result(self._out, point):
          self._say(point, 'done by another process')
        else:
          self._running[slot] = self._start(point, attempt, lock, self._cores[slot])
          return

  def _start(self, point: Point, attempt: int, lock: IO, share: set[int] | None) -> _Job:
    self._say(point, 'started' if attempt == 1 else 'started once more')
    path = workdir(self._out, point) / 'log.txt'
    mine = os.sched_getaffinity(0) if share else None
    with path.open('ab') as log:
      log_from = log.tell()
      if share:
        os.sched_setaffinity(0, share)  # the child inherits it
      process = subprocess.Popen(
        self._command(point),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        pass_fds=[lock.fileno()],  # the lock lives as long as the child
      )
      if share:
        os.sched_setaffinity(0, mine)
      return _Job(point, attempt, process, path, log_from, time.monotonic())

  def _end(self, job: _Job):
    code, found = job.process.returncode, result(self._out, job.point)
    if code == 0 and found:
      spent = time.monotonic() - job.began
      self._say(job.point, f'done in {spent:.0f} s, test auc {found["auc"]:.4f}')
      return
    how = f'exit {code}' if code >= 0 else f'killed by signal {-code}'
    lines = job.log.read_bytes()[job.log_from :].decode(errors='replace').split('\n')
    last = next((x.strip() for x in reversed(lines) if x.strip()), 'it said nothing')
    self._say(job.point, f'failed ({how}): {last}, log at {job.log}')
    if code != 2 and job.attempt == 1:
      self._todo.append((job.point, 2))
    else:
      self._failed.add(job.point.id)

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


def _locked(lock: IO) -> bool:
  """Takes the lock, or says that another process has it."""
  try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    return False
  except OSError as e:
    raise UserError(f'{lock.name}: {e.strerror}; put --out on a file system with locks') from e
  return True


def cores(jobs: int) -> list[set[int] | None]:
  """Cores for each of `jobs` runs: equal shares, so that their speeds compare.

  One job has all cores. None where a process cannot choose its cores (macOS).
  """
  if jobs == 1 or not hasattr(os, 'sched_getaffinity'):
    return [None] * jobs
  mine = sorted(os.sched_getaffinity(0))
  share = len(mine) // jobs
  if not share:
    raise UserError(f'--jobs={jobs}: this process has {len(mine)} cores, one job needs one')
  return [set(mine[i * share : (i + 1) * share]) for i in range(jobs)]


# The command.


def _define_flags():
  """Not at import: experiments import this module under `deres_jax.main`, which has its own."""
  config_flags.DEFINE_config_file(
    'config', None, 'Experiment file with sweep(); --config.a.b=v changes a field of all points.'
  )
  flags.DEFINE_string('out', None, 'Folder of the sweep: sweep.json and runs/.')
  flags.DEFINE_string('shard', '0/1', 'i/n: run only the points whose index % n is i.')
  flags.DEFINE_bool('list', False, 'Print id, name, state and overrides; run nothing.')
  flags.DEFINE_integer('jobs', 1, 'Runs at a time; cores are split evenly.', lower_bound=1)


def _load(file: str) -> Iterable[Overrides]:
  """What sweep() of an experiment file returns."""
  path = pathlib.Path(file)
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  points = module.sweep() if callable(vars(module).get('sweep')) else None
  if not isinstance(points, Iterable):
    raise UserError(
      f'{file} has no sweep() that returns points: give it one that returns a list of dicts such '
      "as {'name': 'OneTrans', 'model.depth': 8}, or train it alone with deres_jax.main"
    )
  return points


def main(argv: list[str]):
  cli.no_arguments(argv)
  flag = flags.FLAGS['config']
  if not flag.present:
    raise UserError('no --config: give an experiment file that has sweep()')
  if not flags.FLAGS.out:
    raise UserError('no --out: give the folder of the sweep, --out=DIR')
  file, _, text = config_flags.get_config_filename(flag).partition(':')
  if not pathlib.Path(file).is_file():
    raise UserError(f'--config={file}: no such file')
  in_text = {item.partition('=')[0] for item in text.split(',') if item}
  given = in_text | config_flags.get_override_values(flag).keys()
  if not isinstance(flag.value, ConfigDict):
    raise UserError(f'{file}: get_config() returned {flag.value!r}: return config.update(...)')
  points = resolve(flag.value.to_dict(), _load(file), given, pathlib.Path(file).stem)
  mine, out = shard(points, flags.FLAGS.shard), pathlib.Path(flags.FLAGS.out)
  if flags.FLAGS.list:
    print(listing(out, mine))
    return
  check_data(out, mine)
  runner = Runner(out, mine, len(points), lambda p: command(file, out, p), flags.FLAGS.jobs)
  record(out, points)
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, runner.interrupt)
  if not runner.run():
    sys.exit(1)


if __name__ == '__main__':
  _define_flags()
  app.run(cli.guarded(main), flags_parser=cli.parse)
