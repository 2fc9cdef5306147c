# SPDX-License-Identifier: Apache-2.0
"""Batches of a prepared folder's examples.

Batch k of an epoch is a pure function of (seed, epoch, k), so a run resumes from its step number
alone, on any number of devices, hosts and threads. Each host reads and assembles its own slice of
every batch.

Shapes: B examples of a batch and b of a host's slice, L events of G attributes, S ids of an
example; D devices, H of them on this host; T tables, K ids that a device requests from one shard of
a table, U unique ids.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import grain
import jax
import numpy as np
from jax.sharding import Mesh

from deres_jax.data.blocks import Blocks, Examples
from deres_jax.data.reader import Reader
from deres_jax.data.shuffle_plan import ShufflePlan
from deres_jax.data.unique_ids import UniqueIds
from deres_jax.embeddings.layout import Tables
from deres_jax.pod import mesh as mesh_lib


class Batch(NamedTuple):
  """A batch as a step receives it; on the host, that host's slice of it.

  Attributes:
    unique_ids: for each table [D * D, K_t] int32: the rows that each device requests from each
      shard, as row numbers within the shard, ascending, then padding.
    inverse: [B, S] int32, position of each id among those that its device requests from the
      column's table; -1, the last position, is padding.
    event_mask: [B, L] bool, true for real events.
    labels: [B] float32, 0 or 1.
    weights: [B] float32, 0 for padding examples.
    num_examples: float32, number of real examples in the global batch.
  """

  unique_ids: tuple[np.ndarray | jax.Array, ...]
  inverse: np.ndarray | jax.Array
  event_mask: np.ndarray | jax.Array
  labels: np.ndarray | jax.Array
  weights: np.ndarray | jax.Array
  num_examples: np.ndarray | jax.Array


class HostBatch(NamedTuple):
  """A host's slice of a batch before all hosts agree on the capacities.

  Attributes:
    unique_ids: for each of H devices [U] int32: storage indices of the rows it needs, ascending.
    shard_bounds: for each of H devices [T * D + 1]: where each shard's rows begin in `unique_ids`.
    inverse: [b, S] int32, position of each id in its device's `unique_ids`; -1 for padding.
    event_mask, labels, weights, num_examples: as in `Batch`.
    required: [T] int32, the smallest capacities that hold it.
  """

  unique_ids: list[np.ndarray]
  shard_bounds: list[np.ndarray]
  inverse: np.ndarray
  event_mask: np.ndarray
  labels: np.ndarray
  weights: np.ndarray
  num_examples: int
  required: np.ndarray


def examples_until(index: int, rows: int, batch_size: int) -> int:
  """Returns the number of real examples in batches 0 .. index - 1 of a split of `rows` rows."""
  epochs, k = divmod(index, -(-rows // batch_size))
  return epochs * rows + min(k * batch_size, rows)


class Batches:
  """Batches of one split by number. Every example is in exactly one batch of an epoch.

  `deres_jax.data.shuffle_plan` defines the order. The last batch of an epoch is padded with
  examples of weight 0."""

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
    """This host owns slice `part` of `parts` equal slices of each batch."""
    self._tables, self._devices, self._rows = tables, devices, blocks.rows
    self._part, self._parts = part, parts
    self.schema = blocks.schema
    sequence = self.schema.sequence
    self._events = (sequence.length, len(sequence.attributes)) if sequence is not None else (0, 0)
    self._plan = ShufflePlan(
      blocks.schema.block_rows, blocks.rows, batch_size, window_blocks, shuffle_seed
    )
    self._reader = Reader(blocks, tables, self._plan, part, parts)
    self._unique_ids = UniqueIds(tables)
    self._shard_bounds = tables.shard_bounds(devices)
    self.batch_size = batch_size
    self.per_epoch = -(-blocks.rows // batch_size)
    self.default_capacity = initial_capacity(self.host_batch(self.examples(0)).required, devices)

  def size(self, index: int) -> int:
    """Returns the number of real examples in batch `index`, over all hosts."""
    k = index % self.per_epoch
    return min(self.batch_size, self._rows - k * self.batch_size)

  def offset(self, field: int) -> int:
    """Returns the global id of a field's id 0."""
    return int(self._tables.column_offsets[field])

  def examples_until(self, index: int) -> int:
    """Returns the number of real examples in batches 0 .. index - 1."""
    return examples_until(index, self._rows, self.batch_size)

  def __getitem__(self, index: int) -> Batch:
    """Returns batch `index` of a run on a single host."""
    host_batch = self.host_batch(self.examples(index), self.size(index))
    return self.finish(host_batch, self.capacities(host_batch.required))

  def examples(self, index: int) -> Examples:
    """Reads this host's real examples of batch `index`."""
    return self._reader.read(*divmod(index, self.per_epoch))

  def source_of(self, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns block and row of each of this host's real examples of batch `index`, int64."""
    b = self.batch_size // self._parts
    slice_b = slice(self._part * b, (self._part + 1) * b)
    block_B, row_B = self._plan.source_of(*divmod(index, self.per_epoch))
    return block_B[slice_b], row_B[slice_b]

  def host_batch(self, examples: Examples, num_examples: int | None = None) -> HostBatch:
    """Pads this host's examples to its slice of a batch and finds their unique ids.

    Args:
      num_examples: of the global batch, by default as many as are given.
    """
    b, H, n = self.batch_size // self._parts, self._devices // self._parts, len(examples.labels)
    S, padding = examples.ids.shape[1], self._tables.padding
    ids_bS = examples.ids
    if n < b:
      ids_bS = np.full((b, S), padding, np.int32)
      ids_bS[:n] = examples.ids
    labels_b, weights_b = np.zeros(b, np.float32), np.zeros(b, np.float32)
    labels_b[:n], weights_b[:n] = examples.labels, 1
    unique = [self._unique_ids.unique(ids) for ids in ids_bS.reshape(H, -1)]
    shard_bounds = [np.searchsorted(ids_U, self._shard_bounds) for ids_U, _ in unique]
    L, G = self._events
    # One more than the largest count: the last of each table's K ids is always padding.
    counts = [np.diff(bounds).reshape(-1, self._devices).max(1) for bounds in shard_bounds]
    return HostBatch(
      unique_ids=[ids_U for ids_U, _ in unique],
      shard_bounds=shard_bounds,
      inverse=np.concatenate([inverse for _, inverse in unique]).reshape(b, S),
      event_mask=ids_bS[:, S - L * G :: max(1, G)] != padding,
      labels=labels_b,
      weights=weights_b,
      num_examples=n if num_examples is None else num_examples,
      required=(np.max(counts, axis=0) + 1).astype(np.int32),
    )

  def capacities(self, required_T: np.ndarray) -> tuple[int, ...]:
    """Returns the padded size of each table's ids. No id is ever dropped.

    It is the default; a batch that requires more gets the next power of two, and one recompilation.
    """
    return tuple(
      int(default if required <= default else power_of_two(required))
      for required, default in zip(required_T, self.default_capacity, strict=True)
    )

  def finish(self, host_batch: HostBatch, capacities: tuple[int, ...]) -> Batch:
    """Pads the unique ids of table t to capacities[t] for each device and shard."""
    D, H, T = self._devices, len(host_batch.unique_ids), len(self._tables.parts)
    rest = host_batch.event_mask, host_batch.labels, host_batch.weights
    num_examples = np.float32(host_batch.num_examples)
    unique_ids = []
    for table, K in zip(self._tables.parts, capacities, strict=True):
      # Padding ids differ from one another, so that scatters may assume unique indices.
      padding_K = np.arange(table.size // D, table.size // D + K, dtype=np.int32)
      unique_ids.append(np.tile(padding_K, (H * D, 1)))
    if D == T == 1:  # the only shard holds every row
      (ids_U,) = host_batch.unique_ids
      unique_ids[0][0, : len(ids_U)] = ids_U
      return Batch(tuple(unique_ids), host_batch.inverse, *rest, num_examples)
    inverse = []
    capacity = np.repeat(np.array(capacities, np.int32), D)  # of each (table, shard)
    start = np.tile(np.arange(D, dtype=np.int32), T) * capacity  # its first position in the table's
    pairs = zip(host_batch.unique_ids, host_batch.shard_bounds, strict=True)
    for h, (ids_U, bounds) in enumerate(pairs):
      count = np.diff(bounds)
      within = np.arange(bounds[-1], dtype=np.int32)
      within -= np.repeat(bounds[:-1], count).astype(np.int32)
      position = np.repeat(start, count) + within
      local = ids_U[: bounds[-1]] - np.repeat(self._shard_bounds[:-1], count).astype(np.int32)
      for t, first in enumerate(range(0, T * D, D)):
        of_table = slice(bounds[first], bounds[first + D])
        by_shard = unique_ids[t][h * D : (h + 1) * D].reshape(-1)
        by_shard[position[of_table]] = local[of_table]
      inverse.append(np.append(position, np.int32(-1))[host_batch.inverse.reshape(H, -1)[h]])
    inverse_bS = np.concatenate(inverse).reshape(host_batch.inverse.shape)
    return Batch(tuple(unique_ids), inverse_bS, *rest, num_examples)


def power_of_two(n: int) -> int:
  """Returns the smallest power of two that is at least n, n >= 1."""
  return 1 << max(0, int(n) - 1).bit_length()


def initial_capacity(required_T: np.ndarray, devices: int) -> np.ndarray:
  """Returns capacities for batches like one that requires `required_T`: they share one program.

  The number of unique rows that a device requests from a shard has a standard deviation below its
  square root. For one pair, four square roots of headroom fit nearly all batches. The maximum over
  D^2 pairs varies less, by about 1 / sqrt(2 ln D^2) (Gumbel's extreme value law), so the headroom
  shrinks with D; in either case about one batch in 10,000 requires more.
  """
  roots = 4 / math.sqrt(1 + math.log(devices))
  size_T = required_T + np.ceil(roots * np.sqrt(required_T)).astype(int)
  grid_T = np.array([max(1, power_of_two(size) // 64) for size in size_T])
  return (-(-size_T // grid_T) * grid_T).astype(np.int32)


def put(batch: Batch, mesh: Mesh) -> Batch:
  """Puts a batch on the mesh, split over the devices; every process passes its own slice."""
  split = mesh_lib.sharding(mesh, mesh_lib.BATCH)
  shardings = jax.tree.map(lambda _: split, batch)._replace(
    num_examples=mesh_lib.sharding(mesh, mesh_lib.REPLICATED)
  )
  if jax.process_count() == 1:
    return jax.device_put(batch, shardings)
  return jax.tree.map(jax.make_array_from_process_local_data, shardings, batch)


def prefetch(
  make: Callable[[int], Any], start: int, stop: int, threads: int, ahead: int
) -> Iterator[Any]:
  """Yields make(start), ..., make(stop - 1), computed in threads up to `ahead` items early."""
  indices = grain.MapDataset.range(start, stop).map(make)
  return iter(indices.to_iter_dataset(grain.ReadOptions(threads, ahead)))
