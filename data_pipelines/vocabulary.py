# SPDX-License-Identifier: Apache-2.0
"""Per-field vocabularies: count on the training split, keep by minimum count, encode to ids.

Protocol: reczoo/FuxiCTR `preprocess/tokenizer.py` as used for Criteo_x4. Tokens that occur at
least `min_count` times in training are kept; `vocab_size` counts padding and out-of-vocabulary.
"""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data_pipelines.schema import FIRST_TOKEN_ID, OOV_ID, VOCABULARY_FOLDER

# A column keeps its values as integers ("keys"); the token is the text of a key.
TokenText = Callable[[int], str]


@dataclasses.dataclass(frozen=True)
class Vocabulary:
  """The kept tokens of a field.

  Attributes:
    tokens: kept tokens; tokens[i] has id i + 2. Falling training count, then token ascending.
    sorted_keys_V: int64, their keys in ascending order.
    ids_V: int32, ids_V[j] is the id of sorted_keys_V[j].
  """

  tokens: tuple[str, ...]
  sorted_keys_V: np.ndarray
  ids_V: np.ndarray

  @property
  def size(self) -> int:
    """Ids in use: padding, out-of-vocabulary and the kept tokens."""
    return len(self.tokens) + FIRST_TOKEN_ID


def count_keys(keys_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Distinct keys (ascending) and how often each occurs."""
  return np.unique(keys_N, return_counts=True)


def build_vocabulary(
  keys_U: np.ndarray, counts_U: np.ndarray, text: TokenText, min_count: int
) -> Vocabulary:
  """Keeps the keys that occur at least `min_count` times.

  Args:
    keys_U: distinct keys.
    counts_U: their counts in the training split.
    text: the token of a key.
    min_count: smallest count that is kept (rows).
  """
  kept = counts_U >= min_count
  # Ties are broken by the token's text, not by the key: "10" comes before "9".
  order = sorted(
    (-count, text(key), key)
    for key, count in zip(keys_U[kept].tolist(), counts_U[kept].tolist(), strict=True)
  )
  keys_V = np.array([key for _, _, key in order], np.int64)
  rank_V = np.argsort(keys_V)
  return Vocabulary(
    tokens=tuple(token for _, token, _ in order),
    sorted_keys_V=keys_V[rank_V],
    ids_V=(rank_V + FIRST_TOKEN_ID).astype(np.int32),
  )


def encode(vocabulary: Vocabulary, keys_N: np.ndarray, missing_N: np.ndarray) -> np.ndarray:
  """Ids of a column, int32 [rows]; unknown keys and missing values become the OOV id."""
  if not vocabulary.tokens:
    return np.full(len(keys_N), OOV_ID, np.int32)
  place_N = np.searchsorted(vocabulary.sorted_keys_V, keys_N)
  place_N = np.minimum(place_N, len(vocabulary.tokens) - 1)
  known_N = (vocabulary.sorted_keys_V[place_N] == keys_N) & ~missing_N
  return np.where(known_N, vocabulary.ids_V[place_N], np.int32(OOV_ID))


def write_vocabularies(folder: Path, tokens: dict[str, tuple[str, ...]]) -> dict[str, str]:
  """Writes `folder/vocabulary/<field>.txt`; returns the sha256 of each file by its name."""
  target = folder / VOCABULARY_FOLDER
  target.mkdir()
  checksums = {}
  for field, field_tokens in tokens.items():
    data = ''.join(f'{token}\n' for token in field_tokens).encode('utf-8')
    (target / f'{field}.txt').write_bytes(data)
    checksums[f'{field}.txt'] = hashlib.sha256(data).hexdigest()
  return checksums
