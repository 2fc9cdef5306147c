# SPDX-License-Identifier: Apache-2.0
"""What a data set must offer to be built: the interface between `build` and each data set."""

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data_pipelines.core.files import check_raw
from data_pipelines.core.progress import Log
from data_pipelines.core.workers import Workers
from data_pipelines.prepared.recipes import Recipe
from data_pipelines.prepared.rejects import Rejects
from data_pipelines.prepared.schema import FIRST_TOKEN_ID
from data_pipelines.prepared.shards import BlockSource
from data_pipelines.prepared.tfds import BlockBuilder


@dataclasses.dataclass(frozen=True)
class BuildContext:
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
  Where `missing_kept`, a missing value is a token like any other; else it is unknown.
  """

  name: str
  vocab_size: int
  min_count: int  # rows; 0 = no minimum
  missing_rate_train: float
  hashed: bool = False
  missing_kept: bool = False


@dataclasses.dataclass(frozen=True)
class AttributeInfo:
  """One attribute of the events of a behaviour sequence.

  Attributes:
    field: the single-valued field that says the same of the candidate (its item, its category); its
      ids and vocabulary are shared. None: ids of its own, whose tokens lie in vocabulary/NAME.txt.
    vocab_size: ids run from 1 (unknown) to vocab_size - 1; 0 pads.
  """

  name: str
  vocab_size: int
  field: str | None = None


@dataclasses.dataclass(frozen=True)
class SequenceInfo:
  """The behaviour sequence of every row; attributes that share a field's ids come first."""

  length: int
  attributes: tuple[AttributeInfo, ...]


@dataclasses.dataclass(frozen=True)
class GroupInfo:
  """What rows belong to (a user): numbers 0 to groups - 1, over all splits."""

  name: str
  groups: int


@dataclasses.dataclass(frozen=True)
class ItemInfo:
  """How common the candidates are: `field` holds the item; ids fall in training frequency.

  Ids from FIRST_TOKEN_ID up to head_below - 1 are head items, up to torso_below - 1 torso ones, the
  others and the unknown one are the tail.
  """

  field: str
  head_below: int
  torso_below: int


HEAD_SHARE, TORSO_SHARE = 0.5, 0.9  # of the training rows: where head and torso end


def item_info(field: str, counts_V: np.ndarray) -> ItemInfo:
  """The borders of head and torso: the fewest items that make these shares of the known rows.

  Args:
    counts_V: training rows of each item, falling, from id FIRST_TOKEN_ID on.
  """
  share_V = np.cumsum(counts_V) / max(1, counts_V.sum())
  head, torso = np.minimum(np.searchsorted(share_V, (HEAD_SHARE, TORSO_SHARE)) + 1, len(counts_V))
  return ItemInfo(field, FIRST_TOKEN_ID + int(head), FIRST_TOKEN_ID + int(torso))


@dataclasses.dataclass(frozen=True)
class Encoded:
  """A data set that is ready to be written.

  Attributes:
    fields: the single-valued fields, in the order of the ids.
    source: of the rows.
    raw_files: name, bytes and sha256 of each raw file.
    rows_read: rows of the raw files, good and bad.
    planted: what is known about the labels; only for generated data.
    sequence, group, items: of data with behaviour sequences, users and items.
    recipes: by vocabulary or hashed field, how its tokens are made of raw values (see recipes);
      None: nobody says.
  """

  fields: tuple[FieldInfo, ...]
  source: BlockSource
  raw_files: tuple[dict, ...]
  rows_read: int
  planted: dict | None = None
  sequence: SequenceInfo | None = None
  group: GroupInfo | None = None
  items: ItemInfo | None = None
  recipes: dict[str, Recipe] | None = None


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
    encode: (options, --raw or None, context) to the encoded data: writes the vocabularies, the
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
  encode: Callable[[dict, Path | None, BuildContext], Encoded]
  builder: type[BlockBuilder]
  config: Callable[[dict], str | None]
  raw_files: Callable[[Path, dict], list[Path]] = one_raw_file
