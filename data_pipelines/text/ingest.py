# SPDX-License-Identifier: Apache-2.0
"""First pass over raw text: turns rows into keys (numbers), stored as columns, one file a chunk.

Chunks are cut by the raw bytes alone, so they and all that follows are the same for any number of
workers. A chunk whose result is there already was parsed by an earlier, stopped build.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import msgspec
import numpy as np

from data_pipelines.core import columns_file
from data_pipelines.core.files import read_result, write_result
from data_pipelines.core.progress import Progress
from data_pipelines.prepared.dataset import BuildContext
from data_pipelines.prepared.recipes import Recipe
from data_pipelines.prepared.rejects import BadLine
from data_pipelines.prepared.schema import RawFile
from data_pipelines.text import parser, row_checks
from data_pipelines.text.chunks import Chunk, TextFile
from data_pipelines.text.parser import INTEGER, Parsed, TextTable
from data_pipelines.text.row_checks import Fall, Span
from data_pipelines.text.sequences import EventSpec
from deres_jax.core.errors import UserError

CHUNK_BYTES = 8 << 20  # of text: what a worker holds at a time
_PARSE_BYTES = 1 << 18  # parsed at a time, so that the values stay in a core's cache
HOPELESS_LINES = 1000  # without a single valid row: this must be another kind of file

KeyColumn = tuple[np.ndarray, np.ndarray]  # integer keys [rows], which of them are missing [rows]


@dataclasses.dataclass(frozen=True)
class TextProtocol:
  """Turns the rows of a text into keys and keys into tokens. Must be picklable.

  Attributes:
    table: layout of the text.
    fields: names of the fields.
    keys: parsed rows to the keys of each field.
    missing_kept: by field, whether missing values are a key like any other; else they have no
      token.
    tokens: (field, ascending distinct keys) to their tokens, a NumPy array of bytes; None: the
      rows are not encoded.
    expected: what a file should look like, for error messages.
    hash_sizes: by field, the number of ids of a hashed field: its keys are 32-bit hashes, an id is
      FIRST_TOKEN_ID + key modulo this. None: ids come from a vocabulary. Empty: no field is hashed.
    faults: rows with impossible values, by number, and the reason; they are rejected.
    ordered_by: an integer column whose values must not fall from a valid row to the next.
    events: the behaviour sequences, if there are any.
    recipes: how raw values become tokens (see recipes), by field and by attribute of events that
      has its own ids; tests/data_pipelines/test_raw_rows.py compares them with `keys`.
  """

  table: TextTable
  fields: tuple[str, ...]
  keys: Callable[[Parsed], list[KeyColumn]]
  missing_kept: tuple[bool, ...]
  tokens: Callable[[int, np.ndarray], np.ndarray] | None
  expected: str
  hash_sizes: tuple[int | None, ...] = ()
  faults: Callable[[Parsed], Mapping[int, str]] | None = None
  ordered_by: str | None = None
  events: EventSpec | None = None
  recipes: Mapping[str, Recipe] | None = None

  def hash_size(self, f: int) -> int | None:
    """Returns the hash size of a field; see hash_sizes."""
    return self.hash_sizes[f] if self.hash_sizes else None


@dataclasses.dataclass(frozen=True)
class Ingested:
  """Files of keys, and their rows, in the order of the raw files.

  A file holds `label` (uint8 [rows]), `key0`, `key1` ... ([rows]) and, where values are missing,
  `missing0` ... (bits of [rows]). Data with behaviour sequences has those in it too, as `sequences`
  says, and then `groups` has the number of groups of rows in each file (no group is in two files).

  Attributes:
    rows: valid rows of each file of keys.
    raw_rows: valid rows of each raw file.
    rows_read: rows of the raw files, good and bad.
  """

  files: tuple[Path, ...]
  rows: tuple[int, ...]
  raw_files: tuple[RawFile, ...]
  raw_rows: tuple[int, ...]
  rows_read: int
  groups: tuple[int, ...] = ()

  @property
  def total(self) -> int:
    """Valid rows."""
    return sum(self.rows)


def key_arrays(label_N: np.ndarray, columns: Iterable[KeyColumn]) -> dict[str, np.ndarray]:
  """Returns the contents of a file of keys (see Ingested)."""
  arrays = {'label': label_N}
  for f, (keys_N, missing_N) in enumerate(columns):
    arrays[f'key{f}'] = keys_N if keys_N.dtype == np.uint32 else columns_file.narrow(keys_N)
    if missing_N.any():
      arrays[f'missing{f}'] = np.packbits(missing_N)
  return arrays


def read_keys(file: columns_file.Reader, f: int) -> np.ndarray:
  """Returns the keys of field f in one file: [rows] of some integer type, uint32 if hashed."""
  return file.read(f'key{f}')


def read_missing(file: columns_file.Reader, f: int, rows: int) -> np.ndarray | None:
  """Returns which values of field f are missing: bool [rows], or None if there are none."""
  if f'missing{f}' not in file:
    return None
  return np.unpackbits(file.read(f'missing{f}'), count=rows).astype(bool)


@dataclasses.dataclass(frozen=True)
class _Task:
  protocol: TextProtocol
  chunk: Chunk
  skip_header: bool
  out: Path


class _ChunkResult(msgspec.Struct):
  """Lines of a chunk, numbered from 1; `span` is that of the ordered column's valid rows."""

  lines: int
  valid: int
  bad_lines: list[BadLine]
  span: Span | None


def _parse(task: _Task) -> _ChunkResult:
  """Parses a chunk into its file of keys; a task."""
  result_path = task.out.with_name(f'{task.out.name}.json')
  if result_path.exists():
    return read_result(result_path, _ChunkResult)
  protocol, data = task.protocol, task.chunk.read()
  result = _ChunkResult(lines=0, valid=0, bad_lines=[], span=None)
  start = 0
  if task.skip_header:
    result.lines, start = 1, data.find(b'\n') + 1 or len(data)
  labels, columns_by_part = [np.zeros(0, np.uint8)], []
  while start < len(data):
    end = data.rfind(b'\n', start, start + _PARSE_BYTES) + 1
    end = end or data.find(b'\n', start) + 1 or len(data)  # a long line; the last one
    parsed = _parse_lines(protocol, data[start:end], result)
    # Columns are laid out while they are in the cache.
    columns = [tuple(map(np.ascontiguousarray, pair)) for pair in protocol.keys(parsed)]
    labels.append(parsed.label_N)
    columns_by_part.append(columns)
    start = end
  label_N = np.concatenate(labels)
  result.valid = len(label_N)
  joined = (
    tuple(map(np.concatenate, zip(*parts, strict=True)))
    for parts in zip(*columns_by_part, strict=True)
  )
  columns_file.write(task.out, key_arrays(label_N, joined))
  # Shows that the chunk is done even when its keys are no longer needed and gone.
  write_result(result_path, result)
  return result


def _parse_lines(protocol: TextProtocol, data: bytes, result: _ChunkResult) -> Parsed:
  """Returns the valid rows of some lines; adds the lines to the result."""
  first_line = 1 + result.lines
  parsed, bad_lines, lines = parser.parse(protocol.table, data, first_line)
  if protocol.faults is not None:
    faults = protocol.faults(parsed)
    parsed, bad_lines = row_checks.reject_rows(parsed, bad_lines, faults, data, first_line, lines)
  if protocol.ordered_by is not None and len(parsed.label_N):
    integers = [protocol.table.columns[k].name for k in protocol.table.positions(INTEGER)]
    values_N = parsed.ints_NI[:, integers.index(protocol.ordered_by)]
    line_N = row_checks.line_numbers(bad_lines, first_line, lines)
    result.span = row_checks.join(result.span, row_checks.span_of(values_N, line_N))
  result.bad_lines += bad_lines
  result.lines += lines
  return parsed


class _Reading:
  """Counts the results of the chunks, in order; checks each raw file and the order of its rows."""

  def __init__(self, protocol: TextProtocol, context: BuildContext):
    self._protocol, self._rejects = protocol, context.rejects
    self._path: Path | None = None  # of the current raw file
    self._lines = self._rows = 0
    self._first_bad: BadLine | None = None
    self._span: Span | None = None
    self.rows: list[int] = []  # valid ones of each chunk
    self.valid: list[int] = []  # valid rows of each raw file
    self.rows_read = 0

  def add(self, task: _Task, result: _ChunkResult) -> None:
    """Adds a chunk; raises UserError if the file cannot be used."""
    if task.chunk.offset == 0:
      self.check()
      self._path, self._lines, self._rows, self._first_bad = task.chunk.path, 0, 0, None
      self.valid.append(0)
    bad_lines = [bad._replace(line=self._lines + bad.line) for bad in result.bad_lines]
    self._span = row_checks.join(self._span, result.span, self._lines)
    if self._span is not None and self._span.fall is not None:
      raise UserError(_goes_back(self._protocol, self._path, self._span.fall))
    self._rejects.add(self._path.name, bad_lines)
    self._first_bad = self._first_bad or next(iter(bad_lines), None)
    self._lines += result.lines
    self._rows += result.lines - task.skip_header
    self.rows_read += result.lines - task.skip_header
    self.valid[-1] += result.valid
    self.rows.append(result.valid)
    if self._rows >= HOPELESS_LINES:
      self.check()

  def check(self) -> None:
    """Raises UserError if the current file has no valid row so far."""
    if self._path is None or self.valid[-1]:
      return
    bad = self._first_bad
    about = f' (line {bad.line}: {bad.reason})' if bad else ''
    raise UserError(
      f'--raw={self._path}: no valid row in the first {self._rows:,} lines{about}; '
      f'expected {self._protocol.expected}'
    )


def ingest(
  protocol: TextProtocol, raw: list[Path], limit: int | None, context: BuildContext
) -> Ingested:
  """Parses raw files, one after the other, at most `limit` lines of each.

  Raises:
    UserError: a file without a single valid row (after HOPELESS_LINES lines, so that a wrong file
      fails at once), one with another header, or rows out of the protocol's order.
  """
  folder = context.work / 'keys'
  folder.mkdir(exist_ok=True)
  sources = [TextFile(path) for path in raw]
  tasks: list[_Task] = []

  def cut():
    for source in sources:
      for chunk in source.chunks(CHUNK_BYTES, limit):
        header = chunk.offset == 0 and row_checks.is_header(
          protocol.table, _first_line(chunk), chunk.path
        )
        tasks.append(_Task(protocol, chunk, header, folder / f'{len(tasks):06d}'))
        yield tasks[-1]

  sizes = [path.stat().st_size for path in raw]
  reading = _Reading(protocol, context)
  with Progress(context.log, 'reading', None) as progress:
    for result in context.workers.map(_parse, cut()):
      task = tasks[len(reading.rows)]
      reading.add(task, result)
      file = len(reading.valid) - 1
      share = (sum(sizes[:file]) + task.chunk.share * sizes[file]) / sum(sizes)
      progress.add(result.lines, share)
    reading.check()
  return Ingested(
    files=tuple(task.out for task in tasks),
    rows=tuple(reading.rows),
    raw_files=tuple(source.describe() for source in sources),
    raw_rows=tuple(reading.valid),
    rows_read=reading.rows_read,
  )


def _goes_back(protocol: TextProtocol, path: Path, fall: Fall) -> str:
  return (
    f'--raw={path}: line {fall.line} goes back in time ({protocol.ordered_by} {fall.after} after '
    f'{fall.before}), and this protocol splits the rows by time; sort them by '
    f'{protocol.ordered_by}, or choose a protocol that splits at random'
  )


def _first_line(chunk: Chunk) -> bytes:
  return chunk.read().split(b'\n', 1)[0].removesuffix(b'\r')
