# SPDX-License-Identifier: Apache-2.0
"""The folder of a sweep: the list of its points, finished runs, failures, locks.

DIR/sweep.json            all points: id, name, seed, overrides
DIR/costs.json            predicted cost of their training
DIR/runs/ID/result.json   of a finished run
DIR/runs/ID/failed.json   of one whose last attempt failed; gone once it finishes
DIR/runs/ID/lock          held by the process of the run

`deres_jax.core.run_files` says what each file holds.
"""

import contextlib
import os
import pathlib
from collections.abc import Iterator

import msgspec

from deres_jax.config.overrides import as_text
from deres_jax.core import files, run_files
from deres_jax.core.errors import UserError
from deres_jax.core.run_files import Cost, Failure, Result, SweepPoint
from deres_jax.data.schema import load_schema
from deres_jax.sweep.points import Point


def workdir(out: pathlib.Path, point: Point) -> pathlib.Path:
  """Returns the folder of a run."""
  return out / 'runs' / point.id


def result(out: pathlib.Path, point: Point) -> Result | None:
  """Reads the result of a run; None if it is not finished."""
  folder = workdir(out, point)
  advice = 'delete it, and the sweep finishes the run from its last checkpoint'
  stored = run_files.read_result(folder, advice)
  if stored and stored.config_hash != point.id:
    raise UserError(
      f'{folder / "result.json"}: `$.config_hash`: expected {point.id} ({point.name}), got '
      f'{stored.config_hash!r}: {advice}'
    )
  return stored


def record(out: pathlib.Path, points: list[Point]):
  """Adds points to sweep.json. Shards that share the folder write the same content."""
  out.mkdir(parents=True, exist_ok=True)
  by_id = {x.id: x for x in [*listed(out), *(p.listed() for p in points)]}
  files.write_json(out / 'sweep.json', msgspec.to_builtins(list(by_id.values())))


def listed(out: pathlib.Path) -> list[SweepPoint]:
  """Reads sweep.json; empty where there is none."""
  advice = 'delete it and run the sweep again: it lists its points anew and keeps finished runs'
  return run_files.read_sweep(out, advice)


def costs(out: pathlib.Path) -> dict[str, Cost]:
  """Reads costs.json: predicted costs by id; empty where there is none."""
  file = out / 'costs.json'
  if not file.exists():
    return {}
  return files.read_json(file, dict[str, Cost], 'delete it: costs are predicted again')


def record_costs(out: pathlib.Path, known: dict[str, Cost]):
  """Adds to costs.json. An entry that another shard adds at this moment is predicted again."""
  files.write_json(out / 'costs.json', msgspec.to_builtins({**costs(out), **known}))


def check_data(out: pathlib.Path, points: list[Point]):
  """Raises UserError where there is no prepared data, or a run began on other data."""
  contents = {path: load_schema(path).content for path in {p.config.data.path for p in points}}
  for point in points:
    folder, path = workdir(out, point), point.config.data.path
    stored = run_files.read_config(folder, 'delete the folder of the run, which then starts anew')
    if stored and stored.data_content != contents[path]:
      raise UserError(
        f'{folder} ({point.name}) was run on other data than data.path={path}: '
        'take another --out or the old data'
      )


# Failures: a file in the run's folder, so that shards never write one file.


def record_failure(out: pathlib.Path, point: Point, how: str, last: str, attempts: int):
  """Writes failed.json: how the process of a run ended and the last line that it printed."""
  folder, seed = workdir(out, point), point.config.seed
  failure = Failure(point.id, point.name, seed, how, last, str(folder / 'log.txt'), attempts)
  files.write_json(folder / 'failed.json', msgspec.to_builtins(failure))


def failure(out: pathlib.Path, point: Point) -> Failure | None:
  """Reads failed.json of a run that has not finished since."""
  file = workdir(out, point) / 'failed.json'
  if not file.exists() or result(out, point):
    return None
  return files.read_json(file, Failure, 'delete it, it only says how an attempt failed')


def forget_failure(out: pathlib.Path, point: Point):
  """Removes failed.json of a run that has finished."""
  (workdir(out, point) / 'failed.json').unlink(missing_ok=True)


# A run is locked by its process for as long as that lives, whoever started it.


def lock(out: pathlib.Path, point: Point) -> files.Lock | None:
  """Locks a run, whose folder is made if need be; None where another process has locked it."""
  folder = workdir(out, point)
  folder.mkdir(parents=True, exist_ok=True)
  run_lock = files.Lock(folder / 'lock')
  with _lock_errors(folder):
    return run_lock if run_lock.take() else None


@contextlib.contextmanager
def _lock_errors(folder: pathlib.Path) -> Iterator[None]:
  try:
    yield
  except OSError as e:
    if files.mendable(e):
      raise
    raise UserError(f'{folder}: {e.strerror}: put --out on a file system with locks') from e


def state(out: pathlib.Path, point: Point) -> str:
  """Returns 'done', 'running', 'failed' or 'to do'."""
  if result(out, point):
    return 'done'
  with _lock_errors(workdir(out, point)):
    if files.is_locked(workdir(out, point) / 'lock'):
      return 'running'
  return 'failed' if failure(out, point) else 'to do'


def listing(out: pathlib.Path, points: list[Point]) -> str:
  """Returns a line for every point: id, name, state, overrides, how it failed."""
  width, lines = max(len(p.name) for p in points), []
  for p in points:
    current = state(out, p)
    lines.append(f'{p.id}  {p.name:<{width}}  {current:<7}  {as_text(p.overrides)}')
    last = failure(out, p) if current == 'failed' else None
    if last:
      lines[-1] += f'  ({last.how}: {last.last_line}, log at {last.log})'
  return '\n'.join(lines)


def progress(out: pathlib.Path, point: Point) -> tuple[int, float | None]:
  """Returns steps done and the last validation AUC by metrics.jsonl; 0 and None without any.

  Lines that are not whole are skipped: the file is read from its end while the run writes it.
  """
  step, auc = 0, None
  for line in _tail(workdir(out, point) / 'metrics.jsonl').splitlines():
    try:
      entry = msgspec.json.decode(line, type=run_files.MetricsLine)
    except (ValueError, RecursionError):
      continue
    step = max(step, entry.step)
    auc = entry.auc if entry.split == 'validation' else auc
  return step, auc


def _tail(file: pathlib.Path) -> bytes:
  """Returns the end of a file that may be long; nothing where there is none."""
  try:
    with file.open('rb') as f:
      f.seek(max(0, f.seek(0, os.SEEK_END) - 2**16))
      return f.read()
  except OSError:
    return b''
