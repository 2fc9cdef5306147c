# SPDX-License-Identifier: Apache-2.0
"""Writes an encoded data set into a folder: vocabularies, record blocks, schema (last)."""

from pathlib import Path

from data_pipelines.dataset import Dataset, Encoded
from data_pipelines.rawfile import file_sha256
from data_pipelines.schema import BLOCK_ROWS, FORMAT, FORMAT_VERSION, SPLITS, write_schema
from data_pipelines.tally import Tally
from data_pipelines.tfds_blocks import Log, open_split, split_files, write_blocks
from data_pipelines.vocabulary import write_vocabularies


def read_back(folder: Path, split: str, num_fields: int) -> Tally:
  """Counts a stored split again. `folder` is the TFDS folder."""
  tally = Tally(num_fields)
  for block in open_split(folder, split):
    tally.update(block['ids'], block['label'])
  return tally


def _split_entry(folder: Path, split: str, tally: Tally) -> dict:
  return {
    'rows': tally.rows,
    'blocks': tally.blocks,
    'clicks': tally.clicks,
    'click_rate': tally.click_rate,
    'content_sha256': tally.content_sha256,
    'files': {
      path.name: {'bytes': path.stat().st_size, 'sha256': file_sha256(path)}
      for path in split_files(folder, split)
    },
  }


def _field_entries(encoded: Encoded, tallies: dict[str, Tally]) -> list[dict]:
  rates = {split: tallies[split].oov_rate_F() for split in SPLITS}
  return [
    {
      'name': field.name,
      'kind': 'categorical',
      'vocab_size': field.vocab_size,
      'min_count': field.min_count,
      'missing_rate_train': field.missing_rate_train,
      'oov_rate': {split: rates[split][f] for split in SPLITS},
    }
    for f, field in enumerate(encoded.fields)
  ]


def _check_read_back(folder: Path, tallies: dict[str, Tally]) -> None:
  """A store that gives back other rows than it was given is a fault, never a data set."""
  for split, written in tallies.items():
    found = read_back(folder, split, len(written.oov_F))
    assert (found.rows, found.content_sha256) == (written.rows, written.content_sha256), (
      f'{split}: wrote {written.rows} rows, read back {found.rows}'
    )


def write_prepared(
  folder: Path,
  dataset: Dataset,
  options: dict,
  encoded: Encoded,
  raw_files: list[dict],
  rows_rejected: int,
  log: Log,
) -> dict:
  """Fills an empty folder; `schema.json` comes last.

  Args:
    folder: an empty folder.
    dataset, options: what is built, and with which options.
    encoded: what to write.
    raw_files: entries of describe_raw.
    rows_rejected: rows in the rejects file.
    log: takes progress lines.

  Returns:
    The schema.
  """
  vocabulary = write_vocabularies(folder, {f.name: f.tokens for f in encoded.fields})
  builder = dataset.builder(
    source=encoded.source, log=log, data_dir=str(folder), config=dataset.config
  )
  tfds_folder = write_blocks(builder)
  _check_read_back(folder / tfds_folder, builder.tallies)
  rows_written = sum(tally.rows for tally in builder.tallies.values())
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
    'fields': _field_entries(encoded, builder.tallies),
    'splits': {
      split: _split_entry(folder / tfds_folder, split, builder.tallies[split]) for split in SPLITS
    },
    'vocabulary': vocabulary,
    'raw': {
      'files': raw_files,
      'rows_read': encoded.rows_read,
      'rows_written': rows_written,
      'rows_rejected': rows_rejected,
    },
  }
  if encoded.planted is not None:
    schema['planted'] = encoded.planted
  write_schema(folder, schema)
  return schema
