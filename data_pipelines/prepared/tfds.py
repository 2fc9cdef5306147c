# SPDX-License-Identifier: Apache-2.0
"""A data set as TFDS sees it: its description, and record files under TFDS's names.

Built on `ShardBasedBuilder`, not `GeneratorBasedBuilder`: the latter keeps up to 1 GB in memory
and then spills through `tf.io.gfile`, which needs TensorFlow. The file format is always
array_record: in tensorflow-datasets 4.9.10 tfrecord cannot be finished without TensorFlow and the
parquet writer loses rows.
"""

import contextlib
import io
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import tensorflow_datasets as tfds
from tensorflow_datasets.core import splits as splits_lib

from data_pipelines.prepared.records import features_of
from data_pipelines.prepared.schema import SPLITS, RecordShape


def configs(descriptions: Mapping[str, str]) -> list[tfds.core.BuilderConfig]:
  """Returns the BUILDER_CONFIGS of these names and descriptions."""
  version = tfds.core.Version('1.0.0')
  return [
    tfds.core.BuilderConfig(name=name, version=version, description=text)
    for name, text in descriptions.items()
  ]


class _LocalInfo(tfds.core.DatasetInfo):
  """Dataset info that never searches a bucket for a copy (and leaves no empty temporary folder)."""

  def initialize_from_bucket(self) -> None:
    return


class BlockBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):
  """Adopts record files that are already written; subclasses only describe the data set.

  A record is a block of rows (`schema.RecordShape`). Reading needs no builder class:
  `tfds.builder_from_directory(FOLDER).as_data_source('train')` yields the blocks.
  """

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES = {'1.0.0': 'First version.'}  # noqa: RUF012 (TFDS's own attribute)
  # There are no downloads. TFDS would search for a list of checksums beside the class's source, and
  # fails if the package is installed in editable mode and called from another folder.
  _checksums_path = None
  DESCRIPTION: str
  CITATION: str
  HOMEPAGE: str
  LICENCE: str

  def __init__(
    self,
    *,
    shape: RecordShape,
    shards: Mapping[str, Sequence[tuple[Path, int]]],
    data_dir: str,
    config: str | None,
  ):
    """Args: layout of rows, (file, blocks) of each shard by split, folder, config name."""
    self._shape, self._shards = shape, shards
    super().__init__(data_dir=data_dir, config=config, file_format='array_record')

  def _info(self) -> tfds.core.DatasetInfo:
    return _LocalInfo(
      builder=self,
      description=self.DESCRIPTION,
      features=features_of(self._shape),
      citation=self.CITATION,
      homepage=self.HOMEPAGE,
      license=self.LICENCE,
      disable_shuffling=True,
    )

  def _shard_iterators_per_split(self, dl_manager):
    raise AssertionError('the shards are written already')

  def _download_and_prepare(self, dl_manager, download_config=None) -> None:
    del dl_manager, download_config
    infos = []
    for split in SPLITS:
      template = self._get_filename_template(split_name=split)
      shards = self._shards[split]
      size = 0
      for k, (path, _) in enumerate(shards):
        size += path.stat().st_size
        os.replace(path, template.sharded_filepath(shard_index=k, num_shards=len(shards)))
      infos.append(
        splits_lib.SplitInfo(
          name=split,
          shard_lengths=[blocks for _, blocks in shards],
          num_bytes=size,
          filename_template=template,
        )
      )
    self.info.set_splits(splits_lib.SplitDict(infos))


def adopt_shards(builder: BlockBuilder) -> str:
  """Moves the shards into the TFDS folder; returns its path in the prepared folder."""
  root = Path(builder.data_dir).parents[len(builder.info.full_name.split('/')) - 1]
  downloads = root / '.downloads'
  tfds.disable_progress_bar()
  # TFDS announces a download on standard output, but there is none.
  with contextlib.redirect_stdout(io.StringIO()):
    builder.download_and_prepare(download_dir=str(downloads))
  shutil.rmtree(downloads)  # TFDS makes it, with an empty folder in it
  return Path(builder.data_dir).relative_to(root).as_posix()


def split_files(folder: Path, split: str) -> list[Path]:
  """Returns the record files of a split, in shard order."""
  return sorted(folder.glob(f'*-{split}.array_record*'))
