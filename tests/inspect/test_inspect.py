# SPDX-License-Identifier: Apache-2.0
"""The inspect command: its figures equal evaluation, its files, its errors."""

import dataclasses
import json
import pathlib
import re
import subprocess
import sys
import types

import numpy as np
import pytest
from ml_collections import ConfigDict
from pages import Node, marks, points, scales
from tiny_experiment import EXPERIMENT

from deres_jax import config, models
from deres_jax.core.errors import UserError
from deres_jax.inspect import __main__ as inspect
from deres_jax.inspect import claims, findings, page, stats
from deres_jax.report import charts
from deres_jax.training import loop
from deres_jax.training.checkpoints import restore
from deres_jax.training.checkpoints.restore import Trained

REPO = pathlib.Path(__file__).resolve().parents[2]


def tiny(planted, overrides=''):
  space = {}
  exec(EXPERIMENT, space)
  c = space['get_config'](
    'model.depth=2,train.epochs=0.5,train.eval_epochs=0.25,train.checkpoint_steps=0,'
    f'mesh.devices=2,train.kernels=off,optim.dense_lr=0.01{overrides}'
  )
  c.data.path = str(planted)
  return config.resolve(c)


@pytest.fixture(scope='module')
def workdir(planted, tmp_path_factory):
  out = tmp_path_factory.mktemp('inspected') / 'run'
  loop.train(tiny(planted), out)
  return out


@pytest.fixture(scope='module')
def made(workdir):
  """Returns the model, its measurements on the test split, and the content of inspect.json."""
  model = inspect.load(workdir)
  batches = findings.batches_of(model, 'test', 1200)
  measured = findings.measure(model, batches, 1200, lambda done: None)
  found = findings.summarise(model, measured)
  more = {
    'workdir': '<script>alert(1)</script>', 'config_hash': 'abc', 'backbone': 'onetrans',
    'connector': 'deres', 'layers': 2, 'dim': 8, 'seed': 0, 'step': model.at, 'dataset': 'a & b',
    'split': 'test', 'rows': 1200, 'rows_of_split': 1500, 'versions': {'jax': '1'},
  }  # fmt: skip
  return model, measured, more | {'claims': claims.claims(found)} | found


def test_untouched_logits_equal_evaluation(made, workdir):
  """Over two devices, with another batch size, on the requested rows."""
  _, measured, c = made
  np.testing.assert_allclose(
    measured.logits[''], np.load(workdir / 'test_logits.npy')[:1200], atol=1e-6
  )
  assert c['untouched']['rows'] == 1200 == len(measured.labels_N)


def test_statistics_skip_padding(made):
  """Of the last batch and of devices."""
  model, measured, _ = made
  assert set(measured.stats['weights']['recall 4'].count) == {1200}
  assert measured.gradients[0].count.sum() == 1200 and len(measured.early_N) == 1200
  assert measured.stats['scatter']['0'].count == 1200 * len(model.schema.fields)


def test_every_ablation_changes_the_logits(made):
  _, measured, c = made
  names = [x['change'] for x in c['checks']]
  assert names == [
    'negative weights zeroed', 'without embedding', 'without block 1', 'without block 2', 'gate 0',
    'gate 0.5', 'gate 1',
  ]  # fmt: skip
  for name in names:
    assert np.abs(measured.logits[name] - measured.logits['']).max() > 1e-6, name


def test_page_is_one_file_without_script(made):
  c = made[2]
  text = page.page(c)
  assert '<script' not in text and '&lt;script&gt;' in text and 'a &amp; b' in text
  assert '://' not in text and '@import' not in text and 'src=' not in text
  tree = Node(text)
  ids = re.findall(r' id="([^"]*)"', text)
  assert len(ids) == len(set(ids))
  assert len(tree.all('svg')) >= 8 and all(
    x.attrs.get('aria-label') for x in tree.all('svg', 'heat')
  )
  assert all(x['verdict'] in text for x in c['claims'])
  assert text == page.page(c)


def test_marks_of_a_map_stand_where_weights_are_negative(made):
  recall = [w for w in made[2]['weights'] if w['kind'] == 'recall']
  picture = Node(page.page(made[2])).all('svg', 'heat')[0]
  cells = [group.all('title')[0].text for group in picture.all('g', 'cell')]
  assert len(cells) == sum(len(w['mean']) for w in recall)
  negative = [tip for tip in cells if 'mean −' in tip]
  assert len(picture.all('g', 'neg')) == sum(m < 0 for w in recall for m in w['mean'])
  assert len(negative) <= len(picture.all('g', 'neg'))
  boxes = dict(zip(cells, points(picture, 'cell'), strict=True))
  columns = {tip.split(': ')[0].split(', ')[1] for tip in cells}
  for name in columns:
    assert len({box[0, 0] for tip, box in boxes.items() if f', {name}:' in tip}) == 1


def test_values_by_depth_stand_where_their_axes_say(made):
  c = made[2]
  figure = page._depth(c)['gradient']
  across, up = scales(Node(charts.svg(figure, 'x', 'gradient')), log=False)
  found = marks(Node(charts.svg(figure, 'x', 'gradient')), 'value')
  values = [(d['site'], d['gradient']) for d in c['depth'] if d['gradient'] is not None]
  assert len(found) == len(values)
  for (x, y), (site, value) in zip(found.values(), values, strict=True):
    assert (across(x), up(y)) == pytest.approx((site, value), abs=1e-2 * max(1, value))


def test_command_writes_both_files(workdir, tmp_path):
  before = sorted((p.relative_to(workdir), p.stat().st_mtime_ns) for p in workdir.rglob('*'))
  done = subprocess.run(
    [sys.executable, '-m', 'deres_jax.inspect', f'--workdir={workdir}', f'--out={tmp_path}/o',
     '--rows=300'],
    capture_output=True, text=True, cwd=REPO, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert 'validation auc' in done.stdout and 'inspect.html' in done.stdout
  c = json.loads((tmp_path / 'o' / 'inspect.json').read_text())
  assert (c['rows'], c['split'], len(c['claims'])) == (300, 'validation', 2)
  Node((tmp_path / 'o' / 'inspect.html').read_text())
  assert (tmp_path / 'o' / 'inspect.pdf').read_bytes().startswith(b'%PDF')
  assert (tmp_path / 'o' / 'inspect.png').read_bytes().startswith(b'\x89PNG')
  after = sorted((p.relative_to(workdir), p.stat().st_mtime_ns) for p in workdir.rglob('*'))
  assert before == after  # the run stays untouched


def test_unfinished_save_is_left_alone(workdir, tmp_path):
  """Orbax removes unfinished checkpoints on opening, which could be those of a live run."""
  folder = workdir / 'checkpoints' / '99.saving'
  folder.mkdir()
  try:
    inspect.load(workdir)
    assert folder.is_dir()
  finally:
    folder.rmdir()


def _written(folder, c, content=None):
  folder.mkdir()
  stored = {'config': config.as_dict(c), 'identity': config.identity(c)}
  (folder / 'config.json').write_text(json.dumps(stored | {'data_content': content or {}}))
  return folder


def test_mistakes(planted, workdir, tmp_path, made):
  with pytest.raises(UserError, match=r'holds no config\.json'):
    inspect.load(tmp_path / 'nowhere')
  with pytest.raises(UserError, match=r'holds no config\.json'):
    inspect.load(tmp_path)
  c = tiny(planted)
  with pytest.raises(UserError, match='holds other data than'):
    inspect.load(_written(tmp_path / 'untrained', c))
  lr = dataclasses.replace(c, model=dataclasses.replace(c.model, backbone='dnn'))
  with pytest.raises(UserError, match='dnn is a classic model'):
    inspect.load(_written(tmp_path / 'classic', lr))
  other = _written(tmp_path / 'other', c, {'train': 'x'})
  (other / 'checkpoints').mkdir()
  with pytest.raises(UserError, match='holds other data than'):
    inspect.load(other)
  empty = _written(tmp_path / 'empty', c, made[0].schema.content)
  (empty / 'checkpoints').mkdir()
  with pytest.raises(UserError, match='holds no finished checkpoint'):
    inspect.load(empty)
  (other / 'config.json').write_text('{}')
  with pytest.raises(UserError, match='missing required field'):
    inspect.load(other)
  with pytest.raises(UserError, match='--split=dev: expected one of train, validation, test'):
    inspect.inspect(made[0], 'w', 'dev', 5)
  with pytest.raises(UserError, match='--rows=0: expected at least 1'):
    inspect.inspect(made[0], 'w', 'test', 0)
  with pytest.raises(UserError, match=r'--rows=1: \d of these rows of test are clicks'):
    inspect.inspect(made[0], 'w', 'test', 1)


def test_config_of_a_workdir_round_trips(workdir, planted):
  c, _ = restore.config_of(workdir)
  assert c == tiny(planted) and isinstance(config.base(), ConfigDict)


def test_token_positions():
  """Events form one kind, as many as a pyramid keeps; other backbones read their means."""
  c = tiny('nowhere')
  user, item, kind = (types.SimpleNamespace(name=name) for name in ('user', 'item', 'kind'))
  sequence = types.SimpleNamespace(attributes=(item, kind))
  schema = types.SimpleNamespace(fields=(user, item), sequence=sequence)

  def of(count, **model):
    changed = dataclasses.replace(c, model=dataclasses.replace(c.model, **model))
    spec = types.SimpleNamespace(layout=models.Layout(2, 5, 2))
    whole = Trained(changed, schema, spec, 0, (), 1, None)
    return {k: v.tolist() for k, v in findings.token_positions(whole, count).items()}

  assert of(7) == {'events': [0, 1, 2, 3, 4], 'user': [5], 'item': [6]}
  assert of(3) == {'events': [0], 'user': [1], 'item': [2]}
  assert of(2) == {'user': [0], 'item': [1]}
  assert list(of(4, backbone='wukong')) == [
    'user', 'item', 'mean item of events', 'mean kind of events'
  ]  # fmt: skip
  assert list(of(3, tokenizer='slice', tokens=2)) == ['events', 'token 1', 'token 2']


# Statistics.


def test_merged_statistics_equal_those_of_all_values():
  """Even if the standard deviation is a millionth of the mean."""
  rng = np.random.default_rng(0)
  a = (1 + 1e-6 * rng.standard_normal((50, 3, 2)) * [1, 1e5]).astype(np.float64) - [0, 1]
  there = rng.random((50, 3)) < 0.8
  parts = []
  for rows in (slice(0, 20), slice(20, 21), slice(21, 50)):
    w = there[rows].astype(float)
    n = np.maximum(w.sum(0), 1)[:, None]
    mean = (w[..., None] * a[rows]).sum(0) / n
    spread = (w[..., None] * (a[rows] - mean) ** 2).sum(0)
    negative = (w[..., None] * (a[rows] < 0)).sum(0)
    parts.append(stats.TokenStats(w.sum(0), mean, spread, negative))
  got = stats.merged(parts)
  for t in range(3):
    own = a[there[:, t], t]
    np.testing.assert_allclose(got.mean[t], own.mean(0), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(got.std()[t], own.std(0), rtol=1e-7)
    np.testing.assert_allclose(got.share_negative()[t], (own < 0).mean(0))
  whole = stats.over_tokens(got)
  np.testing.assert_allclose(whole.std()[0], a[there].std(0), rtol=1e-7)


def test_effective_rank_of_known_spectra():
  """Three equal singular values have rank 3."""
  rng = np.random.default_rng(1)
  u = np.linalg.svd(rng.standard_normal((40, 3)) - 0)[0][:, :3]
  u = np.linalg.qr(u - u.mean(0))[0]
  v = np.linalg.qr(rng.standard_normal((6, 3)))[0]
  for sigma in ([2, 2, 2], [5, 1, 0.5]):
    x = (u * sigma) @ v.T + 7
    parts = []
    for rows in (x[:15], x[15:]):
      centred = rows - rows.mean(0)
      parts.append(stats.Scatter(len(rows), rows.mean(0), centred.T @ centred))
    p = np.array(sigma) / np.sum(sigma)
    want = np.exp(-np.sum(p * np.log(p)))
    np.testing.assert_allclose(stats.effective_rank(stats.merged(parts)), want, rtol=1e-5)
  assert stats.effective_rank(stats.Scatter(4, np.ones(3), np.zeros((3, 3)))) is None


# Verdicts.


def _content(mean=-0.1, half=0.02, difference=-0.002, simplex=False, kinds=('recall',)):
  return {
    'simplex': simplex,
    'weights': [{'kind': k, 'negative': [0.3]} for k in kinds],
    'early': None if not kinds else {'mean': mean, 'interval': half, 'share_negative': 0.7},
    'checks': [{'change': findings.NEGATIVES, 'difference': difference, 'interval': 0.0005}],
  }


@pytest.mark.parametrize(
  ('content', 'words'),
  [
    (_content(), ['shown', 'shown']),
    (_content(mean=0.1, difference=0.001), ['not shown', 'not shown']),
    (_content(mean=0.01, difference=-0.0002), ['cannot be told here', 'cannot be told here']),
    (_content(simplex=True) | {'checks': []}, ['cannot be told here', 'cannot be told here']),
    (_content(kinds=()) | {'checks': []}, ['cannot be told here', 'cannot be told here']),
  ],
)
def test_verdicts_follow_the_intervals(content, words):
  got = claims.claims(content)
  assert [x['verdict'] for x in got] == words
  assert all(x['remark'] for x in got if x['figure'] is None)
