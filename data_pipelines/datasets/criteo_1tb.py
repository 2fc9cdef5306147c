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
import itertools
import re
from pathlib import Path

import numpy as np

from data_pipelines.core.errors import UserError
from data_pipelines.core.files import check_raw
from data_pipelines.datasets.criteo import CRITEO_PROTOCOL, NUM_CATEGORIES, NUM_INTEGERS
from data_pipelines.prepared.dataset import BuildContext, Dataset, Encoded
from data_pipelines.prepared.schema import FIRST_TOKEN_ID, SPLITS
from data_pipelines.prepared.tfds import BlockBuilder
from data_pipelines.text import encoding
from data_pipelines.text.ingest import ingest
from data_pipelines.text.splits import Split

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


def encode_dataset(options: dict, raw: Path | None, context: BuildContext) -> Encoded:
  """See Dataset.encode."""
  assert raw is not None
  files = raw_files(raw, options)
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
    assert rows == sum(ingested.raw_rows)
    if single:
      return SINGLE_FILE.rows(rows, options['seed'])
    return split_by_day(ingested.raw_rows, options['seed'])

  return encoding.encode(protocol, ingested, split_rows, options['min_count'], context)


class Criteo1tb(BlockBuilder):
  """Criteo 1TB click logs, encoded to per-field ids, in blocks of rows."""

  name = 'criteo_1tb'
  RELEASE_NOTES = {'1.0.0': 'First version.'}  # noqa: RUF012 (TFDS's own attribute)
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
  needs_raw=True,
  add_flags=add_flags,
  options=options,
  encode=encode_dataset,
  builder=Criteo1tb,
  config=lambda options: None,
  raw_files=raw_files,
)


_DAY_FILE = re.compile(r'day_([0-9]{1,3})(\.gz)?')


_DAY_RANGE = re.compile(r'([0-9]{1,3})-([0-9]{1,3})')


_LAYOUT = 'day_0 ... day_23, each plain or .gz'


def parse_train_days(text: str) -> tuple[int, int]:
  """First and last day of FIRST-LAST. Raises UserError on anything else."""
  found = _DAY_RANGE.fullmatch(text)
  if not found or int(found[1]) > int(found[2]):
    raise UserError(f'--train_days={text}: expected FIRST-LAST, such as 0-22 or 5-5')
  return int(found[1]), int(found[2])


def _files_by_day(folder: Path) -> dict[int, Path]:
  if not folder.exists():
    raise UserError(f'--raw={folder}: no such folder; give the one of the day files ({_LAYOUT})')
  files: dict[int, Path] = {}
  for path in sorted(folder.iterdir()):
    found = _DAY_FILE.fullmatch(path.name)
    if not found:
      continue
    day = int(found[1])
    if day in files:
      raise UserError(
        f'--raw={folder}: day {day} is there twice, as {files[day].name} and {path.name}; '
        'keep one of them'
      )
    files[day] = path
  return files


def day_files(folder: Path, train_days: str | None) -> list[Path]:
  """Files of the training days in their order, then that of the last day there is.

  Args:
    train_days: FIRST-LAST, or None for every day but the last.

  Raises:
    UserError: files that are missing, doubled or empty, or days that cannot be trained on.
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
  """Row numbers of each split, in the order in which they are written.

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
  generator = np.random.default_rng(seed)
  order = {}
  for split, (start, stop) in zip(SPLITS, itertools.pairwise(borders), strict=True):
    numbers = np.arange(start, stop, dtype=np.uint32 if stop <= 1 << 32 else np.uint64)
    generator.shuffle(numbers)
    order[split] = numbers
  return order
