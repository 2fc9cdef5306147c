# SPDX-License-Identifier: Apache-2.0
"""Number buckets, the split and vocabularies."""

import math

import numpy as np
import pytest

from data_pipelines.criteo_protocol import _bucket_starts, bucketise, split_rows
from data_pipelines.vocabulary import build_vocabulary, count_keys, encode


def bucket_slowly(v: int) -> int:
  return math.floor(math.log(v) ** 2) if v > 2 else v


def test_buckets_are_python_s_for_all_small_values():
  values = np.arange(-5, 3_000_001)
  expected = np.fromiter(map(bucket_slowly, range(-5, 3_000_001)), np.int64)
  np.testing.assert_array_equal(bucketise(values), expected)


def test_buckets_are_python_s_around_every_boundary():
  values = [v + d for v in _bucket_starts().tolist() for d in range(-3, 4) if v + d < 10**18]
  values += [10**e + d for e in range(1, 18) for d in (-1, 0, 1)]
  assert bucketise(np.array(values)).tolist() == [bucket_slowly(v) for v in values]


@pytest.mark.parametrize('num_rows', [10, 11, 19, 1003])
def test_split_is_8_1_1_and_a_partition(num_rows):
  order = split_rows(num_rows, seed=5)
  tenth = num_rows // 10
  assert [len(order[s]) for s in ('train', 'validation', 'test')] == [
    num_rows - 2 * tenth,
    tenth,
    tenth,
  ]
  assert sorted(np.concatenate(list(order.values()))) == list(range(num_rows))
  expected = np.random.default_rng(5).permutation(num_rows)
  np.testing.assert_array_equal(
    np.concatenate((order['test'], order['validation'], order['train'])), expected
  )
  assert order['train'].tolist() != split_rows(num_rows, seed=6)['train'].tolist()


def test_vocabulary_orders_by_count_then_text():
  keys = np.array([9, 10, 9, 10, 3, 3, 3, 7, 11, 11])
  vocabulary = build_vocabulary(*count_keys(keys), str, min_count=2)
  assert vocabulary.tokens == ('3', '10', '11', '9')  # as text, "10" < "11" < "9"
  assert vocabulary.size == 6
  ids = encode(vocabulary, np.array([3, 10, 11, 9, 7, 4, 3]), np.array([0] * 6 + [1], bool))
  assert ids.tolist() == [2, 3, 4, 5, 1, 1, 1] and ids.dtype == np.int32


def test_vocabulary_may_be_empty():
  vocabulary = build_vocabulary(*count_keys(np.array([1, 2])), str, min_count=10)
  assert vocabulary.size == 2
  assert encode(vocabulary, np.array([1, 5]), np.zeros(2, bool)).tolist() == [1, 1]
