# SPDX-License-Identifier: Apache-2.0
"""Batches of a prepared folder's rows.

Batch k of an epoch is a pure function of (seed, epoch, k): nothing but the step number is needed to
resume, on any number of devices, hosts and threads.

Shapes: B rows of a batch, L events of G attributes, S ids of a row, C ids that one device asks for.
"""

import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import grain
import jax
import numpy as np
from jax.sharding import Mesh

from deres_jax import parallel
from deres_jax.blocks import Blocks, Rows
from deres_jax.embedding import Table
from deres_jax.order import Order
from deres_jax.reader import Reader


class Batch(NamedTuple):
  """What a step receives.

  Attributes:
    unique: [D * C] int32, for each of D devices the C different table rows that it asks for,
      padded.
    inverse: [B, S] int32, position among its device's C.
    there: [B, L] bool, which events are there.
    labels: [B] float32, 0 or 1.
    weights: [B] float32, 0 for padding rows.
  """

  unique: np.ndarray | jax.Array
  inverse: np.ndarray | jax.Array
  there: np.ndarray | jax.Array
  labels: np.ndarray | jax.Array
  weights: np.ndarray | jax.Array


class Batches:
  """Batches of one split by number. Every row stands in exactly one batch of an epoch.

  For the order of rows see `deres_jax.order`. The last batch of an epoch is padded with rows of
  weight 0.
  """

  def __init__(
    self,
    blocks: Blocks,
    table: Table,
    batch_size: int,
    devices: int,
    window_blocks: int,
    shuffle_seed: int | None,
  ):
    self._table, self._devices, self._rows = table, devices, blocks.rows
    self.schema = blocks.schema
    sequence = self.schema.sequence
    self._events = (sequence.length, len(sequence.attributes)) if sequence is not None else (0, 0)
    order = Order(blocks.schema.block_rows, blocks.rows, batch_size, window_blocks, shuffle_seed)
    self._reader = Reader(blocks, table, order, 0, 1)
    self._distinct = Distinct(table)
    self.batch_size = batch_size
    self.per_epoch = -(-blocks.rows // batch_size)
    self._floor = 0
    self._floor = self._capacity_floor()

  def size(self, index: int) -> int:
    """Number of real rows in batch `index`."""
    k = index % self.per_epoch
    return min(self.batch_size, self._rows - k * self.batch_size)

  def offset(self, field: int) -> int:
    """Table row of a field's id 0."""
    return int(self._table.offsets[field])

  def rows_until(self, index: int) -> int:
    """Number of real rows in batches 0 .. index - 1."""
    epochs, k = divmod(index, self.per_epoch)
    return epochs * self._rows + min(k * self.batch_size, self._rows)

  def __getitem__(self, index: int) -> Batch:
    return self.assemble(self.rows(index))

  def rows(self, index: int) -> Rows:
    """The real rows of batch `index`."""
    return self._reader.read(*divmod(index, self.per_epoch))

  def assemble(self, rows: Rows) -> Batch:
    """The batch of at most batch_size rows."""
    B, D, n = self.batch_size, self._devices, len(rows.labels)
    S = rows.ids.shape[1]
    ids_BS = rows.ids
    if n < B:
      ids_BS = np.full((B, S), self._table.padding, np.int32)
      ids_BS[:n] = rows.ids
    labels_B, weights_B = np.zeros(B, np.float32), np.zeros(B, np.float32)
    labels_B[:n], weights_B[:n] = rows.labels, 1
    found = [self._distinct.find(part) for part in ids_BS.reshape(D, -1)]
    capacity = max(self._floor, _power_of_two(max(len(u) for u, _ in found)))
    unique = np.full((D, capacity), self._table.padding, np.int32)
    for row, (u, _) in zip(unique, found, strict=True):
      row[: len(u)] = u
    inverse_BS = np.concatenate([i for _, i in found]).reshape(B, S)
    L, G = self._events
    there_BL = ids_BS[:, S - L * G :: max(1, G)] != self._table.padding
    return Batch(unique.reshape(-1), inverse_BS, there_BL, labels_B, weights_B)

  def _capacity_floor(self) -> int:
    """Room for batch 0 and a tenth more: most batches then share one compiled program.

    A batch that needs more gets the next power of two and one more compilation; no id is ever
    dropped. Both depend on the data alone, so a resumed run sees the same programs.
    """
    unique = self[0].unique.reshape(self._devices, -1)
    most = max(int((row != self._table.padding).sum()) for row in unique)
    return _power_of_two(most + most // 10)


_MARKED_ROWS = 1 << 26  # larger tables would need more than 256 MiB a reader thread


class Distinct:
  """Finds the different ids among many: a mark a table row, far faster than sorting them all."""

  def __init__(self, table: Table):
    self._size = table.padding + 1
    self._local = threading.local()

  def find(self, ids_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different ids, ascending, and each id's place among them. int32 [U], int32 [N]."""
    if self._size > _MARKED_ROWS:
      unique_U, place_N = np.unique(ids_N, return_inverse=True)
      return unique_U, place_N.astype(np.int32)
    if not hasattr(self._local, 'marks'):
      self._local.marks = np.empty(self._size, np.int32)  # what it holds is written before read
    marks, order_N = self._local.marks, np.arange(len(ids_N), dtype=np.int32)
    marks[ids_N] = order_N
    unique_U = np.sort(ids_N[marks[ids_N] == order_N])  # one of the equal ids finds its own mark
    marks[unique_U] = order_N[: len(unique_U)]
    return unique_U, marks[ids_N]


def _power_of_two(n: int) -> int:
  return 1 << max(0, n - 1).bit_length()


def put(batch: Batch, mesh: Mesh) -> Batch:
  """The batch on the mesh, each device holding its part; every process passes all of it."""
  to = parallel.sharding(mesh, parallel.BATCH)
  return Batch(*(jax.make_array_from_callback(x.shape, to, x.__getitem__) for x in batch))


def prefetch(
  make: Callable[[int], Any], start: int, stop: int, threads: int, ahead: int
) -> Iterator[Any]:
  """make(start), ..., make(stop - 1), computed in reader threads up to `ahead` early."""
  indices = grain.MapDataset.range(start, stop).map(make)
  return iter(indices.to_iter_dataset(grain.ReadOptions(threads, ahead)))
