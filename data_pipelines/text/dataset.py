# SPDX-License-Identifier: Apache-2.0
"""What data sets of one text file and a split share: flags, options and the way to their rows."""

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from data_pipelines.core.errors import UserError
from data_pipelines.prepared.dataset import BuildContext, Encoded
from data_pipelines.text import encoding
from data_pipelines.text.ingest import TextProtocol, ingest
from data_pipelines.text.splits import Split


def add_text_flags(parser: argparse.ArgumentParser, min_counts: Mapping[str, int]) -> None:
  """--min_count (its default follows --protocol), --seed, --limit."""
  defaults = ', '.join(f'{protocol}: {count}' for protocol, count in min_counts.items())
  parser.add_argument(
    '--min_count',
    type=int,
    default=None,
    help=f'training rows a token needs to be kept (default {defaults})',
  )
  parser.add_argument('--seed', type=int, default=0, help='seed of the split (default 0)')
  parser.add_argument(
    '--limit', type=int, default=None, help='use only the first LIMIT lines of the raw data'
  )


def text_options(args: argparse.Namespace, split: Split, min_counts: Mapping[str, int]) -> dict:
  """The options that determine the output.

  Raises:
    UserError: a value out of range.
  """
  min_count = min_counts[args.protocol] if args.min_count is None else args.min_count
  if not 0 <= args.seed < 2**32:
    raise UserError(f'--seed={args.seed}: expected 0 to 4294967295')
  if min_count < 1:
    raise UserError(f'--min_count={min_count}: expected at least 1 (keeps every token)')
  if args.limit is not None and args.limit < split.parts:
    raise UserError(f'--limit={args.limit}: expected at least {split.parts} lines for a split')
  return {
    'protocol': args.protocol,
    'seed': args.seed,
    'min_count': min_count,
    'limit': args.limit,
  }


def encode_text(
  protocol: TextProtocol, raw: Path, split: Split, options: dict, context: BuildContext
) -> Encoded:
  """Ingests and encodes a raw file.

  Args:
    options: of text_options.

  Raises:
    UserError: a file that cannot be one of such rows, or too few of them.
  """
  ingested = ingest(protocol, [raw], options['limit'], context)
  if ingested.total < split.parts:
    raise UserError(
      f'--raw={raw}: only {ingested.total} valid rows; expected at least {split.parts} for a split'
    )

  def split_rows(rows: int) -> dict[str, np.ndarray]:
    return split.rows(rows, options['seed'])

  return encoding.encode(protocol, ingested, split_rows, options['min_count'], context)
