# SPDX-License-Identifier: Apache-2.0
"""Groups rows by user, out of core, and finds every row's history.

An external shuffle: one kind of task sorts the rows of a few chunks by bucket, another gathers the
rows of a bucket and sorts them. A bucket is a range of the hashed users, so the order of all rows
is by (hashed user, time, order in the raw files), for any number of buckets. A user is never cut:
a task needs the memory of a bucket, or of the rows of its largest user.
"""

import dataclasses
from pathlib import Path

import msgspec
import numpy as np

from data_pipelines.core import columns_file
from data_pipelines.core.files import read_result, write_result
from data_pipelines.core.progress import Progress
from data_pipelines.core.workers import cut_runs
from data_pipelines.datasets.kuairand.fields import (
  FIELDS,
  SHARED,
  calendar,
  duration_bucket,
  feedback_ids,
)
from data_pipelines.datasets.kuairand.logs import STORED
from data_pipelines.datasets.kuairand.side_tables import SideTable, join
from data_pipelines.prepared.dataset import BuildContext
from data_pipelines.text.ingest import Ingested, key_arrays

BUCKET_ROWS = 1 << 20  # rows of a bucket, about
_SHUFFLED_ROWS = 1 << 20  # that a task sorts by bucket, about
# Odd, so that no two users have the same product modulo 2^64; 2^64 / golden ratio spreads runs
# of neighbouring numbers evenly.
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


def hashed(user_N: np.ndarray) -> np.ndarray:
  """Returns one-to-one hashes of users: uint64."""
  return user_N.astype(np.uint64) * _FACTOR


def bucket_count(rows: int) -> int:
  """Returns the number of buckets for this many rows."""
  return max(1, -(-rows // BUCKET_ROWS))


def _buckets(user_N: np.ndarray, buckets: int) -> np.ndarray:
  """Returns the bucket of each user; bucket b is the b-th of `buckets` equal ranges of hashes."""
  return ((hashed(user_N) >> np.uint64(32)) * np.uint64(buckets)) >> np.uint64(32)


@dataclasses.dataclass(frozen=True)
class _ShuffleTask:
  files: tuple[Path, ...]
  rows: tuple[int, ...]
  buckets: int
  out: Path


_NAMES = ('label', *(f'key{k}' for k in range(len(STORED))))  # columns of a file of keys


def _concatenate(parts: list[list[np.ndarray]]) -> dict[str, np.ndarray]:
  """Joins parts, each with the columns _NAMES."""
  empty = [np.zeros(0, np.uint8 if name == 'label' else np.int64) for name in _NAMES]
  columns = zip(*(parts or [empty]), strict=True)
  return dict(zip(_NAMES, map(np.concatenate, columns), strict=True))


def _shuffle(task: _ShuffleTask) -> int:
  """Sorts the rows of some chunks by bucket; removes the chunks; returns the number of rows."""
  if not task.out.exists():
    parts = []
    for path, rows in zip(task.files, task.rows, strict=True):
      if rows:
        with columns_file.Reader(path) as file:
          parts.append([file.read(name) for name in _NAMES])
    columns = _concatenate(parts)
    bucket_N = _buckets(columns['key0'], task.buckets)
    order = np.argsort(bucket_N, kind='stable')
    start = np.searchsorted(bucket_N[order], np.arange(task.buckets + 1).astype(np.uint64))
    arrays = {name: column[order] for name, column in columns.items()}
    columns_file.write(task.out, {'start': start, **arrays})
  for path in task.files:
    path.unlink(missing_ok=True)
  return sum(task.rows)


@dataclasses.dataclass(frozen=True)
class _BucketTask:
  files: tuple[Path, ...]  # written by _shuffle
  bucket: int
  length: int  # of a behaviour sequence
  users: SideTable
  videos: SideTable
  keys: Path
  times: Path

  @property
  def result(self) -> Path:
    """File of the result; shows that the bucket is done even when its keys are gone."""
    return self.keys.with_name(f'{self.keys.name}.json')


class _BucketResult(msgspec.Struct):
  rows: int
  groups: int
  events: int


def _gather(task: _BucketTask) -> dict[str, np.ndarray]:
  """Returns the columns STORED and `label` of a bucket's rows, in their final order."""
  parts = []
  for path in task.files:
    with columns_file.Reader(path) as file:
      start, stop = file.read('start', task.bucket, task.bucket + 2).tolist()
      if start < stop:
        parts.append([file.read(name, start, stop) for name in _NAMES])
  columns = dict(zip(('label', *STORED), _concatenate(parts).values(), strict=True))
  order = np.lexsort((columns['time_ms'], hashed(columns['user_id'])))  # stable
  return {name: column[order] for name, column in columns.items()}


def histories(
  user_N: np.ndarray, time_N: np.ndarray, event_N: np.ndarray, length: int
) -> tuple[np.ndarray, np.ndarray]:
  """Finds the events that make the sequence of each row.

  Args:
    user_N: each user's rows lie together.
    time_N: does not fall within a user.
    event_N: bool, which rows are events; events are numbered in order.

  Returns:
    First event and end, int64: the last `length` events of the row's user before its time.
  """
  number_N = np.arange(len(user_N))
  new_user_N = np.diff(user_N, prepend=user_N[:1]) != 0
  new_time_N = new_user_N | (np.diff(time_N, prepend=time_N[:1]) != 0)
  # Rows of the same time do not see each other: the history ends before the first of them.
  first_of_user_N = np.maximum.accumulate(np.where(new_user_N, number_N, 0))
  first_of_time_N = np.maximum.accumulate(np.where(new_time_N, number_N, 0))
  before_N = np.cumsum(event_N) - event_N
  end_N = before_N[first_of_time_N]
  return np.maximum(before_N[first_of_user_N], end_N - length), end_N


def _columns(task: _BucketTask, rows: dict[str, np.ndarray], group_N: np.ndarray):
  """Yields the key column of each of FIELDS, in order."""
  first_G = np.searchsorted(group_N, np.arange(group_N[-1] + 1))
  user_G = rows['user_id'][first_G]
  rising = np.argsort(user_G)
  of_row_N = np.argsort(rising)[group_N]
  of_user = join(task.users, user_G[rising])
  video_U, place_N = np.unique(rows['video_id'], return_inverse=True)
  of_video = join(task.videos, video_U)
  known = {
    **{name: rows[name] for name in ('user_id', 'video_id', 'tab')},
    **calendar(rows['time_ms']),
    'duration': duration_bucket(rows['duration_ms']),
  }
  none_missing_N = np.zeros(len(group_N), bool)
  for name in FIELDS:
    if name in known:
      yield known[name], none_missing_N
    elif name in of_video:
      yield tuple(column_U[place_N] for column_U in of_video[name])
    else:
      yield tuple(column_U[of_row_N] for column_U in of_user[name])


def _build_bucket(task: _BucketTask) -> _BucketResult:
  """Writes the keys of a bucket, and its times in the order of rows and sorted; a task."""
  if task.result.exists():
    return read_result(task.result, _BucketResult)
  rows = _gather(task)
  user_N, time_N, feedback_N = (rows[name] for name in ('user_id', 'time_ms', 'feedback'))
  event_N = feedback_N > 0
  arrays, groups = {'label': rows['label']}, 0
  if len(user_N):
    group_N = np.cumsum(np.diff(user_N, prepend=user_N[:1]) != 0)
    groups = int(group_N[-1]) + 1
    begin_N, end_N = histories(user_N, time_N, event_N, task.length)
    arrays = key_arrays(rows['label'], _columns(task, rows, group_N)) | {
      'event_row': np.flatnonzero(event_N),
      'begin': begin_N.astype(np.int32),
      'count': (end_N - begin_N).astype(np.uint16),
      'time': time_N.astype(np.int64),
      'group': group_N.astype(np.int32),
      f'attribute{len(SHARED)}': feedback_ids(feedback_N[event_N]),
    }
  columns_file.write(task.keys, arrays)
  columns_file.write(task.times, {'time': time_N, 'sorted': np.sort(time_N)})
  result = _BucketResult(len(user_N), groups, int(event_N.sum()))
  write_result(task.result, result)
  return result


@dataclasses.dataclass(frozen=True)
class ByUser:
  """The rows of all users, in files of keys.

  Attributes:
    ingested: the files of keys, for `encoding`.
    times: for each file of keys a file of its rows' times: `time`, and the same `sorted`.
    events: number of rows with positive feedback.
  """

  ingested: Ingested
  times: tuple[Path, ...]
  events: int


def group_by_user(
  logs: Ingested, length: int, users: SideTable, videos: SideTable, context: BuildContext
) -> ByUser:
  """Groups ingested logs by user and joins the side tables, which must be built.

  Args:
    length: events of a behaviour sequence.
  """
  buckets = bucket_count(logs.total)
  # With another number of buckets the files are others.
  folders = {name: context.work / f'{name}-{buckets}' for name in ('shuffled', 'users', 'times')}
  for folder in folders.values():
    folder.mkdir(exist_ok=True)
  shuffles = [
    _ShuffleTask(
      logs.files[first:last], logs.rows[first:last], buckets, folders['shuffled'] / f'{k:06d}'
    )
    for k, (first, last) in enumerate(cut_runs(logs.rows, _SHUFFLED_ROWS))
  ]
  files = tuple(task.out for task in shuffles)
  tasks = [
    _BucketTask(
      files, b, length, users, videos, folders['users'] / f'{b:06d}', folders['times'] / f'{b:06d}'
    )
    for b in range(buckets)
  ]
  if not all(task.result.exists() for task in tasks):
    with Progress(context.log, 'shuffling', logs.total) as progress:
      for rows in context.workers.map(_shuffle, shuffles):
        progress.add(rows)
  results = []
  with Progress(context.log, 'sorting by user', logs.total) as progress:
    for result in context.workers.map(_build_bucket, tasks):
      results.append(result)
      progress.add(result.rows)
  for path in files:
    path.unlink(missing_ok=True)
  ingested = dataclasses.replace(
    logs,
    files=tuple(task.keys for task in tasks),
    rows=tuple(result.rows for result in results),
    groups=tuple(result.groups for result in results),
  )
  assert ingested.total == logs.total, f'{logs.total} rows, {ingested.total} by user'
  events = sum(result.events for result in results)
  return ByUser(ingested, tuple(task.times for task in tasks), events)
