# SPDX-License-Identifier: Apache-2.0
"""Raw text files, plain or gzipped, read as chunks of whole lines."""

import gzip
import hashlib
import zlib
from collections.abc import Iterator
from pathlib import Path

from data_pipelines.errors import UserError

GZIP_MAGIC = b'\x1f\x8b'
MAX_LINE_BYTES = 1 << 20  # a longer line means that this is no text file of rows


def file_sha256(path: Path) -> str:
  """Hexadecimal sha256 of a file's bytes."""
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def describe_raw(path: Path) -> dict:
  """Name, size and checksum of a raw file, for `schema.json`.

  Raises:
    UserError: the file is missing, a folder, or has no bytes.
  """
  if not path.exists():
    raise UserError(f'--raw={path}: no such file; give the raw data file (plain or .gz)')
  if not path.is_file():
    raise UserError(f'--raw={path}: expected a file, found a folder; give the file inside it')
  size = path.stat().st_size
  if size == 0:
    raise UserError(f'--raw={path}: the file is empty; download it again')
  return {'name': path.name, 'bytes': size, 'sha256': file_sha256(path)}


def read_chunks(path: Path, chunk_bytes: int) -> Iterator[bytes]:
  """Yields the (unzipped) text in chunks of whole lines of about `chunk_bytes`.

  Every chunk ends with a newline, except perhaps the last. Gzip is known by its first two
  bytes, not by the file's name.

  Raises:
    UserError: damaged or truncated gzip, no text at all, or a line of more than 1 MiB.
  """
  with open(path, 'rb') as plain:
    zipped = plain.read(2) == GZIP_MAGIC
    plain.seek(0)
    file = gzip.GzipFile(fileobj=plain) if zipped else plain
    rest, done = b'', 0
    while True:
      try:
        data = file.read(chunk_bytes)
      except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(
          f'--raw={path}: truncated or damaged gzip, readable up to about byte {done:,} of its '
          f'text ({error}); download it again'
        ) from error
      if not data:
        break
      done += len(data)
      end = data.rfind(b'\n') + 1
      if end:
        yield rest + data[:end]
        rest = data[end:]
      else:
        rest += data
      if len(rest) > max(MAX_LINE_BYTES, chunk_bytes):
        raise UserError(
          f'--raw={path}: a line is longer than {len(rest):,} bytes; expected a text file '
          'with one row a line'
        )
    if not done:
      raise UserError(f'--raw={path}: the file holds no text; download it again')
    if rest:
      yield rest
