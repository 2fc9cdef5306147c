# SPDX-License-Identifier: Apache-2.0
"""Criteo display advertising (Kaggle): raw text to encoded rows.

Provenance: Criteo's Kaggle challenge of 2014, `train.txt`: 45,840,617 rows of seven days in
chronological order, 25.6 % clicks after subsampling. Licence and citation: `CriteoDisplay` below
(TFDS has a data set `criteo` too, which is another).

Protocols, from reczoo/FuxiCTR `datasets/criteo.py` (number buckets) and reczoo/Datasets:
  x4    8:1:1 at random, minimum count 10 (Criteo_x4)
  x1    7:2:1 at random, minimum count 1 (Criteo_x1)
  time  8:1:1 in the order of the file; ours

Our splits have the published proportions and a seed of our own. The published rows themselves
cannot be drawn again: x4's folds come from scikit-learn 0.19's shuffle, and x1's files (by AFN)
hold numbers scaled to floats, which we bucketise under every protocol.
"""

import functools
import math

import numpy as np

from data_pipelines.prepared import recipes
from data_pipelines.prepared.tfds import BlockBuilder, configs
from data_pipelines.prepared.vocabulary import decimal_tokens, hex_tokens
from data_pipelines.text.dataset import Protocol, text_dataset
from data_pipelines.text.ingest import TextProtocol
from data_pipelines.text.parser import HEX, INTEGER, LABEL, MAX_DIGITS, Column, Parsed, TextTable
from data_pipelines.text.splits import Split

NUM_INTEGERS = 13
NUM_CATEGORIES = 26
FIELD_NAMES = tuple(f'I{i + 1}' for i in range(NUM_INTEGERS)) + tuple(
  f'C{i + 1}' for i in range(NUM_CATEGORIES)
)
CRITEO_TEXT = TextTable(
  separator=b'\t',
  columns=(
    Column('label', LABEL),
    *(Column(name, INTEGER) for name in FIELD_NAMES[:NUM_INTEGERS]),
    *(Column(name, HEX) for name in FIELD_NAMES[NUM_INTEGERS:]),
  ),
  required=False,
)


@functools.cache
def _bucket_starts() -> np.ndarray:
  """Returns, for k = 1, 2, ... 1717, the smallest v > 2 with floor(ln(v)^2) >= k: int64 [1717].

  Python's own logarithm finds them, so that look-ups agree with it on every integer: NumPy's
  vectorised logarithm may differ in the last bit and move a boundary.
  """
  largest = 10**MAX_DIGITS - 1
  starts = []
  low = 3
  for k in range(1, math.floor(math.log(largest) ** 2) + 1):
    high = largest
    while low < high:
      middle = (low + high) // 2
      if math.floor(math.log(middle) ** 2) >= k:
        high = middle
      else:
        low = middle + 1
    starts.append(low)
  return np.array(starts, np.int64)


_TABULATED = 1 << 14  # most numbers are below this and take their bucket from a table


@functools.cache
def _small_buckets() -> np.ndarray:
  """Returns the buckets of 0, 1, ... int64 [_TABULATED]."""
  values = np.arange(_TABULATED)
  return np.where(values > 2, np.searchsorted(_bucket_starts(), values, side='right'), values)


def bucketise(values: np.ndarray) -> np.ndarray:
  """Returns floor(ln(v)^2) where v > 2, else v itself: int64 in, int64 out, any shape.

  Negative values stay buckets of their own. Missing values come in as 0, as in FuxiCTR.
  """
  small = (values >= 0) & (values < _TABULATED)
  buckets = np.where(small, _small_buckets()[np.where(small, values, 0)], values)
  large = values >= _TABULATED
  buckets[large] = np.searchsorted(_bucket_starts(), values[large], side='right')
  return buckets


def keys(parsed: Parsed) -> list[tuple[np.ndarray, np.ndarray]]:
  """See TextProtocol.keys. A missing number is a 0 like any other (FuxiCTR: na_value 0)."""
  numbers = zip(bucketise(parsed.ints_NI).T, parsed.ints_missing_NI.T, strict=True)
  ids = zip(parsed.hexes_NC.T, parsed.hexes_missing_NC.T, strict=True)
  return [*numbers, *ids]


def tokens(f: int, keys_U: np.ndarray) -> np.ndarray:
  """See TextProtocol.tokens: decimal integers for I1..I13, 8 hex digits for C1..C26."""
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
PROTOCOLS = {
  'x4': Protocol(CRITEO_PROTOCOL, Split(8, 1, 1), min_count=10),
  'x1': Protocol(CRITEO_PROTOCOL, Split(7, 2, 1), min_count=1),
  'time': Protocol(CRITEO_PROTOCOL, Split(8, 1, 1, by_time=True), min_count=10),
}


class CriteoDisplay(BlockBuilder):
  """Criteo display advertising challenge, encoded to per-field ids, in blocks of rows."""

  BUILDER_CONFIGS = configs(
    {
      'x4': 'Criteo_x4 style: random 8:1:1, bucketised numbers, minimum count.',
      'x1': 'Criteo_x1 proportions: random 7:2:1, bucketised numbers.',
      'time': '8:1:1 in the order of the file, which is chronological; bucketised numbers.',
    }
  )
  DESCRIPTION = (
    'Seven days of display-advertising logs from Criteo, published for a Kaggle challenge in '
    '2014: a click label, 13 integer fields and 26 hashed categorical fields. Clicks and '
    'non-clicks were subsampled at different rates, so the click rate is not the true one.'
  )
  HOMEPAGE = 'https://www.kaggle.com/c/criteo-display-ad-challenge'
  LICENCE = (
    "Criteo's terms of use for the Kaggle display advertising challenge: non-commercial use "
    'only, no redistribution of the data.'
  )
  CITATION = """@misc{criteo-display-ad-challenge,
  author = {Tien, Jean-Baptiste and joycenv and Chapelle, Olivier},
  title = {Display Advertising Challenge},
  publisher = {Kaggle},
  year = {2014},
  url = {https://kaggle.com/competitions/criteo-display-ad-challenge}
}"""


CRITEO = text_dataset(
  'criteo_display',
  'Criteo display advertising (Kaggle train.txt, plain or .gz)',
  CriteoDisplay,
  PROTOCOLS,
  'x4: 8:1:1 at random (default); x1: 7:2:1 at random; time: 8:1:1 by time',
)
