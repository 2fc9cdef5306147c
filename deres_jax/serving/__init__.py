# SPDX-License-Identifier: Apache-2.0
"""Probabilities of raw rows, from the one file that `deres_jax.export` wrote.

  model = deres_jax.serving.load('model.zip')
  model.predict([{'I1': '3', 'C1': '05db9164'}])

Needs numpy, jax and flatbuffers, and nothing else of what training needs: docs/serving.md.
"""

import pathlib
from typing import Any

import jax
import numpy as np
from jax import export

from deres_jax.core.errors import UserError
from deres_jax.serving import artifact
from deres_jax.serving.encoder import Encoder

# Rows that are computed at once, at most: longer requests are cut. Shorter ones are padded to a
# power of two, so that eleven programs are compiled at most, each at the first request of its size.
MOST_ROWS = 1024


class Model:
  """A trained model. Threads may share it.

  Attributes:
    description: description.json of the file.
  """

  def __init__(self, found: artifact.Artifact, function: export.Exported):
    self.description = found.description
    self._encoder = Encoder(found.description['inputs'], found.vocabularies)
    self._weights = jax.device_put(found.weights)
    self._call = jax.jit(function.call)

  def encode(self, rows: list[dict[str, Any]]) -> np.ndarray:
    """Ids of rows, [N, S] int32; see `deres_jax.serving.encoder.Encoder.encode`."""
    return self._encoder.encode(rows)

  def compute(self, ids_NS: np.ndarray) -> jax.Array:
    """Probabilities of ids, [N] on the device; every new N is compiled."""
    return self._call(self._weights, ids_NS)

  def predict(self, rows: list[dict[str, Any]]) -> np.ndarray:
    """Click probabilities of rows, [N] float32.

    Args:
      rows: strings by raw column, as in the raw file; a missing key or an empty string is a missing
        value. The history of a row is under `events`: a list of the like, oldest first.

    Raises:
      UserError: names the row, the column and what was expected there.
    """
    ids_NS = self.encode(rows)
    parts = range(0, len(ids_NS), MOST_ROWS)
    # All are asked for before one is waited for.
    out = [self.compute(_padded(ids_NS[i : i + MOST_ROWS])) for i in parts]
    p_N = np.empty(len(ids_NS), np.float32)
    for i, p in zip(parts, out, strict=True):
      p_N[i : i + MOST_ROWS] = np.asarray(p)[: len(ids_NS) - i]
    return p_N


def _padded(ids_nS: np.ndarray) -> np.ndarray:
  n, S = ids_nS.shape
  size = 1 << (n - 1).bit_length()
  if size == n:
    return ids_nS
  padded = np.zeros((size, S), np.int32)
  padded[:n] = ids_nS
  return padded


def load(file: str | pathlib.Path) -> Model:
  """The model of a file, on this process's first device.

  Raises:
    UserError: no such file, damaged, of another version, or for other platforms or another jax.
  """
  path = pathlib.Path(file)
  found = artifact.read(path)
  version = found.description['calling_convention_version']
  low = export.minimum_supported_calling_convention_version
  high = export.maximum_supported_calling_convention_version
  if not low <= version <= high:
    raise UserError(
      f'{path}: its function has calling convention {version} of jax.export, and jax '
      f'{jax.__version__} knows {low} to {high}: load it with jax '
      f'{found.description["versions"]["jax"]}, or export the run again'
    )
  platforms, here = found.description['platforms'], export.default_export_platform()
  if here not in platforms:
    raise UserError(
      f'{path}: is for {", ".join(platforms)}, and jax runs on {here} here: export the run with '
      f'--platforms={here}, or set JAX_PLATFORMS={platforms[0]}'
    )
  return Model(found, export.deserialize(bytearray(found.function)))
