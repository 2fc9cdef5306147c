# SPDX-License-Identifier: Apache-2.0
"""A TFDS builder whose examples are blocks of rows, and the way to read them back.

Built on `ShardBasedBuilder`, not `GeneratorBasedBuilder`: the latter keeps up to 1 GB in memory
and then spills through `tf.io.gfile`, which needs TensorFlow. Here a shard is streamed straight
into its ArrayRecord file. The file format is always array_record: in tensorflow-datasets 4.9.10
tfrecord cannot be finished without TensorFlow and the parquet writer loses rows.
"""

import contextlib
import errno
import functools
import io
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import tensorflow_datasets as tfds

from data_pipelines.schema import BLOCK_ROWS, SPLITS
from data_pipelines.tally import Tally

SHARD_BLOCKS = 256  # blocks in one file (about one million rows)
PROGRESS_SECONDS = 5.0

Log = Callable[[str], None]


class BlockSource(Protocol):
  """Encoded rows that can be read from any row of any split."""

  num_fields: int
  rows: Mapping[str, int]  # by split

  def block(self, split: str, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows [start, stop) of a split: ids_NF int32 [rows, fields], label_N uint8 [rows]."""


class _LocalInfo(tfds.core.DatasetInfo):
  """Dataset info that never looks for a copy in a bucket (and leaves no empty temp folder)."""

  def initialize_from_bucket(self) -> None:
    return


class BlockBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):
  """Writes the blocks of a `BlockSource`; subclasses only describe the data set.

  A record is `{'ids': int32 [rows, fields], 'label': uint8 [rows]}` with up to 4096 rows; its
  key is the block's number in the split. To read, use `open_split`: it needs no builder class.
  """

  VERSION = tfds.core.Version('1.0.0')
  # Nothing is downloaded. TFDS would look for a list of checksums beside the class's source, and
  # fails where the package is installed in editable mode and called from another folder.
  _checksums_path = None
  DESCRIPTION: str
  CITATION: str
  HOMEPAGE: str
  LICENCE: str

  def __init__(self, *, source: BlockSource, log: Log, data_dir: str, config: str | None):
    """Args: source of the blocks, where progress lines go, folder to write to, config name."""
    self._source = source
    self._log = log
    self.tallies = {split: Tally(source.num_fields) for split in SPLITS}
    super().__init__(data_dir=data_dir, config=config, file_format='array_record')

  def _info(self) -> tfds.core.DatasetInfo:
    # BYTES: an array is stored as its bytes, not as a list of protobuf values.
    tensor = functools.partial(tfds.features.Tensor, encoding=tfds.features.Encoding.BYTES)
    return _LocalInfo(
      builder=self,
      description=self.DESCRIPTION,
      features=tfds.features.FeaturesDict(
        {
          'ids': tensor(shape=(None, self._source.num_fields), dtype=np.int32),
          'label': tensor(shape=(None,), dtype=np.uint8),
        }
      ),
      citation=self.CITATION,
      homepage=self.HOMEPAGE,
      license=self.LICENCE,
      disable_shuffling=True,
    )

  def _shard_iterators_per_split(self, dl_manager):
    del dl_manager  # nothing is downloaded
    shards = {}
    for split in SPLITS:
      blocks = -(-self._source.rows[split] // BLOCK_ROWS)
      shards[split] = [
        functools.partial(self._shard, split, first, min(first + SHARD_BLOCKS, blocks))
        for first in range(0, blocks, SHARD_BLOCKS)
      ]
    return shards

  def _shard(self, split: str, first: int, last: int) -> Iterator[tuple[int, dict]]:
    rows, tally = self._source.rows[split], self.tallies[split]
    told = time.monotonic()
    for k in range(first, last):
      start = k * BLOCK_ROWS
      ids_NF, label_N = self._source.block(split, start, min(start + BLOCK_ROWS, rows))
      tally.update(ids_NF, label_N)
      yield k, {'ids': ids_NF, 'label': label_N}
      if time.monotonic() - told > PROGRESS_SECONDS:
        told = time.monotonic()
        self._log(f'writing {split}: {tally.rows:,} of {rows:,} rows')


def write_blocks(builder: BlockBuilder) -> str:
  """Writes all splits; returns the folder of the data set relative to the builder's data_dir.

  Raises:
    OSError: ENOSPC when the disk is full.
  """
  root = Path(builder.data_dir).parents[len(builder.info.full_name.split('/')) - 1]
  downloads = root / '.downloads'
  tfds.disable_progress_bar()
  # TFDS announces a download on standard output; there is none.
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      builder.download_and_prepare(download_dir=str(downloads))
  except RuntimeError as error:  # ArrayRecord's writer knows no other error
    full = os.strerror(errno.ENOSPC)
    if full not in str(error):
      raise
    raise OSError(errno.ENOSPC, full, str(root)) from error
  shutil.rmtree(downloads)  # TFDS makes it, with an empty folder in it
  return Path(builder.data_dir).relative_to(root).as_posix()


def open_split(folder: Path, split: str):
  """Random access to the blocks of a split.

  Args:
    folder: the TFDS folder (the one with `dataset_info.json`).
    split: "train", "validation" or "test".

  Returns:
    A sequence; item k is `{'ids': int32 [rows, fields], 'label': uint8 [rows]}`.
  """
  return tfds.builder_from_directory(str(folder)).as_data_source(split)


def split_files(folder: Path, split: str) -> list[Path]:
  """The record files of a split, in shard order."""
  return sorted(folder.glob(f'*-{split}.array_record*'))
