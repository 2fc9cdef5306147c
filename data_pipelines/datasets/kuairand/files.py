# SPDX-License-Identifier: Apache-2.0
"""Finds the raw files in a KuaiRand folder."""

from pathlib import Path

from data_pipelines.core.files import check_raw
from deres_jax.core.errors import UserError

LAYOUT = (
  'log_standard_*.csv (two or more), user_features_*.csv, video_features_basic_*.csv, '
  'each plain or .gz'
)
_DATA = 'data'  # the subfolder of the published archives


def _named(folder: Path, start: str) -> list[Path]:
  """Returns the files of one kind by name; raises UserError if one is there plain and zipped."""
  names = sorted(
    path.name
    for path in folder.iterdir()
    if path.name.startswith(start) and path.name.endswith(('.csv', '.csv.gz'))
  )
  for name in names:
    if f'{name}.gz' in names:
      raise UserError(f'--raw={folder}: {name} is there twice, plain and .gz; keep one of them')
  return [folder / name for name in names]


def _only(folder: Path, start: str) -> Path:
  files = _named(folder, start)
  if len(files) != 1:
    names = f' ({", ".join(path.name for path in files)})' if files else ''
    raise UserError(
      f'--raw={folder}: found {len(files)} files {start}*.csv{names}, expected exactly one; '
      f'give the folder of one version of KuaiRand ({LAYOUT})'
    )
  return files[0]


def kuairand_files(raw: Path, random_log: bool) -> list[Path]:
  """Returns the logs (standard ones first), then the tables of users and of videos.

  Args:
    raw: the folder of the files, or the one above their folder `data`.
    random_log: whether to read the log of randomly exposed videos, too.

  Raises:
    UserError: a file is missing, doubled or empty.
  """
  if not raw.exists():
    raise UserError(f'--raw={raw}: no such folder; give the one of the KuaiRand files ({LAYOUT})')
  if not raw.is_dir():
    raise UserError(
      f'--raw={raw}: expected the folder of the KuaiRand files ({LAYOUT}), not a file'
    )
  folder = raw
  if not _named(raw, 'log_standard_') and (raw / _DATA).is_dir():
    folder = raw / _DATA
  logs = _named(folder, 'log_standard_')
  if len(logs) < 2:
    raise UserError(
      f'--raw={folder}: found {len(logs)} files log_standard_*.csv, expected at least 2 '
      f'({LAYOUT}): without one of them rows would lack their past'
    )
  if random_log:
    random_logs = _named(folder, 'log_random_')
    if not random_logs:
      raise UserError(
        f'--raw={folder}: no file log_random_*.csv; download it, or leave out --random_log'
      )
    logs += random_logs
  files = [*logs, _only(folder, 'user_features_'), _only(folder, 'video_features_basic_')]
  for path in files:
    check_raw(path)
  return files
