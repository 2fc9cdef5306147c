# SPDX-License-Identifier: Apache-2.0
"""Batches of a prepared folder's rows.

Batch k of an epoch is a pure function of (seed, epoch, k): nothing but the step number is needed to
resume, on any number of devices, hosts and threads. Each host reads and assembles its own part of
every batch.

Shapes: B rows of a batch and b of a host's part, L events of G attributes, S ids of a row; D
devices, H of them this host's; T tables, K ids that a device asks an owner of a table for.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import grain
import jax
import numpy as np
from jax.sharding import Mesh

from deres_jax.data import distinct
from deres_jax.data.blocks import Blocks, Rows
from deres_jax.data.order import Order
from deres_jax.data.reader import Reader
from deres_jax.embeddings.layout import Tables
from deres_jax.pod import mesh as mesh_lib


class Batch(NamedTuple):
  """What a step receives; on the host the part of that host.

  Attributes:
    ids: for each table [D * D, K_t] int32: the rows that each device asks each owner for, as places
      in the owner's part of the table, ascending, then padding.
    inverse: [B, S] int32, position among the rows that its device asked for of the slot's table;
      -1, the last, is padding.
    there: [B, L] bool, which events are there.
    labels: [B] float32, 0 or 1.
    weights: [B] float32, 0 for padding rows.
    rows: float32, number of real rows of the whole batch.
  """

  ids: tuple[np.ndarray | jax.Array, ...]
  inverse: np.ndarray | jax.Array
  there: np.ndarray | jax.Array
  labels: np.ndarray | jax.Array
  weights: np.ndarray | jax.Array
  rows: np.ndarray | jax.Array


class Draft(NamedTuple):
  """A host's part of a batch, whose capacities all hosts have yet to agree on.

  Attributes:
    places: for each of H devices the places of the rows that it needs, ascending.
    cuts: for each of H devices where each owner's part of each table begins among them, and the
      end. [T * D + 1].
    found: [b, S] int32, position of each id among its device's places; -1 for padding.
    there, labels, weights: as of `Batch`; rows: real ones, of the whole batch.
    need: [T] int32, the least capacities that hold it.
  """

  places: list[np.ndarray]
  cuts: list[np.ndarray]
  found: np.ndarray
  there: np.ndarray
  labels: np.ndarray
  weights: np.ndarray
  rows: int
  need: np.ndarray


def rows_until(index: int, rows: int, batch_size: int) -> int:
  """Number of real rows in batches 0 .. index - 1 of a split of so many rows."""
  epochs, k = divmod(index, -(-rows // batch_size))
  return epochs * rows + min(k * batch_size, rows)


class Batches:
  """Batches of one split by number. Every row stands in exactly one batch of an epoch.

  For the order of rows see `deres_jax.data.order`. The last batch of an epoch is padded with rows
  of weight 0."""

  def __init__(
    self,
    blocks: Blocks,
    tables: Tables,
    batch_size: int,
    devices: int,
    window_blocks: int,
    shuffle_seed: int | None,
    part: int = 0,
    parts: int = 1,
  ):
    """Of all `devices` of the mesh, part `part` of so many equal parts is this host's."""
    self._tables, self._devices, self._rows = tables, devices, blocks.rows
    self._parts = parts
    self.schema = blocks.schema
    sequence = self.schema.sequence
    self._events = (sequence.length, len(sequence.attributes)) if sequence is not None else (0, 0)
    order = Order(blocks.schema.block_rows, blocks.rows, batch_size, window_blocks, shuffle_seed)
    self._order, self._part = order, part
    self._reader = Reader(blocks, tables, order, part, parts)
    self._distinct = distinct.Distinct(tables)
    self._edges = tables.shard_bounds(devices)
    self.batch_size = batch_size
    self.per_epoch = -(-blocks.rows // batch_size)
    self.floor = roomy(self.draft(self.rows(0)).need, devices)

  def size(self, index: int) -> int:
    """Number of real rows in batch `index`, over all hosts."""
    k = index % self.per_epoch
    return min(self.batch_size, self._rows - k * self.batch_size)

  def offset(self, field: int) -> int:
    """Number of the table row of a field's id 0."""
    return int(self._tables.column_offsets[field])

  def rows_until(self, index: int) -> int:
    """Number of real rows in batches 0 .. index - 1."""
    return rows_until(index, self._rows, self.batch_size)

  def __getitem__(self, index: int) -> Batch:
    """Batch `index` of a single host."""
    draft = self.draft(self.rows(index), self.size(index))
    return self.finish(draft, self.capacities(draft.need))

  def rows(self, index: int) -> Rows:
    """This host's real rows of batch `index`."""
    return self._reader.read(*divmod(index, self.per_epoch))

  def stored(self, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Block and row in it of each of this host's real rows of batch `index`: int64 [rows]."""
    b = self.batch_size // self._parts
    here = slice(self._part * b, (self._part + 1) * b)
    block_B, row_B = self._order.stored(*divmod(index, self.per_epoch))
    return block_B[here], row_B[here]

  def draft(self, rows: Rows, total: int | None = None) -> Draft:
    """A batch of these rows of this host, at most its part of batch_size, and `total` of all."""
    b, H, n = self.batch_size // self._parts, self._devices // self._parts, len(rows.labels)
    S, padding = rows.ids.shape[1], self._tables.padding
    ids_bS = rows.ids
    if n < b:
      ids_bS = np.full((b, S), padding, np.int32)
      ids_bS[:n] = rows.ids
    labels_b, weights_b = np.zeros(b, np.float32), np.zeros(b, np.float32)
    labels_b[:n], weights_b[:n] = rows.labels, 1
    found = [self._distinct.find(part.reshape(-1)) for part in ids_bS.reshape(H, -1, S)]
    cuts = [np.searchsorted(places, self._edges) for places, _ in found]
    L, G = self._events
    there_bL = ids_bS[:, S - L * G :: max(1, G)] != padding
    # One more than the most: the last place of every table's ids is padding.
    most = np.max([np.diff(cut).reshape(-1, self._devices).max(1) for cut in cuts], axis=0) + 1
    found_bS = np.concatenate([at for _, at in found]).reshape(b, S)
    places = [places for places, _ in found]
    return Draft(
      places,
      cuts,
      found_bS,
      there_bL,
      labels_b,
      weights_b,
      n if total is None else total,
      most.astype(np.int32),
    )

  def capacities(self, need_T: np.ndarray) -> tuple[int, ...]:
    """Capacities of a batch that needs so much: the usual ones, or, where they are too small, the
    next power of two and one more compilation. No id is ever dropped."""
    return tuple(
      int(low if need <= low else power_of_two(need))
      for need, low in zip(need_T, self.floor, strict=True)
    )

  def finish(self, draft: Draft, capacities: tuple[int, ...]) -> Batch:
    """The batch, with room for capacities[t] rows of table t a device and owner."""
    D, H, T = self._devices, len(draft.places), len(self._tables.parts)
    rest = draft.there, draft.labels, draft.weights, np.float32(draft.rows)
    ids = []
    for table, K in zip(self._tables.parts, capacities, strict=True):
      # Padding ids differ from one another, so that a scatter may be told so.
      padding = np.arange(table.size // D, table.size // D + K, dtype=np.int32)
      ids.append(np.tile(padding, (H * D, 1)))
    if D == T == 1:  # all places are the only owner's
      ids[0][0, : len(draft.places[0])] = draft.places[0]
      return Batch(tuple(ids), draft.found, *rest)
    inverse = []
    room = np.repeat(np.array(capacities, np.int32), D)  # of each (table, owner)
    begin = np.tile(np.arange(D, dtype=np.int32), T) * room  # its first position in the table's
    for h, (places, cut) in enumerate(zip(draft.places, draft.cuts, strict=True)):
      count = np.diff(cut)
      within = np.arange(cut[-1], dtype=np.int32) - np.repeat(cut[:-1], count).astype(np.int32)
      position = np.repeat(begin, count) + within
      local = places[: cut[-1]] - np.repeat(self._edges[:-1], count).astype(np.int32)
      for t, first in enumerate(range(0, T * D, D)):
        mine = slice(cut[first], cut[first + D])
        ids[t][h * D : (h + 1) * D].reshape(-1)[position[mine]] = local[mine]
      inverse.append(np.append(position, np.int32(-1)))  # found is -1 for padding
    b, S = draft.found.shape
    found = draft.found.reshape(H, -1)
    inverse_bS = np.concatenate([i[at] for i, at in zip(inverse, found, strict=True)])
    return Batch(tuple(ids), inverse_bS.reshape(b, S), *rest)


def power_of_two(n: int) -> int:
  """The least power of two that is not below n, n >= 1."""
  return 1 << max(0, int(n) - 1).bit_length()


def roomy(need_T: np.ndarray, devices: int) -> np.ndarray:
  """Capacities for batches like one that needs `need_T`, which then share one compiled program.

  How many different rows a device asks of an owner varies by less than the square root. Of one pair
  four roots more hold nearly all batches. The largest of D^2 pairs varies less, about as
  1 / sqrt(2 ln D^2) (Gumbel's law of the largest of many), so that fewer do; either way about one
  batch in 10,000 needs more.
  """
  roots = 4 / math.sqrt(1 + math.log(devices))

  def of(n: int) -> int:
    n += math.ceil(roots * math.sqrt(n))
    grid = max(1, power_of_two(n) // 64)
    return -(-n // grid) * grid

  return np.array([of(int(n)) for n in need_T], np.int32)


def put(batch: Batch, mesh: Mesh) -> Batch:
  """The batch on the mesh, each device holding its part; every process passes its own."""
  split = mesh_lib.sharding(mesh, mesh_lib.BATCH)
  to = jax.tree.map(lambda _: split, batch)._replace(
    rows=mesh_lib.sharding(mesh, mesh_lib.REPLICATED)
  )
  if jax.process_count() == 1:
    return jax.device_put(batch, to)
  return jax.tree.map(jax.make_array_from_process_local_data, to, batch)


def prefetch(
  make: Callable[[int], Any], start: int, stop: int, threads: int, ahead: int
) -> Iterator[Any]:
  """make(start), ..., make(stop - 1), computed in reader threads up to `ahead` early."""
  indices = grain.MapDataset.range(start, stop).map(make)
  return iter(indices.to_iter_dataset(grain.ReadOptions(threads, ahead)))
