# SPDX-License-Identifier: Apache-2.0
"""Cuts raw text files, plain or gzipped, into chunks of whole lines in one pass."""

import dataclasses
import gzip
import hashlib
import zlib
from collections.abc import Iterator
from pathlib import Path

from data_pipelines.core import files
from data_pipelines.prepared.schema import RawFile
from deres_jax.core.errors import UserError

MAX_LINE_BYTES = 1 << 20  # a longer line means that this is not a text file of rows
_READ_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class Chunk:
  """Whole lines of a raw file: their text (`data`), or None to read them from the file.

  Attributes:
    share: share of the raw file's bytes that lie before the end of the chunk.
    offset, size: where the lines lie in the text, in bytes.
  """

  path: Path
  share: float
  offset: int
  size: int
  data: bytes | None

  def read(self) -> bytes:
    """Returns the lines."""
    if self.data is not None:
      return self.data
    with open(self.path, 'rb') as file:
      file.seek(self.offset)
      return file.read(self.size)


class _Hashed:
  """A file that hashes all bytes that are read."""

  def __init__(self, path: Path):
    self._file = open(path, 'rb')  # noqa: SIM115 (closed by TextFile.chunks)
    self.hash = hashlib.sha256()
    self.size = 0

  def read(self, count: int = -1) -> bytes:
    data = self._file.read(count)
    self.hash.update(data)
    self.size += len(data)
    return data

  def close(self) -> None:
    self._file.close()


class TextFile:
  """One raw file. `describe` is complete once `chunks` has ended."""

  def __init__(self, path: Path):
    """Raises UserError if the file is missing or empty."""
    files.check_raw(path)
    self.path = path
    self._bytes = path.stat().st_size
    self._sha256 = ''

  def describe(self) -> RawFile:
    """Returns name, size and checksum, for `schema.json`."""
    return RawFile(self.path.name, self._bytes, self._sha256)

  def chunks(self, chunk_bytes: int, limit: int | None) -> Iterator[Chunk]:
    """Yields the text in chunks of whole lines of about `chunk_bytes`, at most `limit` lines.

    Chunks of a plain file hold no text: a worker reads it. The file is read to its end even if
    `limit` comes first, for its checksum.

    Raises:
      UserError: damaged or truncated gzip, no text at all, or a line of more than 1 MiB.
    """
    zipped = files.is_zipped(self.path)
    raw = _Hashed(self.path)
    try:
      text = gzip.GzipFile(fileobj=raw, mode='rb') if zipped else raw
      yield from self._cut(text, raw, zipped, chunk_bytes, limit)
      while raw.read(_READ_BYTES):
        pass
      self._bytes, self._sha256 = raw.size, raw.hash.hexdigest()
    finally:
      raw.close()

  def _cut(self, text, raw: _Hashed, zipped: bool, chunk_bytes: int, limit: int | None):
    rest, done, lines = b'', 0, 0  # text not yet yielded, and where it begins
    while limit is None or lines < limit:
      data = self._read(text, chunk_bytes, done)
      end = data.rfind(b'\n') + 1 if data else 0
      if data and not end:
        rest += data
        if len(rest) > max(MAX_LINE_BYTES, chunk_bytes):
          raise UserError(
            f'--raw={self.path}: a line is longer than {len(rest):,} bytes; expected a text file '
            'with one row a line'
          )
        continue
      chunk, rest = rest + data[:end] if rest else data[:end], data[end:]
      if limit is not None:
        count = chunk.count(b'\n') + (not chunk.endswith(b'\n'))
        if lines + count > limit:
          count = limit - lines
          chunk = b'\n'.join(chunk.split(b'\n', count)[:count]) + b'\n'
        lines += count
      if chunk:
        share = raw.size / max(self._bytes, 1)
        yield Chunk(self.path, share, done, len(chunk), chunk if zipped else None)
        done += len(chunk)
      if not data:
        break
    if not done and limit != 0:
      raise UserError(f'--raw={self.path}: the file holds no text; download it again')

  def _read(self, text, count: int, done: int) -> bytes:
    try:
      return text.read(count)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
      raise UserError(
        f'--raw={self.path}: truncated or damaged gzip, readable up to about byte {done:,} of its '
        f'text ({error}); download it again'
      ) from error
