# SPDX-License-Identifier: Apache-2.0
"""Fills a folder from an encoded data set: record blocks, then the schema (last)."""

import dataclasses
import shutil

from data_pipelines.core.files import file_sha256
from data_pipelines.prepared import vocabulary
from data_pipelines.prepared.dataset import BuildContext, Dataset, Encoded
from data_pipelines.prepared.schema import BLOCK_ROWS, FORMAT, FORMAT_VERSION, SPLITS, write_schema
from data_pipelines.prepared.shards import write_shards
from data_pipelines.prepared.split_stats import SplitStats, total
from data_pipelines.prepared.tfds import adopt_shards, split_files


def _split_entry(stats: SplitStats, files: list) -> dict:
  return {
    'rows': stats.rows,
    'blocks': stats.blocks,
    'clicks': stats.clicks,
    'click_rate': stats.click_rate,
    'events': stats.events,
    'content_sha256': stats.content_sha256,
    'files': {path.name: {'bytes': path.stat().st_size, 'sha256': sha} for path, sha in files},
  }


def _field_entries(encoded: Encoded, stats: dict[str, SplitStats]) -> list[dict]:
  rates = {split: stats[split].oov_rate_F() for split in SPLITS}
  return [
    {
      'name': field.name,
      'kind': 'categorical',
      'vocab_size': field.vocab_size,
      'hashed': field.hashed,
      'min_count': field.min_count,
      'missing_rate_train': field.missing_rate_train,
      'missing_kept': field.missing_kept,
      'oov_rate': {split: rates[split][f] for split in SPLITS},
    }
    for f, field in enumerate(encoded.fields)
  ]


def _entry(info) -> dict | None:
  return dataclasses.asdict(info) if info is not None else None


def write_prepared(
  context: BuildContext, dataset: Dataset, options: dict, encoded: Encoded, compress: bool
) -> dict:
  """Fills the folder of a context whose vocabularies are written; `schema.json` comes last.

  Args:
    dataset, options: what is built, and with which options.
    encoded: what to write.
    compress: whether records are compressed.

  Returns:
    The schema.
  """
  records = context.work / 'records'
  records.mkdir(exist_ok=True)
  shards = write_shards(encoded.source, records, compress, context.workers, context.log)
  builder = dataset.builder(
    shape=encoded.source.shape,
    shards={
      split: [(path, stats.blocks) for path, stats in done] for split, done in shards.items()
    },
    data_dir=str(context.folder),
    config=dataset.config(options),
  )
  tfds_folder = adopt_shards(builder)
  stats = {
    split: total(encoded.source.shape, (stats for _, stats in done))
    for split, done in shards.items()
  }
  files = {split: split_files(context.folder / tfds_folder, split) for split in SPLITS}
  paths = [path for split in SPLITS for path in files[split]]
  sums = dict(zip(paths, context.workers.map(file_sha256, paths), strict=True))
  rows_written = sum(stats.rows for stats in stats.values())
  rows_rejected = context.rejects.count
  assert encoded.rows_read == rows_written + rows_rejected, (
    f'read {encoded.rows_read} rows, wrote {rows_written}, rejected {rows_rejected}'
  )
  schema = {
    'format': FORMAT,
    'format_version': FORMAT_VERSION,
    'dataset': dataset.name,
    'tfds': tfds_folder,
    'build': options,
    'block_rows': BLOCK_ROWS,
    'fields': _field_entries(encoded, stats),
    'sequence': _entry(encoded.sequence),
    'group': _entry(encoded.group),
    'items': _entry(encoded.items),
    'splits': {
      split: _split_entry(stats[split], [(path, sums[path]) for path in files[split]])
      for split in SPLITS
    },
    'vocabulary': vocabulary.checksums(context.folder),
    'raw': {
      'files': list(encoded.raw_files),
      'rows_read': encoded.rows_read,
      'rows_written': rows_written,
      'rows_rejected': rows_rejected,
    },
  }
  if encoded.recipes is not None:
    schema['recipes'] = encoded.recipes
  if encoded.planted is not None:
    schema['planted'] = encoded.planted
  shutil.rmtree(records)
  write_schema(context.folder, schema)
  return schema
