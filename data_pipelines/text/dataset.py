# SPDX-License-Identifier: Apache-2.0
"""Data sets that are one text file, split and encoded under a choice of protocols."""

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from data_pipelines.core.option_flags import check
from data_pipelines.prepared.dataset import BuildContext, Dataset, Encoded
from data_pipelines.prepared.tfds import BlockBuilder
from data_pipelines.text import encoding
from data_pipelines.text.ingest import TextProtocol, ingest
from data_pipelines.text.splits import Split
from deres_jax.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class Protocol:
  """One choice of `--protocol`.

  Attributes:
    text: how rows become keys and tokens.
    split: how rows are split.
    min_count: training rows that a token needs to be kept, unless --min_count says otherwise.
  """

  text: TextProtocol
  split: Split
  min_count: int


def add_shared_flags(
  parser: argparse.ArgumentParser, min_count: int | None, kept: str, seeded: str, limited: str
) -> None:
  """Adds --min_count, --seed and --limit.

  Args:
    min_count: default of --min_count.
    kept, seeded, limited: words of --help on --min_count, --seed and --limit.
  """
  parser.add_argument('--min_count', type=int, default=min_count, help=f'training rows {kept}')
  parser.add_argument('--seed', type=int, default=0, help=f'seed of the {seeded} (default 0)')
  parser.add_argument(
    '--limit', type=int, default=None, help=f'use only the first LIMIT lines of {limited}'
  )


def check_shared_options(seed: int, min_count: int, limit: int | None, least_lines: int) -> None:
  """Raises UserError if a value of these flags is out of range."""
  check(0 <= seed < 2**32, 'seed', seed, '0 to 4294967295')
  check(min_count >= 1, 'min_count', min_count, 'at least 1 (keeps all)')
  check(limit is None or limit >= least_lines, 'limit', limit, f'at least {least_lines} lines')


def text_dataset(
  name: str,
  about: str,
  builder: type[BlockBuilder],
  protocols: Mapping[str, Protocol],
  protocol_help: str,
) -> Dataset:
  """Returns a data set of one text file.

  Args:
    name, about, builder: see Dataset.
    protocols: by their names on the command line; the first is the default.
    protocol_help: text of --protocol in --help.
  """

  def add_flags(parser: argparse.ArgumentParser) -> None:
    names = list(protocols)
    parser.add_argument('--protocol', choices=names, default=names[0], help=protocol_help)
    defaults = ', '.join(f'{name}: {protocol.min_count}' for name, protocol in protocols.items())
    min_count_help = f'a token needs to be kept (default {defaults})'
    add_shared_flags(parser, None, min_count_help, 'split', 'the raw data')

  def options(args: argparse.Namespace) -> dict:
    protocol = protocols[args.protocol]
    min_count = protocol.min_count if args.min_count is None else args.min_count
    check_shared_options(args.seed, min_count, args.limit, protocol.split.parts)
    return {
      'protocol': args.protocol,
      'seed': args.seed,
      'min_count': min_count,
      'limit': args.limit,
    }

  def encode(options: dict, files: list[Path], context: BuildContext) -> Encoded:
    protocol = protocols[options['protocol']]
    ingested = ingest(protocol.text, files, options['limit'], context)
    if ingested.total < protocol.split.parts:
      raise UserError(
        f'--raw={files[0]}: only {ingested.total} valid rows; expected at least '
        f'{protocol.split.parts} for a split'
      )

    def split_rows(rows: int) -> dict[str, np.ndarray]:
      return protocol.split.rows(rows, options['seed'])

    return encoding.encode(protocol.text, ingested, split_rows, options['min_count'], context)

  return Dataset(name, about, add_flags, options, encode, builder)
