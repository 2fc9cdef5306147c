# SPDX-License-Identifier: Apache-2.0
"""Planted data: rows by counter, variance by order, and the best reachable figures."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
from invented_rows import read_prepared
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.metrics import roc_auc_score

from data_pipelines import build
from data_pipelines.core.random import uniforms
from data_pipelines.datasets.synthetic.bayes import bayes_metrics, log_loss, soft_auc
from data_pipelines.datasets.synthetic.dataset import SyntheticSource, numbers_text, split_metrics
from data_pipelines.datasets.synthetic.options import SyntheticOptions
from data_pipelines.datasets.synthetic.teacher import (
  make_teacher,
  plant_sets,
  sigmoid,
  zipf_probabilities,
)

DEFAULT = SyntheticOptions()


@pytest.fixture(scope='module')
def teacher():
  return make_teacher(DEFAULT)


def test_draws_do_not_depend_on_the_range():
  whole = uniforms(3, 0, 2**41 - 5, 40, 7)
  assert whole.shape == (40, 7) and whole.min() >= 0 and whole.max() < 1
  for start, stop in ((0, 1), (13, 29), (39, 40)):
    part = uniforms(3, 0, 2**41 - 5 + start, stop - start, 7)
    np.testing.assert_array_equal(part, whole[start:stop])
  assert len(np.unique(whole)) == whole.size
  assert not np.isin(uniforms(3, 1, 2**41 - 5, 40, 7), whole).any()
  assert not np.isin(uniforms(4, 0, 2**41 - 5, 40, 7), whole).any()


def test_any_range_of_rows_can_be_made_alone(teacher):
  source = SyntheticSource(DEFAULT, teacher)
  values_NF, _, label_N = source.draw('validation', 0, 3000)
  for cuts in ([0, 3000], [0, 1, 2, 1500, 3000], [700, 701], [2999, 3000]):
    for start, stop in itertools.pairwise(cuts):
      values, _, label = source.draw('validation', start, stop)
      np.testing.assert_array_equal(values, values_NF[start:stop])
      np.testing.assert_array_equal(label, label_N[start:stop])
  assert values_NF.min() >= 0
  assert (values_NF.max(axis=0) < np.array(DEFAULT.cardinalities())).all()
  (block,) = source.blocks('validation', 0, 1)
  np.testing.assert_array_equal(block['ids'][:3000], values_NF + 2)  # 0 is padding, 1 unknown
  np.testing.assert_array_equal(block['label'][:3000], label_N)


def test_splits_are_different_rows(teacher):
  source = SyntheticSource(DEFAULT, teacher)
  ids = [source.draw(split, 0, 1000)[0] for split in ('train', 'validation', 'test')]
  for one, other in itertools.combinations(ids, 2):
    # A million rows have a few equal pairs by chance, not one in every row.
    assert (one[:, None] == other[None]).all(axis=-1).sum() < 100


def prepare(out, *flags):
  small = ['--rows_train=6000', '--rows_validation=500', '--rows_test=500']
  assert build.main(['--dataset=synthetic', f'--out={out}', *small, *flags]) == 0
  return read_prepared(out)


def test_training_rows_never_change_the_test_rows(tmp_path):
  schema, blocks = prepare(tmp_path / 'a')
  other, other_blocks = prepare(tmp_path / 'b', '--rows_train=7000')
  for split in ('validation', 'test'):
    digests = [s['splits'][split]['content_sha256'] for s in (schema, other)]
    assert digests[0] == digests[1]
  np.testing.assert_array_equal(other_blocks['train'][0][0], blocks['train'][0][0])
  assert schema['planted']['bias'] == other['planted']['bias']


def test_seed_changes_rows_and_teacher_seed_the_teacher(tmp_path):
  base, _ = prepare(tmp_path / 'a')
  again, _ = prepare(tmp_path / 'b')
  other, _ = prepare(tmp_path / 'c', '--seed=1')
  taught, _ = prepare(tmp_path / 'd', '--teacher_seed=1')
  digest = [s['splits']['train']['content_sha256'] for s in (base, again, other, taught)]
  assert digest[0] == digest[1] and len(set(digest)) == 3
  assert base['planted']['sets'] == other['planted']['sets'] != taught['planted']['sets']


def test_prepared_folder_carries_the_plan(tmp_path):
  schema, _ = prepare(tmp_path / 'a', '--fields=5', '--sets=5,4,2,1', '--seed=2')
  assert schema['build']['seed'] == 2 and schema['build']['sets'] == [5, 4, 2, 1]
  assert set(schema['build']) == {f.name for f in dataclasses.fields(SyntheticOptions)}
  assert [f['vocab_size'] for f in schema['fields']] == [6, 9, 15, 24, 42]
  assert (tmp_path / 'a/vocabulary/f01.txt').read_text() == '0\n1\n2\n3\n'
  assert schema['raw'] == {
    'files': [],
    'rows_read': 7000,
    'rows_written': 7000,
    'rows_rejected': 0,
  }
  assert [len(schema['planted']['sets'][o]) for o in '1234'] == [5, 4, 2, 1]
  assert {len(s) for s in schema['planted']['sets']['4']} == {4}
  json.dumps(schema, allow_nan=False)


@pytest.mark.parametrize('seed', range(8))
def test_planted_sets_are_distinct_and_composed_of_pairs(seed):
  """Two compositions of one field set would not be orthogonal (ab x c against ac x b)."""
  options = dataclasses.replace(DEFAULT, fields=5, sets=(5, 7, 8, 4), teacher_seed=seed)
  mains, pairs, triples, quads = plant_sets(options)
  assert (len(mains), len(pairs), len(triples), len(quads)) == (5, 7, 8, 4)
  sets = [
    *(frozenset([f]) for f in mains),
    *(frozenset(pair) for pair in pairs),
    *(frozenset([*pairs[p], f]) for p, f in triples),
    *(frozenset([*pairs[p], *pairs[q]]) for p, q in quads),
  ]
  assert [len(s) for s in sets] == [1] * 5 + [2] * 7 + [3] * 8 + [4] * 4
  assert len(set(sets)) == len(sets)


def test_variance_by_order_is_exact_on_a_tiny_configuration():
  options = dataclasses.replace(
    DEFAULT, fields=5, cardinality_min=3, cardinality_max=5, sets=(5, 5, 3, 2)
  )
  options = dataclasses.replace(options, order_shares=(0.1, 0.3, 0.4, 0.2), logit_std=1.3)
  teacher = make_teacher(options)
  cards = options.cardinalities()
  values_NF = np.array(list(itertools.product(*map(range, cards))), np.int32)
  probability_N = np.ones(len(values_NF))
  for f, card in enumerate(cards):
    probability_N *= zipf_probabilities(card, options.zipf)[values_NF[:, f]]
  parts_NO = teacher.parts(values_NF)
  np.testing.assert_allclose(probability_N @ parts_NO, 0, atol=1e-12)
  covariance = (parts_NO * probability_N[:, None]).T @ parts_NO
  expected = np.diag(np.array(options.order_shares) * options.logit_std**2)
  np.testing.assert_allclose(covariance, expected, atol=1e-12)
  # Orders 2 to 4 are uncorrelated with every function of one field.
  for f, card in enumerate(cards):
    for v in range(card):
      inside = values_NF[:, f] == v
      np.testing.assert_allclose(probability_N[inside] @ parts_NO[inside, 1:], 0, atol=1e-12)
  # Orders 3 and 4 are uncorrelated with every function of two fields.
  for a, b in itertools.combinations(range(5), 2):
    for v, w in itertools.product(range(cards[a]), range(cards[b])):
      inside = (values_NF[:, a] == v) & (values_NF[:, b] == w)
      np.testing.assert_allclose(probability_N[inside] @ parts_NO[inside, 2:], 0, atol=1e-12)


def test_variance_by_order_on_a_million_rows(teacher):
  """Standard errors of the shares are below 0.002 here; 0.01 is five of them."""
  sums, squares, fourth, rows = np.zeros(4), np.zeros((4, 4)), 0.0, 1_000_000
  for start in range(0, rows, 50_000):
    draws = uniforms(99, 0, start, 50_000, DEFAULT.fields)
    parts_NO = teacher.parts(teacher.values(draws))
    sums += parts_NO.sum(axis=0)
    squares += parts_NO.T @ parts_NO
    fourth += (parts_NO.sum(axis=1) ** 4).sum()
  covariance = squares / rows - np.outer(sums, sums) / rows**2
  shares = covariance / DEFAULT.logit_std**2
  np.testing.assert_allclose(shares, np.diag(DEFAULT.order_shares), atol=0.01)
  np.testing.assert_allclose(sums / rows, 0, atol=0.01)
  kurtosis = fourth / rows / covariance.sum() ** 2
  assert 2 < kurtosis < 5, 'the logit must not be ruled by a few outliers'


def test_click_rate_is_that_of_the_option(teacher):
  clicks, rows = 0, 400_000
  source = SyntheticSource(DEFAULT, teacher)
  for start in range(0, rows, 50_000):
    clicks += int(source.draw('test', start, start + 50_000)[2].sum())
  assert abs(clicks / rows - DEFAULT.click_rate) < 5 * (0.256 * 0.744 / rows) ** 0.5


def test_noise_labels_need_no_factors_and_do_not_change_values(teacher):
  """A vocabulary may then be far larger than factors would allow."""
  noise = dataclasses.replace(DEFAULT, logit_std=0.0)
  planted, drawn = SyntheticSource(DEFAULT, teacher), SyntheticSource(noise, make_teacher(noise))
  np.testing.assert_array_equal(planted.draw('test', 0, 99)[0], drawn.draw('test', 0, 99)[0])
  assert not drawn.teacher.main_F and not drawn.teacher.factors_P
  assert drawn.teacher.field_sets() == teacher.field_sets()
  large = make_teacher(dataclasses.replace(noise, cardinality_max=3_000_000))
  assert sigmoid(large.bias) == pytest.approx(DEFAULT.click_rate)
  assert large.values(np.full((1, 10), 1 - 1e-12))[0, -1] == 2_999_999
  assert large.parts(np.zeros((3, 10), np.int32)).tolist() == [[0.0] * 4] * 3


def test_a_vocabulary_of_numbers():
  for values in (1, 65_536, 65_537, 140_000):
    assert numbers_text(values) == b''.join(b'%d\n' % v for v in range(values))


def metrics_of(**changes):
  options = dataclasses.replace(DEFAULT, rows_test=40_000, **changes)
  return split_metrics(SyntheticSource(options, make_teacher(options)), 'test')


def test_negative_controls():
  noise = metrics_of(logit_std=0.0)
  assert noise['bayes_auc'] == noise['linear_auc'] == noise['bayes_auc_expected'] == 0.5
  entropy = -(0.256 * np.log(0.256) + 0.744 * np.log(0.744))
  assert noise['bayes_logloss_expected'] == pytest.approx(entropy, abs=1e-9)
  additive = metrics_of(order_shares=(1.0, 0.0, 0.0, 0.0), sets=(16, 0, 0, 0))
  assert additive['linear_auc'] == pytest.approx(additive['bayes_auc'], abs=1e-12)
  assert additive['bayes_auc'] > 0.8
  pure = metrics_of(order_shares=(0.0, 1.0, 0.0, 0.0))
  assert pure['linear_auc'] == 0.5 and pure['bayes_auc'] > 0.8


def test_expected_metrics_are_the_average_over_labels(teacher):
  source = SyntheticSource(dataclasses.replace(DEFAULT, rows_test=20_000), teacher)
  _, parts_NO, _ = source.draw('test', 0, 20_000)
  logit_N = parts_NO.sum(axis=1) + teacher.bias
  rng = np.random.default_rng(0)
  drawn = [
    bayes_metrics(logit_N, parts_NO[:, 0], rng.random(20_000) < sigmoid(logit_N)) for _ in range(40)
  ]
  for name in ('bayes_auc', 'bayes_logloss'):
    found = np.array([d[name] for d in drawn])
    error = found.std() / 40**0.5
    assert abs(found.mean() - drawn[0][f'{name}_expected']) < 5 * error


def test_metrics_agree_with_other_code():
  rng = np.random.default_rng(1)
  score_N = rng.integers(-20, 20, 500) / 8.0  # many ties
  label_N = rng.random(500) < sigmoid(score_N)
  assert soft_auc(score_N, label_N) == pytest.approx(roc_auc_score(label_N, score_N), abs=1e-12)
  expected = sklearn_log_loss(label_N, sigmoid(score_N))
  assert log_loss(score_N, label_N) == pytest.approx(expected, abs=1e-12)
  p = sigmoid(score_N)
  right = pairs = 0.0
  for i in range(500):
    weight = p[i] * (1 - p)
    weight[i] = 0  # a row is no pair with itself
    right += (weight * ((score_N[i] > score_N) + 0.5 * (score_N[i] == score_N))).sum()
    pairs += weight.sum()
  assert soft_auc(score_N, p) == pytest.approx(right / pairs, abs=1e-12)
  assert soft_auc(score_N, np.zeros(500)) is None
