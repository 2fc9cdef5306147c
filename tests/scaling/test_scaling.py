# SPDX-License-Identifier: Apache-2.0
"""The scaling command on sweep folders that are written here, with known exponents."""

import csv
import hashlib
import json
import pathlib
import re
import sys

import forked
import numpy as np
import pytest
from swept import ALPHA, DEPTHS, DIMS, folder, forward, points

from deres_jax.compare import logits as logits_lib
from deres_jax.core.errors import UserError
from deres_jax.metrics import exact
from deres_jax.report import wording
from deres_jax.scaling import __main__ as scaling
from deres_jax.scaling import analysis
from deres_jax.scaling import curves as curves_lib

REPO = pathlib.Path(__file__).resolve().parents[2]


def call(*args):
  return forked.call([sys.executable, '-m', 'deres_jax.scaling', *args])


@pytest.fixture(scope='module')
def done(tmp_path_factory):
  """The command on a good sweep: what it printed, fit.json, runs.csv and the sweep."""
  tmp = tmp_path_factory.mktemp('good')
  sweep = folder(tmp / 'sweep', points())
  fields = {'name': 'LR', 'model.backbone': 'lr', 'model.embed_dim': 1}
  lr = folder(tmp / 'lr', [(fields | {'seed': s}, 0.7) for s in (0, 1)])
  out = tmp / 'out'
  ended = call(
    f'--sweep={sweep},{lr}', f'--out={out}', '--baseline=LR', '--match=depth=16', '--bootstraps=200'
  )
  assert ended.returncode == 0, ended.stderr
  with (out / 'runs.csv').open() as file:
    rows = list(csv.DictReader(file))
  return ended.stdout, json.loads((out / 'fit.json').read_text()), rows, pathlib.Path(sweep)


def test_the_planted_ratio_is_in_its_interval(done):
  _, fit, _, _ = done
  law = fit['laws']['saturating']
  [line] = law['against_reference']
  ratio = line['ratio']
  assert fit['reference'] == 'OneTrans' and line['curve'] == 'DeRes'
  assert ratio['low'] < 0.118 / 0.071 < ratio['high'] and ratio['high'] - ratio['low'] < 0.2
  assert ratio['low'] < ratio['bootstrap_residual'][0] * 1.02
  for curve, gamma in zip(law['curves'], (0.071, 0.118), strict=True):
    assert curve['gamma']['low'] < gamma < curve['gamma']['high']
    assert curve['budgets'] == 8 and len(curve['gamma']['bootstrap_seeds']) == 2
  assert law['alpha']['low'] < ALPHA < law['alpha']['high']
  assert fit['noise']['seed_sd'] == pytest.approx(1e-4, rel=0.3)
  assert fit['noise']['df_seeds'] == 40 and law['df'] == 60 - 5
  assert fit['laws']['power_gain']['baseline_auc'] == pytest.approx(0.70)
  assert fit['laws'].keys() == {'saturating', 'saturating_free', 'log_linear', 'power_gain'}
  assert all(curve['gamma'] is None for curve in fit['laws']['log_linear']['curves'])


def test_compute_to_match_has_a_goal_for_every_width(done):
  _, fit, _, _ = done
  lines = fit['laws']['saturating']['match']
  assert [x['goal'] for x in lines] == ['depth 16, dim 64', 'depth 16, dim 128']
  unit = forward(2, 64, 'prenorm')
  for x, dim in zip(lines, DIMS, strict=True):
    goal = forward(16, dim, 'prenorm')
    level = 0.046 * (goal / unit) ** -0.071
    true = unit * (level / 0.043) ** (-1 / 0.118)
    assert x['goal_compute'] == goal and x['compute']['low'] < true < x['compute']['high']
    assert x['share']['estimate'] == pytest.approx(x['compute']['estimate'] / goal)
    assert x['within_budgets']
  shallower = [x for x in fit['shallower'] if x['goal'] == 'depth 16, dim 64']
  assert [x['depth'] for x in shallower] == [2, 4, 8, 12]
  assert all(x['pairs'] == 3 and x['t_p_holm'] >= x['t_p'] for x in shallower)
  assert shallower[-1]['difference'] > 0 > shallower[0]['difference']


def test_sizes_are_compared_seed_by_seed(done):
  _, fit, rows, _ = done
  sizes = {f'depth {a}, dim {b}' for a in DEPTHS for b in DIMS}
  assert {x['size'] for x in fit['comparisons']} == sizes and len(fit['comparisons']) == 10
  auc = {(r['curve'], r['depth'], r['dim'], r['seed']): float(r['auc']) for r in rows}
  x = next(x for x in fit['comparisons'] if x['size'] == 'depth 8, dim 64')
  gaps = [auc['DeRes', '8', '64', s] - auc['OneTrans', '8', '64', s] for s in '012']
  assert x['difference'] == pytest.approx(np.mean(gaps)) and x['sign_flip_p'] == 0.25


def test_runs_csv_has_a_row_for_every_run(done):
  _, fit, rows, sweep = done
  assert len(rows) == 62 and tuple(rows[0]) == curves_lib.COLUMNS
  assert {r['curve'] for r in rows} == {'OneTrans', 'DeRes', ''}
  assert [r['used'] for r in rows if r['connector'] == 'none' or r['backbone'] == 'lr'] == ['0'] * 2
  r = next(r for r in rows if r['curve'] == 'DeRes' and (r['depth'], r['dim']) == ('4', '128'))
  assert float(r['flops']) == forward(4, 128, 'deres') and int(r['params']) == 4000
  assert r['config'] == str(sweep / 'runs' / r['id'] / 'config.json')
  listed = {run['id'] for point in fit['points'] for run in point['runs']}
  assert listed == {r['id'] for r in rows if r['used'] == '1'}


def test_fit_json_says_where_it_comes_from(done):
  _, fit, rows, sweep = done
  assert {'python', 'deres_jax', 'numpy', 'scipy'} == fit['versions'].keys()
  hashes = {x['file']: x['sha256'] for x in fit['inputs']}
  assert len(hashes) == 62 + 2
  for file in (sweep / 'sweep.json', sweep / 'runs' / rows[0]['id'] / 'result.json'):
    assert hashes[str(file)] == hashlib.sha256(file.read_bytes()).hexdigest()
  assert fit['method'] == analysis.METHOD and fit['options']['bootstraps'] == 200
  # Strict JSON: what is infinite is null, and open.
  json.dumps(fit, allow_nan=False)


def test_what_is_printed_holds_the_figures_and_the_warnings(done):
  out, fit, _, _ = done
  assert out == scaling.text(fit) + f'\n{out.splitlines()[-1]}\n'
  figures = r'DeRes +gamma 0\.1\d+ \[0\.\d+, 0\.1\d+\].*ratio 1\.6\d+ \[1\.\d+, 1\.\d+\]'
  assert re.search(figures, out)
  assert '1.5' in fit['warnings'][0] and all(f'- {x}' in out for x in fit['warnings'])


def test_the_page_stands_beside_the_figures(done):
  out, fit, rows, _ = done
  file = pathlib.Path(out.splitlines()[-1])
  names = ['fit.json', 'report.html', 'runs.csv', 'scaling.pdf', 'scaling.png']
  assert sorted(x.name for x in file.parent.iterdir()) == names
  page = file.read_text()
  [line] = fit['laws']['saturating']['against_reference']
  assert wording.interval(line['ratio']) in page and 'power of the gain' in page
  assert all(f'<code>{r["id"]}</code>' in page for r in rows)


def test_bands_hold_the_fitted_curve(done):
  _, fit, _, _ = done
  for law in fit['laws'].values():
    for line in law['line']:
      low, auc, high = (np.array(line[k]) for k in ('low', 'auc', 'high'))
      assert ((low < auc) & (auc < high)).all() and len(auc) == len(line['compute'])


def fit_of(folders, **options):
  curves, _ = curves_lib.load(folders, 'forward', False)
  return analysis.analyse(curves, analysis.Options(**{'bootstraps': 0, **options}))


def test_training_compute_gives_the_same_exponents(tmp_path):
  sweep = folder(tmp_path / 's', points(seeds=2))
  gammas = []
  for compute in ('forward', 'train'):
    curves, _ = curves_lib.load([sweep], compute, False)
    found = analysis.analyse(curves, analysis.Options(bootstraps=0))
    gammas.append([x['gamma']['estimate'] for x in found['laws']['saturating']['curves']])
  assert gammas[0] == pytest.approx(gammas[1], rel=1e-6)
  assert found['points'][0]['compute'] == 3e6 * forward(2, 64, 'prenorm')


# Whose runs are one curve.


def test_switches_make_curves_and_rates_are_chosen_on_validation(tmp_path):
  some = []
  for fields, auc in points(seeds=2):
    some.append((fields | {'optim.dense_lr': 1e-3}, auc))
    # A rate that is better on test and worse on validation: see `result`.
    some.append((fields | {'optim.dense_lr': 3e-3}, auc - 0.01))
  some += [
    (fields | {'deres.gate': 'scalar', 'name': 'DeRes scalar'}, auc)
    for fields, auc in points(seeds=2)
    if fields['name'] == 'DeRes'
  ]
  curves, finished = curves_lib.load([folder(tmp_path / 's', some)], 'forward', False)
  assert [c.name for c in curves] == ['OneTrans', 'DeRes', 'DeRes scalar']
  assert [len(c.cells) for c in curves] == [10] * 3 and len(finished) == 100
  assert all('optim.dense_lr=0.001' in cell.setting for c in curves[:2] for cell in c.cells)
  assert all(len(cell.runs) == 2 for c in curves for cell in c.cells)


def test_names_are_what_a_curve_s_points_share(tmp_path):
  some = [
    (fields | {'name': f'{fields["name"]} {fields["model.depth"]} layers'}, auc)
    for fields, auc in points(seeds=1)
  ]
  assert [c.name for c in curves_lib.load([folder(tmp_path / 'a', some)], 'forward', False)[0]] == [
    'OneTrans', 'DeRes',
  ]  # fmt: skip
  for fields, _ in some:
    del fields['name']
  assert [c.name for c in curves_lib.load([folder(tmp_path / 'b', some)], 'forward', False)[0]] == [
    'onetrans prenorm', 'onetrans deres',
  ]  # fmt: skip


def test_two_sweeps_on_the_same_data_are_one(tmp_path):
  some = list(points(seeds=2))
  halves = [some[: len(some) // 2], some[len(some) // 2 :]]
  folders = [folder(tmp_path / str(i), half) for i, half in enumerate(halves)]
  found = fit_of(folders)
  whole = fit_of([folder(tmp_path / 'whole', some)])
  assert found['laws']['saturating']['curves'] == whole['laws']['saturating']['curves']
  assert [x['pairs'] for x in found['comparisons']] == [2] * 10


def test_two_configs_that_pass_for_one_size_are_refused(tmp_path):
  some = list(points(seeds=1))
  folders = [folder(tmp_path / 'a', some)]
  for fields, _ in some:
    fields['data.batch_size'] = 512  # what the sweeps' files set is not among the overrides
  folders.append(folder(tmp_path / 'b', some))
  listed = json.loads((tmp_path / 'b' / 'sweep.json').read_text())
  for x in listed:
    del x['overrides']['data.batch_size']
  (tmp_path / 'b' / 'sweep.json').write_text(json.dumps(listed))
  with pytest.raises(UserError, match='has seed 0 twice'):
    curves_lib.load(folders, 'forward', False)


# Warnings.


def test_every_warning_is_given_where_it_is_due(tmp_path):
  quiet = fit_of([folder(tmp_path / 'a', points(2e-5, depths=(1, 2, 4, 8, 16, 32), dims=(16, 64)))])
  assert quiet['warnings'] == [], quiet['shared_alpha_p']
  short = fit_of([folder(tmp_path / 'b', points(2e-5))])['warnings']
  assert len(short) == 1 and 'decades, less than 2' in short[0]
  noisy = ' '.join(fit_of([folder(tmp_path / 'c', points(2e-3, seeds=2))])['warnings'])
  assert 'A straight line in ln C fits as well' in noisy
  one = ' '.join(fit_of([folder(tmp_path / 'd', points(3e-4, seeds=1))])['warnings'])
  assert 'Every point is one run' in one
  rng = np.random.default_rng(0)
  shift = {k: 1e-3 * rng.standard_normal() for k in [(d, w) for d in DEPTHS for w in DIMS]}
  rough = [(x, auc + shift[x['model.depth'], x['model.dim']]) for x, auc in points(5e-5, seeds=3)]
  assert 'lack of fit' in ' '.join(fit_of([folder(tmp_path / 'e', rough)])['warnings'])
  apart = [(x, auc - 0.01 * (x['name'] == 'DeRes')) for x, auc in points(2e-5)]
  assert 'One alpha for all connectors is rejected' in ' '.join(
    fit_of([folder(tmp_path / 'f', apart)])['warnings']
  )


def test_a_line_is_at_the_boundary_and_said_so(tmp_path):
  some = [
    (x, 0.7 + 0.003 * np.log(forward(x['model.depth'], x['model.dim'], 'prenorm')) / 10)
    for x, _ in points(seeds=1)
  ]
  found = fit_of([folder(tmp_path / 's', some)])
  assert 'boundary alpha = infinity' in ' '.join(found['warnings'])
  assert found['laws']['saturating']['curves'][0]['gap_at_reference'] is None


def test_an_open_interval_is_shown_as_open():
  x = {'estimate': 0.1, 'low': 0.0, 'high': None, 'low_open': True, 'high_open': True}
  assert wording.interval(x) == '0.1 (0, inf)'
  assert wording.interval({**x, 'low_open': False, 'high': 0.2, 'high_open': False}) == (
    '0.1 [0, 0.2]'
  )


# DeLong on stored logits.


def test_delong_reads_labels_and_logits(tmp_path, planted):
  content = {
    k: v['content_sha256']
    for k, v in json.loads((planted / 'schema.json').read_text())['splits'].items()
  }
  sweep = folder(tmp_path / 's', points(seeds=1, dims=(64,)), data_content=content)
  rng = np.random.default_rng(0)
  labels_N = logits_lib.labels(str(planted), content)
  assert len(labels_N) == 1500 and set(labels_N.tolist()) == {0, 1}
  logits = {}
  for workdir in (tmp_path / 's' / 'runs').iterdir():
    logits[workdir.name] = (labels_N + rng.standard_normal(1500)).astype(np.float32)
    np.save(workdir / 'test_logits.npy', logits[workdir.name])
  content, curves, _ = scaling.fit(
    [sweep], 'forward', [], None, False, str(planted), analysis.Options(bootstraps=0)
  )
  assert len(content['delong']) == 5
  first = content['delong'][0]
  ids = [c.cells[0].runs[0].id for c in curves]
  aucs = [exact.auc(labels_N, logits[id]) for id in ids]
  assert first['difference'] == pytest.approx(aucs[1] - aucs[0])
  assert first['p_holm'] >= first['p']
  with pytest.raises(UserError, match='not what the runs were trained on'):
    logits_lib.labels(str(planted), {'test': 'other'})


# Power.


def test_power_takes_its_noise_from_a_sweep(tmp_path):
  sweep = folder(tmp_path / 's', points(3e-4))
  out = tmp_path / 'out'
  grid = ['--seeds=1,2', '--budgets=5', '--decades=1.5', '--trials=40']
  ended = call('--power', f'--sweep={sweep}', f'--out={out}', *grid)
  assert ended.returncode == 0, ended.stderr
  content = json.loads((out / 'power.json').read_text())
  assert content['truth']['noise_sd'] == pytest.approx(3e-4, rel=0.3)
  assert content['truth']['gap'] == pytest.approx(0.046, rel=0.5)
  assert [len(x['lines']) for x in content['tables'].values()] == [2, 2]
  assert 'saturating_free' in ended.stdout and 'power 0.8 takes 10 runs' in ended.stdout


# Mistakes.


MISTAKES = {
  'no sweep': (['--sweep='], ['--sweep=DIR1,DIR2']),
  'nowhere': (['--sweep=/nowhere'], ['/nowhere', 'sweep.json']),
  'reference': (['--reference=mHC'], ["'mHC'", 'DeRes, OneTrans']),
  'match': (['--match=depth=9'], ['--match=depth=9', 'depth 16, dim 64']),
  'match form': (['--match=width=9'], ['--match=width=9', 'depth=N']),
  'baseline': (['--baseline=LR'], ['--baseline=LR', 'OneTrans, DeRes']),
  'baseline too high': (['--baseline=0.79'], ['power_gain', 'below every AUC']),
  'curves': (['--curves=A'], ['--curves=A', 'OneTrans']),
  'compute': (['--compute=both'], ['compute', 'forward']),
  'noise': (['--power', '--sweep='], ['--noise_sd']),
  'gammas': (['--power', '--gammas=1,a'], ['--gammas=1,a', 'numbers']),
  'one gamma': (['--power', '--gammas=1'], ['two exponents']),
  'budgets': (['--power', '--budgets=3'], ['3 budgets', 'at least 4']),
}


@pytest.fixture(scope='module')
def small(tmp_path_factory):
  return folder(tmp_path_factory.mktemp('small') / 's', points(seeds=1))


@pytest.mark.parametrize('name', MISTAKES)
def test_a_mistake_costs_one_line_and_code_2_and_writes_nothing(name, small, tmp_path):
  more, words = MISTAKES[name]
  ended = call(f'--sweep={small}', f'--out={tmp_path / "out"}', '--bootstraps=0', *more)
  said = ended.stderr.strip()
  assert ended.returncode == 2, said
  assert said.startswith('error: ') and '\n' not in said and all(w in said for w in words), said
  assert not (tmp_path / 'out').exists()


def test_sweeps_that_give_no_law_are_refused(tmp_path):
  few = folder(tmp_path / 'few', points(seeds=1, depths=(2, 4, 8), dims=(64,)))
  with pytest.raises(UserError, match='OneTrans has 3 budgets of compute'):
    fit_of([few])
  cut = folder(tmp_path / 'cut', points(seeds=1), unfinished=3)
  with pytest.raises(UserError, match=r'3 of 20 runs are not finished.*--partial'):
    curves_lib.load([cut], 'forward', False)
  assert len(curves_lib.load([cut], 'forward', True)[1]) == 17
  other = folder(
    tmp_path / 'other', points(seeds=1, depths=(3,)), data_content={'test': 'elsewhere'}
  )
  with pytest.raises(UserError, match='are on different data'):
    curves_lib.load([cut, other], 'forward', True)
