# SPDX-License-Identifier: Apache-2.0
"""Tables from sweep folders that are written here by hand."""

import itertools
import json
import pathlib
import re
import sys

import forked
import numpy as np
import pytest
import swept

from deres_jax.compare import __main__ as compare
from deres_jax.compare import runs
from deres_jax.core.errors import UserError

REPO = pathlib.Path(__file__).resolve().parents[2]
IDS = (f'{i:012x}' for i in itertools.count())


def point(name, seed=0, validation=0.7, test=0.7, fields=None, finished=True, id=None, **more):
  """A point for `folder` that sets `fields`; `more` changes its result.json."""
  result = swept.RESULT | {
    'auc': test,
    'auc_se': 0.001,
    'auc_validation': validation,
    'logloss': 1 - test,
    'params_dense': 1234,
    'data_content': None,
    **more,
  }
  overrides = {**(fields or {}), 'seed': seed}
  listed = {'id': id or next(IDS), 'name': name, 'seed': seed, 'overrides': overrides}
  return listed, result if finished else None


def folder(path, *points):
  """A sweep folder on data of its own."""
  path.mkdir()
  (path / 'sweep.json').write_text(json.dumps([listed for listed, _ in points]))
  for listed, result in points:
    workdir = path / 'runs' / listed['id']
    workdir.mkdir(parents=True)
    if result:
      result['data_content'] = result['data_content'] or {'test': str(path)}
      (workdir / 'result.json').write_text(json.dumps(result))
  return str(path)


def table(*folders, reference=None, partial=False):
  return runs.compare(runs.load(list(folders)), 'Title', 'cmd', reference, partial)


def lr(rate):
  return {'optim.dense_lr': rate}


def test_a_setting_is_chosen_by_mean_validation_auc_and_never_by_test(tmp_path):
  """0.3 is best on test, 0.2 has the best single validation run, 0.1 the best mean."""
  f = folder(
    tmp_path / 's',
    *(point('A', s, 0.80, 0.70 + s / 100, fields=lr(0.1)) for s in (0, 1)),
    *(point('A', s, v, 0.75, fields=lr(0.2)) for s, v in ((0, 0.85), (1, 0.70))),
    *(point('A', s, 0.79, 0.90, fields=lr(0.3)) for s in (0, 1)),
  )
  c = table(f)
  [line] = c['table']
  assert (line['setting'], line['runs']) == ('optim.dense_lr=0.1', 2)
  assert line['auc'] == pytest.approx(0.705) and line['auc_sd'] == pytest.approx(0.01 / 2**0.5)
  assert [
    (x['setting'][-3:], round(x['auc_validation'], 3), x['chosen']) for x in c['settings']
  ] == [
    ('0.1', 0.8, True),
    ('0.2', 0.775, False),
    ('0.3', 0.79, False),
  ]
  assert '0.90000' not in compare.page(c)  # what was not chosen shows no test figure


def test_the_interval_is_that_of_paired_differences(tmp_path):
  rng = np.random.default_rng(0)
  keys = [(f, s) for f in 'xy' for s in (1, 2)]
  a = {k: 0.7 + 0.05 * rng.standard_normal() for k in keys}
  b = {k: a[k] + 0.001 + 0.0005 * rng.standard_normal() for k in keys}
  folders = [
    # In another order than A's: pairs are found by folder and seed, not by place.
    folder(
      tmp_path / f,
      *(point('A', s, test=a[f, s]) for s in (1, 2)),
      *(point('B', s, test=b[f, s]) for s in (2, 1)),
    )
    for f in 'xy'
  ]
  gaps = np.array([b[k] - a[k] for k in keys])
  half = 3.182446305284263 * gaps.std(ddof=1) / 2  # t(0.975) of 3 degrees of freedom; sqrt(4)
  first, second = table(*folders)['table']
  assert first['reference'] and not second['reference'] and second['pairs'] == 4
  assert second['difference'] == pytest.approx(gaps.mean(), abs=1e-12)
  assert second['interval'] == pytest.approx(half, rel=1e-9)
  assert second['auc_sd'] == pytest.approx(np.std(list(b.values()), ddof=1))
  page = compare.page(table(*folders))
  assert f'| +{gaps.mean():.5f} ± {half:.5f} |' in page
  turned = table(*folders, reference='B')['table'][0]
  assert turned['difference'] == pytest.approx(-gaps.mean()) and turned['name'] == 'A'


def test_one_run_has_no_interval(tmp_path):
  f = folder(tmp_path / 's', point('A', test=0.7), point('B', test=0.71))
  line = table(f)['table'][1]
  assert line['interval'] is None and line['auc_sd'] is None
  assert '| +0.01000 |' in compare.page(table(f))


def test_missing_runs_are_named_and_need_partial(tmp_path):
  """Unfinished in one folder, and not even listed in the other."""
  x = folder(
    tmp_path / 'x',
    point('A', 1, fields=lr(0.1)),
    point('A', 2, fields=lr(0.1)),
    point('A', 1, 0.99, fields=lr(0.2)),
    point('A', 2, 0.99, finished=False, fields=lr(0.2)),
    point('B', 1, test=0.8),
    point('B', 2, finished=False),
  )
  y = folder(tmp_path / 'y', point('A', 1, fields=lr(0.1)), point('B', 1, test=0.8))
  with pytest.raises(UserError) as e:
    table(x, y)
  lacking = ['A (optim.dense_lr=0.2) lacks 2', 'B lacks 1']
  assert all(word in str(e.value) for word in ['3 runs are missing', '--partial', *lacking])
  c = table(x, y, partial=True)
  assert c['missing'] == lacking
  # The better validation AUC of fewer runs does not win.
  a, b = c['table']
  assert (a['setting'], a['runs']) == ('optim.dense_lr=0.1', 3)
  assert (b['runs'], b['pairs']) == (2, 2) and b['difference'] == pytest.approx(0.1)
  page = compare.page(c)
  assert '**Unfinished**: A (optim.dense_lr=0.2) lacks 2; B lacks 1' in page


def test_a_complete_table_does_not_speak_of_missing_runs(tmp_path):
  f = folder(tmp_path / 's', point('A'), point('B'))
  assert 'Unfinished' not in compare.page(table(f, partial=True))


def test_a_name_without_a_finished_run_has_no_line(tmp_path):
  f = folder(tmp_path / 's', point('A'), point('B', finished=False))
  assert [x['name'] for x in table(f, partial=True)['table']] == ['A']
  with pytest.raises(UserError, match=r"reference 'B' has no finished run"):
    table(f, partial=True, reference='B')


def test_a_setting_is_what_is_computed_without_the_seed(tmp_path):
  """Folders of two splits differ in data.path; only fields that vary within a name are shown."""
  folders = [
    folder(
      tmp_path / f,
      *(
        point(name, 1, fields={'model.depth': d, 'data.path': f, 'data.threads': 2, **lr(rate)})
        for name, d in (('A', 2), ('B', 4))
        for rate in (0.1, 0.2)
      ),
    )
    for f in 'xy'
  ]
  c = table(*folders)
  assert [(x['name'], x['setting'], x['runs']) for x in c['settings']] == [
    (name, f'optim.dense_lr={rate}', 2) for name in 'AB' for rate in (0.1, 0.2)
  ]


CLASHES = {
  'data sets': (
    [point('A')],
    [point('A', dataset='other')],
    ['other and toy', 'one data set'],
  ),
  'data': (
    [point('A', id='a'), point('B', id='b', data_content={'test': 'elsewhere'})],
    [],
    ['x holds runs on different data', 'a and b'],
  ),
  'the same run': (
    [point('A', id='a', data_content={'test': 's'})],
    [point('A', id='a', data_content={'test': 's'})],
    ['run a (A)', 'would count twice'],
  ),
  'one setting twice': (
    [point('A', id='a', fields=lr(0.1)), point('A', id='b', fields=lr(0.1))],
    [],
    ['a and b are both A (optim.dense_lr=0.1), seed 0'],
  ),
  'no validation': ([point('A', id='a', validation=None)], [], ['run a (A)', 'no validation AUC']),
  'nothing finished': ([point('A', finished=False)], [], ['no finished run']),
}


@pytest.mark.parametrize('name', CLASHES)
def test_runs_that_must_not_stand_together_are_refused(tmp_path, name):
  x, y, words = CLASHES[name]
  folders = [folder(tmp_path / k, *points) for k, points in (('x', x), ('y', y)) if points]
  with pytest.raises(UserError) as e:
    table(*folders)
  text = str(e.value)
  assert '\n' not in text and all(word in text for word in words), text


def call(*args):
  return forked.call([sys.executable, '-m', 'deres_jax.compare', *args])


def test_the_command_writes_a_page_and_its_figures(tmp_path):
  folders = [
    folder(
      tmp_path / f,
      point('A|1', 1, test=0.7, rows=1500 + i),
      point('B', 1, test=0.71 + i / 100, params_dense=1_234_567, flops_forward_per_row=15.1e6),
    )
    for i, f in enumerate('xy')
  ]
  out = tmp_path / 'table.md'
  more = ['--title=Two models', '--command=python -m deres_jax.sweep --config=x.py']
  done = call(f'--sweeps={",".join(folders)}', f'--out={out}', *more)
  assert done.returncode == 0, done.stderr
  page = out.read_text()
  assert page.startswith('# Two models\n') and page in done.stdout
  assert 'toy; 1,500 or 1,501 rows of test' in page and '1 x cpu; jax 1.2' in page
  assert '```\npython -m deres_jax.sweep --config=x.py\n```' in page
  figures = '0.71500 | 0.00707 | +0.01500 ± 0.06353 | 0.28500 | 1,234,567 | 15.1 | 1,000'
  assert f'\n| B |  | 2 | {figures} |\n' in page and r'| A\|1 |  | 2 |' in page
  columns = [len(re.findall(r'(?<!\\)\|', x)) - 1 for x in page.splitlines() if x[:1] == '|']
  assert columns == [10] * 4 + [5] * 4
  figures = json.loads(out.with_suffix('.json').read_text())
  assert figures == table(*folders) | {'title': 'Two models', 'command': more[1][10:]}
  assert [x['auc'] for x in figures['table'][1]['by_run']] == [0.71, 0.72]


@pytest.mark.parametrize(
  ('more', 'words'),
  [
    (['--reference=C'], ["'C'", 'A, B']),
    (['--sweeps=/nowhere'], ['/nowhere', 'sweep.json']),
    (['--out=table.txt'], ['table.txt', '.md']),
    (['--sweeps='], ['--sweeps=DIR1']),
  ],
)
def test_a_mistake_costs_one_line_and_code_2_and_writes_nothing(tmp_path, more, words):
  f = folder(tmp_path / 's', point('A'), point('B'))
  done = call(f'--sweeps={f}', f'--out={tmp_path / "t.md"}', *more)
  said = done.stderr.strip()
  assert done.returncode == 2, said
  assert said.startswith('error: ') and '\n' not in said and all(w in said for w in words), said
  assert sorted(p.name for p in tmp_path.iterdir()) == ['s']
