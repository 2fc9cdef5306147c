# SPDX-License-Identifier: Apache-2.0
"""Planted feed: catalogue, calibration, negative controls, figures and flags."""

import dataclasses
import itertools

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from small_feed import FLAGS, SMALL, source_of, teacher_of

from data_pipelines import build
from data_pipelines.datasets.synthetic.bayes import grouped_auc
from data_pipelines.datasets.synthetic_feed import dataset
from data_pipelines.datasets.synthetic_feed.catalogue import make_catalogue
from data_pipelines.datasets.synthetic_feed.dataset import FeedSource, Memory, split_metrics
from data_pipelines.datasets.synthetic_feed.teacher import GAP_BUCKETS, gap_ids, gap_tokens
from data_pipelines.datasets.synthetic_feed.users import drifted, interests_of
from deres_jax.core.errors import UserError

ALL = (0, SMALL.impressions)


@pytest.fixture(scope='module')
def many():
  """Simulates users that are not in the calibration."""
  return source_of(users=4_000).impressions(0, 4_000, ALL, events=False)


def figures_of(options, users=2_000):
  source = FeedSource(dataclasses.replace(options, users=users), teacher_of(options)[0])
  known = dataset._known(0, source)
  return split_metrics(known['test'], Memory(known['train']))


def test_catalogue_is_complete_and_sorted():
  c = make_catalogue(SMALL)
  assert set(c.tag_I) == set(range(10)) and set(c.author_I) == set(range(30))
  assert c.probability_I.sum() == pytest.approx(1, abs=1e-12)
  by_tag = np.bincount(c.tag_I, weights=c.probability_I)
  by_author = np.bincount(c.author_I, weights=c.probability_I)
  for falling in (c.probability_I, by_tag, by_author):
    assert (np.diff(falling) <= 0).all()
  assert c.probability_I @ c.effect_I == pytest.approx(0, abs=1e-12)
  assert c.probability_I @ c.effect_I**2 == pytest.approx(1, abs=1e-12)
  home = [np.bincount(c.tag_I[c.author_I == a]).max() for a in range(30)]
  assert 0.7 < sum(home) / 200 < 1, 'tag and author say nearly, not quite, the same'


def test_items_are_as_frequent_as_their_ids_say(many):
  """Chi-square test by blocks of users: rows of one user are dependent, users are not."""
  c = make_catalogue(SMALL)
  item_US = many.ids_USF[..., 1] - 2
  share_UI = np.stack([np.bincount(items, minlength=200) for items in item_US]) / 40
  error_I = share_UI.std(axis=0) / np.sqrt(len(share_UI))
  z_I = (share_UI.mean(axis=0) - c.probability_I) / error_I
  assert np.abs(z_I).max() < 4.5 and 0.7 < z_I.std() < 1.3


def test_the_parts_have_their_shares_on_new_users(many):
  """The calibration has 16,384 rows, these are 160,000: 4 % of the logit's variance."""
  main_N, history_NP = many.main_US.ravel(), many.history_USP.reshape(-1, 3)
  total = SMALL.logit_std**2
  assert main_N.var() == pytest.approx(0.3 * total, rel=0.03)
  assert history_NP.sum(axis=1).var() == pytest.approx(0.7 * total, abs=0.04 * total)
  ratio = history_NP.var(axis=0) / history_NP.var(axis=0).sum()
  np.testing.assert_allclose(ratio, np.array([0.4, 0.15, 0.15]) / 0.7, atol=0.02)
  assert abs(np.corrcoef(main_N, history_NP.sum(axis=1))[0, 1]) < 0.06
  probability_N = 1 / (1 + np.exp(-many.logit_US.ravel()))
  assert probability_N.mean() == pytest.approx(SMALL.click_rate, abs=0.01)
  # Neither tag nor author determines the length of the history.
  tag_N, author_N = many.ids_USF[..., 3].ravel(), many.ids_USF[..., 2].ravel()
  for number_N, p in ((tag_N, 0), (author_N, 1), (tag_N, 2)):
    mean = np.bincount(number_N, weights=history_NP[:, p])[2:] / np.bincount(number_N)[2:]
    assert (np.bincount(number_N)[2:] * mean**2).sum() / history_NP[:, p].var() < 0.03 * 160_000


def test_negative_controls():
  without = dataclasses.replace(SMALL, shares=(1.0, 0.0, 0.0, 0.0))
  known = figures_of(without)
  assert known['bayes_auc'] == known['linear_auc'] > 0.7
  assert known['memory_auc'] == known['linear_auc']
  assert teacher_of(without)[0].scale_P.tolist() == [0, 0, 0]
  noise = figures_of(dataclasses.replace(SMALL, logit_std=0.0))
  assert noise['bayes_auc'] == noise['linear_auc'] == noise['bayes_gauc'] == 0.5
  entropy = -(0.256 * np.log(0.256) + 0.744 * np.log(0.744))
  assert noise['bayes_logloss_expected'] == pytest.approx(entropy, abs=1e-9)
  pure = figures_of(dataclasses.replace(SMALL, shares=(0.0, 0.5, 0.25, 0.25)))
  assert pure['linear_auc'] == 0.5 and pure['bayes_auc'] > 0.8


@pytest.mark.parametrize('part', [1, 2, 3])
def test_each_part_of_the_history_alone(part):
  shares = [0.5, 0.0, 0.0, 0.0]
  shares[part] = 0.5
  teacher, measured = teacher_of(dataclasses.replace(SMALL, shares=tuple(shares)))
  variance = np.diag(measured['covariance'])
  assert variance[part] == pytest.approx(0.5 * SMALL.logit_std**2, rel=0.06)
  assert np.count_nonzero(variance) == 2 == np.count_nonzero(teacher.scale_P) + 1


def test_correlated_parts_have_their_share_together():
  """Tag and author match together: without their covariance the sum would have a third more."""
  measured = teacher_of(dataclasses.replace(SMALL, shares=(0.3, 0.35, 0.35, 0.0)))[1]
  covariance = np.array(measured['covariance'])
  assert covariance[1, 2] > 0.2 * covariance[1, 1]
  assert covariance[1:, 1:].sum() == pytest.approx(0.7 * SMALL.logit_std**2, rel=0.06)
  assert covariance[1, 1] == pytest.approx(covariance[2, 2], rel=0.06)


def test_the_teacher_knows_neither_the_seed_nor_the_number_of_users():
  teacher, measured = teacher_of()
  same = teacher_of(dataclasses.replace(SMALL, seed=5, users=7))
  assert same[0].bias == teacher.bias and same[1] == measured
  np.testing.assert_array_equal(same[0].catalogue.tag_I, teacher.catalogue.tag_I)
  other = teacher_of(dataclasses.replace(SMALL, teacher_seed=5))[0]
  assert other.bias != teacher.bias
  assert (other.catalogue.tag_I != teacher.catalogue.tag_I).any()


def test_gap_buckets_are_exact_at_their_borders():
  seconds = np.array([0, 59, 60, 119, 120, 239, 240, 60 << 13, (60 << 14) - 1, 60 << 14, 60 << 20])
  assert (gap_ids(seconds) - 2).tolist() == [0, 0, 1, 1, 2, 2, 3, 14, 14, 15, 15]
  tokens = gap_tokens()
  assert len(tokens) == GAP_BUCKETS and tokens[3] == b'>=4m' and tokens[-1] == b'>=16384m'


def test_interests_are_distinct_and_all_sets_equally_probable():
  draws = np.random.default_rng(0).random((20_000, 2))
  chosen_UK = interests_of(draws, 4)
  sets, counts = np.unique(chosen_UK, axis=0, return_counts=True)
  assert sets.tolist() == [list(pair) for pair in itertools.combinations(range(4), 2)]
  assert np.abs(counts - 20_000 / 6).max() < 4 * np.sqrt(20_000 * 5 / 36)
  assert interests_of(draws, 2).tolist() == [[0, 1]] * 20_000


def test_drift_replaces_any_interest_by_any_other_tag():
  options = dataclasses.replace(SMALL, tags=5, interests=2, drift=0.3)
  before_UK = np.tile([1, 3], (40_000, 1))
  after_UK = drifted(before_UK, np.random.default_rng(1).random(40_000), options)
  assert (before_UK == [1, 3]).all() and (np.diff(after_UK, axis=1) > 0).all()
  sets, counts = np.unique(after_UK, axis=0, return_counts=True)
  expected = {(0, 1), (1, 2), (1, 4), (0, 3), (2, 3), (3, 4), (1, 3)}
  assert {tuple(pair) for pair in sets.tolist()} == expected
  stayed = (sets == [1, 3]).all(axis=1)
  assert abs(counts[stayed][0] - 28_000) < 4 * np.sqrt(40_000 * 0.21)
  assert np.abs(counts[~stayed] - 2_000).max() < 4 * np.sqrt(2_000 * 0.95)
  none = dataclasses.replace(options, drift=0.0)
  np.testing.assert_array_equal(drifted(before_UK, np.zeros(40_000), none), before_UK)


def test_grouped_auc_is_the_mean_of_the_groups_aucs():
  rng = np.random.default_rng(3)
  group_N, score_N = rng.integers(0, 60, 900), rng.integers(-3, 4, 900) / 2  # many ties
  label_N = (rng.random(900) < 0.15 + 0.1 * (group_N % 3)).astype(np.uint8)
  label_N[group_N == 4] = 0
  aucs, weights = [], []
  for group in range(60):
    own = group_N == group
    if 0 < label_N[own].sum() < own.sum():
      aucs.append(roc_auc_score(label_N[own], score_N[own]))
      weights.append(own.sum())
  assert len(aucs) < 60
  expected = np.average(aucs, weights=weights)
  assert grouped_auc(score_N, label_N, group_N) == pytest.approx(expected, abs=1e-12)
  assert grouped_auc(score_N, np.zeros(900), group_N) is None


@pytest.mark.parametrize(
  'flag, expected',
  [
    ('--users=0', '--users=0: expected 1 to'),
    ('--impressions=9', '--impressions=9: expected 10'),
    ('--warmup=-1', '--warmup=-1'),
    ('--items=29', '--items=29: expected --authors=30'),
    ('--authors=9', '--authors=9: expected --tags=10'),
    ('--tags=1', '--tags=1'),
    ('--interests=11', '--interests=11: expected 1 to --tags=10'),
    ('--affinity=1.5', '--affinity=1.5'),
    ('--drift=-0.1', '--drift=-0.1'),
    ('--interests=10', '--drift=0.1: expected 0, or fewer --interests'),
    ('--events=0', '--events=0'),
    ('--zipf=-1', '--zipf=-1'),
    ('--click_rate=0', '--click_rate=0'),
    ('--logit_std=21', '--logit_std=21'),
    ('--shares=0.5,0.5,0.5,0', 'sum to 1'),
    ('--shares=1,0', 'four shares'),
    ('--shares=a', 'invalid comma-separated float value'),
    ('--seed=-1', '--seed=-1'),
    ('--teacher_seed=-1', '--teacher_seed=-1'),
    ('--raw=x', 'reads no raw file'),
  ],
)
def test_mistakes_are_one_line_errors(flag, expected, tmp_path, capsys):
  try:
    code = build.main([*FLAGS, f'--out={tmp_path / "out"}', flag])
  except SystemExit as stop:
    code = stop.code
  error = capsys.readouterr().err
  assert code == 2 and error.startswith('error: ') and error.count('\n') == 1, error
  assert expected in error
  assert not list(tmp_path.iterdir())


def test_a_share_that_no_history_can_show_is_a_mistake():
  options = dataclasses.replace(SMALL, click_rate=1e-9, logit_std=0.1)
  with pytest.raises(UserError, match='part tag has the share'):
    teacher_of(options)
