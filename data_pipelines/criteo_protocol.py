# SPDX-License-Identifier: Apache-2.0
"""The protocols of Criteo: number buckets, splits and minimum counts.

Source: reczoo/FuxiCTR `datasets/criteo.py` (buckets), reczoo/Datasets Criteo_x4 (8:1:1, min count
10) and Criteo_x1 (7:2:1, min count 1). The published folds of x4 come from scikit-learn 0.19's
shuffle and cannot be made again without the published files; these are random splits in their
proportions with a seed of our own. `time` splits 8:1:1 in the order of the file, which is
chronological.
"""

import functools
import math

import numpy as np

from data_pipelines.protocols import Split
from data_pipelines.text_table import MAX_DIGITS

# The published splits' proportions. x1's own rows come from AFN's files, whose numbers are scaled
# floats; here the numbers are bucketised under every protocol.
SPLIT_PROTOCOLS = {
  'x4': Split(8, 1, 1),
  'x1': Split(7, 2, 1),
  'time': Split(8, 1, 1, by_time=True),
}
MIN_COUNTS = {'x4': 10, 'x1': 1, 'time': 10}


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


_TABULATED = 1 << 14


@functools.cache
def _small_buckets() -> np.ndarray:
  """Buckets of 0, 1, ... int64 [_TABULATED]."""
  values = np.arange(_TABULATED)
  return np.where(values > 2, np.searchsorted(_bucket_starts(), values, side='right'), values)


def bucketise(values: np.ndarray) -> np.ndarray:
  """floor(ln(v)^2) where v > 2, else v itself: int64 in, int64 out, any shape.

  Negative values stay buckets of their own. Missing values come in as 0, as in FuxiCTR.
  """
  small = (values >= 0) & (values < _TABULATED)
  buckets = np.where(small, _small_buckets()[np.where(small, values, 0)], values)
  large = values >= _TABULATED
  buckets[large] = np.searchsorted(_bucket_starts(), values[large], side='right')
  return buckets
