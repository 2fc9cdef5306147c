# SPDX-License-Identifier: Apache-2.0
"""Named arrays in one file, each readable alone; the file appears whole or not at all.

Layout: 8 bytes length of the header (little endian), the header (JSON: name -> type, shape,
offset; padded with spaces), the arrays' bytes in C order, little endian, each at a multiple of
_ALIGN bytes so that it can be mapped.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from deres_jax.core import files

_ALIGN = 64


def narrow(values: np.ndarray) -> np.ndarray:
  """Returns the same integers in the smallest of int16, int32 and their own type."""
  if values.size:
    low, high = int(values.min()), int(values.max())
    for kind in (np.int16, np.int32):
      if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
        return values.astype(kind)
  return values


def _padding(size: int) -> int:
  return -size % _ALIGN


def write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes the arrays to a file, or replaces it."""
  header, offset = {}, 0
  for name, array in arrays.items():
    header[name] = (array.dtype.str, array.shape, offset)
    offset += array.nbytes + _padding(array.nbytes)
  head = json.dumps(header).encode('ascii')
  head += b' ' * _padding(8 + len(head))
  # Not durable: a build deletes these files, and after a power failure their results are gone too.
  with files.replacing(path, durable=False) as partial, open(partial, 'wb') as file:
    file.write(len(head).to_bytes(8, 'little') + head)
    for array in arrays.values():
      file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
      file.write(bytes(_padding(array.nbytes)))


class Reader:
  """Reads single arrays of a file. A context manager."""

  def __init__(self, path: Path):
    self._file = open(path, 'rb')  # noqa: SIM115 (closed by __exit__)
    length = int.from_bytes(self._file.read(8), 'little')
    header = dict[str, tuple[str, tuple[int, ...], int]]
    advice = 'remove the folder that ends in .building and run the build again'
    self._header = files.decode_json(self._file.read(length), header, path, advice)
    self._start = 8 + length

  def __enter__(self) -> 'Reader':
    return self

  def __exit__(self, kind, error, trace) -> None:
    self._file.close()

  def __contains__(self, name: str) -> bool:
    return name in self._header

  def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Returns items [start, stop) of the first axis of an array."""
    kind, shape, offset = self._header[name]
    stop = shape[0] if stop is None else stop
    inner = shape[1:]
    width = int(np.prod(inner, dtype=np.int64))
    self._file.seek(self._start + offset + start * width * np.dtype(kind).itemsize)
    flat = np.fromfile(self._file, kind, (stop - start) * width)
    return flat.reshape(stop - start, *inner)

  def map(self, name: str) -> np.ndarray:
    """Returns an array that is read where it is touched; processes share its memory."""
    kind, shape, offset = self._header[name]
    if not np.prod(shape, dtype=np.int64):
      return np.empty(shape, kind)
    return np.memmap(self._file, kind, 'r', self._start + offset, shape)
