# SPDX-License-Identifier: Apache-2.0
"""What the folder of a sweep holds: the list of points, finished runs, failures by name.

DIR/sweep.json            all points: id, name, seed, overrides
DIR/costs.json            what their training will take, as predicted
DIR/runs/ID/result.json   of a finished run
DIR/runs/ID/failed.json   of one whose last attempt failed; gone once it finishes
DIR/runs/ID/lock          held by the process of the run
"""

import contextlib
import json
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from deres_jax.config.overrides import written
from deres_jax.core import files
from deres_jax.core.errors import UserError
from deres_jax.sweep.points import Point


def workdir(out: pathlib.Path, point: Point) -> pathlib.Path:
  """The folder of a run in that of its sweep."""
  return out / 'runs' / point.id


def result(out: pathlib.Path, point: Point) -> dict[str, Any] | None:
  """result.json of a finished run; raises UserError for what is there and is not its result."""
  file = workdir(out, point) / 'result.json'
  if not file.is_file():
    return None
  then = 'delete it, and the sweep finishes the run from its last checkpoint'
  found = files.read_json(file, dict, then)
  if found.get('config_hash') != point.id or not isinstance(found.get('auc'), float):
    raise UserError(f'{file}: is not the result of run {point.id} ({point.name}): {then}')
  return found


def record(out: pathlib.Path, points: list[Point]):
  """Writes sweep.json. Points of an earlier list stay; shards write the same content."""
  out.mkdir(parents=True, exist_ok=True)
  file = out / 'sweep.json'
  old = listed(file) if file.is_file() else []
  union = {x['id']: x for x in [*old, *(p.listed() for p in points)]}
  files.write_json(file, list(union.values()))


def listed(file: pathlib.Path) -> list[dict[str, Any]]:
  """The points in sweep.json; raises UserError where it is damaged."""
  then = 'delete it and run the sweep again: it lists its points anew and keeps finished runs'
  points = files.read_json(file, list, then)
  kinds = {'id': str, 'name': str, 'seed': int, 'overrides': dict}
  for i, point in enumerate(points):
    whole = isinstance(point, dict) and all(
      key in point and isinstance(point[key], kind) for key, kind in kinds.items()
    )
    # An id is the name of a folder; a name is printed.
    named = whole and re.fullmatch(r'[0-9A-Za-z]{1,64}', point['id'])
    if not named or not point['name'].isprintable():
      raise UserError(f'{file}: entry {i} is damaged: {then}')
  return points


def costs(out: pathlib.Path) -> dict[str, dict[str, Any]]:
  """costs.json: what runs take, by id, as far as it was predicted; without damaged entries."""
  file = out / 'costs.json'
  if not file.is_file():
    return {}
  found = files.read_json(file, dict, 'delete it: it is predicted again')
  return {k: v for k, v in found.items() if isinstance(v, dict) and all(map(_is_cost, v.values()))}


def _is_cost(x: Any) -> bool:
  return isinstance(x, int | float) and not isinstance(x, bool) and 0 <= x < float('inf')


def record_costs(out: pathlib.Path, known: dict[str, dict[str, Any]]):
  """Writes costs.json. What another shard adds at this moment is lost, and predicted again."""
  files.write_json(out / 'costs.json', {**costs(out), **known})


def check_data(out: pathlib.Path, points: list[Point]):
  """Raises UserError where there is no prepared data, or a run began on other data."""
  contents = {path: _content(path) for path in {p.config.data.path for p in points}}
  for point in points:
    file = workdir(out, point) / 'config.json'
    path = point.config.data.path
    if not file.is_file():
      continue
    then = 'delete the folder of the run, which then starts anew'
    began = files.read_json(file, dict, then)
    if not isinstance(began.get('data_content'), dict) or 'identity' not in began:
      raise UserError(f'{file}: does not say what the run is: {then}')
    if began['data_content'] != contents[path]:
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
    splits = files.read_json(file, dict, 'build the folder again')['splits']
    return {name: split['content_sha256'] for name, split in splits.items()}
  except (KeyError, TypeError, AttributeError) as e:
    raise UserError(f'{file}: damaged ({e}): build the folder again') from e


# Failures: a file in the run's folder, so that shards that share DIR never write one file.


def record_failure(out: pathlib.Path, point: Point, how: str, last: str, attempts: int):
  """Writes failed.json of a run: how its process ended and the last line that it printed."""
  folder = workdir(out, point)
  content = {
    'id': point.id,
    'name': point.name,
    'seed': point.config.seed,
    'how': how,
    'last_line': last,
    'log': str(folder / 'log.txt'),
    'attempts': attempts,
  }
  files.write_json(folder / 'failed.json', content)


def failure(out: pathlib.Path, point: Point) -> dict[str, Any] | None:
  """failed.json of a run whose last attempt failed and that has not finished since."""
  file = workdir(out, point) / 'failed.json'
  if not file.is_file() or result(out, point):
    return None
  found = files.read_json(file, dict, 'delete it, it only says how an attempt failed')
  if not {'how', 'last_line', 'log'} <= found.keys():
    raise UserError(f'{file}: does not say how the run failed: delete it')
  return found


def forgive(out: pathlib.Path, point: Point):
  """A run has finished: how it failed before is of no interest."""
  (workdir(out, point) / 'failed.json').unlink(missing_ok=True)


# A run is locked by its process for as long as that lives, whoever started it.


def take(out: pathlib.Path, point: Point) -> files.Lock | None:
  """Locks a run, whose folder is made if need be; None where another process has it."""
  folder = workdir(out, point)
  folder.mkdir(parents=True, exist_ok=True)
  lock = files.Lock(folder / 'lock')
  with _locks_needed(folder):
    return lock if lock.take() else None


@contextlib.contextmanager
def _locks_needed(folder: pathlib.Path) -> Iterator[None]:
  try:
    yield
  except OSError as e:
    if files.mendable(e):
      raise
    raise UserError(f'{folder}: {e.strerror}: put --out on a file system with locks') from e


def state(out: pathlib.Path, point: Point) -> str:
  """'done', 'running', 'failed' or 'to do'."""
  if result(out, point):
    return 'done'
  with _locks_needed(workdir(out, point)):
    if files.is_locked(workdir(out, point) / 'lock'):
      return 'running'
  return 'failed' if failure(out, point) else 'to do'


def listing(out: pathlib.Path, points: list[Point]) -> str:
  """A line for every point; of a failed one how it failed."""
  width, lines = max(len(p.name) for p in points), []
  for p in points:
    now = state(out, p)
    lines.append(f'{p.id}  {p.name:<{width}}  {now:<7}  {written(p.overrides)}')
    if now == 'failed':
      said = failure(out, p)
      lines[-1] += f'  ({said["how"]}: {said["last_line"]}, log at {said["log"]})'
  return '\n'.join(lines)


def progress(out: pathlib.Path, point: Point) -> tuple[int, float | None]:
  """Steps done and the last validation AUC by metrics.jsonl; 0 and None before there are any."""
  step, auc = 0, None
  for line in _tail(workdir(out, point) / 'metrics.jsonl').splitlines():
    try:
      entry = json.loads(line)
      step = max(step, entry['step'])
      auc = entry['auc'] if entry['split'] == 'validation' else auc
    except (ValueError, KeyError, TypeError):  # cut at the front, or being written
      continue
  return step, auc


def _tail(file: pathlib.Path) -> str:
  """The end of a file that may be long."""
  try:
    with file.open('rb') as f:
      f.seek(max(0, f.seek(0, os.SEEK_END) - 2**16))
      return f.read().decode(errors='replace')
  except OSError:
    return ''
