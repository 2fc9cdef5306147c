# SPDX-License-Identifier: Apache-2.0
"""The report of a run beside a baseline."""

import json
import pathlib
import re

import pytest
import swept
from pages import Node, marks, scales

from deres_jax.core.errors import UserError
from deres_jax.report import __main__ as report
from deres_jax.report import charts


def write(folder: pathlib.Path, backbone, auc, planted, dataset='toy'):
  folder.mkdir()
  result = swept.RESULT | {'backbone': backbone, 'dataset': dataset, 'auc': auc}
  result |= {'auc_se': 0.002, 'planted': planted}
  (folder / 'result.json').write_text(json.dumps(result))
  lines = [
    {'step': s, 'split': split, 'auc': auc - 1 / (s + 10)}
    for s in (10, 20)
    for split in ('train', 'validation')
  ]
  (folder / 'metrics.jsonl').write_text(''.join(json.dumps(x) + '\n' for x in lines))
  return report.load(str(folder))


PLANTED = {'splits': {'test': {'bayes_auc': 0.9, 'bayes_logloss': 0.4, 'linear_auc': 0.7}}}


def test_the_gap_is_between_the_baseline_and_the_best_possible(tmp_path):
  run = write(tmp_path / 'run', 'onetrans', 0.85, PLANTED)
  low = write(tmp_path / 'lr', 'lr', 0.7, PLANTED)
  assert report.gap_closed(run, low) == pytest.approx(0.75)
  text = report.summary(run, low)
  assert all(x in text for x in ('0.7000', '0.8500', '0.9000', '75% of the gap'))


def test_without_a_planted_teacher_there_is_no_best_possible(tmp_path):
  run = write(tmp_path / 'run', 'onetrans', 0.85, {})
  low = write(tmp_path / 'lr', 'lr', 0.7, {})
  assert report.gap_closed(run, low) is None
  assert 'Bayes' not in report.summary(run, low) and 'Bayes' not in report.page(run, low)


def test_the_page_is_one_file_and_escapes_what_it_shows(tmp_path):
  run = write(tmp_path / 'run', 'onetrans', 0.85, PLANTED, dataset='<script>alert(1)</script>')
  page = report.page(run, write(tmp_path / 'lr', 'lr', 0.7, PLANTED))
  assert '<script' not in page and '&lt;script&gt;' in page
  assert not re.search(r'src=|href="[^#]|https?://', page)
  assert len(Node(page).all('g', 'dot')) == 2 * 2 and '75%' in page  # for laptops and for phones


def test_validation_stands_where_its_figures_are(tmp_path):
  run = write(tmp_path / 'run', 'onetrans', 0.85, PLANTED)
  figure = report.chart(run, write(tmp_path / 'lr', 'lr', 0.7, PLANTED), wide=True)
  picture = Node(charts.svg(figure, 'x', 'AUC by step'))
  across, up = scales(picture, log=False)
  places = sorted(marks(picture, 'dot').values())
  assert [(across(x), up(y)) for x, y in places] == [
    pytest.approx((step, 0.85 - 1 / (step + 10)), abs=1e-3 * scale)
    for step, scale in ((10, 10), (20, 10))
  ]


def test_an_unfinished_run_is_named(tmp_path):
  with pytest.raises(UserError, match=r'holds no result\.json'):
    report.load(str(tmp_path))
