# SPDX-License-Identifier: Apache-2.0
"""The page of scaling laws: what stands on it, where its marks are, and that nothing breaks it."""

import copy
import itertools
import json
import pathlib
import re
import shlex
import urllib.parse

import numpy as np
import pytest
import swept as made
from absl import flags
from ml_collections import config_flags
from pages import Node, looks, marks, points, scales

from deres_jax import config
from deres_jax.compare import rerun
from deres_jax.core import run_files
from deres_jax.core.errors import UserError
from deres_jax.report import charts, wording
from deres_jax.scaling import __main__ as scaling
from deres_jax.scaling import analysis
from deres_jax.scaling import curves as runs
from deres_jax.scaling import page as page_lib

FOLDER = 'a #sweep, 100%20'


def laid(path, some, configs=True, only=(), baseline=None, data='toy', **more):
  """A sweep with its configs: content of fit.json, runs and the folder of the page."""
  sweep = made.folder(path / FOLDER, some, dataset=data, **more)
  if not configs:
    for file in (path / FOLDER / 'runs').glob('*/config.json'):
      file.unlink()
  options = analysis.Options(bootstraps=0)
  content, _, finished = scaling.fit(
    [sweep], 'forward', list(only), baseline, False, None, options
  )  # fmt: skip
  return content, finished, path / 'out' / 'page'


@pytest.fixture(scope='module')
def good(tmp_path_factory):
  return laid(tmp_path_factory.mktemp('good'), made.points(5e-4, dims=(32,), seeds=3))


@pytest.fixture(scope='module')
def tree(good):
  return Node(page_lib.page(*good))


def pictures(tree, kind):
  found = tree.all('svg', kind)
  assert found, kind
  return found


# Where the marks are.


@pytest.mark.parametrize(
  ('kind', 'count', 'figure'), [('by-compute', 2, 'compute'), ('by-params', 1, 'params')]
)
def test_every_run_has_a_mark_where_its_figures_are(good, tree, kind, count, figure):
  content, finished, _ = good
  wanted = {
    f'{p["curve"]}, {p["size"]}, seed {r["seed"]}': (p[figure], r['auc'])
    for p in content['points']
    for r in p['runs']
  }
  found = pictures(tree, kind)
  assert len(found) == count and len(wanted) == len(finished) == 30
  span = np.ptp([auc for _, auc in wanted.values()])
  for picture in found:
    across, up = scales(picture)
    dots = {tip.split(':')[0]: place for tip, place in marks(picture, 'run').items()}
    assert dots.keys() == wanted.keys()
    for name, (x, y) in dots.items():
      assert across(x) == pytest.approx(wanted[name][0], rel=1e-3)
      assert up(y) == pytest.approx(wanted[name][1], abs=1e-3 * span)
    width, height = (float(v) for v in picture.attrs['viewbox'].split()[2:])
    assert all(0 < x < width and 0 < y < height for x, y in dots.values())
    assert len(picture.all('g', 'mean')) == len(content['points'])


def test_depths_are_in_order_and_beside_their_ticks(good, tree):
  [picture] = pictures(tree, 'by-depth')
  across, _ = scales(picture)
  depth = {f'{p["curve"]}, {p["size"]}': p['depth'] for p in good[0]['points']}
  for tip, (x, _) in marks(picture, 'run').items():
    assert across(x) == pytest.approx(depth[tip.split(', seed')[0]], rel=0.1)


def test_lines_are_the_law_and_bands_hold_them(good, tree):
  content = good[0]
  lines = content['laws']['saturating']['line']
  for picture in pictures(tree, 'by-compute'):
    across, up = scales(picture)
    curves, bands = points(picture, 'curve'), points(picture, 'band')
    assert len(curves) == len(bands) == len(lines) == 2
    for line, curve, edge in zip(lines, curves, bands, strict=True):
      half = len(edge) // 2
      low, high = edge[:half], edge[half : 2 * half][::-1]
      assert (low[:, 0] == curve[:, 0]).all() and (high[:, 0] == curve[:, 0]).all()
      assert (low[:, 1] > curve[:, 1]).all() and (curve[:, 1] > high[:, 1]).all()
      np.testing.assert_allclose(across(curve[:, 0]), line['compute'], rtol=1e-3)
      np.testing.assert_allclose(up(curve[:, 1]), line['auc'], atol=1e-5)
      np.testing.assert_allclose(up(high[:, 1]), line['high'], atol=1e-5)


def test_curves_differ_in_colour_and_shape(good, tree):
  [picture] = pictures(tree, 'wide')
  of_curves = {}
  for tip, look in looks(picture, 'run').items():
    of_curves.setdefault(tip.split(',')[0], set()).add(look)
  distinct = [look for of_curve in of_curves.values() for look in of_curve]
  assert len(of_curves) == len(distinct) == 2
  assert len({colour for colour, _ in distinct}) == len({d for _, d in distinct}) == 2


def test_a_limit_is_drawn_only_where_it_does_not_squash(good):
  content, finished, out = good
  best = max(run.result.auc for run in finished) + 0.001
  known = copy.deepcopy(finished)
  bayes = run_files.PlantedFigures(best, 0.4, 0.7)
  known[0].result.planted = run_files.Planted({'test': bayes})
  near = Node(page_lib.page(content, known, out))
  assert f'best possible AUC is {best:.5f}' in near.words
  for picture in pictures(near, 'by-compute'):
    [level] = points(picture, 'level')
    assert scales(picture)[1](level[0, 1]) == pytest.approx(best, abs=1e-5)
  bayes.bayes_auc = 0.95
  far = Node(page_lib.page(content, known, out))
  assert 'best possible AUC is 0.95000' in far.words
  assert not far.all('g', 'level')


# What is said.


def test_the_answer_comes_first_in_the_figures_that_are_printed(good, tree):
  content = good[0]
  [ratio] = content['laws']['saturating']['against_reference']
  [free] = content['laws']['saturating_free']['against_reference']
  gamma = content['laws']['saturating']['curves'][1]['gamma']
  said = tree.all('main')[0].words
  head = f'DeRes: γ {wording.interval(gamma)}, {wording.interval(ratio["ratio"])} times OneTrans’s'
  assert head in said[: said.index('AUC against compute')]
  assert wording.against(ratio['ratio'], 1) == 'larger'
  assert 'One α: larger' in said and 'DeRes has a larger exponent than OneTrans' in said
  assert wording.against(free['ratio'], 1) == 'open' and 'An α of its own: cannot tell' in said
  assert content['warnings']
  for warning in content['warnings']:
    assert said.index(warning) < said.index('AUC against parameters')


@pytest.mark.parametrize(
  ('low', 'high', 'said'),
  [(1.1, 1.5, 'larger'), (0.5, 0.9, 'smaller'), (0.9, 1.5, 'open'), (None, 0.9, 'smaller'),
   (1.1, None, 'larger'), (None, None, 'open'), (1.0, 2.0, 'open')],
)  # fmt: skip
def test_a_ratio_is_told_from_1_by_its_interval(low, high, said):
  assert wording.against({'low': low, 'high': high}, 1) == said


def test_intervals_of_the_tables_are_those_of_fit_json(good, tree):
  content, said = good[0], tree.words
  for name in ('saturating', 'saturating_free', 'log_linear'):
    law = content['laws'][name]
    for curve in law['curves']:
      assert wording.interval(curve['slope_per_doubling'], '.3g') in said
      assert curve['gamma'] is None or wording.interval(curve['gamma']) in said
    for x in law['against_reference']:
      assert wording.interval(x['ratio']) in said
    for x in law['match'] if name != 'log_linear' else []:
      assert wording.interval({**x['compute'], **x['share']}) in said
  for x in content['comparisons'] + content['shallower']:
    assert f'{wording.number(x["difference"], "+.5f")} ± {x["interval"]:.5f}' in said


def test_equal_content_gives_an_equal_page(good):
  page = page_lib.page(*good)
  assert page == page_lib.page(copy.deepcopy(good[0]), *good[1:])


# One file, safe and accessible.


def test_nothing_is_fetched_and_no_script_runs(good):
  page = page_lib.page(*good)
  tree = Node(page)
  assert not re.search(r'https?:|<script|@import|\bon\w+=', page)
  assert not re.search(r'url\((?!#)', page) and 'src=' not in page
  for kind in ('link', 'img', 'iframe', 'script', 'object', 'image'):
    assert tree.all(kind) == []
  assert all(use.attrs['href'].startswith('#') for use in tree.all('use'))


def test_the_page_can_be_read_without_seeing_it(good, tree):
  [root] = tree.all('html')
  assert root.attrs['lang'] == 'en' and tree.all('title')
  names = {node.attrs.get('name'): node.attrs.get('content') for node in tree.all('meta')}
  assert 'width=device-width' in names['viewport']
  for picture in tree.all('svg'):
    assert picture.attrs.get('aria-label') or picture.attrs.get('aria-hidden')
  levels = [int(tag) for tag in re.findall(r'<h(\d)', headings(tree))]
  assert levels[0] == 1 and all(b <= a + 1 for a, b in itertools.pairwise(levels))
  ids = re.findall(r' id="([^"]*)"', page_lib.page(*good))
  assert len(ids) == len(set(ids)) > 10


def headings(tree):
  """The headings in order, as tags."""
  out = ''
  for node in tree.children:
    own = f'<{node.tag}' if re.fullmatch(r'h\d', node.tag) else ''
    out += own + headings(node)
  return out


HOSTILE = '<script>&"x'


def test_what_comes_from_files_is_escaped(tmp_path):
  truth = {HOSTILE: ('prenorm', 0.071, 0.046), 'a"><b hidden>': ('deres', 0.118, 0.043)}
  some = [*made.points(truth=truth, dims=(64,), seeds=2)]
  some += [
    ({'name': f'{HOSTILE} LR', 'model.backbone': 'lr', 'model.embed_dim': 1, 'seed': 0}, 0.7)
  ]
  content, finished, out = laid(tmp_path, some, only=list(truth), data=HOSTILE)
  page = page_lib.page(content, finished, out)
  tree = Node(page)
  assert '<script' not in page and '<b hidden' not in page
  assert {x.text for x in tree.all('g', 'name')} == set(truth)
  assert tree.all('script') == [] and not any('hidden' in n.attrs for n in tree.all('b'))
  [h1] = tree.all('h1')
  assert h1.text == f'AUC against compute on {HOSTILE}'
  assert {x.text for x in tree.all('ul', 'key')[0].all('li')} == set(truth)
  assert f'{HOSTILE} LR (on no curve)' in tree.words


# Runs.


def test_every_run_is_listed_with_a_link_to_its_config(good, tree):
  content, finished, out = good
  rows = [row for box in tree.all('div', 'tall') for row in box.all('tr')[1:]]
  assert len(rows) == len(finished) == 30
  for run in finished:
    [row] = [row for row in rows if run.id in row.text]
    [link] = row.all('a')
    file = out / urllib.parse.unquote(link.attrs['href'])
    assert not pathlib.Path(link.attrs['href']).is_absolute() and file.resolve().is_file()
    assert file.resolve() == run.config_file.resolve()
    assert f'{run.result.auc:.5f}' in row.text and f'{run.result.params_dense:,}' in row.text
    assert wording.compact(run.result.flops_forward_per_row) in row.text
    [shown] = row.all('pre')
    assert shlex.split(shown.text) == rerun.arguments(run)
  seeds = [row.all('td')[1].text for row in rows]
  assert seeds == ['0', '1', '2'] * 10 and content['points'][0]['size'] in rows[0].text


def read_by_flags(argv, file, text):
  """What --config gives to the command when its file holds `text`."""
  file.write_text(text)
  holder = flags.FlagValues()
  argv = [re.sub(r'--config=\S+', f'--config={file}', x) for x in argv]
  read = config_flags.DEFINE_config_file('config', flag_values=holder, sys_argv=argv)
  flags.DEFINE_string('workdir', None, '', flag_values=holder)
  holder(argv)
  return read.value


def test_a_command_repeats_its_run(good, tmp_path):
  run = good[1][-1]
  argv = rerun.arguments(run)
  assert argv[:3] == ['python', '-m', 'deres_jax.main'] and '--config=base.py' in argv
  assert "--config.data.path=/data/x4 train'" in rerun.command(run).replace("'--", '--')
  text = re.search(r"'(.*)'", rerun.MAKE_FILE)[1]
  read = read_by_flags(argv[2:], tmp_path / 'base.py', text)
  whole = json.loads(run.config_file.read_text())['config']
  assert read.to_dict() == whole
  assert config.config_hash(config.resolve(read)) == run.id


def test_without_its_config_a_run_has_the_sweep_s_fields(tmp_path):
  content, finished, out = laid(tmp_path, made.points(dims=(64,), seeds=2), configs=False)
  tree = Node(page_lib.page(content, finished, out))
  assert tree.all('div', 'tall')[0].all('a') == [] and finished[0].id in tree.words
  assert rerun.UNKNOWN in tree.words and rerun.MAKE_FILE not in tree.words
  argv = rerun.arguments(finished[-1])
  text = 'from deres_jax.config import base as get_config'
  read = read_by_flags(argv[2:], tmp_path / 'own.py', text)
  assert config.config_hash(config.resolve(read)) == finished[-1].id


def test_a_damaged_config_is_named(tmp_path):
  content, finished, out = laid(tmp_path, made.points(dims=(64,), seeds=1))
  finished[3].config_file.write_text('{')
  with pytest.raises(UserError, match=f'{finished[3].id}/config.json: not valid JSON'):
    page_lib.page(content, finished, out)


# What may be missing.


def test_one_seed_one_curve_and_a_line_do_not_break_it(tmp_path):
  one = {'OneTrans': made.TRUTH['OneTrans']}
  alone = laid(tmp_path / 'a', made.points(seeds=1, truth=one, dims=(64,)))
  tree = Node(page_lib.page(*alone))
  assert 'γ of OneTrans is' in tree.words and 'There is no other curve' in tree.words
  assert 'Compute to match' not in tree.words and 'Equal size' not in tree.words
  assert not tree.all('g', 'mean') and len(tree.all('svg', 'strip')) == 0
  line = [
    (x, 0.7 + 0.003 * np.log(made.forward(x['model.depth'], x['model.dim'], 'prenorm')) / 10)
    for x, _ in made.points(seeds=1)
  ]
  content, finished, out = laid(tmp_path / 'b', line)
  tree = Node(page_lib.page(content, finished, out))
  assert content['laws']['saturating']['boundary'] and 'boundary alpha = infinity' in tree.words
  gamma = content['laws']['saturating']['curves'][0]['gamma']
  assert wording.interval(gamma) in tree.words


def nothing(x):
  """Every figure that may be missing, missing."""
  if isinstance(x, list):
    return [nothing(y) for y in x]
  if not isinstance(x, dict):
    return x
  if 'low_open' in x:
    return {k: k.endswith('_open') or None for k in x}
  gone = ('aicc', 'lack_of_fit_p', 'residual_sd', 'extrapolation', 'seed_sd', 'auc_sd',
          'shared_alpha_p', 'difference', 'interval', 't_p', 't_p_holm', 'sign_flip_p',
          'rela_impr_percent')  # fmt: skip
  out = {k: None if k in gone and not isinstance(v, dict) else nothing(v) for k, v in x.items()}
  if 'share' in out:
    out['share'] = dict.fromkeys(out['share'])
  if {'compute', 'low', 'auc'} <= x.keys():
    out |= {'low': None, 'high': None}
  return out


def test_figures_that_are_null_do_not_break_it(good):
  content, finished, out = good
  tree = Node(page_lib.page(nothing(content), finished, out))
  assert 'none (-inf, inf)' in tree.words and 'no pairs' in tree.words
  assert not tree.all('g', 'band') and len(tree.all('g', 'curve')) == 4
  assert 'None' not in tree.words and 'nan' not in tree.words.lower().replace('finance', '')


def several(x, names, step):
  """The content of a page with DeRes under several names, each a step of AUC below the last."""

  def renamed(item, field, k):
    out = {**copy.deepcopy(item), field: names[k]}
    if {'low', 'auc', 'high'} <= out.keys():
      out |= {key: [auc - k * step for auc in out[key]] for key in ('low', 'auc', 'high')}
    return out

  if isinstance(x, dict):
    return {k: several(v, names, step) for k, v in x.items()}
  if not isinstance(x, list):
    return x
  out = []
  for item in x:
    field = next((k for k in ('curve', 'connector') if isinstance(item, dict) and k in item), None)
    if field and item[field] == 'DeRes':
      out += [renamed(item, field, k) for k in range(len(names))]
    else:
      out.append(several(item, names, step))
  return out


def test_many_curves_and_long_names(good):
  content, finished, out = good
  names = [f'DeRes with {"a long name of switches " * 3}{i}' for i in range(9)]
  tree = Node(page_lib.page(several(content, names, 0.0), finished, out))
  [key, _] = tree.all('ul', 'key')
  assert len(key.all('li')) == 10 and 'narrow-only' not in key.attrs['class']
  [picture] = pictures(tree, 'wide')
  assert not picture.all('g', 'name') and len(picture.all('g', 'curve')) == 10
  assert len(set(looks(picture, 'run').values())) == 10
  assert len(tree.all('svg', 'strip')) == 9 + 1
  assert 'With one α for all, all others have a larger exponent than OneTrans.' in tree.words


@pytest.mark.parametrize(('step', 'fits'), [(3e-3, True), (2e-4, True), (0.0, False)])
def test_names_stand_at_line_ends_in_order_and_apart(good, step, fits):
  content, finished, out = good
  names = [f'C{i}' for i in range(4 if fits else 6)]
  content = several(content, names, step)
  [picture] = pictures(Node(page_lib.page(content, finished, out)), 'wide')
  labels = {x.text: float(x.attrs['y']) for g in picture.all('g', 'name') for x in g.all('text')}
  if not fits:
    assert not labels
    return
  ends = {line['curve']: line['auc'][-1] for line in content['laws']['saturating']['line']}
  assert sorted(labels, key=labels.get) == sorted(ends, key=ends.get, reverse=True)
  assert len(labels) == 5 and min(np.diff(sorted(labels.values()))) >= 14.9


def test_a_gain_over_a_baseline_is_among_the_laws(tmp_path):
  some = list(made.points(dims=(64,), seeds=2))
  content, finished, out = laid(tmp_path, some, baseline='0.7')
  tree = Node(page_lib.page(content, finished, out))
  assert 'power of the gain' in tree.words
  for curve in content['laws']['power_gain']['curves']:
    assert wording.interval(curve['gamma']) in tree.words


# Axes.


@pytest.mark.parametrize(
  ('low', 'high'), [(0.7391, 0.7524), (0.5, 0.9), (0.79999, 0.80001), (0, 1)]
)
def test_round_ticks_are_round_and_inside(low, high):
  ticks, labels = charts.round_ticks(low, high)
  assert 3 <= len(ticks) <= 7 and low <= ticks[0] and ticks[-1] <= high
  assert list(map(float, labels)) == pytest.approx(ticks, abs=1e-12)
  assert len(set(labels)) == len(ticks)


@pytest.mark.parametrize(
  ('low', 'high'), [(2e6, 1.6e7), (7e6, 2.7e8), (1, 1e9), (1e14, 1e19), (3, 4)]
)
def test_log_ticks_are_round_and_few(low, high):
  major, minor = charts.log_ticks(low, high)
  assert 2 < len(major) <= 7 and all(low <= x <= high for x in [*major, *minor])
  assert len({wording.compact(x) for x in major}) == len(major)


def test_compact_figures():
  shown = [wording.compact(x) for x in (0.5, 1, 2500, 2e6, 53.2e6, 3e9, 4e12, 1e15, 5e15, 2.5e18)]
  assert shown == ['0.5', '1', '2.5k', '2M', '53.2M', '3G', '4T', '10¹⁵', '5·10¹⁵', '2.5·10¹⁸']


def test_runs_of_the_table_are_those_of_the_csv(good, tmp_path, tree):
  finished = good[1]
  runs.write_csv(tmp_path / 'runs.csv', [], finished)
  ids = [line.split(',')[0] for line in (tmp_path / 'runs.csv').read_text().splitlines()[1:]]
  assert all(id in tree.words for id in ids) and len(ids) == 30
