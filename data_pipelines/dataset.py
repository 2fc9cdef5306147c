# SPDX-License-Identifier: Apache-2.0
"""What a data set must offer to be built: the interface between `build` and each data set."""

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path

from data_pipelines.progress import Log
from data_pipelines.rawfile import check_raw
from data_pipelines.rejects import Rejects
from data_pipelines.shards import BlockSource
from data_pipelines.tfds_blocks import BlockBuilder
from data_pipelines.workers import Workers


@dataclasses.dataclass(frozen=True)
class Site:
  """Where a build works and with what.

  Attributes:
    folder: what becomes --out; `vocabulary/` is there.
    work: for intermediate files. What an earlier, stopped build of the same data left there is
      there again.
    workers: runs tasks in parallel.
    rejects: takes bad rows.
    log: takes progress lines.
  """

  folder: Path
  work: Path
  workers: Workers
  rejects: Rejects
  log: Log


@dataclasses.dataclass(frozen=True)
class FieldInfo:
  """One field, as `schema.json` describes it; its tokens lie in vocabulary/NAME.txt.

  Where `hashed`, there is no vocabulary: an id is the value's hash modulo vocab_size - 2, plus 2.
  """

  name: str
  vocab_size: int
  min_count: int  # rows; 0 = no minimum
  missing_rate_train: float
  hashed: bool = False


@dataclasses.dataclass(frozen=True)
class Encoded:
  """A data set that is ready to be written.

  Attributes:
    fields: the single-valued fields, in the order of the ids.
    source: of the rows.
    raw_files: name, bytes and sha256 of each raw file.
    rows_read: rows of the raw files, good and bad.
    planted: what is known about the labels; only for generated data.
  """

  fields: tuple[FieldInfo, ...]
  source: BlockSource
  raw_files: tuple[dict, ...]
  rows_read: int
  planted: dict | None = None


def one_raw_file(raw: Path, options: dict) -> list[Path]:
  """See Dataset.raw_files; of a data set that is a single file."""
  del options
  check_raw(raw)
  return [raw]


@dataclasses.dataclass(frozen=True)
class Dataset:
  """A data set that `build` knows by name.

  Attributes:
    name: `dataset` in schema.json.
    about: one line of help.
    needs_raw: whether --raw must be given (else it must not).
    add_flags: adds the data set's own flags to a parser.
    options: parsed flags to the JSON-able options that determine the output (`build` in
      schema.json). Raises UserError on values that cannot be used.
    encode: (options, --raw or None, site) to the encoded data: writes the vocabularies, the
      rejects and intermediate files. The same options and raw bytes give the same, whatever the
      number of workers.
    builder: the TFDS builder class.
    config: options to its TFDS config, or None.
    raw_files: (--raw, options) to the files that `encode` reads, in order. Raises UserError where
      they cannot be read.
  """

  name: str
  about: str
  needs_raw: bool
  add_flags: Callable[[argparse.ArgumentParser], None]
  options: Callable[[argparse.Namespace], dict]
  encode: Callable[[dict, Path | None, Site], Encoded]
  builder: type[BlockBuilder]
  config: Callable[[dict], str | None]
  raw_files: Callable[[Path, dict], list[Path]] = one_raw_file
