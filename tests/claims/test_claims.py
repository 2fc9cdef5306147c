# SPDX-License-Identifier: Apache-2.0
"""Verdicts on sweeps with planted effects: what is there is shown, what is not is not."""

import json
import pathlib
import re
import subprocess
import sys
import types

import forked
import numpy as np
import pytest
from swept import ALPHA, folder, forward

from deres_jax import config
from deres_jax.claims import __main__ as claims
from deres_jax.claims import contrasts, exponents, page, paper, sections, study
from deres_jax.compare import logits as logits_lib
from deres_jax.core.errors import UserError
from deres_jax.data.schema import load_schema
from deres_jax.metrics import exact, paired, verdicts
from deres_jax.pod import mesh as mesh_lib
from deres_jax.report import markdown
from deres_jax.scaling.curves import Cell
from deres_jax.training.plan import counts
from deres_jax.training.step_spec import make_step_spec

REPO = pathlib.Path(__file__).resolve().parents[2]
FIELDS = {
  'plain': {'model.connector': 'prenorm'},
  'recall_softmax': {'model.connector': 'attnres'},
  'recall_silu': {'model.connector': 'attnres_pointwise'},
  'deres_s': {'model.connector': 'deres_s'},
  'deres_p': {'model.connector': 'deres'},
  'dual_matrix': {'model.connector': 'deres', 'deres.identity_kind': 'matrix'},
  'dual_vector': {'model.connector': 'deres', 'deres.identity_kind': 'vector'},
  'matrix': {'model.connector': 'matrix'},
}
DEPTHS = (1, 2, 4, 8, 16)


def law(depth, dim, gamma=0.071, gap=0.046):
  return ALPHA - gap * (forward(depth, dim, 'prenorm') / forward(1, 64, 'prenorm')) ** -gamma


def made(
  path,
  effects,
  noise=1e-4,
  seeds=3,
  depths=DEPTHS,
  dims=(64,),
  level=law,
  shared=3e-3,
  rng=0,
  **more,
):
  """A sweep folder: OneTrans at `level`, others `effects` (AUC, or of (depth, dim)) above it.

  The level of a seed is shared by all curves, sizes included; the rest of the noise is each run's.
  """
  rng, some = np.random.default_rng(rng), []
  of_seed = shared * rng.standard_normal(seeds)
  for role, effect in effects.items():
    for depth in depths:
      for dim in dims:
        gain = effect(depth, dim) if callable(effect) else effect
        for seed in range(seeds):
          auc = level(depth, dim) + gain + of_seed[seed] + noise * rng.standard_normal()
          size = {'model.depth': depth, 'model.dim': dim, 'seed': seed}
          some.append(({'name': f'curve {role}', **FIELDS[role], **size}, auc))
  return folder(path, some, **more)


def judged(*folders, **options):
  return {x['key']: x for x in claims.claims(study.load(list(folders), **options))}


def words(found):
  return {key: x['verdict'] for key, x in found.items()}


ALL = dict.fromkeys(FIELDS, 0.0)


@pytest.fixture(autouse=True)
def quick(request, monkeypatch):
  """Laws are fitted in the tests of laws only, and few sweeps simulated."""
  monkeypatch.setattr(exponents, '_TRIALS', 20)
  if 'laws' not in request.fixturenames:
    bare = {'verdict': verdicts.UNDECIDED, 'remark': 'not fitted', 'fitted': False}
    monkeypatch.setattr(exponents, 'judge', lambda *_: bare)


@pytest.fixture
def laws():
  """For the tests that fit them."""


# Verdicts on what is planted.


def test_a_clear_win_is_shown_everywhere(tmp_path):
  effects = {**ALL, 'deres_p': 0.004, 'deres_s': 0.002, 'recall_softmax': 0.0005}
  found = judged(made(tmp_path / 's', effects, noise=5e-5))
  keys = ('gain', 'flops', 'depth', 'dual_p', 'dual_s', 'identity', 'silu')
  assert {words(found)[key] for key in keys} == {'shown'}, words(found)
  row = found['gain']['rows'][0]
  assert row['low'] < 0.004 < row['high'] and row['share_of_claim'] == pytest.approx(1.25, rel=0.05)
  assert found['gain']['remark'] == '' and row['seeds'] == 3 and len(row['sizes']) == 5
  assert [x['base'] for x in found['gain']['rows']][:2] == ['OneTrans', 'AttnRes']
  assert found['flops']['sizes'][0]['extra_flops'] == pytest.approx(0.03)
  assert found['silu']['rows'][1]['mine'] == 'AttnRes, SiLU'
  assert found['gain']['p'] <= found['gain']['p_holm'] <= 1


def test_a_precise_null_is_not_shown(tmp_path):
  found = judged(made(tmp_path / 's', ALL, noise=3e-5))
  keys = ('gain', 'dual_p', 'dual_s', 'identity', 'silu')
  assert {words(found)[key] for key in keys} == {'not shown'}, words(found)
  assert 'claimed size is excluded' in found['gain']['remark']
  assert '0.0005 AUC is excluded' in found['identity']['remark']
  assert found['gain']['p'] > 0.05


def test_a_reversed_effect_is_not_shown(tmp_path):
  found = judged(made(tmp_path / 's', {**ALL, 'deres_p': -0.002, 'deres_s': -0.001}))
  keys = ('gain', 'dual_p', 'dual_s', 'identity', 'silu')
  assert {words(found)[key] for key in keys} == {'not shown'}
  assert found['gain']['remark'] == 'the other way'


def test_a_small_effect_is_shown_with_its_size(tmp_path):
  found = judged(made(tmp_path / 's', {'plain': 0.0, 'deres_p': 0.001}, noise=5e-5))['gain']
  assert (found['verdict'], found['remark']) == ('shown', 'smaller than claimed')
  assert found['rows'][0]['share_of_claim'] == pytest.approx(0.31, abs=0.05)


def test_noise_cannot_be_told_and_the_seeds_it_says_would_tell(tmp_path):
  found = judged(made(tmp_path / 's', {'plain': 0.0, 'deres_p': 0.0}, noise=6e-3, rng=4))['gain']
  assert found['verdict'] == 'cannot be told here' and found['remark'] == ''
  told = found['rows'][0]['to_tell']
  n, sure = told['power'], told['sure']
  assert 2 < n < sure and told['size'] == 0.0032
  rng = np.random.default_rng(0)
  for seeds, effect, low, high in ((n, 0.0032, 0.78, 0.84), (n - 1, 0.0032, 0.5, 0.80),
                                   (n, 0.0, 0.015, 0.035)):  # fmt: skip
    gaps = effect + told['sd'] * rng.standard_normal((20_000, seeds))
    half = paired.t_half_width(seeds, 1.0) * gaps.std(axis=1, ddof=1)
    assert low <= (gaps.mean(axis=1) - half > 0).mean() <= high, (seeds, effect)
  assert told['power_range'][0] <= n <= told['power_range'][1]
  # As narrow as that, an interval cannot hold both 0 and the claim.
  assert 2 * paired.t_half_width(sure, told['sd']) < 0.0032
  assert 2 * paired.t_half_width(sure - 1, told['sd']) >= 0.0032


def test_one_seed_has_no_interval_and_no_crash(tmp_path):
  path = made(tmp_path / 's', ALL, seeds=1)
  found = judged(path)
  keys = ('gain', 'dual_p', 'dual_s', 'identity', 'silu', 'depth')
  assert {words(found)[key] for key in keys} == {'cannot be told here'}
  assert 'fewer than two' in found['gain']['remark'] and found['gain']['rows'][0]['to_tell'] is None
  assert found['gain']['p'] is None and words(found)['flops'] == 'shown'
  assert 'two seeds or more' in page_of(path)


def test_every_claim_says_what_was_not_run(tmp_path):
  found = judged(made(tmp_path / 's', {'plain': 0.0}))
  assert set(words(found).values()) == {'not run here'}
  found = judged(made(tmp_path / 't', {'plain': 0.0, 'deres_p': 0.001, 'dual_vector': 0.0}))
  absent = {k for k, v in words(found).items() if v == 'not run here'}
  assert absent == {'dual_p', 'dual_s', 'identity', 'silu'}
  assert 'AttnRes, SiLU' in found['dual_p']['remark']
  assert found['identity']['rows'][0]['base'] == 'DeRes-P, vector residual'
  assert found['dual_p']['rows'][0]['base'] == 'OneTrans' and found['dual_p']['parts'] == 0


def test_a_claim_of_two_parts_needs_both(tmp_path):
  effects = {'plain': 0.0, 'deres_p': 0.002, 'recall_silu': 0.004}
  found = judged(made(tmp_path / 's', effects))['dual_p']
  assert [x['verdict'] for x in found['rows']] == ['shown', 'not shown']
  assert found['verdict'] == 'not shown' and found['p'] == max(x['p'] for x in found['rows'])


def rule(words):
  return verdicts.judge_all([verdicts.Verdict(word) for word in words]).word


def test_rules_at_their_edges():
  assert verdicts.judge_effect(0.0, 1.0, 0.5).word == 'cannot be told here'
  assert verdicts.judge_effect(0.0, 0.0, 0.5).word == 'not shown'
  assert verdicts.judge_effect(1e-9, 1.0, 0.5) == verdicts.Verdict('shown')
  assert verdicts.judge_effect(-0.1, verdicts.MIN_EFFECT, None).word == 'cannot be told here'
  assert rule(['shown', 'cannot be told here']) == 'cannot be told here'
  assert rule(['cannot be told here', 'not shown']) == 'not shown'
  assert rule(['shown', 'shown']) == 'shown'
  assert verdicts.judge_bound([0.049, 0.01], 0.05).word == 'shown'
  assert verdicts.judge_bound([0.05, 0.01], 0.05) == verdicts.Verdict(
    'not shown', 'at 1 of 2 sizes'
  )
  assert verdicts.seeds_needed(0.0, 3, 1e-3)['power'] == 2
  assert verdicts.seeds_needed(1.0, 3, 1e-3)['power'] is None


# Half the layers.


def test_half_the_layers_in_all_its_cases(tmp_path):
  both = {'plain': 0.0}

  def depth(name, effect, **options):
    path = made(tmp_path / name, both | {'deres_p': effect}, **options)
    return claims._depth(study.load([path]))

  step = law(16, 64) - law(8, 64)
  assert step > 0.0015
  match = depth('match', step, noise=5e-5, seeds=5)
  assert match['verdict'] == 'shown' and match['layers'] == [8, 16]
  assert match['margin'] == verdicts.MIN_EFFECT and match['gain']['low'] > 2 * verdicts.MIN_EFFECT
  assert match['ours']['by_size'][0]['compute_share'] == pytest.approx(0.515)
  assert depth('above', 0.004)['remark'] == 'and above'
  assert depth('worse', 0.0, noise=5e-5)['verdict'] == 'not shown'
  unsure = depth('unsure', 0.08, noise=3e-3, level=lambda d, w: 0.7 + 0.01 * d)
  assert unsure['verdict'] == 'cannot be told here' and unsure['to_tell']['size'] == 5e-4
  flat = depth('flat', 0.001, level=lambda d, w: 0.75)
  assert flat['verdict'] == 'cannot be told here' and 'nothing to match' in flat['remark']
  assert flat['margin'] is None and flat['to_tell']['size'] == verdicts.MIN_EFFECT
  # A deeper model that gains less than the margin must not be matched by standing still.
  small = depth('small', 0.0, noise=1e-5, level=lambda d, w: 0.75 + 2e-5 * d, seeds=5)
  assert small['margin'] < 1e-4 and small['verdict'] == 'not shown'


def described_depth(path):
  usual = {'key': 'depth', 'paper': paper.CLAIMS['depth']}
  return {**usual, **claims._depth(study.load([path]))}


def test_the_deepest_pair_stands_in_for_sixteen(tmp_path):
  path = made(
    tmp_path / 's', {'plain': 0.0, 'deres_p': 0.004}, depths=(1, 2, 3, 4, 6), dims=(32, 64)
  )
  found = described_depth(path)
  assert found['layers'] == [3, 6] and len(found['ours']['sizes']) == 2
  rendered = sections.section(found | {'p_holm': None}, {}, True)
  assert '6 layers stand in for 16' in rendered
  odd = made(tmp_path / 'odd', {'plain': 0.0, 'deres_p': 0.0}, depths=(2, 3, 5, 7))
  assert described_depth(odd)['verdict'] == 'not run here'


# Exponents.


def steeper(depth, dim):
  return law(depth, dim, 0.118, 0.046) - law(depth, dim)


def wide(path, effects, **options):
  usual = {'noise': 2e-5, 'seeds': 2, 'shared': 0.0, 'dims': (16, 64, 256)}
  return judged(made(path, effects, **{**usual, **options}))['gamma']


def test_planted_exponents_are_shown_and_equal_ones_are_not(tmp_path, laws):
  found = wide(tmp_path / 's', {'plain': 0.0, 'deres_p': steeper, 'recall_softmax': -0.05})
  assert found['verdict'] == 'shown', found['remark']
  assert found['shared']['low'] < 0.118 / 0.071 < found['shared']['high']
  assert [x['curve'] for x in found['curves']] == ['OneTrans', 'DeRes-P', 'AttnRes']
  # Another curve, far below, moves nothing.
  alone = wide(tmp_path / 't', {'plain': 0.0, 'deres_p': steeper})
  assert alone['shared']['estimate'] == pytest.approx(found['shared']['estimate'], rel=1e-3)
  equal = wide(tmp_path / 'u', {'plain': 0.0, 'deres_p': 0.0})
  assert equal['verdict'] == 'not shown' and equal['to_tell'] is None


def test_one_alpha_alone_does_not_show_exponents(tmp_path, laws):
  found = wide(tmp_path / 's', {'plain': 0.0, 'deres_p': steeper}, noise=2e-4, dims=(64,))
  assert found['shared']['low'] > 1 and verdicts.interval_ends(found['free'])[0] < 1
  assert found['verdict'] == 'cannot be told here' and 'steeper if' in found['remark']
  told = found['to_tell']
  assert told['noise_sd'] == pytest.approx(2e-4, rel=0.6)
  assert told['gap'] == pytest.approx(0.046, rel=0.5)
  assert told['cheapest'] is None or told['cheapest']['power'] >= 0.8


def test_without_a_rise_there_is_no_law(tmp_path, laws):
  effects = {'plain': 0.0, 'deres_p': 0.0}
  path = made(tmp_path / 's', effects, level=lambda d, w: 0.75, shared=0.0)
  found = judged(path)['gamma']
  assert found['verdict'] == 'cannot be told here' and 'no law' in found['remark']
  page_of(path)
  few = judged(made(tmp_path / 'few', effects, depths=(2, 4, 8)))
  assert few['gamma']['remark'].endswith('3 budgets, a law needs 4')
  assert words(few)['gain'] == 'not shown'


def profile(low, high, low_open=False, high_open=False):
  return {'low': low, 'high': high, 'low_open': low_open, 'high_open': high_open}


EXPONENTS = {
  'both above': (profile(1.4, 1.9), profile(1.1, 3.0), 0.5, 'shown'),
  'both above, smaller': (profile(1.1, 1.3), profile(1.05, 1.5), 0.5, 'shown'),
  'one alpha only': (profile(1.4, 1.9), profile(0.5, 9.0), 0.5, 'cannot be told here'),
  'open below': (profile(1.4, 1.9), profile(1.2, 9.0, low_open=True), 0.5, 'cannot be told here'),
  'null': (profile(0.9, 1.1), profile(0.1, None, high_open=True), 0.5, 'not shown'),
  'null, alphas differ': (profile(0.9, 1.1), profile(0.1, 9.0), 0.01, 'cannot be told here'),
  'null, free ones tell': (profile(0.9, 1.1), profile(0.8, 1.2), 0.01, 'not shown'),
  'wide': (profile(0.5, 3.0), profile(0.1, 9.0), None, 'cannot be told here'),
}


@pytest.mark.parametrize('name', EXPONENTS)
def test_rule_of_exponents(name):
  shared, free, p, word = EXPONENTS[name]
  assert verdicts.judge_exponents(True, shared, free, p, 1.66).word == word
  assert verdicts.judge_exponents(False, shared, free, p, 1.66).word == 'cannot be told here'


def test_an_interval_wider_than_the_claim_is_named():
  def interval(low, high):
    ends = {'low': low, 'high': high, 'low_open': low is None, 'high_open': high is None}
    return {'estimate': 1.0, **ends}

  def law(gamma, ratio):
    return {
      'curves': [{'curve': 'A', 'gamma': gamma}],
      'against_reference': [{'curve': 'B', 'ratio': ratio}],
    }

  assert paper.wide_intervals(law(interval(0.1, 0.14), interval(1.0, 1.6))) == []
  gamma, ratio = paper.wide_intervals(law(interval(0.1, 0.2), interval(0.5, None)))
  assert gamma == (
    'Intervals of gamma that are wider than the difference that the paper claims '
    '(0.118 against 0.071): A 0.1 to 0.2.'
  )
  assert 'wider than the step from 1 to the 1.66' in ratio
  assert ratio.endswith(': B 0.5 to infinity (not bounded there).')


# Pooling.


def cells(aucs_SU):
  """A cell for each size of AUCs by seed."""
  run = type('Run', (), {})
  out = []
  for s, aucs in enumerate(aucs_SU):
    runs = {}
    for u, auc in aucs.items():
      runs[u] = run()
      runs[u].result = types.SimpleNamespace(auc=auc)
    out.append(Cell(f'depth {s}', s, 64, 1.0, '', runs))
  return out


@pytest.mark.parametrize('together', (0.0, 0.7, 1.0))
def test_the_pooled_interval_covers_whatever_sizes_share(together):
  """95 % of intervals hold the truth, if differences of a seed depend on each other or not."""
  rng, held, trials = np.random.default_rng(5), 0, 1500
  for _ in range(trials):
    gaps_SU = 1e-3 * (
      (1 - together) * rng.standard_normal((5, 4)) + together * rng.standard_normal(4)
    )
    mine = cells([dict(enumerate(0.8 + 2e-3 + gaps)) for gaps in gaps_SU])
    base = cells([dict.fromkeys(range(4), 0.8)] * 5)
    pairs = [(m.size, m, b) for m, b in zip(mine, base, strict=True)]
    found = contrasts.difference(pairs)
    held += found['low'] < 2e-3 < found['high']
  assert 0.935 < held / trials < 0.965


def test_every_seed_is_averaged_over_the_same_sizes():
  mine = cells([{0: 0.81, 1: 0.82, 2: 0.86}, {0: 0.83, 1: 0.84, 2: 0.85}, {0: 0.99}])
  base = cells([dict.fromkeys(range(3), 0.8)] * 3)
  found = contrasts.difference([(m.size, m, b) for m, b in zip(mine, base, strict=True)])
  assert found['sizes'] == ['depth 0', 'depth 1'] and found['seeds'] == 3
  assert found['gaps'] == pytest.approx([0.02, 0.03, 0.055])
  assert found['difference'] == pytest.approx(0.035) and found['by_size'][2]['pairs'] == 1
  assert found['rela_impr_percent'] == pytest.approx(100 * 0.035 / 0.3)
  assert contrasts.difference([])['difference'] is None


# Roles.


def test_roles_are_told_by_config_never_by_name(tmp_path):
  some = []
  for fields, name in ((FIELDS['plain'], 'DeRes-P'), (FIELDS['deres_p'], 'OneTrans'),
                       ({'model.connector': 'mhc'}, 'AttnRes'),
                       ({**FIELDS['deres_p'], 'deres.gate_form': 'additive'}, 'x')):  # fmt: skip
    some += [({'name': name, **fields, 'seed': s}, 0.7 + len(some) / 100) for s in range(2)]
  found = study.load([folder(tmp_path / 's', some)])
  assert found.called == {
    'OneTrans': 'DeRes-P', 'DeRes-P': 'OneTrans', 'AttnRes (other)': 'AttnRes', 'x': 'x',
  }  # fmt: skip
  assert found.roles.keys() == {'plain', 'deres_p'}


def test_two_curves_of_one_role_have_to_be_chosen_from(tmp_path):
  some = [
    ({'name': f'blocks of {n}', 'deres.block_layers': n, 'seed': s}, 0.7)
    for n in (1, 2)
    for s in range(2)
  ]
  path = folder(tmp_path / 's', some)
  with pytest.raises(
    UserError, match=r"'blocks of 1' and 'blocks of 2' are both DeRes-P.*--curves"
  ):
    study.load([path])
  assert study.load([path], ['blocks of 2']).called == {'DeRes-P': 'blocks of 2'}
  with pytest.raises(UserError, match='--curves=blocks'):
    study.load([path], ['blocks'])
  next((tmp_path / 's' / 'runs').iterdir()).joinpath('config.json').unlink()
  with pytest.raises(UserError, match=r'config\.json: no such file'):
    study.load([path])


def test_splits_are_paired_within_and_pooled(tmp_path):
  paths = [
    made(tmp_path / str(i), {'plain': 0.0, 'deres_p': 0.004}, rng=i, seeds=1,
         data_content={'test': str(i)})
    for i in range(3)
  ]  # fmt: skip
  found = judged(*paths)
  assert found['gain']['verdict'] == 'shown' and found['gain']['rows'][0]['seeds'] == 3
  assert '3 splits' in found['gamma']['remark']
  assert '3 splits, which overlap' in page_of(*paths)


def test_sampling_of_the_split_is_delong_s(tmp_path, planted):
  content = {
    k: v['content_sha256']
    for k, v in json.loads((planted / 'schema.json').read_text())['splits'].items()
  }
  path = made(tmp_path / 's', {'plain': 0.0, 'deres_p': 0.001}, seeds=1, data_content=content)
  labels_N, rng = logits_lib.labels(str(planted), content), np.random.default_rng(0)
  for workdir in (tmp_path / 's' / 'runs').iterdir():
    np.save(workdir / 'test_logits.npy', labels_N + rng.standard_normal(1500))
  found = study.load([path])
  pairs = contrasts.same_size(found.roles['deres_p'], found.roles['plain'])
  one = contrasts.split_sampling(pairs[:1], labels_N)
  logits = [logits_lib.logits(cell.runs[0], labels_N) for cell in pairs[0][1:]]
  _, cov = exact.delong_covariance(labels_N, np.stack(logits))
  assert one == pytest.approx(1.95996 * (cov[0, 0] + cov[1, 1] - 2 * cov[0, 1]) ** 0.5, rel=1e-5)
  row = next(x for x in claims.claims(found, labels_N) if x['key'] == 'gain')['rows'][0]
  assert row['sampling'] == pytest.approx(one / 5**0.5, rel=0.2)  # five sizes with own logits


# The page.


def content_of(*folders, **more):
  found = study.load(list(folders))
  usual = {
    'title': 'T',
    'command': '',
    'note': '',
    'matters': verdicts.MIN_EFFECT,
    'partial': False,
  }
  judged = {**study.described(found), 'claims': claims.claims(found)}
  return {**usual, 'study': judged, 'exploratory': None, **more}


def page_of(*folders):
  return page.page(content_of(*folders))


PLANTED = {'splits': {'test': {'bayes_auc': 0.85, 'linear_auc': 0.65, 'bayes_logloss': 0.4}}}


def test_the_command_writes_a_page_and_its_figures(tmp_path):
  effects = {'plain': 0.0, 'deres_p': 0.001, 'deres_s': 0.0}
  first = made(tmp_path / 'a', effects, planted=PLANTED)
  second = made(tmp_path / 'b', {'plain': 0.0, 'deres_p': 0.004}, rng=1, dataset='other')
  out = tmp_path / 'claims.md'
  args = [f'--sweep={first}', f'--exploratory={second}', f'--out={out}', '--title=Claims | x']
  command = [sys.executable, '-m', 'deres_jax.claims', *args]
  command += ['--note=rates by | pilot', '--command=make x']
  ended = subprocess.run(command, capture_output=True, text=True, cwd=REPO, check=False)
  assert ended.returncode == 0, ended.stderr
  text, content = out.read_text(), json.loads(out.with_suffix('.json').read_text())
  assert ended.stdout == f'{text}\n{out}\n' and text == page.page(content)
  top, _, rest = text.partition('## How to read it')
  assert top.count('\n| ') == 2 + len(paper.CLAIMS) and 'Claims \\| x' in top
  main, _, explored = rest.partition('## Exploratory: other')
  gain = content['study']['claims'][0]
  assert gain['verdict'] == 'shown' and markdown.interval(gain['rows'][0]) in top
  assert '**shown**' in top and '0.85000' in main and 'rates by \\| pilot' in main
  room = 0.85 - max(c['auc'] for c in content['study']['curves'][0]['cells'])
  assert f'leaves {markdown.number(room)} ' in main and 'make x' in main
  assert 'Holm' in explored and not re.search(r'\*\*|\| (not )?shown|cannot be told', explored)
  more = content['exploratory']['claims'][0]
  assert more['verdict'] == 'exploratory' and markdown.interval(more['rows'][0]) in explored


def test_names_cannot_break_the_tables(tmp_path):
  some = [
    ({'name': 'a | b ## c `d` <i>', 'model.connector': 'mhc', 'seed': s}, 0.7) for s in range(2)
  ] + [({'name': 'x', **FIELDS['deres_p'], 'seed': s}, 0.7 + s / 1e4) for s in range(2)]
  text = page_of(folder(tmp_path / 's', some, dataset='d | <b>'))
  assert '<i>' not in text and '<b>' not in text
  table = []
  for line in [*text.splitlines(), '']:
    if line.startswith('|'):
      table.append(line.replace('\\|', '').count('|'))
    else:
      assert len(set(table)) <= 1
      table = []
  assert 'a \\| b ## c \\`d\\` &lt;i>' in text


MISTAKES = {
  'nothing': ([], '--sweep=DIR1,DIR2'),
  'out': (['--sweep=S', '--out=page.html'], 'ends in .md'),
  'nowhere': (['--sweep=/nowhere', '--out=OUT'], 'sweep.json'),
  'curves': (['--sweep=S', '--out=OUT', '--curves=A'], '--curves=A'),
  'data': (['--sweep=S', '--out=OUT', '--data=/nowhere'], '/nowhere'),
}


@pytest.mark.parametrize('name', MISTAKES)
def test_a_mistake_costs_one_line_and_code_2(name, tmp_path):
  args, said = MISTAKES[name]
  path = made(tmp_path / 's', {'plain': 0.0}, seeds=1, depths=(1,))
  out = str(tmp_path / 'claims.md')
  args = [x.replace('=S', f'={path}').replace('=OUT', f'={out}') for x in args]
  ended = forked.call([sys.executable, '-m', 'deres_jax.claims', *args])
  error = ended.stderr.strip()
  assert ended.returncode == 2 and error.startswith('error: ') and '\n' not in error, error
  assert said in error and not pathlib.Path(out).exists()


def test_flops_at_other_widths_are_those_of_the_plan(tmp_path, planted):
  """Counted, and beside the verdict, which is on the sizes that were run."""
  some = study.load([made(tmp_path / 's', dict.fromkeys(('plain', 'deres_p'), 0.0), depths=(1, 2))])
  found = {x['key']: x for x in claims.claims(some, None, str(planted), [32, 128])}['flops']
  c = config.resolve(config.base('model.depth=2,model.dim=128'))
  spec = make_step_spec(c, load_schema(str(planted)), mesh_lib.make_mesh(1), 1)
  wanted = counts.make(c, spec)
  assert [(x['depth'], x['dim']) for x in found['wider']] == [(1, 32), (2, 32), (1, 128), (2, 128)]
  assert found['wider'][-1]['extra_flops'] == pytest.approx(wanted.flops_connector_extra)
  assert found['wider'][-1]['flops'] * (1 + wanted.flops_connector_extra) == pytest.approx(
    wanted.flops_forward_per_row
  )
  assert found['wider'][1]['extra_flops'] > 2 * found['wider'][3]['extra_flops'] > 0
  assert found['remark'].startswith('counted at width 32 and 128') and found['verdict'] == 'shown'
