# SPDX-License-Identifier: Apache-2.0
"""Raw files: compression, checksums, checks before reading."""

import hashlib
from pathlib import Path

from data_pipelines.core.errors import UserError

GZIP_MAGIC = b'\x1f\x8b'


def file_sha256(path: Path) -> str:
  """Hexadecimal sha256 of a file's bytes."""
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def check_raw(path: Path) -> None:
  """Raises UserError if the raw file is missing, a folder, or has no bytes."""
  if not path.exists():
    raise UserError(f'--raw={path}: no such file; give the raw data file (plain or .gz)')
  if not path.is_file():
    raise UserError(f'--raw={path}: expected a file, found a folder; give the file inside it')
  if path.stat().st_size == 0:
    raise UserError(f'--raw={path}: the file is empty; download it again')


def is_zipped(path: Path) -> bool:
  """Whether a file is a gzip, by its first two bytes, not by its name."""
  with open(path, 'rb') as file:
    return file.read(2) == GZIP_MAGIC
