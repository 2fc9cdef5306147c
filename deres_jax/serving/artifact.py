# SPDX-License-Identifier: Apache-2.0
"""The file that `deres_jax.export` writes and `deres_jax.serving` reads.

A ZIP archive, without pickles, that other tools can open:
  description.json   what it is; every other member's SHA-256; the weights in the function's order
  function.bin       (weights, ids [b, S]) -> probabilities [b], serialized by jax.export
  vocabulary/NAME.txt   line i (from 0) is the token of id i + 2
  weights/NAME.npy   dense parameters by their path, and the tables, row by row of their ids
The same run gives the same bytes: members have no times.
"""

import hashlib
import io
import json
import pathlib
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from deres_jax.core import files
from deres_jax.core.errors import UserError

FORMAT = 'deres_jax.export'
FORMAT_VERSION = 1
DESCRIPTION, FUNCTION = 'description.json', 'function.bin'


class Weight(NamedTuple):
  """An array on its way to the file.

  Attributes:
    parts: its rows, a part after the other, so that a large table is never there twice.
  """

  name: str
  shape: tuple[int, ...]
  dtype: np.dtype
  parts: Iterator[np.ndarray]


class Artifact(NamedTuple):
  """What the file holds. `vocabularies` are by name, `weights` in the function's order."""

  description: dict[str, Any]
  function: bytes
  vocabularies: dict[str, bytes]
  weights: list[np.ndarray]


def weight_member(name: str) -> str:
  """Name of an array in the archive."""
  return f'weights/{name}.npy'


def vocabulary_member(name: str) -> str:
  """Name of a vocabulary in the archive."""
  return f'vocabulary/{name}.txt'


class _Writer:
  """Members of an archive, with their checksums."""

  def __init__(self, archive: zipfile.ZipFile):
    self._archive = archive
    self.sha256: dict[str, str] = {}

  def add(self, name: str, parts: Iterator[bytes], packed: bool):
    info = zipfile.ZipInfo(name)
    info.compress_type = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    digest = hashlib.sha256()
    with self._archive.open(info, 'w', force_zip64=True) as member:
      for part in parts:
        member.write(part)
        digest.update(part)
    self.sha256[name] = digest.hexdigest()


def _npy(weight: Weight) -> Iterator[bytes]:
  head = io.BytesIO()
  kind = np.lib.format.dtype_to_descr(weight.dtype)
  header = {'descr': kind, 'fortran_order': False, 'shape': weight.shape}
  np.lib.format.write_array_header_1_0(head, header)
  yield head.getvalue()
  for part in weight.parts:
    yield np.ascontiguousarray(part).tobytes()


def write(
  out: pathlib.Path,
  description: dict[str, Any],
  function: bytes,
  vocabularies: dict[str, bytes],
  weights: list[Weight],
):
  """Writes the file; it appears whole or not at all. Format and checksums are added here."""
  with files.replacing(out) as partial, zipfile.ZipFile(partial, 'w') as archive:
    writer = _Writer(archive)
    writer.add(FUNCTION, iter([function]), packed=True)
    for name, text in sorted(vocabularies.items()):
      writer.add(vocabulary_member(name), iter([text]), packed=True)
    for weight in weights:
      writer.add(weight_member(weight.name), _npy(weight), packed=False)
    content = {
      'format': FORMAT,
      'format_version': FORMAT_VERSION,
      **description,
      'vocabularies': sorted(vocabularies),
      'weights': [weight.name for weight in weights],
      'sha256': dict(writer.sha256),
    }
    text = json.dumps(content, indent=1, allow_nan=False) + '\n'
    writer.add(DESCRIPTION, iter([text.encode('utf-8')]), packed=True)


# What the standard library raises for archives of which some bytes are others.
_DAMAGED = (
  *(zipfile.BadZipFile, zlib.error, EOFError, OSError, KeyError, ValueError),
  *(NotImplementedError, RuntimeError),  # another compression; a password
)
_AGAIN = 'copy it again, or export it again (python -m deres_jax.export)'


def read(path: pathlib.Path) -> Artifact:
  """Reads a file and checks every byte of it.

  Raises:
    UserError: there is none, it is another kind of file or of another version, or it is damaged.
  """
  if not path.is_file():
    raise UserError(f'{path}: no such file: give what python -m deres_jax.export --out=FILE wrote')
  try:
    with zipfile.ZipFile(path) as archive:
      return _read(path, archive)
  except _DAMAGED as e:
    raise UserError(f'{path}: damaged, or no file of deres_jax.export ({e}): {_AGAIN}') from e


def _read(path: pathlib.Path, archive: zipfile.ZipFile) -> Artifact:
  description = json.loads(archive.read(DESCRIPTION))
  if not isinstance(description, dict):
    raise ValueError(f'{DESCRIPTION} is no object')
  found = description['format'], description['format_version']
  if found != (FORMAT, FORMAT_VERSION):
    raise UserError(
      f'{path}: is of format {found}, expected {(FORMAT, FORMAT_VERSION)}: export the run again '
      'with this version of deres_jax, or load the file with the version that wrote it'
    )

  def member(name: str) -> bytes:
    data = archive.read(name)
    digest = hashlib.sha256(data).hexdigest()
    if digest != description['sha256'][name]:
      raise ValueError(f'{name} has another checksum than {DESCRIPTION} says')
    return data

  return Artifact(
    description,
    member(FUNCTION),
    {name: member(vocabulary_member(name)) for name in description['vocabularies']},
    [_array(member(weight_member(name))) for name in description['weights']],
  )


def _array(data: bytes) -> np.ndarray:
  """An array of the bytes of an .npy file, which it shares."""
  reader = io.BytesIO(data)  # shares them, too
  if np.lib.format.read_magic(reader) != (1, 0):
    raise ValueError('an array of another .npy version')
  shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(reader)
  if fortran_order or dtype.hasobject:
    raise ValueError(f'an array of {dtype}')
  return np.frombuffer(data, dtype, offset=reader.tell()).reshape(shape)
