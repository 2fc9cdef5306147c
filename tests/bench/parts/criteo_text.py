# SPDX-License-Identifier: Apache-2.0
"""Invented Criteo text of any size, with the published cardinalities, tails and missing rates."""

from pathlib import Path

import numpy as np

# Vocabulary sizes of Criteo_x4 (min count 10) as published with its benchmark, and the share of
# missing values of the training data, by field.
CARDINALITIES = (
  1446, 554, 157339, 117822, 306, 18, 11882, 630, 5, 39530, 5131, 156656, 3176, 28, 11043, 148913,
  12, 4560, 2003, 5, 154564, 18, 17, 53031, 82, 40955,
)  # fmt: skip
MISSING_IDS = (
  0, 0, 0.0345, 0.0345, 0, 0.1221, 0, 0, 0, 0, 0, 0.0345, 0, 0, 0, 0.0345, 0, 0, 0.4411, 0.4411,
  0.0345, 0.7615, 0, 0.0345, 0.4411, 0.4411,
)  # fmt: skip
MISSING_NUMBERS = (
  0.4521, 0, 0.2132, 0.2146, 0.0261, 0.2234, 0.0431, 0.0006, 0.0431, 0.4521, 0.0431, 0.7654, 0.2146,
)  # fmt: skip
LARGEST = (425, 10255, 65535, 681, 2071071, 111105, 6498, 3160, 9465, 7, 126, 193, 2254)
CLICK_RATE = 0.256
_CHUNK_ROWS = 100_000
_WIDTH = 9  # bytes of a value and its separator


def write(path: Path, rows: int, seed: int) -> None:
  """Writes `rows` lines of label, I1..I13, C1..C26."""
  rng = np.random.default_rng(seed)
  tokens = [
    np.array([b'%08x' % key for key in rng.choice(2**32, size, replace=False)])
    for size in CARDINALITIES
  ]
  with open(path, 'wb') as file:
    for start in range(0, rows, _CHUNK_ROWS):
      file.write(_lines(rng, tokens, min(_CHUNK_ROWS, rows - start)))


def _lines(rng: np.random.Generator, tokens: list[np.ndarray], rows: int) -> bytes:
  columns = [np.where(rng.random(rows) < CLICK_RATE, b'1', b'0')]
  for largest, missing in zip(LARGEST, MISSING_NUMBERS, strict=True):
    values = np.minimum(rng.lognormal(2, 1.8, rows), largest).astype(np.int64).astype('S8')
    columns.append(np.where(rng.random(rows) < missing, b'', values))
  for field, missing in zip(tokens, MISSING_IDS, strict=True):
    # A Pareto rank: a few values in most rows, and a long tail.
    rank = np.minimum(rng.pareto(0.4, rows), len(field) - 1).astype(np.int64)
    columns.append(np.where(rng.random(rows) < missing, b'', field[rank]))
  text = np.zeros((rows, len(columns) * _WIDTH), np.uint8)
  for i, column in enumerate(columns):
    width = column.dtype.itemsize
    text[:, i * _WIDTH : i * _WIDTH + width] = column.view(np.uint8).reshape(rows, width)
    text[:, (i + 1) * _WIDTH - 1] = ord('\n' if i == len(columns) - 1 else '\t')
  flat = text.reshape(-1)
  return flat[flat != 0].tobytes()
