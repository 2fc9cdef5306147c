# SPDX-License-Identifier: Apache-2.0
"""Brings the rows of each user together, out of core, and finds every row's past.

An external shuffle: rows of some chunks are laid out by bucket (one task), then the rows of a
bucket are gathered and sorted (another). A bucket is a range of the hashed users, so the order of
all rows is by (hashed user, time, order in the raw files), however many buckets there are. A user
is never cut: the memory of a task is that of a bucket, or of the rows of its largest user.
"""

import dataclasses
import itertools
import json
import os
from pathlib import Path

import numpy as np

from data_pipelines.core import columns_file
from data_pipelines.core.progress import Progress
from data_pipelines.datasets.kuairand.fields import (
  FIELDS,
  SHARED,
  calendar,
  duration_bucket,
  feedback_ids,
)
from data_pipelines.datasets.kuairand.logs import KEPT
from data_pipelines.datasets.kuairand.side_tables import SideTable, join
from data_pipelines.prepared.dataset import BuildContext
from data_pipelines.text.ingest import Ingested, key_arrays

BUCKET_ROWS = 1 << 20  # rows of a bucket, about
_SHUFFLED_ROWS = 1 << 20  # that a task lays out, about
# Odd, so that no two users have the same product modulo 2^64; 2^64 / golden ratio spreads runs
# of neighbouring numbers evenly.
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


def hashed(user_N: np.ndarray) -> np.ndarray:
  """A one-to-one scattering of users: uint64."""
  return user_N.astype(np.uint64) * _FACTOR


def bucket_count(rows: int) -> int:
  """Into how many buckets so many rows go."""
  return max(1, -(-rows // BUCKET_ROWS))


def _buckets(user_N: np.ndarray, buckets: int) -> np.ndarray:
  """Bucket b holds the b-th of `buckets` equal ranges of hashes."""
  return ((hashed(user_N) >> np.uint64(32)) * np.uint64(buckets)) >> np.uint64(32)


@dataclasses.dataclass(frozen=True)
class _ShuffleTask:
  files: tuple[Path, ...]
  rows: tuple[int, ...]
  buckets: int
  out: Path


def _names() -> tuple[str, ...]:
  return ('label', *(f'key{k}' for k in range(len(KEPT))))


def _concatenate(parts: list[list[np.ndarray]]) -> dict[str, np.ndarray]:
  names = _names()
  if not parts:
    return {name: np.zeros(0, np.uint8 if name == 'label' else np.int64) for name in names}
  return {
    name: np.concatenate(columns)
    for name, columns in zip(names, zip(*parts, strict=True), strict=True)
  }


def _shuffle(task: _ShuffleTask) -> int:
  """Lays out the rows of some chunks by bucket; removes the chunks; returns the rows."""
  if not task.out.exists():
    parts = []
    for path, rows in zip(task.files, task.rows, strict=True):
      if rows:
        with columns_file.Reader(path) as file:
          parts.append([file.read(name) for name in _names()])
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
  files: tuple[Path, ...]  # that _shuffle made
  bucket: int
  length: int  # of a behaviour sequence
  users: SideTable
  videos: SideTable
  keys: Path
  times: Path


def _done(task: _BucketTask) -> Path:
  """Says that a bucket is done, even when its keys are no longer needed and gone."""
  return task.keys.with_name(f'{task.keys.name}.json')


def _gather(task: _BucketTask) -> dict[str, np.ndarray]:
  """The rows of a bucket, by KEPT and `label`, in their order."""
  parts = []
  for path in task.files:
    with columns_file.Reader(path) as file:
      start, stop = file.read('start', task.bucket, task.bucket + 2).tolist()
      if start < stop:
        parts.append([file.read(name, start, stop) for name in _names()])
  columns = dict(zip(('label', *KEPT), _concatenate(parts).values(), strict=True))
  order = np.lexsort((columns['time_ms'], hashed(columns['user_id'])))  # stable
  return {name: column[order] for name, column in columns.items()}


def histories(
  user_N: np.ndarray, time_N: np.ndarray, event_N: np.ndarray, length: int
) -> tuple[np.ndarray, np.ndarray]:
  """Which events make the sequence of each row.

  Args:
    user_N: each user's rows stand together.
    time_N: does not fall within a user.
    event_N: bool, which rows are events; these are numbered in order.

  Returns:
    First event and end, int64: the last `length` events of the row's user before its time.
  """
  number_N = np.arange(len(user_N))
  new_user_N = np.diff(user_N, prepend=user_N[:1]) != 0
  new_time_N = new_user_N | (np.diff(time_N, prepend=time_N[:1]) != 0)
  # Rows of the same time do not see each other: the past ends where the first of them stands.
  first_of_user_N = np.maximum.accumulate(np.where(new_user_N, number_N, 0))
  first_of_time_N = np.maximum.accumulate(np.where(new_time_N, number_N, 0))
  before_N = np.cumsum(event_N) - event_N
  end_N = before_N[first_of_time_N]
  return np.maximum(before_N[first_of_user_N], end_N - length), end_N


def _columns(task: _BucketTask, rows: dict[str, np.ndarray], group_N: np.ndarray):
  """Keys and missing ones of all FIELDS, in order."""
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
  nothing_N = np.zeros(len(group_N), bool)
  for name in FIELDS:
    if name in known:
      yield known[name], nothing_N
    elif name in of_video:
      yield tuple(column_U[place_N] for column_U in of_video[name])
    else:
      yield tuple(column_U[of_row_N] for column_U in of_user[name])


def _build_bucket(task: _BucketTask) -> dict[str, int]:
  """Makes the keys of a bucket; returns how many rows, groups and events it has.

  The times stay in files of their own: those by rank and those in the order of rows.
  """
  meta = _done(task)
  if meta.exists():
    return json.loads(meta.read_bytes())
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
      f'own{len(SHARED)}': feedback_ids(feedback_N[event_N]),
    }
  columns_file.write(task.keys, arrays)
  columns_file.write(task.times, {'time': time_N, 'sorted': np.sort(time_N)})
  counts = {'rows': len(user_N), 'groups': groups, 'events': int(event_N.sum())}
  temporary = meta.with_name(f'{meta.name}.{os.getpid()}.tmp')
  temporary.write_text(json.dumps(counts))
  os.replace(temporary, meta)
  return counts


@dataclasses.dataclass(frozen=True)
class ByUser:
  """The rows of all users, in files of keys.

  Attributes:
    ingested: what `encoding` reads.
    times: a file a file of keys: `time` of its rows, and the same, `sorted`.
    events: rows with positive feedback.
  """

  ingested: Ingested
  times: tuple[Path, ...]
  events: int


def bring_together(
  logs: Ingested, length: int, users: SideTable, videos: SideTable, context: BuildContext
) -> ByUser:
  """From ingested logs to rows by user, with what is known of users and videos.

  Args:
    length: events of a behaviour sequence.
    users, videos: were built.
  """
  buckets = bucket_count(logs.total)
  # Another version's buckets are other files.
  folders = {name: context.work / f'{name}-{buckets}' for name in ('shuffled', 'users', 'times')}
  for folder in folders.values():
    folder.mkdir(exist_ok=True)
  spans = _spans(logs.rows)
  shuffles = [
    _ShuffleTask(
      logs.files[first:last], logs.rows[first:last], buckets, folders['shuffled'] / f'{k:06d}'
    )
    for k, (first, last) in enumerate(spans)
  ]
  files = tuple(task.out for task in shuffles)
  tasks = [
    _BucketTask(
      files, b, length, users, videos, folders['users'] / f'{b:06d}', folders['times'] / f'{b:06d}'
    )
    for b in range(buckets)
  ]
  if not all(_done(task).exists() for task in tasks):
    progress = Progress(context.log, 'shuffling', logs.total)
    for rows in context.workers.map(_shuffle, shuffles):
      progress.add(rows)
    progress.done()
  progress, counts = Progress(context.log, 'sorting by user', logs.total), []
  for count in context.workers.map(_build_bucket, tasks):
    counts.append(count)
    progress.add(count['rows'])
  progress.done()
  for path in files:
    path.unlink(missing_ok=True)
  ingested = dataclasses.replace(
    logs,
    files=tuple(task.keys for task in tasks),
    rows=tuple(count['rows'] for count in counts),
    groups=tuple(count['groups'] for count in counts),
  )
  assert ingested.total == logs.total, f'{logs.total} rows, {ingested.total} by user'
  events = sum(count['events'] for count in counts)
  return ByUser(ingested, tuple(task.times for task in tasks), events)


def _spans(rows: tuple[int, ...]) -> list[tuple[int, int]]:
  """Runs of neighbouring files, [first, last), of about _SHUFFLED_ROWS rows."""
  ends = list(itertools.accumulate(rows))
  cuts = [0]
  for i, end in enumerate(ends):
    if end - (ends[cuts[-1] - 1] if cuts[-1] else 0) >= _SHUFFLED_ROWS or i == len(ends) - 1:
      cuts.append(i + 1)
  return list(itertools.pairwise(cuts))
