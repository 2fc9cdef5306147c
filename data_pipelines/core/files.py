# SPDX-License-Identifier: Apache-2.0
"""Raw files (checks, checksums, compression) and the results of tasks that a stopped build kept."""

import hashlib
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from deres_jax.core import files
from deres_jax.core.errors import UserError

T = TypeVar('T')
GZIP_MAGIC = b'\x1f\x8b'


def file_sha256(path: Path) -> str:
  """Returns the hexadecimal SHA-256 of a file's bytes."""
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
  """Returns whether a file is a gzip, by its first two bytes, not by its name."""
  with open(path, 'rb') as file:
    return file.read(2) == GZIP_MAGIC


def write_result(path: Path, result: Any) -> None:
  """Keeps the result of a task, as JSON, for a build that goes on after a stop."""
  with files.replacing(path, durable=False) as partial:
    partial.write_bytes(msgspec.json.encode(result))


def read_result(path: Path, kind: type[T]) -> T:
  """Reads what write_result kept; raises UserError if it is damaged."""
  return files.read_json(path, kind, f'remove {path.parents[2]} and run the build again')
