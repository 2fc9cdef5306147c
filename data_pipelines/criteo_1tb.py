# SPDX-License-Identifier: Apache-2.0
"""Criteo 1TB click logs: a folder of day files to encoded rows.

Provenance: Criteo's logs of 24 days, 4.4 billion rows, about 3 % clicks after subsampling; the
columns of the Kaggle data, in another order and under another hash. Licence and citation:
`criteo_1tb_tfds`.

Protocol, after MLPerf's DLRM benchmark (facebookresearch/dlrm, `--max-ind-range`): train on all
days but the last, validate and test on the halves of the last. Categorical values are 32-bit
hashes; their id is 2 + hash modulo `--max_ids`, without a vocabulary. Other than there, 0 stays
padding and 1 is a missing value, ids are not renumbered to those that occur (so every field has
max_ids + 2 of them), training rows are shuffled over all days, and integers are bucketised as in
the Kaggle data, with a vocabulary, instead of entering as logarithms.

A single file in place of the folder, for a trial, is split 8:1:1 in the order of its rows.
"""

import argparse
import dataclasses
from pathlib import Path

import numpy as np

from data_pipelines import encoding
from data_pipelines.criteo import CRITEO_PROTOCOL
from data_pipelines.criteo_1tb_days import day_files, parse_train_days, split_by_day
from data_pipelines.criteo_1tb_tfds import Criteo1tb
from data_pipelines.criteo_parse import NUM_CATEGORIES, NUM_INTEGERS
from data_pipelines.dataset import Dataset, Encoded, Site
from data_pipelines.errors import UserError
from data_pipelines.ingest import ingest
from data_pipelines.protocols import Split
from data_pipelines.rawfile import check_raw
from data_pipelines.schema import FIRST_TOKEN_ID

MAX_IDS = 40_000_000
SINGLE_FILE = Split(8, 1, 1, by_time=True)
_LARGEST_MAX_IDS = np.iinfo(np.int32).max - FIRST_TOKEN_ID
MIN_COUNT = 10


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Flags of `--dataset=criteo_1tb`."""
  parser.add_argument(
    '--max_ids',
    type=int,
    default=MAX_IDS,
    help=f'ids of a categorical field: hash modulo this (default {MAX_IDS})',
  )
  parser.add_argument(
    '--train_days',
    default=None,
    metavar='FIRST-LAST',
    help='train on these days only (default: all but the last, which is validation and test)',
  )
  parser.add_argument(
    '--min_count',
    type=int,
    default=MIN_COUNT,
    help=f'training rows a bucket of an integer needs to be kept (default {MIN_COUNT})',
  )
  parser.add_argument('--seed', type=int, default=0, help='seed of the shuffle (default 0)')
  parser.add_argument(
    '--limit', type=int, default=None, help='use only the first LIMIT lines of each day file'
  )


def options(args: argparse.Namespace) -> dict:
  """The options that determine the output. Raises UserError on a value out of range."""
  if not 0 <= args.seed < 2**32:
    raise UserError(f'--seed={args.seed}: expected 0 to 4294967295')
  if args.min_count < 1:
    raise UserError(f'--min_count={args.min_count}: expected at least 1 (keeps every bucket)')
  if not 1 <= args.max_ids <= _LARGEST_MAX_IDS:
    raise UserError(f'--max_ids={args.max_ids}: expected 1 to {_LARGEST_MAX_IDS}')
  if args.limit is not None and args.limit < 2:
    raise UserError(f'--limit={args.limit}: expected at least 2 lines, one a half of the last day')
  if args.train_days is not None:
    parse_train_days(args.train_days)
  return {
    'train_days': args.train_days,
    'max_ids': args.max_ids,
    'min_count': args.min_count,
    'seed': args.seed,
    'limit': args.limit,
  }


def raw_files(raw: Path, options: dict) -> list[Path]:
  """See Dataset.raw_files."""
  if raw.is_dir() or not raw.exists():
    return day_files(raw, options['train_days'])
  if options['train_days'] is not None:
    raise UserError(
      f'--train_days={options["train_days"]}: --raw={raw} is a single file; give the folder of '
      'the day files, or leave the flag out'
    )
  check_raw(raw)
  return [raw]


def encode_dataset(options: dict, raw: Path | None, site: Site) -> Encoded:
  """See Dataset.encode."""
  assert raw is not None
  files = raw_files(raw, options)
  hash_sizes = (None,) * NUM_INTEGERS + (options['max_ids'],) * NUM_CATEGORIES
  protocol = dataclasses.replace(CRITEO_PROTOCOL, hash_sizes=hash_sizes)
  ingested = ingest(protocol, files, options['limit'], site)
  single = len(files) == 1
  least = SINGLE_FILE.parts if single else 2
  if ingested.raw_rows[-1] < least:
    into = 'it is split 8:1:1' if single else 'the last day is cut in two halves'
    raise UserError(
      f'--raw={files[-1]}: valid rows: {ingested.raw_rows[-1]}, expected at least {least}, since '
      f'{into}'
    )

  def split_rows(rows: int) -> dict[str, np.ndarray]:
    assert rows == sum(ingested.raw_rows)
    if single:
      return SINGLE_FILE.rows(rows, options['seed'])
    return split_by_day(ingested.raw_rows, options['seed'])

  return encoding.encode(protocol, ingested, split_rows, options['min_count'], site)


CRITEO_1TB = Dataset(
  name='criteo_1tb',
  about='Criteo 1TB click logs (a folder of day_0 ... day_23, plain or .gz, or one such file)',
  needs_raw=True,
  add_flags=add_flags,
  options=options,
  encode=encode_dataset,
  builder=Criteo1tb,
  config=lambda options: None,
  raw_files=raw_files,
)
