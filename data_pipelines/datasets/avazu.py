# SPDX-License-Identifier: Apache-2.0
"""Avazu click-through rates (Kaggle): raw text to encoded rows.

Provenance: Avazu's Kaggle challenge of 2014, `train.csv` (or `train.gz`): 40,428,967 rows of ten
days, 2014-10-21 to 2014-10-30, sorted by hour, 17.0 % clicks after subsampling. Licence and
citation: `Avazu` below.

Protocols, from reczoo/Datasets (which publishes fixed files; we split in their proportions):
  x4    8:1:1 at random with a seed of our own, minimum count 2; `hour` becomes hour, weekday and
        weekend (Avazu_x4, FuxiCTR `datasets/avazu.py`)
  x1    7:1:2 in the order of time, minimum count 1, 22 fields (Avazu_x1)
  time  x4 with 8:1:1 in the order of time; ours

Two things about x1 are our reading, not published facts. Its authors call the split random, but
random splits of 40 million rows cannot differ as its click rates do (17.50 % in train, 16.79 % in
validation, 15.25 % in test), so we split by time. And from the published vocabulary sizes we take
its 22 fields to be the columns C1 to C21, then the hour of the day. Never compare figures of x1
with figures of x4.
"""

import functools

import numpy as np

from data_pipelines.prepared import recipes
from data_pipelines.prepared.tfds import BlockBuilder, configs
from data_pipelines.prepared.vocabulary import decimal_tokens, hex_tokens
from data_pipelines.text.dataset import Protocol, text_dataset
from data_pipelines.text.ingest import TextProtocol
from data_pipelines.text.parser import HEX, INTEGER, LABEL, TEXT, Column, Parsed, TextTable
from data_pipelines.text.splits import Split

_KINDS = {
  'id': TEXT,  # unique to a row, never read
  'click': LABEL,
  'hour': INTEGER,  # YYMMDDHH, UTC
  **dict.fromkeys(('C1', 'banner_pos'), INTEGER),
  **dict.fromkeys(('site_id', 'site_domain', 'site_category'), HEX),
  **dict.fromkeys(('app_id', 'app_domain', 'app_category'), HEX),
  **dict.fromkeys(('device_id', 'device_ip', 'device_model'), HEX),
  **dict.fromkeys(('device_type', 'device_conn_type'), INTEGER),
  **dict.fromkeys((f'C{k}' for k in range(14, 22)), INTEGER),
}
AVAZU_TEXT = TextTable(
  separator=b',',
  columns=tuple(Column(name, kind) for name, kind in _KINDS.items()),
  required=True,  # the published file has no empty value
)
INTEGERS = tuple(name for name, kind in _KINDS.items() if kind == INTEGER)
HEXES = tuple(name for name, kind in _KINDS.items() if kind == HEX)

CALENDAR = ('hour', 'weekday', 'weekend')  # fields made of the column `hour`
_COLUMNS = tuple(_KINDS)[3:]  # fields that are columns, in file order: C1, banner_pos, ..., C21


def hours_of(parsed: Parsed) -> np.ndarray:
  """Returns the column `hour`, YYMMDDHH: int64 [rows]."""
  return parsed.ints_NI[:, INTEGERS.index('hour')]


def dates_of(hour_N: np.ndarray) -> np.ndarray:
  """Returns the days of YYMMDDHH, in 2010 to 2099: datetime64[D] [rows], NaT if there is none."""
  years_N = hour_N // 1_000_000
  month_N, day_N, clock_N = hour_N // 10_000 % 100, hour_N // 100 % 100, hour_N % 100
  valid_N = (years_N >= 10) & (years_N <= 99) & (month_N >= 1) & (month_N <= 12) & (clock_N <= 23)
  months_N = (np.where(valid_N, years_N + 30, 0) * 12 + month_N - 1).astype('datetime64[M]')
  date_N = months_N.astype('datetime64[D]') + (day_N - 1)
  # Day 0 and the 31st of April lie in another month.
  valid_N &= date_N.astype('datetime64[M]') == months_N
  return np.where(valid_N, date_N, np.datetime64('NaT'))


def faults(parsed: Parsed) -> dict[int, str]:
  """See TextProtocol.faults: hours that are not in the calendar."""
  hour_N = hours_of(parsed)
  return {
    row: f'hour: expected YYMMDDHH, a date and an hour, found {hour_N[row]}'
    for row in np.flatnonzero(np.isnat(dates_of(hour_N))).tolist()
  }


def calendar(hour_N: np.ndarray) -> dict[str, np.ndarray]:
  """Returns the calendar fields of valid YYMMDDHH.

  Returns:
    hour: of the day, 0 to 23. weekday: 0 (Sunday) to 6. weekend: 1 on Saturday and Sunday. All
    int64 [rows].
  """
  days_N = dates_of(hour_N).astype(np.int64)  # since 1970-01-01, a Thursday
  weekday_N = (days_N + 4) % 7
  weekend_N = ((weekday_N == 0) | (weekday_N == 6)).astype(np.int64)
  return {'hour': hour_N % 100, 'weekday': weekday_N, 'weekend': weekend_N}


def keys(fields: tuple[str, ...], parsed: Parsed) -> list[tuple[np.ndarray, np.ndarray]]:
  """See TextProtocol.keys.

  C20 = -1, Avazu's mark of a missing value, is a token like any other, as in Avazu_x4.
  """
  missing_N = np.zeros(len(parsed.label_N), bool)
  columns = {name: parsed.ints_NI[:, i] for i, name in enumerate(INTEGERS)}
  columns |= {name: parsed.hexes_NC[:, c] for c, name in enumerate(HEXES)}
  columns |= calendar(hours_of(parsed))
  return [(columns[name], missing_N) for name in fields]


def tokens(fields: tuple[str, ...], f: int, keys_U: np.ndarray) -> np.ndarray:
  """See TextProtocol.tokens: 8 hex digits for hexadecimal columns, else decimal integers."""
  return hex_tokens(keys_U) if fields[f] in HEXES else decimal_tokens(keys_U)


def recipe(field: str) -> recipes.Recipe:
  """Returns how raw values become the tokens of a field."""
  if field in CALENDAR:
    return recipes.calendar_hour('hour', field)
  return recipes.hexadecimal(field) if field in HEXES else recipes.integer(field)


def avazu_protocol(fields: tuple[str, ...], split: Split, min_count: int) -> Protocol:
  """Returns the protocol with these fields."""
  text = TextProtocol(
    table=AVAZU_TEXT,
    fields=fields,
    keys=functools.partial(keys, fields),
    missing_kept=(True,) * len(fields),
    tokens=functools.partial(tokens, fields),
    expected='id, click, hour, C1, banner_pos, ..., C21: 24 comma-separated columns',
    faults=faults,
    ordered_by='hour' if split.by_time else None,
    recipes={field: recipe(field) for field in fields},
  )
  return Protocol(text, split, min_count)


PROTOCOLS = {
  'x4': avazu_protocol((*CALENDAR, *_COLUMNS), Split(8, 1, 1), min_count=2),
  'x1': avazu_protocol((*_COLUMNS, 'hour'), Split(7, 1, 2, by_time=True), min_count=1),
  'time': avazu_protocol((*CALENDAR, *_COLUMNS), Split(8, 1, 1, by_time=True), min_count=2),
}


class Avazu(BlockBuilder):
  """Avazu click-through rate challenge, encoded to per-field ids, in blocks of rows."""

  BUILDER_CONFIGS = configs(
    {
      'x4': 'Avazu_x4 style: random 8:1:1, hour, weekday and weekend, minimum count.',
      'x1': 'Avazu_x1 proportions, 7:1:2, in the order of time; 22 fields.',
      'time': '8:1:1 in the order of time; the fields of x4.',
    }
  )
  DESCRIPTION = (
    'Ten days of mobile-advertising logs from Avazu, published for a Kaggle challenge in 2014: a '
    'click label, the hour, and 21 categorical fields of site, app, device and banner. Clicks and '
    'non-clicks were subsampled by different strategies, so the click rate is not the true one.'
  )
  HOMEPAGE = 'https://www.kaggle.com/c/avazu-ctr-prediction'
  LICENCE = (
    'The rules of the Kaggle competition avazu-ctr-prediction: take it as for non-commercial use '
    'only, and do not redistribute the data.'
  )
  CITATION = """@misc{avazu-ctr-prediction,
  author = {Wang, Steve and Cukierski, Will},
  title = {Click-Through Rate Prediction},
  publisher = {Kaggle},
  year = {2014},
  url = {https://kaggle.com/competitions/avazu-ctr-prediction}
}"""


AVAZU = text_dataset(
  'avazu',
  'Avazu click-through rates (Kaggle train.csv, plain or .gz)',
  Avazu,
  PROTOCOLS,
  'x4: 8:1:1 at random (default); x1: 7:1:2 by time, 22 fields; time: 8:1:1 by time',
)
