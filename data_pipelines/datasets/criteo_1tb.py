# SPDX-License-Identifier: Apache-2.0
"""Criteo 1TB click logs: a folder of day files to encoded rows.

Provenance: Criteo's logs of 24 days, 4.4 billion rows, about 3 % clicks after subsampling; the
columns of the Kaggle data, in another order and under another hash. Licence and citation:
`Criteo1tb` below.

Protocol, after MLPerf's DLRM benchmark (facebookresearch/dlrm, `--max-ind-range`): train on all
days but the last, validate and test on the halves of the last. Categorical values are 32-bit
hashes; their id is 2 + hash modulo `--max_ids`, without a vocabulary. We differ in four points:
  0 stays padding and 1 is a missing value;
  ids are not renumbered to those that occur, so every field has max_ids + 2 of them;
  training rows are shuffled over all days;
  integers are bucketised as in the Kaggle data, with a vocabulary, not fed as logarithms.

A single file in place of the folder, for a trial, is split 8:1:1 in the order of its rows.
"""

import argparse
import dataclasses
import itertools
import re
from pathlib import Path

import numpy as np

from data_pipelines.core.files import check_raw
from data_pipelines.core.option_flags import check
from data_pipelines.datasets.criteo import CRITEO_PROTOCOL, NUM_CATEGORIES, NUM_INTEGERS
from data_pipelines.prepared.dataset import BuildContext, Dataset, Encoded
from data_pipelines.prepared.schema import FIRST_TOKEN_ID, SPLITS
from data_pipelines.prepared.tfds import BlockBuilder
from data_pipelines.text import encoding
from data_pipelines.text.dataset import add_shared_flags, check_shared_options
from data_pipelines.text.ingest import ingest
from data_pipelines.text.splits import Split, shuffle_splits
from deres_jax.core.errors import UserError

MAX_IDS = 40_000_000  # of MLPerf
MIN_COUNT = 10
SINGLE_FILE = Split(8, 1, 1, by_time=True)
_LARGEST_MAX_IDS = np.iinfo(np.int32).max - FIRST_TOKEN_ID

_DAY_FILE = re.compile(r'day_([0-9]{1,3})(\.gz)?')
_DAY_RANGE = re.compile(r'([0-9]{1,3})-([0-9]{1,3})')
_LAYOUT = 'day_0 ... day_23, each plain or .gz'


def parse_train_days(text: str) -> tuple[int, int]:
  """Returns the first and last day of FIRST-LAST; raises UserError on anything else."""
  match = _DAY_RANGE.fullmatch(text)
  if not match or int(match[1]) > int(match[2]):
    raise UserError(f'--train_days={text}: expected FIRST-LAST, such as 0-22 or 5-5')
  return int(match[1]), int(match[2])


def _files_by_day(folder: Path) -> dict[int, Path]:
  if not folder.exists():
    raise UserError(f'--raw={folder}: no such folder; give the one of the day files ({_LAYOUT})')
  files: dict[int, Path] = {}
  for path in sorted(folder.iterdir()):
    match = _DAY_FILE.fullmatch(path.name)
    if not match:
      continue
    day = int(match[1])
    if day in files:
      raise UserError(
        f'--raw={folder}: day {day} is there twice, as {files[day].name} and {path.name}; '
        'keep one of them'
      )
    files[day] = path
  return files


def day_files(folder: Path, train_days: str | None) -> list[Path]:
  """Returns the files of the training days in order, then that of the last day.

  Args:
    train_days: FIRST-LAST, or None for every day but the last.

  Raises:
    UserError: a file is missing, doubled or empty, or a day cannot be trained on.
  """
  files = _files_by_day(folder)
  if len(files) < 2:
    raise UserError(
      f'--raw={folder}: found {len(files)} day files, expected at least 2 ({_LAYOUT}): the last '
      'day is for validation and test'
    )
  days = sorted(files)
  first, last = days[0], days[-2]
  if train_days is not None:
    first, last = parse_train_days(train_days)
    if last >= days[-1]:
      raise UserError(
        f'--train_days={train_days}: day {days[-1]} is the last one in {folder}, kept for '
        f'validation and test; train on days up to {days[-2]}'
      )
  missing = [str(day) for day in range(first, last + 1) if day not in files]
  if missing:
    raise UserError(
      f'--raw={folder}: no file of day {", ".join(missing)}; download it, or choose other '
      'training days with --train_days=FIRST-LAST'
    )
  chosen = [files[day] for day in (*range(first, last + 1), days[-1])]
  for path in chosen:
    check_raw(path)
  return chosen


def split_by_day(day_rows: tuple[int, ...], seed: int) -> dict[str, np.ndarray]:
  """Returns the row numbers of each split, in the order in which they are written.

  All days but the last are for training; the first half of the last is validation (the longer
  one, if they differ), the second is test. Each split is shuffled by the same generator, in the
  order train, validation, test.

  Args:
    day_rows: rows of each day, in order; at least two in the last.
    seed: 0 to 2**32 - 1.
  """
  total = sum(day_rows)
  end = total - day_rows[-1] // 2
  borders = (0, total - day_rows[-1], end, total)
  order = {
    split: np.arange(start, stop, dtype=np.uint32 if stop <= 1 << 32 else np.uint64)
    for split, (start, stop) in zip(SPLITS, itertools.pairwise(borders), strict=True)
  }
  return shuffle_splits(order, np.random.default_rng(seed))


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of `--dataset=criteo_1tb`."""
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
  min_count_help = f'a bucket of an integer needs to be kept (default {MIN_COUNT})'
  add_shared_flags(parser, MIN_COUNT, min_count_help, 'shuffle', 'each day file')


def options(args: argparse.Namespace) -> dict:
  """See Dataset.options."""
  check_shared_options(args.seed, args.min_count, args.limit, least_lines=2)
  check(1 <= args.max_ids <= _LARGEST_MAX_IDS, 'max_ids', args.max_ids, f'1 to {_LARGEST_MAX_IDS}')
  if args.train_days is not None:
    parse_train_days(args.train_days)
  names = ('train_days', 'max_ids', 'min_count', 'seed', 'limit')
  return {name: vars(args)[name] for name in names}


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


def encode(options: dict, files: list[Path], context: BuildContext) -> Encoded:
  """See Dataset.encode."""
  hash_sizes = (None,) * NUM_INTEGERS + (options['max_ids'],) * NUM_CATEGORIES
  protocol = dataclasses.replace(CRITEO_PROTOCOL, hash_sizes=hash_sizes)
  ingested = ingest(protocol, files, options['limit'], context)
  single = len(files) == 1
  least = SINGLE_FILE.parts if single else 2
  if ingested.raw_rows[-1] < least:
    into = 'it is split 8:1:1' if single else 'the last day is cut in two halves'
    raise UserError(
      f'--raw={files[-1]}: valid rows: {ingested.raw_rows[-1]}, expected at least {least}, since '
      f'{into}'
    )

  def split_rows(rows: int) -> dict[str, np.ndarray]:
    if single:
      return SINGLE_FILE.rows(rows, options['seed'])
    return split_by_day(ingested.raw_rows, options['seed'])

  return encoding.encode(protocol, ingested, split_rows, options['min_count'], context)


class Criteo1tb(BlockBuilder):
  """Criteo 1TB click logs, encoded to per-field ids, in blocks of rows."""

  name = 'criteo_1tb'
  DESCRIPTION = (
    '24 days of display-advertising logs from Criteo: a click label, 13 integer fields and 26 '
    'hashed categorical fields. Clicks and non-clicks were subsampled at different rates, so the '
    'click rate is not the true one. The last day is validation (first half) and test (second '
    'half); the days before it are training. Integers are bucketised; a categorical id is the '
    "value's 32-bit hash modulo a cap, and there is no vocabulary of it."
  )
  HOMEPAGE = 'https://huggingface.co/datasets/criteo/CriteoClickLogs'
  LICENCE = 'CC BY-NC-SA 4.0; attribution: Criteo'
  CITATION = """@misc{criteo-1tb-click-logs,
  author = {{Criteo AI Lab}},
  title = {Criteo 1TB Click Logs dataset},
  url = {https://huggingface.co/datasets/criteo/CriteoClickLogs}
}"""


CRITEO_1TB = Dataset(
  name='criteo_1tb',
  about='Criteo 1TB click logs (a folder of day_0 ... day_23, plain or .gz, or one such file)',
  add_flags=add_flags,
  options=options,
  encode=encode,
  builder=Criteo1tb,
  raw_files=raw_files,
)
