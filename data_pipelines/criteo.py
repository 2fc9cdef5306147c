# SPDX-License-Identifier: Apache-2.0
"""Criteo display advertising (Kaggle): raw text to encoded blocks, Criteo_x4 protocol.

Parse all chunks, split, count on the training rows only, then encode block by block. Each of
these is a function of its own; the raw values are held in memory (about 250 bytes a row).
"""

import argparse
import time
from pathlib import Path

import numpy as np

from data_pipelines import criteo_parse
from data_pipelines.criteo_parse import FIELD_NAMES, NUM_FIELDS, NUM_INTEGERS, Rows
from data_pipelines.criteo_protocol import PARTS, bucketise, split_rows
from data_pipelines.criteo_tfds import CriteoDisplay
from data_pipelines.dataset import Dataset, Encoded, FieldInfo
from data_pipelines.errors import UserError
from data_pipelines.rawfile import read_chunks
from data_pipelines.rejects import Rejects
from data_pipelines.tfds_blocks import PROGRESS_SECONDS, Log
from data_pipelines.vocabulary import Vocabulary, build_vocabulary, count_keys, encode

CHUNK_BYTES = 16 << 20
HOPELESS_LINES = 1000  # so many lines without one valid row: this is another kind of file


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Flags of `--dataset=criteo`."""
  parser.add_argument(
    '--min_count',
    type=int,
    default=10,
    help='training rows a token needs to be kept (default 10)',
  )
  parser.add_argument('--seed', type=int, default=0, help='seed of the split (default 0)')
  parser.add_argument(
    '--limit', type=int, default=None, help='use only the first LIMIT lines of the raw file'
  )


def options(args: argparse.Namespace) -> dict:
  """The options that determine the output.

  Raises:
    UserError: a value out of range.
  """
  if not 0 <= args.seed < 2**32:
    raise UserError(f'--seed={args.seed}: expected 0 to 4294967295')
  if args.min_count < 1:
    raise UserError(f'--min_count={args.min_count}: expected at least 1 (keeps every token)')
  if args.limit is not None and args.limit < PARTS:
    raise UserError(f'--limit={args.limit}: expected at least {PARTS} lines for an 8:1:1 split')
  return {
    'protocol': 'x4',
    'seed': args.seed,
    'min_count': args.min_count,
    'limit': args.limit,
  }


def field_keys(rows: Rows, f: int) -> tuple[np.ndarray, np.ndarray]:
  """Keys (int64 [rows]) of field f and which of them are missing (bool [rows]).

  A missing number is a 0 like any other (FuxiCTR: na_value 0), so no number counts as missing.
  """
  if f < NUM_INTEGERS:
    return bucketise(rows.ints_NI[:, f]), np.zeros(len(rows.label_N), bool)
  return rows.hexes_NC[:, f - NUM_INTEGERS].astype(np.int64), rows.missing_NF[:, f]


def token_text(f: int, key: int) -> str:
  """Token of a key: a decimal integer for I1..I13, 8 lower-case hex digits for C1..C26."""
  return str(key) if f < NUM_INTEGERS else f'{key:08x}'


class CriteoSource:
  """Encodes any range of rows of any split from the raw values in memory."""

  num_fields = NUM_FIELDS

  def __init__(self, rows: Rows, order: dict[str, np.ndarray], vocabularies: list[Vocabulary]):
    """Args: all valid rows, row numbers by split, one vocabulary a field."""
    self._rows = rows
    self._order = order
    self._vocabularies = vocabularies
    self.rows = {split: len(numbers) for split, numbers in order.items()}

  def block(self, split: str, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """See BlockSource.block."""
    numbers_N = self._order[split][start:stop]
    rows = Rows(*(column[numbers_N] for column in self._rows))
    ids_NF = np.empty((len(numbers_N), NUM_FIELDS), np.int32)
    for f, vocabulary in enumerate(self._vocabularies):
      ids_NF[:, f] = encode(vocabulary, *field_keys(rows, f))
    return ids_NF, rows.label_N


def read_rows(path: Path, limit: int | None, rejects: Rejects, log: Log) -> tuple[Rows, int]:
  """Parses the raw file; returns its valid rows and the number of lines read.

  Raises:
    UserError: not a single valid row (checked early, so that a wrong file fails at once).
  """
  parts, lines, valid = [], 0, 0
  began = told = time.monotonic()
  for data in read_chunks(path, CHUNK_BYTES):
    if limit is not None:
      data = b'\n'.join(data.split(b'\n', limit - lines)[: limit - lines])
    rows, bad_lines, count = criteo_parse.parse_chunk(data, lines + 1)
    rejects.add(path.name, bad_lines)
    parts.append(rows)
    lines += count
    valid += len(rows.label_N)
    if not valid and lines >= HOPELESS_LINES:
      break
    now = time.monotonic()
    if now - told > PROGRESS_SECONDS:
      told = now
      log(f'read {lines:,} lines, {lines / (now - began):,.0f} lines/s')
    if lines == limit:
      break
  if not valid:
    first = rejects.first[0]
    raise UserError(
      f'--raw={path}: no valid row in the first {lines:,} lines (line {first.line}: '
      f'{first.reason}); expected label, I1..I13, C1..C26, tab-separated, no header'
    )
  seconds = max(time.monotonic() - began, 1e-9)
  log(f'read {lines:,} lines in {seconds:.1f} s ({lines / seconds:,.0f} lines/s)')
  return criteo_parse.concatenate(parts), lines


def build_fields(
  rows: Rows, train_N: np.ndarray, min_count: int
) -> tuple[list[Vocabulary], list[FieldInfo]]:
  """Vocabularies and descriptions of all fields, from the training rows only."""
  vocabularies, fields = [], []
  train = Rows(*(column[train_N] for column in rows))
  for f, name in enumerate(FIELD_NAMES):
    keys_N, missing_N = field_keys(train, f)
    keys_U, counts_U = count_keys(keys_N[~missing_N])
    vocabulary = build_vocabulary(keys_U, counts_U, lambda key, f=f: token_text(f, key), min_count)
    missing = int(train.missing_NF[:, f].sum()) / len(train_N)
    vocabularies.append(vocabulary)
    fields.append(FieldInfo(name, vocabulary.tokens, vocabulary.size, min_count, missing))
  return vocabularies, fields


def encode_dataset(options: dict, raw: Path | None, rejects: Rejects, log: Log) -> Encoded:
  """See Dataset.encode."""
  assert raw is not None
  rows, rows_read = read_rows(raw, options['limit'], rejects, log)
  num_rows = len(rows.label_N)
  if num_rows < PARTS:
    raise UserError(
      f'--raw={raw}: only {num_rows} valid rows; expected at least {PARTS} for an 8:1:1 split'
    )
  order = split_rows(num_rows, options['seed'])
  vocabularies, fields = build_fields(rows, order['train'], options['min_count'])
  return Encoded(tuple(fields), CriteoSource(rows, order, vocabularies), rows_read, None)


CRITEO = Dataset(
  name='criteo_display',
  about='Criteo display advertising (Kaggle train.txt, plain or .gz), Criteo_x4 protocol',
  needs_raw=True,
  add_flags=add_flags,
  options=options,
  encode=encode_dataset,
  builder=CriteoDisplay,
  config='x4',
)
