# SPDX-License-Identifier: Apache-2.0
"""Fills a folder from an encoded data set: record blocks first, the schema last."""

import dataclasses
import shutil
from pathlib import Path

import msgspec

from data_pipelines.core.files import file_sha256
from data_pipelines.prepared import vocabulary
from data_pipelines.prepared.dataset import BuildContext, Dataset, Encoded
from data_pipelines.prepared.schema import (
  BLOCK_ROWS,
  SPLITS,
  BySplit,
  Field,
  Raw,
  RecordFile,
  Schema,
  Split,
  write_schema,
)
from data_pipelines.prepared.shards import write_shards
from data_pipelines.prepared.split_stats import SplitStats, total
from data_pipelines.prepared.tfds import adopt_shards, split_files


def _fields(encoded: Encoded, stats: dict[str, SplitStats]) -> list[Field]:
  rates = {split: stats[split].oov_rate_F() for split in SPLITS}
  return [
    Field(
      kind='categorical',
      oov_rate=BySplit(*(rates[split][f] for split in SPLITS)),
      **dataclasses.asdict(field),
    )
    for f, field in enumerate(encoded.fields)
  ]


def _splits(folder: Path, stats: dict[str, SplitStats], context: BuildContext) -> BySplit[Split]:
  """Describes each split and the record files in a TFDS folder."""
  files = {split: split_files(folder, split) for split in SPLITS}
  paths = [path for split in SPLITS for path in files[split]]
  sums = dict(zip(paths, context.workers.map(file_sha256, paths), strict=True))
  return BySplit(
    *(
      Split(
        rows=stats[split].rows,
        blocks=stats[split].blocks,
        clicks=stats[split].clicks,
        click_rate=stats[split].click_rate,
        events=stats[split].events,
        content_sha256=stats[split].content_sha256,
        files={path.name: RecordFile(path.stat().st_size, sums[path]) for path in files[split]},
      )
      for split in SPLITS
    )
  )


def write_prepared(
  context: BuildContext, dataset: Dataset, options: dict, encoded: Encoded, compress: bool
) -> Schema:
  """Writes the records and then `schema.json` to a folder whose vocabularies are written."""
  shape = encoded.source.shape
  records = context.work / 'records'
  records.mkdir(exist_ok=True)
  shards = write_shards(encoded.source, records, compress, context.workers, context.log)
  builder = dataset.builder(
    shape=shape,
    shards={
      split: [(path, part.blocks) for path, part in parts] for split, parts in shards.items()
    },
    data_dir=str(context.folder),
    config=options['protocol'] if dataset.builder.BUILDER_CONFIGS else None,
  )
  tfds_folder = adopt_shards(builder)
  stats = {split: total(shape, (part for _, part in parts)) for split, parts in shards.items()}
  rows_written = sum(stats[split].rows for split in SPLITS)
  rows_rejected = context.rejects.count
  assert encoded.rows_read == rows_written + rows_rejected, (
    f'read {encoded.rows_read} rows, wrote {rows_written}, rejected {rows_rejected}'
  )
  schema = Schema(
    dataset=dataset.name,
    tfds=tfds_folder,
    build=options,
    block_rows=BLOCK_ROWS,
    fields=_fields(encoded, stats),
    sequence=encoded.sequence,
    group=encoded.group,
    items=encoded.items,
    splits=_splits(context.folder / tfds_folder, stats, context),
    vocabulary=vocabulary.checksums(context.folder),
    raw=Raw(list(encoded.raw_files), encoded.rows_read, rows_written, rows_rejected),
    recipes=msgspec.UNSET if encoded.recipes is None else encoded.recipes,
    planted=msgspec.UNSET if encoded.planted is None else encoded.planted,
  )
  shutil.rmtree(records)
  write_schema(context.folder, schema)
  return schema
