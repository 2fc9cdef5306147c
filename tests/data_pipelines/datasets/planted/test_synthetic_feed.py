# SPDX-License-Identifier: Apache-2.0
"""Planted feed: every row by a plain loop, causality, splits, and the folder that is written."""

import collections
import json
import pickle

import numpy as np
import pytest
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from small_feed import FLAGS, SMALL, logit_of, simulate_user, source_of, teacher_of, user_effect_of

from data_pipelines import build
from data_pipelines.datasets.synthetic_feed import calibration, dataset
from data_pipelines.datasets.synthetic_feed.teacher import raw_history
from data_pipelines.doctor import __main__ as doctor
from data_pipelines.prepared import shards
from data_pipelines.prepared.records import read_shard
from data_pipelines.prepared.schema import SPLITS
from data_pipelines.prepared.tfds import split_files

ALL = (0, SMALL.impressions)


@pytest.fixture(scope='module')
def rows():
  """All impressions of all users of the small feed."""
  return source_of().impressions(0, SMALL.users, ALL, events=True)


def joined(source, split, first, last):
  """The arrays of blocks [first, last)."""
  blocks = list(source.blocks(split, first, last))
  return {name: np.concatenate([b[name] for b in blocks]) for name in blocks[0]}


@pytest.mark.parametrize('user', [0, 7, 2**31 - 5])
def test_a_user_equals_that_of_a_plain_loop(user):
  source = source_of()
  rows = source.impressions(user, 1, ALL, events=True)
  for step, (ids, events, logit, label) in enumerate(simulate_user(*of(source), user)):
    assert rows.ids_USF[0, step].tolist() == ids
    assert rows.events_USLG[0, step].tolist() == events
    assert rows.logit_US[0, step] == pytest.approx(logit, abs=1e-12)
    assert rows.label_US[0, step] == label
  assert step == SMALL.impressions - 1 and 0 < rows.label_US.mean() < 1


def of(source):
  return source.teacher, source.options


def test_users_do_not_depend_on_their_number_nor_on_those_before(rows, monkeypatch):
  monkeypatch.setattr(dataset, '_CHUNK_USERS', 7)
  part = source_of(users=2_000).impressions(291, 9, (32, 36), events=True)
  for name, array in vars(part).items():
    np.testing.assert_array_equal(array, vars(rows)[name][291:, 32:36])
  other = source_of(seed=1).impressions(0, 9, ALL, events=False)
  assert (other.ids_USF[:, :, 1] != rows.ids_USF[:9, :, 1]).mean() > 0.5


def test_a_shard_is_the_same_alone_and_with_more_users(monkeypatch):
  monkeypatch.setattr(shards, 'SHARD_BLOCKS', 1)
  whole = joined(source_of(), 'train', 0, 3)
  assert len(whole['label']) == 9_600
  more = pickle.loads(pickle.dumps(source_of(users=500)))
  for k in range(2):  # the last shard ends elsewhere
    block = joined(more, 'train', k, k + 1)
    for name, array in block.items():
      np.testing.assert_array_equal(array, whole[name][4096 * k : 4096 * (k + 1)])
  # A shard's rows are its users', shuffled.
  np.testing.assert_array_equal(np.sort(whole['group'][:4096]), np.arange(4096) // 32)
  assert (whole['group'][1:] == whole['group'][:-1]).mean() < 0.05
  monkeypatch.setattr(shards, 'SHARD_BLOCKS', 64)
  both, one = joined(source_of(), 'train', 0, 3), joined(source_of(), 'train', 1, 2)
  np.testing.assert_array_equal(one['events'], both['events'][4096:8192])


def test_splits_follow_each_other_in_time_within_every_user(monkeypatch):
  """Every row of a split is one step of a user, exactly once; the loop gives their order."""
  monkeypatch.setattr(shards, 'SHARD_BLOCKS', 1)
  source = source_of(impressions=50)  # so that a user lies across two shards
  rows = source.impressions(0, SMALL.users, (0, 50), events=True)
  for split, (start, stop) in {'train': (0, 40), 'validation': (40, 45), 'test': (45, 50)}.items():
    block = joined(source, split, 0, -(-source.rows[split] // 4096))
    np.testing.assert_array_equal(block['ids'][:, 0], block['group'] + 2)
    flat = np.c_[block['ids'], block['label'], block['events'].reshape(len(block['ids']), -1)]
    ids = rows.ids_USF[:, start:stop].reshape(-1, 5)
    events = rows.events_USLG[:, start:stop].reshape(len(ids), -1)
    expected = np.c_[ids, rows.label_US[:, start:stop].reshape(-1), events]
    for table in (flat, expected):
      table[:] = table[np.lexsort(table.T[::-1])]
    np.testing.assert_array_equal(flat, expected)


def test_events_are_exactly_the_earlier_clicks_of_the_user():
  rows = source_of(warmup=0).impressions(0, 60, ALL, events=True)
  assert not rows.events_USLG[:, 0].any()
  for ids_SF, events_SLG, label_S in zip(
    rows.ids_USF, rows.events_USLG, rows.label_US, strict=True
  ):
    for step in range(40):
      clicked = ids_SF[:step][label_S[:step] == 1][-8:, [1, 2, 3]]
      padding = np.zeros((8 - len(clicked), 3), np.int32)
      np.testing.assert_array_equal(events_SLG[step, :, :3], np.r_[padding, clicked])
      gaps = events_SLG[step, 8 - len(clicked) :, 4]
      assert (np.diff(gaps) <= 0).all() and (gaps >= 2).all()
  assert {2, 3, 4, 5} == set(np.unique(rows.events_USLG[..., 3])) - {0}


def test_labels_have_the_planted_probabilities(rows):
  """The label's draw must not leak into its row: within 4 sigma in every bin."""
  probability_N = 1 / (1 + np.exp(-rows.logit_US.ravel()))
  label_N = rows.label_US.ravel()
  for chosen in np.array_split(np.argsort(probability_N, kind='stable'), 12):
    p = probability_N[chosen]
    assert abs(label_N[chosen].sum() - p.sum()) < 4 * np.sqrt((p * (1 - p)).sum())


def test_interests_are_parallel():
  """Neighbouring rows change interest as often as independent draws, and all interests stay."""
  rows = source_of(affinity=1.0, drift=0.0).impressions(0, 300, ALL, events=True)
  tag_US = rows.ids_USF[..., 3]
  change = tag_US[:, 1:] != tag_US[:, :-1]
  assert abs(change.mean() - 2 / 3) < 4 * np.sqrt(2 / 9 / change.size)
  sets = [[set(half.tolist()) for half in np.split(tags, 2)] for tags in tag_US]
  assert np.mean([len(a) == 3 and a == b for a, b in sets]) > 0.99
  mixed = [len(np.unique(events[events[:, 2] > 0, 2])) for events in rows.events_USLG[:, -1]]
  assert np.mean(np.array(mixed) >= 2) > 0.9


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  out = tmp_path_factory.mktemp('social') / 'out'
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(calibration, 'CALIBRATION_ROWS', 1 << 14)
    patch.setattr(shards, 'SHARD_BLOCKS', 1)
    patch.setattr(dataset, '_TASK_USERS', 70)
    assert build.main([*FLAGS, f'--out={out}', '--users=300']) == 0
  return out


def stored(folder, schema, split):
  blocks = []
  for path in split_files(folder / schema['tfds'], split):
    blocks += read_shard(path, source_of().shape)
  return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def test_folder_is_whole_and_its_schema_describes_it(folder):
  assert doctor.main([str(folder)]) == 0
  schema = json.loads((folder / 'schema.json').read_text())
  assert [f['name'] for f in schema['fields']] == ['user_id', 'item_id', 'author', 'tag', 'hour']
  assert [f['vocab_size'] for f in schema['fields']] == [302, 202, 32, 12, 26]
  assert [f['oov_rate']['test'] for f in schema['fields']] == [0.0] * 5
  assert schema['sequence']['length'] == 8
  assert [(a['name'], a['vocab_size'], a['field']) for a in schema['sequence']['attributes']] == [
    ('item_id', 202, 'item_id'),
    ('author', 32, 'author'),
    ('tag', 12, 'tag'),
    ('kind', 6, None),
    ('gap', 18, None),
  ]
  assert schema['group'] == {'name': 'user_id', 'groups': 300}
  assert {split: schema['splits'][split]['rows'] for split in SPLITS} == {
    'train': 9_600,
    'validation': 1_200,
    'test': 1_200,
  }
  assert (folder / 'vocabulary/kind.txt').read_text() == 'click\nlike\nshare\nhide\n'
  assert (folder / 'vocabulary/gap.txt').read_text().split()[:3] == ['<1m', '>=1m', '>=2m']
  probability_I = teacher_of()[0].catalogue.probability_I
  head, torso = schema['items']['head_below'] - 2, schema['items']['torso_below'] - 2
  assert probability_I[:head].sum() >= 0.5 > probability_I[: head - 1].sum()
  assert probability_I[:torso].sum() >= 0.9 > probability_I[: torso - 1].sum()


def test_metrics_are_those_of_the_stored_rows(folder):
  schema = json.loads((folder / 'schema.json').read_text())
  teacher = teacher_of()[0]
  assert schema['planted']['bias'] == teacher.bias
  for split in ('validation', 'test'):
    known, block = schema['planted']['splits'][split], stored(folder, schema, split)
    logit_N = np.array(
      [
        logit_of(teacher, ids, events, user_effect_of(SMALL, int(user)))
        for ids, events, user in zip(block['ids'], block['events'], block['group'], strict=True)
      ]
    )
    p_N, label_N = 1 / (1 + np.exp(-logit_N)), block['label']
    assert known['bayes_auc'] == pytest.approx(roc_auc_score(label_N, logit_N), abs=1e-9)
    assert known['bayes_logloss'] == pytest.approx(log_loss(label_N, p_N), abs=1e-9)
    entropy = -(p_N * np.log(p_N) + (1 - p_N) * np.log(1 - p_N)).mean()
    assert known['bayes_logloss_expected'] == pytest.approx(entropy, abs=1e-9)
    effect_N = np.array([user_effect_of(SMALL, int(user)) for user in block['group']])
    main_N = teacher.main(block['ids'], effect_N)
    assert known['linear_auc'] == pytest.approx(roc_auc_score(label_N, main_N), abs=1e-9)
    aucs = [
      roc_auc_score(label_N[own], logit_N[own])
      for own in (block['group'] == user for user in range(300))
      if 0 < label_N[own].sum() < own.sum()
    ]
    assert known['bayes_gauc'] == pytest.approx(np.mean(aucs), abs=1e-9)  # all have 4 rows
    memory_N = remembered(block, source_of(), teacher)
    expected = roc_auc_score(label_N, main_N + memory_N)
    assert known['memory_auc'] == pytest.approx(expected, abs=1e-9)
    assert known['linear_auc'] < known['memory_auc'] < known['bayes_auc']
  assert schema['planted']['splits']['train']['memory_auc'] is None


def remembered(block, source, teacher):
  """Computes the mean history part of the training rows of each row's user and tag."""
  cells = collections.defaultdict(list)
  train = joined(source, 'train', 0, 3)
  for ids, part in zip(
    train['ids'], teacher.history(train['ids'], train['events']).sum(axis=1), strict=True
  ):
    cells[ids[0], ids[3]].append(part)
  unseen = np.mean([parts[0] for parts in cells.values() if len(parts) == 1])
  keys = [(ids[0], ids[3]) for ids in block['ids']]
  return np.array([np.mean(cells[key]) if key in cells else unseen for key in keys])


def test_a_fit_without_history_stays_linear_and_one_with_it_comes_near_bayes():
  source = source_of(users=700)
  rows = source.impressions(0, 700, ALL, events=True)
  ids_NF = rows.ids_USF.reshape(-1, 5)
  train = np.tile(np.arange(40) < 32, 700)
  label_N, test = rows.label_US.ravel(), ~train
  sizes = (702, 202, 32, 12, 26)
  first = sparse.hstack(
    [sparse.eye_array(size).tocsr()[ids_NF[:, f]] for f, size in enumerate(sizes)], format='csr'
  )
  match = raw_history(ids_NF, rows.events_USLG.reshape(len(ids_NF), -1, 5))
  both = sparse.hstack((first, sparse.csr_array(3 * match)), format='csr')
  auc = []
  for features in (first, both):
    model = LogisticRegression(C=0.3, max_iter=300).fit(features[train], label_N[train])
    auc.append(roc_auc_score(label_N[test], model.decision_function(features[test])))
  linear = roc_auc_score(label_N[test], rows.main_US.ravel()[test])
  bayes = roc_auc_score(label_N[test], rows.logit_US.ravel()[test])
  assert abs(auc[0] - linear) < 0.02
  assert bayes - 0.02 < auc[1] <= bayes + 0.003
  assert bayes - linear > 0.1
