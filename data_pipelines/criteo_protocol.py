# SPDX-License-Identifier: Apache-2.0
"""The Criteo_x4 protocol as pure functions: number buckets and the 8:1:1 split.

Source: reczoo/FuxiCTR `datasets/criteo.py` (buckets) and reczoo/Datasets Criteo_x4 (8:1:1,
min count 10). The published folds come from scikit-learn 0.19's shuffle and cannot be made
again without the published files; this is an x4-style random split with a seed of our own.
"""

import functools
import math

import numpy as np

from data_pipelines.criteo_parse import MAX_DIGITS
from data_pipelines.schema import SPLITS

PARTS = 10  # one part validation, one part test, the rest training


def split_rows(num_rows: int, seed: int) -> dict[str, np.ndarray]:
  """Row numbers of each split, in the order in which they are written.

  Args:
    num_rows: number of valid rows, at least 10.
    seed: 0 to 2**32 - 1.

  Returns:
    int64 arrays: test is the first tenth of `numpy.random.default_rng(seed).permutation(rows)`,
    validation the second, training the rest.
  """
  permutation = np.random.default_rng(seed).permutation(num_rows)
  tenth = num_rows // PARTS
  parts = {
    'test': permutation[:tenth],
    'validation': permutation[tenth : 2 * tenth],
    'train': permutation[2 * tenth :],
  }
  return {split: parts[split] for split in SPLITS}


@functools.cache
def _bucket_starts() -> np.ndarray:
  """starts[k - 1] = smallest integer v > 2 with floor(ln(v)^2) >= k: int64 [1717].

  Found with Python's own logarithm, so that look-ups agree with it on every integer; numpy's
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


def bucketise(values: np.ndarray) -> np.ndarray:
  """floor(ln(v)^2) where v > 2, else v itself: int64 in, int64 out, any shape.

  Negative values stay buckets of their own. Missing values come in as 0, as in FuxiCTR.
  """
  buckets = np.searchsorted(_bucket_starts(), values, side='right')
  return np.where(values > 2, buckets, values)
