# SPDX-License-Identifier: Apache-2.0
"""First pass over raw text: rows become keys (numbers), kept as columns, a file a chunk.

Chunks are cut by the raw bytes alone, so they and all that follows are the same whatever the
number of workers; a chunk whose file is there already was parsed by an earlier, stopped build.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from data_pipelines.core import columns_file
from data_pipelines.core.errors import UserError
from data_pipelines.core.progress import Progress
from data_pipelines.prepared.dataset import BuildContext
from data_pipelines.prepared.recipes import Recipe
from data_pipelines.prepared.rejects import BadLine
from data_pipelines.text import parser, row_checks
from data_pipelines.text.chunks import Chunk, RawFile
from data_pipelines.text.parser import INTEGER, Parsed, TextTable
from data_pipelines.text.row_checks import Fall, Span
from data_pipelines.text.sequences import EventSpec

CHUNK_BYTES = 8 << 20  # of text: what a worker holds at a time
_PARSE_BYTES = 1 << 18  # parsed at a time, so that the values stay in a core's cache
HOPELESS_LINES = 1000  # so many lines without one valid row: this is another kind of file


@dataclasses.dataclass(frozen=True)
class TextProtocol:
  """How the rows of a text become keys and keys become tokens. Must be picklable.

  Attributes:
    table: layout of the text.
    fields: names of the fields.
    keys: rows to, for each field, integer keys [rows] and which are missing (bool [rows]).
    missing_kept: whether its missing values are a key like any other; else it has
      no token.
    tokens: (field, ascending distinct keys) to their tokens, a NumPy array of bytes.
    expected: what a file should look like, for people.
    hash_sizes: by field, how many ids a hashed field has: its keys are 32-bit hashes, an id is
      FIRST_TOKEN_ID + key modulo this; None: its ids come from a vocabulary. Empty: no field is
      hashed.
    faults: rows whose values cannot be, by number, and why; they are rejected.
    ordered_by: an integer column whose values must not fall from a valid row to the next.
    events: the behaviour sequences, where there are any.
    recipes: by field, and by attribute of events that has ids of its own, how its tokens are made
      of raw values, as data: tests/data_pipelines/test_raw_rows.py holds them to `keys`.
  """

  table: TextTable
  fields: tuple[str, ...]
  keys: Callable[[Parsed], list[tuple[np.ndarray, np.ndarray]]]
  missing_kept: tuple[bool, ...]
  tokens: Callable[[int, np.ndarray], np.ndarray]
  expected: str
  hash_sizes: tuple[int | None, ...] = ()
  faults: Callable[[Parsed], Mapping[int, str]] | None = None
  ordered_by: str | None = None
  events: EventSpec | None = None
  recipes: Mapping[str, Recipe] | None = None

  def hash_size(self, f: int) -> int | None:
    """Of a field; see hash_sizes."""
    return self.hash_sizes[f] if self.hash_sizes else None


@dataclasses.dataclass(frozen=True)
class Ingested:
  """Files of keys, and their rows, in the order of the raw file.

  A file holds `label` (uint8 [rows]), `key0`, `key1` ... ([rows]) and, where there are any,
  `missing0` ... (bits of [rows]). Of data with behaviour sequences it holds those too, as
  `sequences` says, and `groups` says how many groups of rows there are in each file (no group is
  in two files).
  """

  files: tuple[Path, ...]
  rows: tuple[int, ...]
  raw_files: tuple[dict, ...]
  raw_rows: tuple[int, ...]  # valid ones of each raw file
  rows_read: int
  groups: tuple[int, ...] = ()

  @property
  def total(self) -> int:
    """Valid rows."""
    return sum(self.rows)


@dataclasses.dataclass(frozen=True)
class _Task:
  protocol: TextProtocol
  chunk: Chunk
  skip_header: bool
  out: Path


def _narrow(keys: np.ndarray) -> np.ndarray:
  """The same integers in the smallest of a few types."""
  if keys.dtype == np.uint32 or not keys.size:
    return keys
  low, high = int(keys.min()), int(keys.max())
  for kind in (np.int16, np.int32):
    if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
      return keys.astype(kind)
  return keys


def key_arrays(
  label_N: np.ndarray, columns: Iterable[tuple[np.ndarray, np.ndarray]]
) -> dict[str, np.ndarray]:
  """A file of keys (see Ingested), from the keys and the missing ones of each field."""
  arrays = {'label': label_N}
  for f, (keys_N, missing_N) in enumerate(columns):
    arrays[f'key{f}'] = _narrow(keys_N)
    if missing_N.any():
      arrays[f'missing{f}'] = np.packbits(missing_N)
  return arrays


def _integer(table: TextTable, name: str) -> int:
  """Place of a column among the integer ones."""
  return [table.columns[k].name for k in table.positions(INTEGER)].index(name)


def _parse(task: _Task) -> tuple[int, int, list[BadLine], Span | None]:
  """Parses a chunk into its file.

  Returns:
    Lines, valid rows, rejected lines, and how the ordered column runs (None where there is none
    or no valid row). Lines are numbered from 1.
  """
  meta = task.out.with_name(f'{task.out.name}.json')
  if meta.exists():
    lines, valid, bad, span = json.loads(meta.read_bytes())
    bad_lines = [BadLine(n, why, raw.encode('latin-1')) for n, why, raw in bad]
    return lines, valid, bad_lines, span and Span(*span[:3], span[3] and Fall(*span[3]))
  data = task.chunk.read()
  protocol, span = task.protocol, None
  lines = start = 0
  if task.skip_header:
    lines, start = 1, data.find(b'\n') + 1 or len(data)
  parts, bad_lines = [], []
  while start < len(data):
    end = data.rfind(b'\n', start, start + _PARSE_BYTES) + 1
    end = end or data.find(b'\n', start) + 1 or len(data)  # a long line; the last one
    part = data[start:end]
    parsed, bad, count = parser.parse(protocol.table, part, 1 + lines)
    if protocol.faults is not None:
      faults = protocol.faults(parsed)
      parsed, bad = row_checks.reject_rows(parsed, bad, faults, part, 1 + lines, count)
    if protocol.ordered_by is not None and len(parsed.label_N):
      values_N = parsed.ints_NI[:, _integer(protocol.table, protocol.ordered_by)]
      line_N = row_checks.line_numbers(bad, 1 + lines, count)
      span = row_checks.join(span, row_checks.span_of(values_N, line_N))
    # Columns are laid out while they are in the cache.
    columns = [tuple(map(np.ascontiguousarray, pair)) for pair in protocol.keys(parsed)]
    parts.append((parsed.label_N, columns))
    bad_lines += bad
    lines += count
    start = end
  label_N = np.concatenate([label for label, _ in parts]) if parts else np.zeros(0, 'u1')
  valid = len(label_N)
  fields = range(len(protocol.fields) if parts else 0)
  joined = (
    tuple(map(np.concatenate, zip(*(columns[f] for _, columns in parts), strict=True)))
    for f in fields
  )
  columns_file.write(task.out, key_arrays(label_N, joined))
  # Says that the chunk is done, even when its keys are no longer needed and gone.
  temporary = meta.with_name(f'{meta.name}.tmp')
  bad = [[n, why, raw.decode('latin-1')] for n, why, raw in bad_lines]
  temporary.write_text(json.dumps([lines, valid, bad, span]))
  os.replace(temporary, meta)
  return lines, valid, bad_lines, span


def read_keys(file: columns_file.Reader, f: int) -> np.ndarray:
  """Keys of field f in one file: [rows] of some integer type, uint32 if hashed."""
  return file.read(f'key{f}')


def read_missing(file: columns_file.Reader, f: int, rows: int) -> np.ndarray | None:
  """Which values of field f are missing (bool [rows], or None) in one file of `rows` rows."""
  if f'missing{f}' not in file:
    return None
  return np.unpackbits(file.read(f'missing{f}'), count=rows).astype(bool)


@dataclasses.dataclass
class _Count:
  """What was read of one raw file so far."""

  path: Path
  lines: int = 0
  rows: int = 0
  valid: int = 0
  first_bad: BadLine | None = None

  @property
  def hopeless(self) -> bool:
    return not self.valid and self.rows >= HOPELESS_LINES

  def check(self, expected: str) -> None:
    """Raises UserError if there is not a single valid row."""
    if self.valid:
      return
    bad = self.first_bad
    about = f' (line {bad.line}: {bad.reason})' if bad else ''
    raise UserError(
      f'--raw={self.path}: no valid row in the first {self.rows:,} lines{about}; '
      f'expected {expected}'
    )


def ingest(
  protocol: TextProtocol, raw: list[Path], limit: int | None, context: BuildContext
) -> Ingested:
  """Parses raw files, one after the other, at most `limit` lines of each.

  Raises:
    UserError: a file without a single valid row (found early, so that a wrong file fails at
      once), one with another header, or rows out of the protocol's order.
  """
  folder = context.work / 'keys'
  folder.mkdir(exist_ok=True)
  sources = [RawFile(path) for path in raw]
  tasks: list[_Task] = []

  def cut():
    for source in sources:
      for chunk in source.chunks(CHUNK_BYTES, limit):
        header = chunk.offset == 0 and row_checks.is_header(
          protocol.table, _first_line(chunk), chunk.path
        )
        tasks.append(_Task(protocol, chunk, header, folder / f'{len(tasks):06d}'))
        yield tasks[-1]

  progress = Progress(context.log, 'reading', None)
  sizes = [path.stat().st_size for path in raw]
  counts: list[_Count] = []
  files, rows, span = [], [], None
  for lines, kept, bad_lines, span_here in context.workers.map(_parse, cut()):
    task = tasks[len(files)]
    if task.chunk.offset == 0:
      if counts:
        counts[-1].check(protocol.expected)
      counts.append(_Count(task.chunk.path))
    here = counts[-1]
    bad_lines = [bad._replace(line=here.lines + bad.line) for bad in bad_lines]
    span = row_checks.join(span, span_here, here.lines)
    if span is not None and span.fall is not None:
      raise UserError(_goes_back(protocol, task.chunk.path, span.fall))
    context.rejects.add(task.chunk.path.name, bad_lines)
    here.first_bad = here.first_bad or next(iter(bad_lines), None)
    here.lines += lines
    here.rows += lines - task.skip_header
    here.valid += kept
    files.append(task.out)
    rows.append(kept)
    if here.hopeless:
      break
    done = len(counts) - 1
    progress.add(lines, (sum(sizes[:done]) + task.chunk.share * sizes[done]) / sum(sizes))
  counts[-1].check(protocol.expected)
  progress.done()
  return Ingested(
    tuple(files),
    tuple(rows),
    tuple(source.describe() for source in sources),
    tuple(count.valid for count in counts),
    sum(count.rows for count in counts),
  )


def _goes_back(protocol: TextProtocol, path: Path, fall: Fall) -> str:
  return (
    f'--raw={path}: line {fall.line} goes back in time ({protocol.ordered_by} {fall.after} after '
    f'{fall.before}), and this protocol splits the rows by time; sort them by '
    f'{protocol.ordered_by}, or choose a protocol that splits at random'
  )


def _first_line(chunk: Chunk) -> bytes:
  return chunk.read().split(b'\n', 1)[0].removesuffix(b'\r')
