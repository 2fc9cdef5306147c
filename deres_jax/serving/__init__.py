# SPDX-License-Identifier: Apache-2.0
"""Serves a trained model: click probabilities of raw rows, from the file of `deres_jax.export`.

  model = deres_jax.serving.load('model.zip')
  model.predict([{'I1': '3', 'C1': '05db9164'}])

Needs only numpy, jax, flatbuffers and msgspec (docs/serving.md). Imports core
and data.schema.
"""

import pathlib
from typing import Any

import jax
import numpy as np
from jax import export

from deres_jax.core.errors import UserError
from deres_jax.serving import artifact
from deres_jax.serving.encoder import Encoder

# Longer requests are split, shorter ones padded to a power of two: at most eleven programs are
# compiled, each at the first request of its size.
MAX_ROWS = 1024


class Model:
  """A trained model. Threads may share it.

  Attributes:
    description: content of the file's description.json.
  """

  def __init__(self, content: artifact.Artifact, function: export.Exported):
    self.description = content.content
    self._encoder = Encoder(content.description.inputs, content.vocabularies)
    self._weights = jax.device_put(content.weights)
    self._call = jax.jit(function.call)

  def encode(self, rows: list[dict[str, Any]]) -> np.ndarray:
    """Returns the ids of rows, [N, S] int32; see `deres_jax.serving.encoder.Encoder.encode`."""
    return self._encoder.encode(rows)

  def compute(self, ids_NS: np.ndarray) -> jax.Array:
    """Returns the probabilities of ids, [N] on the device; each new N is compiled."""
    return self._call(self._weights, ids_NS)

  def predict(self, rows: list[dict[str, Any]]) -> np.ndarray:
    """Returns the click probabilities of rows, [N] float32.

    Args:
      rows: strings by raw column, as in the raw file; a key that is absent, or an empty string, is
        a missing value. A row's history is under `events`: a list of such dicts, oldest first.

    Raises:
      UserError: names the row, the column and the expected value.
    """
    ids_NS = self.encode(rows)
    starts = range(0, len(ids_NS), MAX_ROWS)
    # All are dispatched before the first result is awaited.
    out = [self.compute(_padded(ids_NS[i : i + MAX_ROWS])) for i in starts]
    p_N = np.empty(len(ids_NS), np.float32)
    for i, p in zip(starts, out, strict=True):
      p_N[i : i + MAX_ROWS] = np.asarray(p)[: len(ids_NS) - i]
    return p_N


def _padded(ids_nS: np.ndarray) -> np.ndarray:
  n, S = ids_nS.shape
  padded = np.zeros((1 << (n - 1).bit_length(), S), np.int32)
  padded[:n] = ids_nS
  return padded


def load(file: str | pathlib.Path) -> Model:
  """Loads a model onto this process's first device.

  Raises:
    UserError: no such file, damaged, or made for another version, platform or jax.
  """
  path = pathlib.Path(file)
  content = artifact.read(path)
  description = content.description
  version = description.calling_convention_version
  low = export.minimum_supported_calling_convention_version
  high = export.maximum_supported_calling_convention_version
  if not low <= version <= high:
    raise UserError(
      f'{path}: its function has calling convention {version} of jax.export, but jax '
      f'{jax.__version__} supports {low} to {high}: load it with jax '
      f'{description.versions.get("jax", "of its time")}, or export the run again'
    )
  platforms, platform = description.platforms, export.default_export_platform()
  if platform not in platforms:
    raise UserError(
      f'{path}: is for {", ".join(platforms)}, but jax runs on {platform} here: export the run '
      f'with --platforms={platform}, or set JAX_PLATFORMS={platforms[0]}'
    )
  return Model(content, export.deserialize(bytearray(content.function)))
