# SPDX-License-Identifier: Apache-2.0
"""Statistics of blocks of rows: `schema.json` stores them and doctor counts them again."""

import hashlib
from collections.abc import Iterable, Mapping

import numpy as np

from data_pipelines.prepared.schema import OOV_ID, PADDING_ID, RecordShape


class SplitStats:
  """Counts blocks in the order in which they are stored. Statistics of parts can be added up.

  Attributes:
    lengths: rows of each block.
    digests: SHA-256 of each block's arrays (little endian, C order; ids, label, events, group). The
      content's digest is that of all of them: it depends neither on compression nor on how blocks
      are divided into files, and parts can be computed separately.
    oov_F: rows with the unknown id, by field.
    min_id_K, max_id_K: by field, then by attribute of events (without padding).
    events: events that are not padding.
    faults: what is wrong with blocks that cannot be counted.
  """

  def __init__(self, shape: RecordShape):
    columns = shape.fields + shape.event_fields
    self.shape = shape
    self.rows = 0
    self.clicks = 0
    self.lengths: list[int] = []
    self.digests: list[bytes] = []
    self.oov_F = np.zeros(shape.fields, np.int64)
    self.min_id_K = np.full(columns, np.iinfo(np.int32).max, np.int64)
    self.max_id_K = np.full(columns, -1, np.int64)
    self.events = 0
    self.min_group, self.max_group = np.iinfo(np.int32).max, -1
    self.faults: list[str] = []

  def update(self, block: Mapping[str, np.ndarray]) -> None:
    """Adds one block."""
    ids_NF, label_N = block['ids'], block['label']
    fault = self._fault(block)
    if fault:
      self.faults.append(f'block {len(self.lengths)}: {fault}')
      return
    self.rows += len(label_N)
    self.lengths.append(len(label_N))
    self.clicks += int(label_N.sum(dtype=np.int64))
    self.oov_F += np.count_nonzero(ids_NF == OOV_ID, axis=0)
    low, high = [ids_NF.min(axis=0)], [ids_NF.max(axis=0)]
    if self.shape.events:
      events_NLG = block['events']
      event_mask_NL = (events_NLG != PADDING_ID).any(axis=-1)
      self.events += int(event_mask_NL.sum())
      events_MG = events_NLG[event_mask_NL]
      low.append(events_MG.min(axis=0, initial=np.iinfo(np.int32).max))
      high.append(events_MG.max(axis=0, initial=-1))
    if self.shape.grouped:
      group_N = block['group']
      self.min_group = min(self.min_group, int(group_N.min()))
      self.max_group = max(self.max_group, int(group_N.max()))
    np.minimum(self.min_id_K, np.concatenate(low), out=self.min_id_K)
    np.maximum(self.max_id_K, np.concatenate(high), out=self.max_id_K)
    digest = hashlib.sha256()
    for name in self.shape.arrays(None):
      digest.update(np.ascontiguousarray(block[name], 'u1' if name == 'label' else '<i4'))
    self.digests.append(digest.digest())

  def _fault(self, block: Mapping[str, np.ndarray]) -> str:
    rows = len(block['label'])
    expected = self.shape.arrays(rows)
    shapes = {name: array.shape for name, array in block.items()}
    if shapes != expected or not rows:
      return f'expected arrays of shape {expected}, found {shapes}'
    if block['label'].max() > 1:
      return f'label {block["label"].max()}'
    if self.shape.events:
      filled_NLG = block['events'] != PADDING_ID
      if (filled_NLG.any(axis=-1) != filled_NLG.all(axis=-1)).any():
        return 'an event of which some attributes are padding'
      if (filled_NLG[:, :-1] & ~filled_NLG[:, 1:]).any():
        return 'padding after an event; a short sequence is padded at the front'
    return ''

  @property
  def blocks(self) -> int:
    """Number of blocks."""
    return len(self.lengths)

  @property
  def click_rate(self) -> float:
    """Clicks over rows (0.0 without rows)."""
    return self.clicks / self.rows if self.rows else 0.0

  @property
  def content_sha256(self) -> str:
    """Hexadecimal digest of the blocks' digests."""
    return hashlib.sha256(b''.join(self.digests)).hexdigest()

  def oov_rate_F(self) -> list[float]:
    """Returns the share of rows with the unknown id, missing values included, by field."""
    return [int(count) / self.rows if self.rows else 0.0 for count in self.oov_F]


def total(shape: RecordShape, parts: Iterable[SplitStats]) -> SplitStats:
  """Returns the statistics of consecutive parts taken together."""
  out = SplitStats(shape)
  for part in parts:
    out.rows += part.rows
    out.clicks += part.clicks
    out.events += part.events
    out.faults += part.faults
    out.lengths += part.lengths
    out.digests += part.digests
    out.oov_F += part.oov_F
    np.minimum(out.min_id_K, part.min_id_K, out=out.min_id_K)
    np.maximum(out.max_id_K, part.max_id_K, out=out.max_id_K)
    out.min_group = min(out.min_group, part.min_group)
    out.max_group = max(out.max_group, part.max_group)
  return out
