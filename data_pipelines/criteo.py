# SPDX-License-Identifier: Apache-2.0
"""Criteo display advertising (Kaggle): raw text to encoded rows.

Provenance: Criteo's Kaggle challenge of 2014, `train.txt`, 45,840,617 rows of seven days in
chronological order, 25.6 % clicks after subsampling. Licence and citation: `criteo_tfds`.
"""

import argparse
from pathlib import Path

import numpy as np

from data_pipelines import recipes
from data_pipelines.criteo_parse import CRITEO_TEXT, FIELD_NAMES, NUM_CATEGORIES, NUM_INTEGERS
from data_pipelines.criteo_protocol import MIN_COUNTS, SPLIT_PROTOCOLS, bucketise
from data_pipelines.criteo_tfds import CriteoDisplay
from data_pipelines.dataset import Dataset, Encoded, Site
from data_pipelines.ingest import TextProtocol
from data_pipelines.text_dataset import add_text_flags, encode_text, text_options
from data_pipelines.text_table import Parsed
from data_pipelines.tokens import decimal_tokens, hex_tokens


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Flags of `--dataset=criteo`."""
  parser.add_argument(
    '--protocol',
    choices=tuple(SPLIT_PROTOCOLS),
    default='x4',
    help='x4: 8:1:1 at random (default); x1: 7:2:1 at random; time: 8:1:1 by time',
  )
  add_text_flags(parser, MIN_COUNTS)


def options(args: argparse.Namespace) -> dict:
  """The options that determine the output. Raises UserError on a value out of range."""
  split = SPLIT_PROTOCOLS[args.protocol]
  return text_options(args, split, MIN_COUNTS)


def keys(parsed: Parsed) -> list[tuple[np.ndarray, np.ndarray]]:
  """See TextProtocol.keys. A missing number is a 0 like any other (FuxiCTR: na_value 0)."""
  numbers = zip(bucketise(parsed.ints_NI).T, parsed.ints_missing_NI.T, strict=True)
  ids = zip(parsed.hexes_NC.T, parsed.hexes_missing_NC.T, strict=True)
  return [*numbers, *ids]


def tokens(f: int, keys_U: np.ndarray) -> np.ndarray:
  """Decimal integers for I1..I13, 8 lower-case hex digits for C1..C26."""
  return decimal_tokens(keys_U) if f < NUM_INTEGERS else hex_tokens(keys_U)


CRITEO_PROTOCOL = TextProtocol(
  table=CRITEO_TEXT,
  fields=FIELD_NAMES,
  keys=keys,
  missing_kept=(True,) * NUM_INTEGERS + (False,) * NUM_CATEGORIES,
  tokens=tokens,
  expected='label, I1..I13, C1..C26, tab-separated, no header',
  recipes={
    **{name: recipes.log_squared(name, missing='0') for name in FIELD_NAMES[:NUM_INTEGERS]},
    **{name: recipes.hexadecimal(name) for name in FIELD_NAMES[NUM_INTEGERS:]},
  },
)


def encode_dataset(options: dict, raw: Path | None, site: Site) -> Encoded:
  """See Dataset.encode."""
  assert raw is not None
  split = SPLIT_PROTOCOLS[options['protocol']]
  return encode_text(CRITEO_PROTOCOL, raw, split, options, site)


CRITEO = Dataset(
  name='criteo_display',
  about='Criteo display advertising (Kaggle train.txt, plain or .gz)',
  needs_raw=True,
  add_flags=add_flags,
  options=options,
  encode=encode_dataset,
  builder=CriteoDisplay,
  config=lambda options: options['protocol'],
)
