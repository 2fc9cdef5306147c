# SPDX-License-Identifier: Apache-2.0
"""Texts of keys, as NumPy arrays of bytes."""

import numpy as np

_BYTES_AS_HEX = np.frombuffer(''.join(f'{b:02x}' for b in range(256)).encode(), 'u1').reshape(-1, 2)


def hex_tokens(keys_U: np.ndarray) -> np.ndarray:
  """Eight lower-case hex digits of each key below 2^32: S8 [U]."""
  bytes_U4 = keys_U.astype('>u4').view('u1').reshape(-1, 4)
  return _BYTES_AS_HEX[bytes_U4].reshape(len(keys_U), 8).view('S8').reshape(-1)


def decimal_tokens(keys_U: np.ndarray) -> np.ndarray:
  """Decimal digits of each key."""
  return np.array([str(key).encode('ascii') for key in keys_U.tolist()], np.bytes_)
