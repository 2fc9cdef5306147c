# SPDX-License-Identifier: Apache-2.0
"""One number a row, by which equal rows are found.

Shapes: N rows, C columns (fields, then attributes of every event, then the group).
"""

import numpy as np

from data_pipelines.records import Block
from data_pipelines.schema import RecordShape

# 2^64 / golden ratio, odd: the multiples of no small number come near 0 modulo 2^64.
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_START = np.uint64(0x243F6A8885A308D3)  # digits of pi
_HALF = np.uint64(32)


def row_hashes(block: Block, shape: RecordShape) -> np.ndarray:
  """Hashes of the rows of a block, label aside: uint64 [rows].

  Every column is a bijection of the state so far, so rows that differ in one column never collide.
  Others do with a chance of 2^-64 a pair: about 6e-5 collisions in all of 45.8 million rows.
  """
  rows = len(block['ids'])
  parts = [block['ids']]
  if shape.events:
    parts.append(block['events'].reshape(rows, -1))
  if shape.grouped:
    parts.append(block['group'][:, None])
  state_N = np.full(rows, _START)
  for part_NC in parts:
    for column_N in np.ascontiguousarray(part_NC.T).view(np.uint32):
      state_N ^= column_N
      state_N *= _FACTOR
      state_N ^= state_N >> _HALF
  return state_N
