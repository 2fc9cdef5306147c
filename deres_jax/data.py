# SPDX-License-Identifier: Apache-2.0
"""Prepared folders in, batches out; the only meeting place with `data_pipelines`.

A prepared folder holds `schema.json` and a TFDS data set whose examples are blocks of rows. Batch
k of an epoch is a pure function of (seed, epoch, k): nothing but the step number is needed to
resume, on any number of devices, hosts and threads.

Shapes: B rows of a batch, N rows of a window, F fields, L events of G attributes, S = F + L * G ids
of a row, C ids that one device asks for.
"""

import collections
import concurrent.futures
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import grain
import jax
import numpy as np
import tensorflow_datasets as tfds
from jax.sharding import Mesh

from deres_jax import parallel
from deres_jax.embedding import Table
from deres_jax.errors import UserError
from deres_jax.order import Order
from deres_jax.schema import Schema


class Rows(NamedTuple):
  """Rows as they are stored.

  Attributes:
    ids: [N, S] int32: fields, then the attributes of all events, oldest event first. In a block
      they count from 0 for each column, else they are numbers of table rows.
    labels: [N] uint8, 0 or 1.
    groups: [N] int32, what the row belongs to; 0 where the data has no groups.
  """

  ids: np.ndarray
  labels: np.ndarray
  groups: np.ndarray


class Blocks:
  """Random access to the blocks of one split, each checked against the schema as it is read."""

  def __init__(self, schema: Schema, split: str):
    self.schema, self.split = schema, split
    self.rows = schema.splits[split].rows
    try:
      builder = tfds.builder_from_directory(schema.path / schema.tfds)
      self._source = builder.as_data_source(split)
    except (OSError, ValueError, RuntimeError) as e:
      raise self._damaged(e) from e
    blocks = -(-self.rows // schema.block_rows)
    if len(self._source) != blocks:
      raise UserError(
        f'data.path={schema.path}: split {split} has {len(self._source)} blocks, schema.json '
        f'expects {blocks}: build the folder again'
      )
    self._limits = np.array([schema.vocab_sizes[c] for c in schema.columns], np.uint32)

  def size(self, index: int) -> int:
    """Rows of a block."""
    return min(self.schema.block_rows, self.rows - index * self.schema.block_rows)

  def read(self, index: int) -> Rows:
    """One block."""
    try:
      example = self._source[index]
    except (OSError, RuntimeError, ValueError) as e:  # a file that is gone, cut short or altered
      raise self._damaged(e) from e
    n, schema = self.size(index), self.schema
    expected = {'ids': ((n, len(schema.fields)), np.int32), 'label': ((n,), np.uint8)}
    if schema.sequence is not None:
      shape = (n, schema.sequence.length, len(schema.sequence.attributes))
      expected['events'] = (shape, np.int32)
    if schema.group:
      expected['group'] = ((n,), np.int32)
    found = {name: (x.shape, x.dtype) for name, x in example.items()}
    if found != expected:
      raise UserError(
        f'data.path={schema.path}: block {index} of split {self.split} is {_shapes(found)}, '
        f'schema.json expects {_shapes(expected)}'
      )
    ids_NS = example['ids']
    if schema.sequence is not None:
      ids_NS = np.concatenate([ids_NS, example['events'].reshape(n, -1)], axis=1)
    self._check(ids_NS, index)
    groups_N = example['group'] if schema.group else np.zeros(n, np.int32)
    return Rows(ids_NS, example['label'], groups_N)

  def _check(self, ids_NS: np.ndarray, index: int):
    # As unsigned numbers, negative ids are too large as well.
    if not (ids_NS.view(np.uint32) >= self._limits).any():
      return
    row, s = np.argwhere((ids_NS < 0) | (ids_NS >= self._limits.astype(np.int64)))[0]
    schema = self.schema
    f = schema.columns[s]
    what = f'field {schema.fields[f]}' if s < len(schema.fields) else 'an event'
    raise UserError(
      f'data.path={schema.path}: id {ids_NS[row, s]} of {what} is out of range '
      f'0..{schema.vocab_sizes[f] - 1} (split {self.split}, block {index}, row {row}): '
      'build the folder again'
    )

  def _damaged(self, e: Exception) -> UserError:
    return UserError(
      f'data.path={self.schema.path}: split {self.split} cannot be read ({e}): '
      f'python -m data_pipelines.doctor {self.schema.path} tells what is wrong'
    )


def _shapes(arrays: dict) -> str:
  return ', '.join(
    f'{name} {np.dtype(t)}{list(shape)}' for name, (shape, t) in sorted(arrays.items())
  )


class Window(NamedTuple):
  """Some of the blocks of a window, read.

  Attributes:
    rows: of these blocks side by side.
    first: row of the window, as `Order.shuffle` orders them, that order_N begins with.
    order_N: place in `rows` of that row and of those that follow.
  """

  rows: Rows
  first: int
  order_N: np.ndarray


_READERS = 4  # threads: reading and checking a block leaves Python's lock free for the most part
_LARGE_BLOCK = 31 << 20  # bytes; glibc's dynamic threshold ends at 32 MiB


class Reader:
  """The rows of a part of every batch, from the blocks that hold them.

  Ids come out as numbers of table rows, and `table.padding` where an event is padding. The next
  window is read while the rows of this one are used.
  """

  def __init__(self, blocks: Blocks, table: Table, order: Order, part: int, parts: int):
    """Reads the given one of equal parts of every batch; hosts may take a part each."""
    self._blocks, self._order, self._part, self._parts = blocks, order, part, parts
    self._offsets_S = table.offsets[np.array(blocks.schema.columns)]
    self._padding = table.padding
    self._lanes = order.lanes_of(part, parts)
    self._windows: collections.OrderedDict[tuple[int, int], concurrent.futures.Future]
    self._windows = collections.OrderedDict()
    self._pool = concurrent.futures.ThreadPoolExecutor(1)  # loads windows
    self._readers = concurrent.futures.ThreadPoolExecutor(_READERS)  # their blocks
    self._lock = threading.Lock()
    # glibc gives large blocks back to the kernel at once and faults new ones in page by page,
    # which halves the speed of reading. Freeing a large one raises its threshold (mallopt(3)).
    np.empty(_LARGE_BLOCK, np.uint8)

  def read(self, epoch: int, batch: int) -> Rows:
    """This part's real rows of a batch; none where the last batch is short."""
    order = self._order
    real = min(order.batch_size, order.rows - batch * order.batch_size)
    low, high = (order.batch_size * p // self._parts for p in (self._part, self._part + 1))
    n = max(0, min(high, real) - low)
    out = self._empty(n)
    pieces = order.pieces(epoch, batch, low, low + n) if n else []
    for window, *spans in pieces:
      spans = [(a, b, at) for a, b, at in zip(*(x.tolist() for x in spans), strict=True) if a < b]
      if not spans:
        continue
      rows, first, order_N = self._window(epoch, window)
      here = np.concatenate([order_N[a - first : b - first] for a, b, _ in spans])
      if len(pieces) == 1:
        for into, values in zip(out, rows, strict=True):
          np.take(values, here, axis=0, out=into, mode='clip')
      else:
        there = np.concatenate([np.arange(at, at + b - a) for a, b, at in spans])
        for into, values in zip(out, rows, strict=True):
          into[there] = values[here]
    return out

  def _window(self, epoch: int, window: int) -> Window:
    with self._lock:
      here = self._started(epoch, window)
      if window + 1 < self._order.windows:
        self._started(epoch, window + 1)
      elif self._order.seed is not None:
        self._started(epoch + 1, 0)
      while len(self._windows) > 3:  # one that a batch straddles, this one and the next
        self._windows.popitem(last=False)
    return here.result()

  def _started(self, epoch: int, window: int) -> concurrent.futures.Future:
    key = (epoch, window)
    if key not in self._windows:
      self._windows[key] = self._pool.submit(self._load, epoch, window)
    self._windows.move_to_end(key)
    return self._windows[key]

  def _load(self, epoch: int, window: int) -> Window:
    order = self._order
    starts = order.lane_starts(epoch, window, self._lanes)
    blocks, start = [], 0
    for block in order.members(epoch, window).tolist():
      stop = start + self._blocks.size(block)
      if start < starts[-1] and stop > starts[0]:
        blocks.append((block, start, stop))
      start = stop
    base = blocks[0][1] if blocks else 0
    out = self._empty(blocks[-1][2] - base if blocks else 0)
    reading = [
      self._readers.submit(self._fill, out, block, slice(start - base, stop - base))
      for block, start, stop in blocks
    ]
    order_N = order.shuffle(epoch, window, self._lanes) - base
    for one in reading:
      one.result()
    return Window(out, int(starts[0]), order_N)

  def _fill(self, out: Rows, block: int, here: slice):
    rows = self._blocks.read(block)
    np.add(rows.ids, self._offsets_S, out=out.ids[here])
    if self._blocks.schema.sequence is not None:
      fields = len(self._blocks.schema.fields)
      out.ids[here, fields:][rows.ids[:, fields:] == 0] = self._padding
    out.labels[here], out.groups[here] = rows.labels, rows.groups

  def _empty(self, n: int) -> Rows:
    slots = len(self._offsets_S)
    return Rows(np.empty((n, slots), np.int32), np.empty(n, np.uint8), np.empty(n, np.int32))


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
