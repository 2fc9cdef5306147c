# SPDX-License-Identifier: Apache-2.0
"""Record files: one ArrayRecord shard holds blocks of rows, each block one TFDS example.

Shards are written and read one by one, so that any number of processes can share the work.
"""

import functools
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.core import example_serializer

from data_pipelines.prepared.schema import RecordShape
from data_pipelines.prepared.split_stats import SplitStats
from deres_jax.core.errors import UserError

Block = dict[str, np.ndarray]

# Grain and TFDS read one record at a time only from groups of one.
_OPTIONS = {False: 'group_size:1,uncompressed', True: 'group_size:1,zstd'}


def features_of(shape: RecordShape) -> tfds.features.FeaturesDict:
  """Returns the TFDS features of a block."""
  # BYTES: an array is stored as its bytes, not as a list of protobuf values.
  tensor = functools.partial(tfds.features.Tensor, encoding=tfds.features.Encoding.BYTES)
  return tfds.features.FeaturesDict(
    {
      name: tensor(shape=array_shape, dtype=np.uint8 if name == 'label' else np.int32)
      for name, array_shape in shape.arrays(None).items()
    }
  )


def write_shard(
  path: Path, shape: RecordShape, blocks: Iterable[Block], compress: bool
) -> SplitStats:
  """Writes the blocks to a new file and reads them back; returns their statistics.

  Raises:
    RuntimeError: the disk is full.
  """
  features = features_of(shape)
  serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
  written, records = SplitStats(shape), []
  writer = ArrayRecordWriter(str(path), _OPTIONS[compress])
  for block in blocks:
    written.update(block)
    example = serializer.get_tf_example(features.encode_example(block))
    # Otherwise the order of features, and so the bytes, would differ between processes.
    records.append(example.SerializeToString(deterministic=True))
    writer.write(records[-1])
  writer.close()
  # If the store returns other bytes than were written, there must be no data set.
  with ArrayRecordDataSource([str(path)]) as source:
    assert len(source) == len(records), f'{path}: {len(records)} blocks, read back {len(source)}'
    for k, record in enumerate(records):
      assert source[k] == record, f'{path}: block {k}: read back other bytes than were written'
  return written


def read_shard(path: Path, shape: RecordShape) -> Iterator[Block]:
  """Yields the blocks of a file, in order.

  Raises:
    UserError: their shape is another one.
  """
  features = features_of(shape)
  with ArrayRecordDataSource([str(path)]) as source:
    for k in range(len(source)):
      try:
        block = features.deserialize_example_np(source[k])
      except ValueError as e:  # NumPy: cannot reshape
        raise UserError(
          f'{path}: block {k} has no rows of the {shape.fields} fields of schema.json: one of '
          'the two is damaged; build the folder again'
        ) from e
      yield block


def read_stats(path: Path, shape: RecordShape) -> SplitStats:
  """Returns the statistics of a file."""
  stats = SplitStats(shape)
  for block in read_shard(path, shape):
    stats.update(block)
  return stats
