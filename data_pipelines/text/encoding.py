# SPDX-License-Identifier: Apache-2.0
"""Encodes keys: builds vocabularies from the training rows, looks up ids, sorts rows by shard.

Memory never holds all rows. A task builds the vocabulary of one field, or encodes one group of
chunks and sorts its rows by output position, so that a shard can collect its own rows from every
group with one read each. Only the output order is one file: 4 bytes a row, or 8 where there are
more rows than uint32 can number.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data_pipelines.core import columns_file
from data_pipelines.core.progress import Progress
from data_pipelines.core.workers import cut_runs
from data_pipelines.prepared import vocabulary
from data_pipelines.prepared.dataset import BuildContext, Encoded, FieldInfo, head_and_torso
from data_pipelines.prepared.schema import FIRST_TOKEN_ID, SPLITS, Group, RecordShape
from data_pipelines.text import sequences
from data_pipelines.text.encoded_rows import EncodedRows, Plan, borders_of
from data_pipelines.text.ingest import Ingested, TextProtocol, read_keys, read_missing

_GROUP_ROWS = 1 << 18  # rows that a worker encodes at a time, about
_TURN_ROWS = 1 << 15  # rows whose columns are turned into rows at a time
_UINT32_ROWS = 1 << 32  # from here on, row numbers need 64 bits

SplitRows = Callable[[int], dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class _FieldTask:
  protocol: TextProtocol
  ingested: Ingested
  field: int
  positions: Path
  train_rows: int
  min_count: int
  folder: Path
  out: Path


def _starts(rows: tuple[int, ...]) -> list[int]:
  return list(itertools.accumulate(rows, initial=0))


def _build_field(task: _FieldTask) -> FieldInfo:
  """Counts a field on the training rows; writes its vocabulary and its keys to files."""
  name, hash_size = task.protocol.fields[task.field], task.protocol.hash_size(task.field)
  if not task.out.exists():
    counter, missing = _count(task)
    tokens_U = task.protocol.tokens(task.field, counter.keys_U)
    keys_V, tokens_V = vocabulary.rank(counter.keys_U, counter.counts_U, tokens_U, task.min_count)
    text = np.frombuffer(vocabulary.text_of(tokens_V.tolist()), np.uint8)
    counts_V = counter.counts_U[np.searchsorted(counter.keys_U, keys_V)]
    arrays = {'keys': keys_V, 'counts': counts_V, 'missing': np.array([missing]), 'text': text}
    columns_file.write(task.out, arrays)
  with columns_file.Reader(task.out) as file:
    missing_rate = int(file.read('missing')[0]) / task.train_rows
    if hash_size is not None:
      return FieldInfo(name, hash_size + FIRST_TOKEN_ID, 0, missing_rate, hashed=True)
    missing_kept = task.protocol.missing_kept[task.field]
    vocabulary.write_vocabulary(task.folder, name, file.read('text').tobytes())
    size = len(file.read('keys')) + FIRST_TOKEN_ID
  return FieldInfo(name, size, task.min_count, missing_rate, missing_kept=missing_kept)


def _count(task: _FieldTask) -> tuple[vocabulary.Counter, int]:
  """Counts the keys of a field in the training rows (none if hashed), and its missing values."""
  counter, missing = vocabulary.Counter(), 0
  hashed = task.protocol.hash_size(task.field) is not None
  position_N = np.load(task.positions, mmap_mode='r', allow_pickle=False)
  starts = _starts(task.ingested.rows)
  for path, rows, start in zip(task.ingested.files, task.ingested.rows, starts, strict=False):
    if not rows:
      continue
    with columns_file.Reader(path) as file:
      missing_N = read_missing(file, task.field, rows)
      keys_N = None if hashed else read_keys(file, task.field)
    train_N = position_N[start : start + rows] < task.train_rows
    if missing_N is not None:
      missing += int(np.count_nonzero(missing_N & train_N))
      if not task.protocol.missing_kept[task.field]:
        train_N &= ~missing_N
    if keys_N is not None:
      counter.add(keys_N[train_N])
  counter.flush()
  return counter, missing


def _state(path: Path) -> tuple[int, int, int]:
  """Identifies a version of a file."""
  state = path.stat()
  return state.st_ino, state.st_size, state.st_mtime_ns


@functools.lru_cache(maxsize=1)
def _lookups(
  files: tuple[Path, ...],
  hash_sizes: tuple[int | None, ...],
  states: tuple[tuple[int, int, int], ...],
) -> list[vocabulary.Lookup | vocabulary.Hashed]:
  """Returns the lookup of each field; a worker process makes them once.

  Args:
    states: versions of the files; they change if the process outlives a build of the same folder.
  """
  del states
  lookups = []
  for path, hash_size in zip(files, hash_sizes, strict=True):
    if hash_size is not None:
      lookups.append(vocabulary.Hashed(hash_size))
      continue
    with columns_file.Reader(path) as file:
      lookups.append(vocabulary.Lookup(file.read('keys')))
  return lookups


@dataclasses.dataclass(frozen=True)
class _GroupTask:
  plan: Plan
  files: tuple[Path, ...]
  rows: tuple[int, ...]
  start: int  # number of the first row
  first_groups: tuple[int, ...]  # number of each file's first group, where rows have groups
  out: Path


def _encode_group(task: _GroupTask) -> np.ndarray:
  """Encodes a group of chunks; returns how many of its rows come before each border.

  Removes the chunks' files, so that the disk never holds two copies of all rows.
  """
  if not task.out.exists():
    columns_file.write(task.out, _encode_rows(task))
  for path in task.files:
    path.unlink(missing_ok=True)
  with columns_file.Reader(task.out) as file:
    position_N = file.read('position')
  before = np.searchsorted(position_N, np.array(task.plan.borders, position_N.dtype))
  return before.astype(np.int64)


def _encode_rows(task: _GroupTask) -> dict[str, np.ndarray]:
  """Returns the rows of a group by rising position.

  Returns:
    `position`, `label`, ids as `small` and `large`, and the behaviour sequences (see sequences).
  """
  plan, rows = task.plan, sum(task.rows)
  lookups = _lookups(plan.lookups, plan.hash_sizes, tuple(map(_state, plan.lookups)))
  positions_N = np.load(plan.positions, mmap_mode='r', allow_pickle=False)
  position_N = positions_N[task.start : task.start + rows]
  order = np.argsort(position_N)
  place_N = np.empty(rows, np.int64)
  place_N[order] = np.arange(rows)
  parts = {
    'small': (plan.small, np.empty((rows, len(plan.small)), np.uint16)),
    'large': (plan.large, np.empty((rows, len(plan.large)), np.int32)),
  }
  label_N = np.empty(rows, np.uint8)
  collector = sequences.Collector(plan.events, rows) if plan.events is not None else None
  for i, (path, count, first) in enumerate(
    zip(task.files, task.rows, _starts(task.rows), strict=False)
  ):
    if not count:
      continue
    with columns_file.Reader(path) as file:
      label_N[place_N[first : first + count]] = file.read('label')
      if collector is not None:
        collector.add(file, place_N[first : first + count], task.first_groups[i])
      columns = [(read_keys(file, f), read_missing(file, f, count)) for f in range(len(lookups))]
    # Columns of a few rows at a time are turned into rows while they are in the cache.
    for start in range(0, count, _TURN_ROWS):
      part = slice(start, min(start + _TURN_ROWS, count))
      place = place_N[first + start : first + part.stop]
      for fields, out in parts.values():
        ids_FM = np.empty((len(fields), len(place)), out.dtype)
        for i, f in enumerate(fields):
          keys_N, missing_N = columns[f]
          drop = missing_N is not None and not plan.missing_kept[f]
          ids_FM[i] = lookups[f].encode(keys_N[part], missing_N[part] if drop else None)
        out[place] = np.ascontiguousarray(ids_FM.T)
  arrays = {name: out for name, (_, out) in parts.items()}
  if collector is not None:
    column = {f: (name, i) for name, (fields, _) in parts.items() for i, f in enumerate(fields)}
    arrays |= collector.arrays(lambda f: parts[column[f][0]][1][:, column[f][1]])
  return {'position': position_N[order], 'label': label_N, **arrays}


def encode(
  protocol: TextProtocol,
  ingested: Ingested,
  split_rows: SplitRows,
  min_count: int,
  context: BuildContext,
) -> Encoded:
  """Splits, counts, encodes and shuffles ingested rows.

  Args:
    split_rows: number of rows to the row numbers of each split, in the order in which they will
      be written. A pure function.
    min_count: see vocabulary.rank.
  """
  split_counts, positions = _order(split_rows, ingested.total, context)
  folder = context.work / 'fields'
  folder.mkdir(exist_ok=True)
  train_rows = split_counts['train']
  tasks = [
    _FieldTask(
      protocol, ingested, f, positions, train_rows, min_count, context.folder, folder / f'{f}'
    )
    for f in range(len(protocol.fields))
  ]
  fields = []
  with Progress(context.log, 'counting', ingested.total) as progress:
    for info in context.workers.map(_build_field, tasks):
      fields.append(info)
      progress.add(ingested.total // len(tasks))
    progress.rows = ingested.total
  sizes = [info.vocab_size for info in fields]
  plan = Plan(
    lookups=tuple(task.out for task in tasks),
    small=tuple(f for f, size in enumerate(sizes) if size <= 1 << 16),
    large=tuple(f for f, size in enumerate(sizes) if size > 1 << 16),
    hash_sizes=tuple(protocol.hash_size(f) for f in range(len(fields))),
    missing_kept=protocol.missing_kept,
    positions=positions,
    borders=borders_of(split_counts),
    events=protocol.events,
  )
  source = _encode_all(plan, ingested, split_counts, context)
  encoded = Encoded(
    tuple(fields),
    source,
    ingested.raw_files,
    ingested.rows_read,
    recipes=None if protocol.recipes is None else dict(protocol.recipes),
  )
  return _with_events(encoded, protocol, ingested, plan, context) if protocol.events else encoded


def _with_events(
  encoded: Encoded, protocol: TextProtocol, ingested: Ingested, plan: Plan, context: BuildContext
) -> Encoded:
  """Adds sequences, groups and items; writes the vocabularies of attributes with their own ids."""
  spec = protocol.events
  for attribute in spec.attributes:
    if attribute.field is None:
      text = vocabulary.text_of(list(attribute.tokens))
      vocabulary.write_vocabulary(context.folder, attribute.name, text)
  with columns_file.Reader(plan.lookups[spec.item]) as file:
    counts_V = file.read('counts')
  return dataclasses.replace(
    encoded,
    sequence=sequences.describe_sequence(spec, encoded.fields),
    group=Group(encoded.fields[spec.group].name, sum(ingested.groups)),
    items=head_and_torso(encoded.fields[spec.item].name, counts_V),
  )


def _order(split_rows: SplitRows, rows: int, context: BuildContext) -> tuple[dict[str, int], Path]:
  """Returns the rows of each split and a file of each row's position in the output order."""
  order = split_rows(rows)
  path = context.work / 'positions.npy'
  position_N = np.empty(rows, np.uint32 if rows < _UINT32_ROWS else np.uint64)
  start = 0
  for split in SPLITS:
    numbers = order[split]
    position_N[numbers] = np.arange(start, start + len(numbers), dtype=position_N.dtype)
    start += len(numbers)
  assert start == rows, f'{rows} rows, {start} in the splits'
  np.save(path, position_N)
  return {split: len(order[split]) for split in SPLITS}, path


def _encode_all(
  plan: Plan, ingested: Ingested, rows: dict[str, int], context: BuildContext
) -> EncodedRows:
  folder = context.work / 'groups'
  folder.mkdir(exist_ok=True)
  starts, first_groups = _starts(ingested.rows), tuple(_starts(ingested.groups))
  tasks = [
    _GroupTask(
      plan,
      ingested.files[first:last],
      ingested.rows[first:last],
      starts[first],
      first_groups[first:last],
      folder / f'{k:06d}',
    )
    for k, (first, last) in enumerate(cut_runs(ingested.rows, _GROUP_ROWS))
  ]
  before = []
  with Progress(context.log, 'encoding', ingested.total) as progress:
    for task, counts in zip(tasks, context.workers.map(_encode_group, tasks), strict=True):
      before.append(counts)
      progress.add(sum(task.rows))
  np.save(context.work / 'before.npy', np.stack(before))
  spec = plan.events
  shape = RecordShape(fields=len(plan.lookups))
  if spec is not None:
    shape = RecordShape(len(plan.lookups), spec.length, len(spec.attributes), grouped=True)
  files = tuple(task.out for task in tasks)
  return EncodedRows(shape, rows, plan, files, context.work / 'before.npy')
