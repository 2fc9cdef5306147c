# SPDX-License-Identifier: Apache-2.0
"""The file that `deres_jax.export` writes and `deres_jax.serving` reads.

A ZIP archive without pickles, which other tools can open:
  description.json   the run; every other member's SHA-256; the weights in the function's order
  function.bin       (weights, ids [b, S]) -> probabilities [b], serialized by jax.export
  vocabulary/NAME.txt   line i (from 0) is the token of id i + 2
  weights/NAME.npy   dense parameters by their path, and the tables, row i for id i
The same run gives the same bytes: members have no timestamps.
"""

import hashlib
import io
import json
import pathlib
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np

from deres_jax.core import files
from deres_jax.core.errors import UserError
from deres_jax.serving.recipes import Inputs

FORMAT = 'deres_jax.export'
FORMAT_VERSION = 1
DESCRIPTION, FUNCTION = 'description.json', 'function.bin'


class Weight(NamedTuple):
  """An array to write.

  Attributes:
    parts: its rows, part by part, so that a large table is never copied in one piece.
  """

  name: str
  shape: tuple[int, ...]
  dtype: np.dtype
  parts: Iterator[np.ndarray]


class Description(msgspec.Struct, frozen=True):
  """The part of description.json that loading needs."""

  calling_convention_version: int
  platforms: Annotated[list[str], msgspec.Meta(min_length=1)]
  versions: dict[str, str]
  inputs: Inputs
  vocabularies: list[str]
  weights: list[str]
  sha256: dict[str, str]

  def __post_init__(self):
    columns = [*self.inputs.fields, *self.inputs.attributes]
    missing = {x.vocabulary for x in columns if not x.hashed} - set(self.vocabularies)
    if missing:
      raise ValueError(f'it lacks the vocabularies {missing}')


class Artifact(NamedTuple):
  """The content of the file.

  Attributes:
    content: all of description.json.
    vocabularies: by name.
    weights: in the order of the function's arguments.
  """

  content: dict[str, Any]
  description: Description
  function: bytes
  vocabularies: dict[str, bytes]
  weights: list[np.ndarray]


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
  """Writes the file in one piece, and adds format and checksums to its description."""
  sha256: dict[str, str] = {}
  with files.replacing(out) as partial, zipfile.ZipFile(partial, 'w') as archive:

    def add(name: str, parts: Iterable[bytes], compression: int = zipfile.ZIP_DEFLATED):
      info = zipfile.ZipInfo(name)
      info.compress_type = compression
      digest = hashlib.sha256()
      with archive.open(info, 'w', force_zip64=True) as member:
        for part in parts:
          member.write(part)
          digest.update(part)
      sha256[name] = digest.hexdigest()

    add(FUNCTION, [function])
    for name, text in sorted(vocabularies.items()):
      add(f'vocabulary/{name}.txt', [text])
    for weight in weights:
      add(f'weights/{weight.name}.npy', _npy(weight), zipfile.ZIP_STORED)
    content = {
      'format': FORMAT,
      'format_version': FORMAT_VERSION,
      **description,
      'vocabularies': sorted(vocabularies),
      'weights': [weight.name for weight in weights],
      'sha256': sha256,
    }
    text = json.dumps(content, indent=1, allow_nan=False) + '\n'
    archive.writestr(zipfile.ZipInfo(DESCRIPTION), text, compress_type=zipfile.ZIP_DEFLATED)


# Errors that msgspec and the standard library raise for archives with altered bytes.
_DAMAGED = (
  *(zipfile.BadZipFile, zlib.error, EOFError, OSError, KeyError, ValueError),
  *(NotImplementedError, RuntimeError),  # an unknown compression; a password
  msgspec.MsgspecError,
)
_AGAIN = 'copy it again, or export it again (python -m deres_jax.export)'


def read(path: pathlib.Path) -> Artifact:
  """Reads a file and checks every byte of it.

  Raises:
    UserError: there is no such file, it has another format or version, or it is damaged.
  """
  if not path.is_file():
    raise UserError(f'{path}: no such file: give what python -m deres_jax.export --out=FILE wrote')
  try:
    with zipfile.ZipFile(path) as archive:
      return _read(path, archive)
  except _DAMAGED as e:
    raise UserError(f'{path}: damaged, or no file of deres_jax.export ({e}): {_AGAIN}') from e


def _read(path: pathlib.Path, archive: zipfile.ZipFile) -> Artifact:
  content = msgspec.json.decode(archive.read(DESCRIPTION), type=dict)
  version = content['format'], content['format_version']
  if version != (FORMAT, FORMAT_VERSION):
    raise UserError(
      f'{path}: has format {version}, expected {(FORMAT, FORMAT_VERSION)}: export the run again '
      'with this version of deres_jax, or load the file with the version that wrote it'
    )
  description = msgspec.convert(content, Description)

  def member(name: str) -> bytes:
    data = archive.read(name)
    if hashlib.sha256(data).hexdigest() != description.sha256[name]:
      raise ValueError(f'the checksum of {name} differs from {DESCRIPTION}')
    return data

  return Artifact(
    content,
    description,
    member(FUNCTION),
    {name: member(f'vocabulary/{name}.txt') for name in description.vocabularies},
    [
      np.lib.format.read_array(io.BytesIO(member(f'weights/{name}.npy')))
      for name in description.weights
    ],
  )
