# SPDX-License-Identifier: Apache-2.0
"""What a data set must offer to be built: the interface between `build` and each data set."""

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path

from data_pipelines.rejects import Rejects
from data_pipelines.tfds_blocks import BlockBuilder, BlockSource, Log


@dataclasses.dataclass(frozen=True)
class FieldInfo:
  """One field: its kept tokens and what `schema.json` says about it."""

  name: str
  tokens: tuple[str, ...]
  vocab_size: int
  min_count: int  # rows; 0 = no minimum
  missing_rate_train: float


@dataclasses.dataclass(frozen=True)
class Encoded:
  """A data set that is ready to be written."""

  fields: tuple[FieldInfo, ...]
  source: BlockSource
  rows_read: int
  planted: dict | None  # what is known about the labels; only for generated data


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
    encode: (options, raw file or None, rejects, log) to the encoded data. Pure but for the
      rejects file and progress lines.
    builder: the TFDS builder class.
    config: its TFDS config, or None.
  """

  name: str
  about: str
  needs_raw: bool
  add_flags: Callable[[argparse.ArgumentParser], None]
  options: Callable[[argparse.Namespace], dict]
  encode: Callable[[dict, Path | None, Rejects, Log], Encoded]
  builder: type[BlockBuilder]
  config: str | None
