# SPDX-License-Identifier: Apache-2.0
"""Other ways to prepare the same Criteo rows: what a user would write with pandas, and the way of
FuxiCTR's preprocessing (a Counter and a dictionary a column, as in its tokenizer.py).

  python tests/bench/peers.py pandas|fuxictr RAW OUT MIN_COUNT

Both split 8:1:1 at random, count on the training rows, encode, and save int32 [rows, 39].
"""

import collections
import math
import sys
from pathlib import Path

import numpy as np
import pandas as pd

NUMBERS = [f'I{i}' for i in range(1, 14)]
IDS = [f'C{i}' for i in range(1, 27)]


def read(raw: Path) -> pd.DataFrame:
  """All rows, ids as text."""
  kinds = dict.fromkeys(NUMBERS, 'float64') | dict.fromkeys(IDS, 'str')
  names = ['label', *NUMBERS, *IDS]
  return pd.read_csv(raw, sep='\t', header=None, names=names, dtype=kinds)


def split(rows: int) -> tuple[np.ndarray, np.ndarray]:
  """A permutation, and which rows are training."""
  order = np.random.default_rng(0).permutation(rows)
  train = np.zeros(rows, bool)
  train[order[2 * (rows // 10) :]] = True
  return order, train


def with_pandas(raw: Path, out: Path, min_count: int) -> None:
  """Whole columns at a time: value_counts and map."""
  frame = read(raw)
  order, train = split(len(frame))
  ids_NF = np.empty((len(frame), 39), np.int32)
  for f, name in enumerate(NUMBERS + IDS):
    column = frame[name]
    if name in NUMBERS:
      values = column.fillna(0)
      column = np.floor(np.log(values.where(values > 2, 1)) ** 2).where(values > 2, values)
    counts = column[train].value_counts()
    kept = counts[counts >= min_count].index
    ids = pd.Series(np.arange(2, len(kept) + 2), index=kept)
    ids_NF[:, f] = column.map(ids).fillna(1).to_numpy(np.int32)
  np.save(out / 'ids.npy', ids_NF[order])
  np.save(out / 'label.npy', frame['label'].to_numpy(np.uint8)[order])


def bucket(value: float) -> str:
  """FuxiCTR's bucket of a Criteo number."""
  if math.isnan(value):
    return '0'
  return str(math.floor(math.log(value) ** 2) if value > 2 else int(value))


def with_dictionaries(raw: Path, out: Path, min_count: int) -> None:
  """Column by column: Python values, a Counter of the training rows, a dictionary of ids."""
  frame = read(raw)
  order, train = split(len(frame))
  ids_NF = np.empty((len(frame), 39), np.int32)
  for f, name in enumerate(NUMBERS + IDS):
    column = frame[name]
    column = column.map(bucket) if name in NUMBERS else column.fillna('')
    counts = collections.Counter(column[train].tolist())
    del counts['']
    kept = sorted((t for t in counts if counts[t] >= min_count), key=lambda t: (-counts[t], t))
    ids = {token: i for i, token in enumerate(kept, 2)}
    ids_NF[:, f] = [ids.get(token, 1) for token in column.tolist()]
  np.save(out / 'ids.npy', ids_NF[order])
  np.save(out / 'label.npy', frame['label'].to_numpy(np.uint8)[order])


WAYS = {'pandas': with_pandas, 'fuxictr': with_dictionaries}

if __name__ == '__main__':
  way, raw, out, min_count = sys.argv[1:]
  WAYS[way](Path(raw), Path(out), int(min_count))
