# SPDX-License-Identifier: Apache-2.0
"""The interface between `build` and each data set: what a data set offers to be built."""

import argparse
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import msgspec
import numpy as np

from data_pipelines.core import option_flags
from data_pipelines.core.files import check_raw
from data_pipelines.core.option_flags import Options
from data_pipelines.core.progress import Log
from data_pipelines.core.workers import Workers
from data_pipelines.prepared.recipes import Recipe
from data_pipelines.prepared.rejects import Rejects
from data_pipelines.prepared.schema import FIRST_TOKEN_ID, Group, Items, RawFile, Sequence
from data_pipelines.prepared.shards import BlockSource
from data_pipelines.prepared.tfds import BlockBuilder


@dataclasses.dataclass(frozen=True)
class BuildContext:
  """Folders and services of a running build.

  Attributes:
    folder: becomes --out; `vocabulary/` is there.
    work: for intermediate files; holds those that an earlier, stopped build of the same data left.
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
  """A field as its encoder describes it; see schema.Field."""

  name: str
  vocab_size: int
  min_count: int
  missing_rate_train: float
  hashed: bool = False
  missing_kept: bool = False


HEAD_SHARE, TORSO_SHARE = 0.5, 0.9  # of the training rows: where head and torso end


def head_and_torso(field: str, counts_V: np.ndarray) -> Items:
  """Returns the borders of head and torso: the fewest items that make these shares of known rows.

  Args:
    counts_V: training rows of each item, falling, from id FIRST_TOKEN_ID on.
  """
  share_V = np.cumsum(counts_V) / max(1, counts_V.sum())
  head, torso = np.minimum(np.searchsorted(share_V, (HEAD_SHARE, TORSO_SHARE)) + 1, len(counts_V))
  return Items(field, FIRST_TOKEN_ID + int(head), FIRST_TOKEN_ID + int(torso))


@dataclasses.dataclass(frozen=True)
class Encoded:
  """A data set that is ready to be written.

  Attributes:
    fields: the single-valued fields, in the order of the ids.
    source: yields the rows.
    rows_read: rows of the raw files, good and bad.
    planted: what is known about the labels; only for generated data.
    sequence, group, items: of data with behaviour sequences, users and items.
    recipes: how raw values become tokens (see recipes), by vocabulary or hashed field; None if the
      data set does not say.
  """

  fields: tuple[FieldInfo, ...]
  source: BlockSource
  raw_files: tuple[RawFile, ...]
  rows_read: int
  planted: dict | None = None
  sequence: Sequence | None = None
  group: Group | None = None
  items: Items | None = None
  recipes: dict[str, Recipe] | None = None


def one_raw_file(raw: Path, options: dict) -> list[Path]:
  """See Dataset.raw_files; for a data set that is a single file."""
  del options
  check_raw(raw)
  return [raw]


@dataclasses.dataclass(frozen=True)
class Dataset:
  """A data set that `build` knows by name.

  Attributes:
    name: `dataset` in schema.json.
    about: one line of help.
    add_flags: adds the data set's own flags to a parser.
    options: turns parsed flags into the options that determine the output (`build` in schema.json,
      so they must be JSON). Raises UserError on a value out of range.
    encode: (options, raw files, context) to the encoded data; writes the vocabularies, the rejects
      and intermediate files. Equal options and raw bytes give equal results, for any number of
      workers.
    builder: the TFDS builder class. If it has configs, `options` names one as 'protocol'.
    raw_files: (--raw, options) to the files that `encode` reads, in order. Raises UserError where
      they cannot be read. None: the data set reads no raw file, and --raw must not be given.
  """

  name: str
  about: str
  add_flags: Callable[[argparse.ArgumentParser], None]
  options: Callable[[argparse.Namespace], dict]
  encode: Callable[[dict, list[Path], BuildContext], Encoded]
  builder: type[BlockBuilder]
  raw_files: Callable[[Path, dict], list[Path]] | None = one_raw_file


def generated_dataset(
  name: str,
  about: str,
  builder: type[BlockBuilder],
  options: type[Options],
  encode: Callable[[Options, BuildContext], Encoded],
  dependent: Mapping[str, str] = MappingProxyType({}),
) -> Dataset:
  """Returns a data set that reads no raw file; its flags are the fields of a dataclass.

  Args:
    name, about, builder, encode: see Dataset.
    options, dependent: see option_flags.add_flags.
  """
  return Dataset(
    name,
    about,
    add_flags=lambda parser: option_flags.add_flags(parser, options, dependent),
    options=lambda args: option_flags.to_json(option_flags.from_flags(args, options)),
    encode=lambda values, _, context: encode(msgspec.convert(values, options), context),
    builder=builder,
    raw_files=None,
  )
