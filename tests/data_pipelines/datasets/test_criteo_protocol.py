# SPDX-License-Identifier: Apache-2.0
"""Number buckets, the split and vocabularies."""

import collections
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.datasets.criteo import PROTOCOLS, _bucket_starts, bucketise
from data_pipelines.prepared.vocabulary import Counter, Lookup, decimal_tokens, hex_tokens, rank


def bucket_slowly(v: int) -> int:
  return math.floor(math.log(v) ** 2) if v > 2 else v


def test_buckets_equal_pythons_for_all_small_values():
  values = np.arange(-5, 3_000_001)
  expected = np.fromiter(map(bucket_slowly, range(-5, 3_000_001)), np.int64)
  np.testing.assert_array_equal(bucketise(values), expected)


def test_buckets_equal_pythons_around_every_boundary():
  values = [v + d for v in _bucket_starts().tolist() for d in range(-3, 4) if v + d < 10**18]
  values += [10**e + d for e in range(1, 18) for d in (-1, 0, 1)]
  assert bucketise(np.array(values)).tolist() == [bucket_slowly(v) for v in values]


@pytest.mark.parametrize('num_rows', [10, 11, 19, 1003])
@pytest.mark.parametrize('protocol, parts', [('x4', (8, 1, 1)), ('x1', (7, 2, 1))])
def test_random_split_is_a_numpy_permutation(num_rows, protocol, parts):
  order = PROTOCOLS[protocol].split.rows(num_rows, seed=5)
  tenth = num_rows // 10
  validation, test = parts[1] * tenth, parts[2] * tenth
  lengths = [len(order[s]) for s in ('train', 'validation', 'test')]
  assert lengths == [num_rows - validation - test, validation, test]
  expected = np.random.default_rng(5).permutation(num_rows)
  np.testing.assert_array_equal(
    np.concatenate((order['test'], order['validation'], order['train'])), expected
  )
  assert order['train'].tolist() != PROTOCOLS[protocol].split.rows(num_rows, 6)['train'].tolist()


def test_split_by_time_keeps_the_order_of_splits_and_shuffles_inside():
  order = PROTOCOLS['time'].split.rows(1003, seed=5)
  assert sorted(order['train']) == list(range(803))
  assert sorted(order['validation']) == list(range(803, 903))
  assert sorted(order['test']) == list(range(903, 1003))
  assert all(numbers.tolist() != sorted(numbers) for numbers in order.values())
  assert order['train'].tolist() != PROTOCOLS['time'].split.rows(1003, 6)['train'].tolist()


def vocabulary_of(keys: list[int], min_count: int):
  counter = Counter()
  for part in np.array_split(np.array(keys), 3):
    counter.add(part)
    counter.flush()
  return rank(counter.keys_U, counter.counts_U, decimal_tokens(counter.keys_U), min_count)


def test_vocabulary_orders_by_count_then_text():
  keys_V, tokens_V = vocabulary_of([9, 10, 9, 10, 3, 3, 3, 7, 11, 11], min_count=2)
  assert tokens_V.tolist() == [b'3', b'10', b'11', b'9']  # as text, "10" < "11" < "9"
  ids = Lookup(keys_V).encode(np.array([3, 10, 11, 9, 7, 4, 3]), np.array([0] * 6 + [1], bool))
  assert ids.tolist() == [2, 3, 4, 5, 1, 1, 1] and ids.dtype == np.int32


def test_vocabulary_may_be_empty():
  keys_V, tokens_V = vocabulary_of([1, 2], min_count=10)
  assert not len(tokens_V)
  assert Lookup(keys_V).encode(np.array([0, 1, 5])).tolist() == [1, 1, 1]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-(2**63), 2**63 - 1), unique=True, max_size=300), st.integers(0, 9))
def test_lookup_is_a_dictionary(keys, step):
  """Keys that collide too: neighbours, multiples, both signs."""
  keys += [k for k in range(-40, 40 * step, max(step, 1)) if k not in keys]
  ids = {key: i + 2 for i, key in enumerate(keys)}
  asked = [*keys, *(k ^ 1 for k in keys), 0, -1, 2**63 - 1]
  found = Lookup(np.array(keys, np.int64)).encode(np.array(asked, np.int64))
  assert found.tolist() == [ids.get(key, 1) for key in asked]


@pytest.mark.parametrize('kind', [np.uint32, np.int16, np.int32])
def test_lookup_takes_narrow_keys(kind):
  low, high = np.iinfo(kind).min, np.iinfo(kind).max
  keys = np.array([low, high, 3, 5, 7], np.int64)
  asked = np.array([low, high, 3, 5, 7, 6, high - 1], kind)
  assert Lookup(keys).encode(asked).tolist() == [2, 3, 4, 5, 6, 1, 1]


@pytest.mark.parametrize('buffer', [1, 7, 1000])
def test_counter_counts_with_any_buffer(monkeypatch, buffer):
  monkeypatch.setattr('data_pipelines.prepared.vocabulary._BUFFER', buffer)
  keys = np.random.default_rng(0).integers(-9, 9, 500)
  counter = Counter()
  for kind, part in zip((np.int16, np.int64, np.int32), np.array_split(keys, 3), strict=True):
    for piece in np.array_split(part, 9):
      counter.add(piece.astype(kind))
  counter.flush()
  expected = sorted(collections.Counter(keys.tolist()).items())
  assert list(zip(counter.keys_U.tolist(), counter.counts_U.tolist(), strict=True)) == expected


def test_tokens_are_the_text_of_keys():
  keys = np.array([0, 1, 0xABCDEF01, 0xFFFFFFFF])
  assert hex_tokens(keys).tolist() == [b'00000000', b'00000001', b'abcdef01', b'ffffffff']
  assert decimal_tokens(np.array([-12, 0, 7])).tolist() == [b'-12', b'0', b'7']
