# SPDX-License-Identifier: Apache-2.0
"""Prepared folders in, batches out; the only meeting place with `data_pipelines`.

A prepared folder holds `schema.json` and a TFDS data set whose examples are blocks of rows
(`ids` [n, F] int32 and `label` [n] uint8). Batch k of epoch e is a pure function of
(seed, e, k): nothing but the step number is needed to resume, on any number of devices.

Shapes: B rows of a batch, F fields, N rows of a window, C ids that one device asks for.
"""

import collections
import dataclasses
import json
import pathlib
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

FORMAT = 'deres_jax.prepared'
FORMAT_VERSION = 3


@dataclasses.dataclass(frozen=True)
class Split:
  """Rows, blocks and clicks of one split."""

  rows: int
  blocks: int
  clicks: int


@dataclasses.dataclass(frozen=True)
class Schema:
  """What a prepared folder says of itself.

  Attributes:
    path: the prepared folder.
    dataset: its name, for people.
    tfds: folder of the TFDS data set in it.
    fields: names of the single-valued categorical fields.
    vocab_sizes: ids of a field run from 0 to its vocab_size - 1.
    splits: train, validation, test.
    content: SHA-256 of each split's rows: what the data is, wherever it lies.
    planted: figures of a synthetic teacher by split (such as bayes_auc), else empty.
  """

  path: pathlib.Path
  dataset: str
  tfds: str
  block_rows: int
  fields: tuple[str, ...]
  vocab_sizes: tuple[int, ...]
  splits: dict[str, Split]
  content: dict[str, str]
  planted: dict[str, Any]

  @property
  def click_rate(self) -> float:
    """Of the training split: the models' prior."""
    train = self.splits['train']
    return train.clicks / train.rows


def load_schema(path: str) -> Schema:
  """Reads DIR/schema.json; raises UserError for a missing, foreign or damaged one."""
  if not path:
    raise UserError(
      'config data.path is empty: give a prepared folder, --config.data.path=DIR '
      '(python -m data_pipelines.build makes one)'
    )
  folder = pathlib.Path(path)
  file = folder / 'schema.json'
  if not folder.is_dir():
    raise UserError(
      f'data.path={path}: no such folder; python -m data_pipelines.build --out={path} makes one'
    )
  if not file.is_file():
    raise UserError(
      f'data.path={path}: holds no schema.json, so it is not a prepared folder (or its build was '
      'interrupted): run python -m data_pipelines.build again'
    )
  try:
    raw = json.loads(file.read_text())
  except (json.JSONDecodeError, UnicodeDecodeError) as e:
    raise UserError(f'{file}: not valid JSON ({e}): build the folder again') from e
  found = (raw.get('format'), raw.get('format_version')) if isinstance(raw, dict) else None
  if found != (FORMAT, FORMAT_VERSION):
    raise UserError(
      f'{file}: format {found}, expected {(FORMAT, FORMAT_VERSION)}: '
      'build the folder with this version of data_pipelines'
    )
  try:
    return _schema(folder, raw)
  except (KeyError, TypeError, ValueError) as e:
    raise UserError(
      f'{file}: damaged, {type(e).__name__} {e}: python -m data_pipelines.doctor {path} '
      'tells more; build the folder again'
    ) from e


def _schema(folder: pathlib.Path, raw: dict[str, Any]) -> Schema:
  splits = {
    name: Split(int(s['rows']), int(s['blocks']), int(s['clicks']))
    for name, s in raw['splits'].items()
  }
  kinds = {f['kind'] for f in raw['fields']}
  if kinds != {'categorical'}:
    raise ValueError(f'fields of kinds {sorted(kinds)}, expected categorical')
  if not {'train', 'validation', 'test'} <= set(splits):
    raise ValueError(f'splits {sorted(splits)}, expected train, validation, test')
  inside = (folder / raw['tfds']).resolve()
  if not inside.is_relative_to(folder.resolve()):
    raise ValueError(f'tfds folder {raw["tfds"]!r} is outside of it')
  return Schema(
    path=folder,
    dataset=str(raw['dataset']),
    tfds=str(raw['tfds']),
    block_rows=int(raw['block_rows']),
    fields=tuple(f['name'] for f in raw['fields']),
    vocab_sizes=tuple(int(f['vocab_size']) for f in raw['fields']),
    splits=splits,
    content={name: s['content_sha256'] for name, s in raw['splits'].items()},
    planted=dict(raw.get('planted') or {}),
  )


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
    full, last = divmod(self.rows, schema.block_rows)
    self.sizes = np.array([schema.block_rows] * full + [last] * (last > 0), np.int64)
    if len(self._source) != len(self.sizes):
      raise UserError(
        f'data.path={schema.path}: split {split} has {len(self._source)} blocks, schema.json '
        f'expects {len(self.sizes)}: build the folder again'
      )
    self._limits = np.array(schema.vocab_sizes, np.int32)

  def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
    """ids [n, F] int32 and labels [n] float32 of one block."""
    try:
      example = self._source[index]
    except (OSError, RuntimeError, ValueError) as e:  # a file that is gone, cut short or altered
      raise self._damaged(e) from e
    ids, label = np.asarray(example['ids']), np.asarray(example['label'])
    expected = (int(self.sizes[index]), len(self._limits))
    if ids.shape != expected or label.shape != expected[:1] or ids.dtype != np.int32:
      raise UserError(
        f'data.path={self.schema.path}: block {index} of split {self.split} is '
        f'{ids.dtype}{list(ids.shape)}, schema.json expects int32{list(expected)}'
      )
    bad = (ids < 0) | (ids >= self._limits)
    if bad.any():
      row, field = np.argwhere(bad)[0]
      raise UserError(
        f'data.path={self.schema.path}: id {ids[row, field]} of field {self.schema.fields[field]} '
        f'is out of range 0..{self._limits[field] - 1} (split {self.split}, block {index}, '
        f'row {row}): build the folder again'
      )
    return ids, label.astype(np.float32)

  def _damaged(self, e: Exception) -> UserError:
    return UserError(
      f'data.path={self.schema.path}: split {self.split} cannot be read ({e}): '
      f'python -m data_pipelines.doctor {self.schema.path} tells what is wrong'
    )


class Batch(NamedTuple):
  """What a step receives.

  Attributes:
    unique: [D * C] int32, for each of D devices the C different rows that it asks for, padded.
    inverse: [B, F] int32, position among its device's C ids.
    labels: [B] float32, 0 or 1.
    weights: [B] float32, 0 for padding rows.
  """

  unique: np.ndarray | jax.Array
  inverse: np.ndarray | jax.Array
  labels: np.ndarray | jax.Array
  weights: np.ndarray | jax.Array


def permutation(n: int, *key: int) -> np.ndarray:
  """A permutation of range(n) that depends on `key` alone, in every version of NumPy.

  NumPy keeps its bit generators' streams for ever but not what `permutation` makes of them.
  """
  bits = np.random.Philox(np.random.SeedSequence(key)).random_raw(n)
  return np.argsort(bits, kind='stable')


class Batches:
  """Batches of one split by number. Every row stands in exactly one batch of an epoch.

  Blocks are permuted every epoch and rows are permuted inside windows of `window_blocks` of them
  (rows were shuffled once when they were prepared). The last batch of an epoch is padded with
  rows of weight 0.
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
    self._blocks, self._table, self._devices = blocks, table, devices
    self._window_blocks, self._seed = window_blocks, shuffle_seed
    self.batch_size = batch_size
    self.per_epoch = -(-blocks.rows // batch_size)
    self._windows: collections.OrderedDict = collections.OrderedDict()
    self._lock = threading.Lock()
    self._floor = 0
    self._floor = self._capacity_floor()

  def rows(self, index: int) -> int:
    """Number of real rows in batch `index`."""
    k = index % self.per_epoch
    return min(self.batch_size, self._blocks.rows - k * self.batch_size)

  def rows_until(self, index: int) -> int:
    """Number of real rows in batches 0 .. index - 1."""
    epochs, k = divmod(index, self.per_epoch)
    return epochs * self._blocks.rows + min(k * self.batch_size, self._blocks.rows)

  def __getitem__(self, index: int) -> Batch:
    epoch, k = divmod(index, self.per_epoch)
    ids_BF, labels_B = self._rows(epoch, k * self.batch_size, self.rows(index))
    return self._assemble(ids_BF, labels_B)

  def _order(self, epoch: int) -> np.ndarray:
    n = len(self._blocks.sizes)
    return np.arange(n) if self._seed is None else permutation(n, self._seed, 0, epoch)

  def _rows(self, epoch: int, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows start .. start + count of the epoch's order."""
    order = self._order(epoch)
    ends = np.cumsum(self._blocks.sizes[order])
    parts, position = [], start
    while position < start + count:
      block = int(np.searchsorted(ends, position, side='right'))
      window = block // self._window_blocks
      members = slice(window * self._window_blocks, (window + 1) * self._window_blocks)
      first = int(ends[members.start - 1]) if members.start else 0
      ids_NF, labels_N = self._window(epoch, window, order[members])
      take = slice(position - first, min(start + count - first, len(ids_NF)))
      parts.append((ids_NF[take], labels_N[take]))
      position = first + take.stop
    ids, labels = zip(*parts, strict=True)
    return np.concatenate(ids), np.concatenate(labels)

  def _window(self, epoch: int, window: int, members: np.ndarray):
    key = (epoch, window)
    with self._lock:  # one reader fills a window while others wait for it
      if key not in self._windows:
        blocks = [self._blocks.read(int(i)) for i in members]
        ids = np.concatenate([b[0] for b in blocks]) + self._table.offsets
        labels = np.concatenate([b[1] for b in blocks])
        if self._seed is not None:
          order = permutation(len(ids), self._seed, 1, epoch, window)
          ids, labels = ids[order], labels[order]
        while len(self._windows) >= 2:  # a batch straddles at most one border at a time
          self._windows.popitem(last=False)
        self._windows[key] = (ids, labels)
      return self._windows[key]

  def _assemble(self, ids_NF: np.ndarray, labels_N: np.ndarray) -> Batch:
    B, D, n = self.batch_size, self._devices, len(ids_NF)
    F = ids_NF.shape[1]
    ids_BF = np.full((B, F), self._table.padding, np.int32)
    labels_B, weights_B = np.zeros(B, np.float32), np.zeros(B, np.float32)
    ids_BF[:n], labels_B[:n], weights_B[:n] = ids_NF, labels_N, 1
    found = [np.unique(part, return_inverse=True) for part in ids_BF.reshape(D, -1)]
    capacity = max(self._floor, _power_of_two(max(len(u) for u, _ in found)))
    unique = np.full((D, capacity), self._table.padding, np.int32)
    for row, (u, _) in zip(unique, found, strict=True):
      row[: len(u)] = u
    inverse = np.stack([i.reshape(-1, F) for _, i in found]).reshape(B, F)
    return Batch(unique.reshape(-1), inverse.astype(np.int32), labels_B, weights_B)

  def _capacity_floor(self) -> int:
    """Room for batch 0 and a tenth more: most batches then share one compiled program.

    A batch that needs more gets the next power of two and one more compilation; no id is ever
    dropped. Both depend on the data alone, so a resumed run sees the same programs.
    """
    unique = self[0].unique.reshape(self._devices, -1)
    most = max(int((row != self._table.padding).sum()) for row in unique)
    return _power_of_two(most + most // 10)


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
