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
from pages import Node

from deres_jax import config
from deres_jax.compare import rerun
from deres_jax.core import run_files
from deres_jax.core.errors import UserError
from deres_jax.report import svg, wording
from deres_jax.scaling import __main__ as scaling
from deres_jax.scaling import analysis
from deres_jax.scaling import curves as runs
from deres_jax.scaling import page as page_lib

FOLDER = 'a #sweep, 100%20'
UNITS = {'k': 1e3, 'M': 1e6, 'G': 1e9, 'T': 1e12}


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


def numbers(node, *names):
  return [float(node.attrs[name]) for name in names]


def path_of(node):
  return np.array([[float(v) for v in xy.split(',')] for xy in node.attrs['points'].split()])


def place(node):
  """Where a marker stands."""
  found = re.match(r'translate\((\S+) (\S+)\)', node.attrs['transform'])
  return float(found[1]), float(found[2])


def axes(picture):
  """Functions from pixels to C (or another logarithmic axis) and to AUC, from ticks alone."""
  ticks = [line.attrs['x1'] for line in picture.all('line', 'rule') if _length(line) == 6]
  labels = [text.text for text in picture.all('text', 'x')]
  values = [float(x.rstrip('kMGT')) * UNITS.get(x[-1], 1) for x in labels]
  across = np.polyfit([float(x) for x in ticks], np.log(values), 1)
  heights = [float(line.attrs['y1']) for line in picture.all('line', 'grid')]
  levels = [float(x.text) for x in picture.all('text', 'y') if re.fullmatch(r'[\d.]+', x.text)]
  up = np.polyfit(heights, levels, 1)
  assert len(ticks) > 2 and len(heights) > 2
  return lambda x: np.exp(np.polyval(across, x)), lambda y: np.polyval(up, y)


def _length(line):
  y1, y2 = numbers(line, 'y1', 'y2')
  return y2 - y1


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
    across, up = axes(picture)
    dots = {dot.text.split(':')[0]: place(dot) for dot in picture.all('path', 'run')}
    assert dots.keys() == wanted.keys()
    for name, (x, y) in dots.items():
      assert across(x) == pytest.approx(wanted[name][0], rel=1e-3)
      assert up(y) == pytest.approx(wanted[name][1], abs=1e-3 * span)
    width, height = (float(v) for v in picture.attrs['viewbox'].split()[2:])
    assert all(0 < x < width and 0 < y < height for x, y in dots.values())
    assert len(picture.all('path', 'mean')) == len(content['points'])


def test_depths_are_in_order_and_beside_their_ticks(good, tree):
  [picture] = pictures(tree, 'by-depth')
  across, _ = axes(picture)
  depth = {f'{p["curve"]}, {p["size"]}': p['depth'] for p in good[0]['points']}
  for dot in picture.all('path', 'run'):
    name = dot.text.split(', seed')[0]
    assert across(place(dot)[0]) == pytest.approx(depth[name], rel=0.1)


def test_lines_are_the_law_and_bands_hold_them(good, tree):
  content = good[0]
  lines = content['laws']['saturating']['line']
  for picture in pictures(tree, 'by-compute'):
    across, up = axes(picture)
    curves, bands = picture.all('polyline', 'curve'), picture.all('polygon', 'band')
    assert len(curves) == len(bands) == len(lines) == 2
    for line, curve, band in zip(lines, curves, bands, strict=True):
      points, edge = path_of(curve), path_of(band)
      half = len(edge) // 2
      low, high = edge[:half], edge[half:][::-1]
      assert (low[:, 0] == points[:, 0]).all() and (high[:, 0] == points[:, 0]).all()
      assert (low[:, 1] > points[:, 1]).all() and (points[:, 1] > high[:, 1]).all()
      np.testing.assert_allclose(across(points[:, 0]), line['compute'], rtol=1e-3)
      np.testing.assert_allclose(up(points[:, 1]), line['auc'], atol=1e-5)
      np.testing.assert_allclose(up(high[:, 1]), line['high'], atol=1e-5)


def test_curves_differ_in_colour_and_shape(good, tree):
  [picture] = pictures(tree, 'wide')
  seen = {}
  for dot in picture.all('path', 'run'):
    colour = dot.attrs['class'].split()[-1]
    seen.setdefault(dot.text.split(',')[0], set()).add((colour, dot.attrs['d']))
  looks = [x for look in seen.values() for x in look]
  assert len(seen) == len(looks) == 2
  assert len({colour for colour, _ in looks}) == len({d for _, d in looks}) == 2


def test_a_limit_is_drawn_only_where_it_does_not_squash(good):
  content, finished, out = good
  best = max(run.result.auc for run in finished) + 0.001
  known = copy.deepcopy(finished)
  bayes = run_files.PlantedFigures(best, 0.4, 0.7)
  known[0].result.planted = run_files.Planted({'test': bayes})
  near = Node(page_lib.page(content, known, out))
  assert f'best possible AUC is {best:.5f}' in near.text
  for picture in pictures(near, 'by-compute'):
    [level] = picture.all('line', 'level')
    assert axes(picture)[1](float(level.attrs['y1'])) == pytest.approx(best, abs=1e-5)
  bayes.bayes_auc = 0.95
  far = Node(page_lib.page(content, known, out))
  assert 'best possible AUC is 0.95000' in far.text
  assert not far.all('line', 'level')


# What is said.


def test_the_answer_comes_first_in_the_figures_that_are_printed(good, tree):
  content = good[0]
  [ratio] = content['laws']['saturating']['against_reference']
  [free] = content['laws']['saturating_free']['against_reference']
  gamma = content['laws']['saturating']['curves'][1]['gamma']
  said = tree.all('main')[0].text
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
  content, said = good[0], tree.text
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
    assert f'{x["difference"]:+.5f} ± {x["interval"]:.5f}'.replace('-', '−') in said


def test_equal_content_gives_an_equal_page(good):
  page = page_lib.page(*good)
  assert page == page_lib.page(copy.deepcopy(good[0]), *good[1:])


# One file, safe and accessible.


def test_nothing_is_fetched_and_no_script_runs(good):
  page = page_lib.page(*good)
  tree = Node(page)
  assert not re.search(r'https?:|<script|@import|\bon\w+=', page)
  assert not re.search(r'url\((?!#)', page) and 'src=' not in page
  for kind in ('link', 'img', 'iframe', 'script', 'object', 'image', 'use'):
    assert tree.all(kind) == []


def test_the_page_can_be_read_without_seeing_it(tree):
  [root] = tree.all('html')
  assert root.attrs['lang'] == 'en' and tree.all('title')
  names = {node.attrs.get('name'): node.attrs.get('content') for node in tree.all('meta')}
  assert 'width=device-width' in names['viewport']
  for picture in tree.all('svg'):
    assert picture.attrs.get('aria-label') or picture.attrs.get('aria-hidden')
  levels = [int(tag) for tag in re.findall(r'<h(\d)', headings(tree))]
  assert levels[0] == 1 and all(b <= a + 1 for a, b in itertools.pairwise(levels))
  ids = [node.attrs['id'] for node in tree.all('clippath')]
  assert len(ids) == len(set(ids)) == 2


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
  assert {x.text for x in tree.all('text', 'name')} == set(truth)
  assert tree.all('script') == [] and not any('hidden' in n.attrs for n in tree.all('b'))
  [h1] = tree.all('h1')
  assert h1.text == f'AUC against compute on {HOSTILE}'
  assert {x.text for x in tree.all('ul', 'key')[0].all('li')} == set(truth)
  assert f'{HOSTILE} LR (on no curve)' in tree.text


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
    assert svg.compact(run.result.flops_forward_per_row) in row.text
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
  assert tree.all('div', 'tall')[0].all('a') == [] and finished[0].id in tree.text
  assert rerun.UNKNOWN in tree.text and rerun.MAKE_FILE not in tree.text
  argv = rerun.arguments(finished[-1])
  text = 'from deres_jax.config import base as get_config'
  read = read_by_flags(argv[2:], tmp_path / 'own.py', text)
  assert config.config_hash(config.resolve(read)) == finished[-1].id


def test_a_damaged_config_is_named(tmp_path):
  content, finished, out = laid(tmp_path, made.points(dims=(64,), seeds=1))
  finished[3].config_file.write_text('{')
  with pytest.raises(UserError, match=f'{finished[3].id}/config.json: damaged'):
    page_lib.page(content, finished, out)


# What may be missing.


def test_one_seed_one_curve_and_a_line_do_not_break_it(tmp_path):
  one = {'OneTrans': made.TRUTH['OneTrans']}
  alone = laid(tmp_path / 'a', made.points(seeds=1, truth=one, dims=(64,)))
  tree = Node(page_lib.page(*alone))
  assert 'γ of OneTrans is' in tree.text and 'There is no other curve' in tree.text
  assert 'Compute to match' not in tree.text and 'Equal size' not in tree.text
  assert not tree.all('path', 'mean') and len(tree.all('svg', 'strip')) == 0
  line = [
    (x, 0.7 + 0.003 * np.log(made.forward(x['model.depth'], x['model.dim'], 'prenorm')) / 10)
    for x, _ in made.points(seeds=1)
  ]
  content, finished, out = laid(tmp_path / 'b', line)
  tree = Node(page_lib.page(content, finished, out))
  assert content['laws']['saturating']['boundary'] and 'boundary alpha = infinity' in tree.text
  gamma = content['laws']['saturating']['curves'][0]['gamma']
  assert wording.interval(gamma) in tree.text


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
  assert 'none (-inf, inf)' in tree.text and 'no pairs' in tree.text
  assert not tree.all('polygon') and len(tree.all('polyline', 'curve')) == 4
  assert 'None' not in tree.text and 'nan' not in tree.text.lower().replace('finance', '')


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
  assert not picture.all('text', 'name') and len(picture.all('polyline', 'curve')) == 10
  looks = {(x.attrs['class'].split()[-1], x.attrs['d']) for x in picture.all('path', 'run')}
  assert len(looks) == 10
  assert len(tree.all('svg', 'strip')) == 9 + 1
  assert 'With one α for all, all others have a larger exponent than OneTrans.' in tree.text


@pytest.mark.parametrize(('step', 'fits'), [(3e-3, True), (2e-4, True), (0.0, False)])
def test_names_stand_at_line_ends_in_order_and_apart(good, step, fits):
  content, finished, out = good
  names = [f'C{i}' for i in range(4 if fits else 6)]
  content = several(content, names, step)
  [picture] = pictures(Node(page_lib.page(content, finished, out)), 'wide')
  labels = {x.text: float(x.attrs['y']) for x in picture.all('text', 'name')}
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
  assert 'power of the gain' in tree.text
  for curve in content['laws']['power_gain']['curves']:
    assert wording.interval(curve['gamma']) in tree.text


# Axes.


@pytest.mark.parametrize(
  ('low', 'high'), [(0.7391, 0.7524), (0.5, 0.9), (0.79999, 0.80001), (0, 1)]
)
def test_round_ticks_are_round_and_inside(low, high):
  ticks, decimals = svg.round_ticks(low, high)
  assert 3 <= len(ticks) <= 7 and low <= ticks[0] and ticks[-1] <= high
  assert all(float(f'{x:.{decimals}f}') == pytest.approx(x, abs=1e-12) for x in ticks)
  assert len({f'{x:.{decimals}f}' for x in ticks}) == len(ticks)


@pytest.mark.parametrize(
  ('low', 'high'), [(2e6, 1.6e7), (7e6, 2.7e8), (1, 1e9), (1e14, 1e19), (3, 4)]
)
def test_log_ticks_are_round_and_few(low, high):
  major, minor = svg.log_ticks(low, high)
  assert 2 < len(major) <= 7 and all(low <= x <= high for x in [*major, *minor])
  assert len({svg.compact(x) for x in major}) == len(major)


def test_compact_figures():
  shown = [svg.compact(x) for x in (0.5, 1, 2500, 2e6, 53.2e6, 3e9, 4e12, 1e15, 5e15, 2.5e18)]
  assert shown == ['0.5', '1', '2.5k', '2M', '53.2M', '3G', '4T', '10¹⁵', '5·10¹⁵', '2.5·10¹⁸']


def test_runs_of_the_table_are_those_of_the_csv(good, tmp_path, tree):
  finished = good[1]
  runs.write_csv(tmp_path / 'runs.csv', [], finished)
  ids = [line.split(',')[0] for line in (tmp_path / 'runs.csv').read_text().splitlines()[1:]]
  assert all(id in tree.text for id in ids) and len(ids) == 30
