# SPDX-License-Identifier: Apache-2.0
"""The days of the Criteo 1TB logs: a folder of one file a day, and the split by day."""

import itertools
import re
from pathlib import Path

import numpy as np

from data_pipelines.errors import UserError
from data_pipelines.rawfile import check_raw
from data_pipelines.schema import SPLITS

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
