# SPDX-License-Identifier: Apache-2.0
"""Per-field vocabularies: count on the training split, keep by minimum count, encode to ids.

Protocol: reczoo/FuxiCTR `preprocess/tokenizer.py` as used for Criteo_x4. Tokens that occur at
least `min_count` times in training are kept; `vocab_size` counts padding and out-of-vocabulary.

Shapes: U distinct keys, V keys with an id, N rows.
"""

import hashlib
from pathlib import Path

import numpy as np

from data_pipelines.prepared.schema import FIRST_TOKEN_ID, OOV_ID, VOCABULARY_FOLDER

_BUFFER = 1 << 22  # keys that are counted at a time
_NARROW = 1 << 16  # a range of keys below this is counted by bincount


class Counter:
  """Counts keys in the memory of the distinct keys and a buffer, for any number of rows."""

  def __init__(self):
    self.keys_U = np.zeros(0, np.int64)
    self.counts_U = np.zeros(0, np.int64)
    self._waiting: list[np.ndarray] = []
    self._size = 0

  def add(self, keys_N: np.ndarray) -> None:
    """Counts more keys, of any integer type."""
    self._waiting.append(keys_N)
    self._size += len(keys_N)
    if self._size >= _BUFFER:
      self.flush()

  def flush(self) -> None:
    """Brings keys_U (ascending) and counts_U up to date."""
    if not self._waiting:
      return
    keys, counts = _counted(np.concatenate(self._waiting))
    self._waiting, self._size = [], 0
    both = np.concatenate((self.keys_U, keys.astype(np.int64)))
    self.keys_U, place = np.unique(both, return_inverse=True)
    merged = np.zeros(len(self.keys_U), np.int64)
    merged[place[: len(self.counts_U)]] = self.counts_U
    merged[place[len(self.counts_U) :]] += counts
    self.counts_U = merged


def _counted(keys_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns the distinct keys, ascending, and their counts."""
  low, high = int(keys_N.min(initial=0)), int(keys_N.max(initial=0))
  if high - low >= _NARROW:
    return np.unique(keys_N, return_counts=True)
  counts = np.bincount(keys_N.astype(np.int64) - low)  # several times as fast
  occurring = np.flatnonzero(counts)
  return occurring + low, counts[occurring]


def rank(
  keys_U: np.ndarray, counts_U: np.ndarray, tokens_U: np.ndarray, min_count: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the frequent keys in the order of their ids, and their tokens.

  The order is falling training count, then ascending token: the text breaks ties, not the key, so
  "10" comes before "9".

  Args:
    tokens_U: text of each key, an array of bytes.
    min_count: smallest count of a key that gets an id (rows).
  """
  frequent = np.flatnonzero(counts_U >= min_count)
  order = frequent[np.lexsort((tokens_U[frequent], -counts_U[frequent]))]
  return keys_U[order], tokens_U[order]


class Lookup:
  """Maps keys to ids by a hash table: five to ten times as fast as a binary search.

  Every slot holds one key and its id. Keys whose slot was taken go to a second table with another
  hash function, and so on; a look-up goes on to it only after a miss.
  """

  _SLOTS_PER_KEY = 4
  # Fibonacci hashing: the high bits of the product with 2^64 / golden ratio, made odd.
  _FACTOR = 0x9E3779B97F4A7C15

  def __init__(self, keys_V: np.ndarray, ids_V: np.ndarray | None = None, level: int = 0):
    """Args: distinct int64 keys; their ids, by default FIRST_TOKEN_ID, FIRST_TOKEN_ID + 1 ..."""
    if ids_V is None:
      ids_V = np.arange(FIRST_TOKEN_ID, FIRST_TOKEN_ID + len(keys_V), dtype=np.int32)
    bits = max(4, int(np.ceil(np.log2(max(1, len(keys_V)) * self._SLOTS_PER_KEY))))
    self._shift = np.uint64(64 - bits)
    # An odd factor is a bijection, so no two keys share a slot on every level.
    self._factor = np.uint64(pow(self._FACTOR, 2 * level + 1, 1 << 64))
    slot_V = self._slots(keys_V)
    self._keys_S = np.zeros(1 << bits, np.int64)
    self._ids_S = np.full(1 << bits, OOV_ID, np.int32)
    # The first key of a slot, the most frequent one, gets it.
    self._keys_S[slot_V[::-1]] = keys_V[::-1]
    self._ids_S[slot_V[::-1]] = ids_V[::-1]
    late_V = self._keys_S[slot_V] != keys_V
    self._late = Lookup(keys_V[late_V], ids_V[late_V], level + 1) if late_V.any() else None

  def _slots(self, keys: np.ndarray) -> np.ndarray:
    return (keys.astype(np.uint64) * self._factor) >> self._shift

  def encode(self, keys_N: np.ndarray, missing_N: np.ndarray | None = None) -> np.ndarray:
    """Returns the ids of a column, int32 [rows]; unknown keys and missing values get OOV_ID."""
    slot_N = self._slots(keys_N)
    hit_N = self._keys_S[slot_N] == keys_N
    ids_N = np.where(hit_N, self._ids_S[slot_N], np.int32(OOV_ID))
    if self._late is not None:
      miss = np.flatnonzero(~hit_N)
      ids_N[miss] = self._late.encode(keys_N[miss])
    if missing_N is not None:
      ids_N[missing_N] = OOV_ID
    return ids_N


class Hashed:
  """Maps 32-bit hashes to ids modulo a size, without a vocabulary."""

  def __init__(self, size: int):
    """Args: number of ids from FIRST_TOKEN_ID on; they must fit int32."""
    self._size = np.uint32(size)

  def encode(self, keys_N: np.ndarray, missing_N: np.ndarray | None = None) -> np.ndarray:
    """Returns the ids of a column of uint32, int32 [rows]; missing values get OOV_ID."""
    assert keys_N.dtype == np.uint32, keys_N.dtype
    ids_N = (keys_N % self._size).astype(np.int32) + np.int32(FIRST_TOKEN_ID)
    if missing_N is not None:
      ids_N[missing_N] = OOV_ID
    return ids_N


def text_of(tokens: list[bytes]) -> bytes:
  """Returns the text of a vocabulary file: line i (0-based) is the token of id i + 2."""
  return b''.join(token + b'\n' for token in tokens)


def write_vocabulary(folder: Path, field: str, text: bytes) -> None:
  """Writes `folder/vocabulary/<field>.txt`."""
  (folder / VOCABULARY_FOLDER / f'{field}.txt').write_bytes(text)


def checksums(folder: Path) -> dict[str, str]:
  """Returns the SHA-256 of each vocabulary file of a prepared folder, by name."""
  files = sorted((folder / VOCABULARY_FOLDER).iterdir())
  return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


_BYTES_AS_HEX = np.frombuffer(''.join(f'{b:02x}' for b in range(256)).encode(), 'u1').reshape(-1, 2)


def hex_tokens(keys_U: np.ndarray) -> np.ndarray:
  """Returns eight lower-case hex digits of each key below 2^32: S8 [U]."""
  bytes_U4 = keys_U.astype('>u4').view('u1').reshape(-1, 4)
  return _BYTES_AS_HEX[bytes_U4].reshape(len(keys_U), 8).view('S8').reshape(-1)


def decimal_tokens(keys_U: np.ndarray) -> np.ndarray:
  """Returns the decimal digits of each key."""
  return np.array([str(key).encode('ascii') for key in keys_U.tolist()], np.bytes_)
