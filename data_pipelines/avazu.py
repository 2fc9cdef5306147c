# SPDX-License-Identifier: Apache-2.0
"""Avazu click-through rates (Kaggle): raw text to encoded rows.

Provenance: Avazu's Kaggle challenge of 2014, `train.csv` (or `train.gz`), 40,428,967 rows of ten
days, 2014-10-21 to 2014-10-30, sorted by hour, 17.0 % clicks after subsampling. Licence and
citation: `avazu_tfds`.
"""

import argparse
import functools
from pathlib import Path

import numpy as np

from data_pipelines import recipes
from data_pipelines.avazu_parse import AVAZU_TEXT, HEXES, INTEGERS, faults, hours_of
from data_pipelines.avazu_protocol import CALENDAR, FIELDS, MIN_COUNTS, SPLIT_PROTOCOLS, calendar
from data_pipelines.avazu_tfds import Avazu
from data_pipelines.dataset import Dataset, Encoded, Site
from data_pipelines.ingest import TextProtocol
from data_pipelines.text_dataset import add_text_flags, encode_text, text_options
from data_pipelines.text_table import Parsed
from data_pipelines.tokens import decimal_tokens, hex_tokens


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Flags of `--dataset=avazu`."""
  parser.add_argument(
    '--protocol',
    choices=tuple(SPLIT_PROTOCOLS),
    default='x4',
    help='x4: 8:1:1 at random (default); x1: 7:1:2 by time, 22 fields; time: 8:1:1 by time',
  )
  add_text_flags(parser, MIN_COUNTS)


def options(args: argparse.Namespace) -> dict:
  """The options that determine the output. Raises UserError on a value out of range."""
  return text_options(args, SPLIT_PROTOCOLS[args.protocol], MIN_COUNTS)


def keys(fields: tuple[str, ...], parsed: Parsed) -> list[tuple[np.ndarray, np.ndarray]]:
  """See TextProtocol.keys. C20 = -1, Avazu's mark for a missing value, is a token like any other
  (as in Avazu_x4)."""
  missing_N = np.zeros(len(parsed.label_N), bool)
  columns = {name: parsed.ints_NI[:, i] for i, name in enumerate(INTEGERS)}
  columns |= {name: parsed.hexes_NC[:, c] for c, name in enumerate(HEXES)}
  columns |= calendar(hours_of(parsed))
  return [(columns[name], missing_N) for name in fields]


def tokens(fields: tuple[str, ...], f: int, keys_U: np.ndarray) -> np.ndarray:
  """8 lower-case hex digits for sites, apps and devices, decimal integers for all else."""
  return hex_tokens(keys_U) if fields[f] in HEXES else decimal_tokens(keys_U)


def recipe(field: str) -> recipes.Recipe:
  """How its tokens are made of raw values."""
  if field in CALENDAR:
    return recipes.calendar_hour('hour', field)
  return recipes.hexadecimal(field) if field in HEXES else recipes.integer(field)


def text_protocol(name: str) -> TextProtocol:
  """How `--protocol=NAME` reads the file."""
  fields = FIELDS[name]
  return TextProtocol(
    table=AVAZU_TEXT,
    fields=fields,
    keys=functools.partial(keys, fields),
    missing_kept=(True,) * len(fields),
    tokens=functools.partial(tokens, fields),
    expected='id, click, hour, C1, banner_pos, ..., C21: 24 comma-separated columns',
    faults=faults,
    ordered_by='hour' if SPLIT_PROTOCOLS[name].by_time else None,
    recipes={field: recipe(field) for field in fields},
  )


def encode_dataset(options: dict, raw: Path | None, site: Site) -> Encoded:
  """See Dataset.encode."""
  assert raw is not None
  split = SPLIT_PROTOCOLS[options['protocol']]
  return encode_text(text_protocol(options['protocol']), raw, split, options, site)


AVAZU = Dataset(
  name='avazu',
  about='Avazu click-through rates (Kaggle train.csv, plain or .gz)',
  needs_raw=True,
  add_flags=add_flags,
  options=options,
  encode=encode_dataset,
  builder=Avazu,
  config=lambda options: options['protocol'],
)
