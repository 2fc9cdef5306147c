# SPDX-License-Identifier: Apache-2.0
"""Random numbers as a function of (seed, stream, row): any range, in any order.

Philox is a counter-based generator: Salmon et al., "Parallel random numbers: as easy as
1, 2, 3" (SC 2011). A row owns a fixed range of counters, so the rows before it need not be
drawn. We use only the bit generator's raw output, whose stream NumPy guarantees.
"""

import numpy as np

WORDS_PER_COUNT = 4  # uint64 words that one step of the counter yields


def uniforms(seed: int, stream: int, start: int, rows: int, width: int) -> np.ndarray:
  """Draws uniform numbers of rows [start, start + rows): float64 [rows, width] in [0, 1).

  Args:
    seed: 0 or more.
    stream: number of an independent family of rows under the same seed.
    start: first row.
    rows: number of rows.
    width: draws per row; another width gives other draws.
  """
  key = np.random.SeedSequence(seed, spawn_key=(stream,)).generate_state(2, np.uint64)
  counts = -(-width // WORDS_PER_COUNT)
  generator = np.random.Philox(counter=start * counts, key=key)
  words = generator.random_raw(rows * counts * WORDS_PER_COUNT)
  words = words.reshape(rows, counts * WORDS_PER_COUNT)[:, :width]
  return (words >> np.uint64(11)) * 2.0**-53
