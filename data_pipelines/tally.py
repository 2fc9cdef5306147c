# SPDX-License-Identifier: Apache-2.0
"""Running counts of one split: what `schema.json` says and what doctor counts again."""

import hashlib

import numpy as np

from data_pipelines.schema import OOV_ID


class Tally:
  """Counts blocks of rows in the order in which they are stored.

  The checksum covers ids then label of every block, little endian, C order. It does not depend
  on compression or on how blocks are spread over files.
  """

  def __init__(self, num_fields: int):
    self.rows = 0
    self.blocks = 0
    self.clicks = 0
    self.oov_F = np.zeros(num_fields, np.int64)
    self.min_id_F = np.full(num_fields, np.iinfo(np.int32).max, np.int64)
    self.max_id_F = np.full(num_fields, -1, np.int64)
    self._sha256 = hashlib.sha256()

  def update(self, ids_NF: np.ndarray, label_N: np.ndarray) -> None:
    """Adds one block: ids_NF int32 [rows, fields], label_N uint8 [rows]."""
    self.rows += len(label_N)
    self.blocks += 1
    self.clicks += int(label_N.sum(dtype=np.int64))
    self.oov_F += (ids_NF == OOV_ID).sum(axis=0)
    np.minimum(self.min_id_F, ids_NF.min(axis=0), out=self.min_id_F)
    np.maximum(self.max_id_F, ids_NF.max(axis=0), out=self.max_id_F)
    self._sha256.update(np.ascontiguousarray(ids_NF, '<i4').tobytes())
    self._sha256.update(np.ascontiguousarray(label_N, 'u1').tobytes())

  @property
  def click_rate(self) -> float:
    """Clicks over rows of the blocks so far (0.0 before the first)."""
    return self.clicks / self.rows if self.rows else 0.0

  @property
  def content_sha256(self) -> str:
    """Hexadecimal digest of the blocks so far."""
    return self._sha256.hexdigest()

  def oov_rate_F(self) -> list[float]:
    """Share of rows with the out-of-vocabulary id (missing values included), by field."""
    return [int(count) / self.rows if self.rows else 0.0 for count in self.oov_F]
