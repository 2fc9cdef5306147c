# SPDX-License-Identifier: Apache-2.0
"""The benchmarks' table: aims, marks, and parts in processes of their own."""

import json
import os

import pytest
import table

HEAD = 'what', 'unit', 'ours', 'peer', 'ratio', 'spread', 'aim', 'note'
LINE = {'what': 'a step', 'unit': 'ms', 'ours': 12.5, 'peer': 20.0, 'ratio': 1.6, 'aim': '>= 1.5'}


@pytest.mark.parametrize(
  ('change', 'met'),
  [
    ({}, True),
    ({'aim': '>= 1.7'}, False),
    ({'aim': '<= 1.6'}, True),
    ({'aim': '< 1.6'}, False),
    ({'aim': ''}, None),
    ({'ratio': None, 'aim': '<= 12'}, False),  # of ours, where there is no ratio
    ({'ratio': None, 'aim': '<= 13'}, True),
  ],
)
def test_aims(change, met):
  assert table.met(LINE | change) is met


def test_a_line_says_whether_its_aim_is_met_and_its_rounds_were_quiet():
  line = LINE | {'spread': [1.4, 1.75], 'aim': '>= 1.7', 'met': False, 'quiet': False}
  cells = table.cells(line, HEAD)
  assert cells == ('a step', 'ms', '12.5', '20', '1.6*', '1.4 to 1.75', '>= 1.7, MISSED', '')
  page = table.markdown([line], HEAD)
  assert page[0].count('|') == page[1].count('|') == page[2].count('|') == len(HEAD) + 1


def test_a_part_that_fails_keeps_its_lines_and_says_so(tmp_path, capfd):
  script = tmp_path / 'part.py'
  script.write_text(f'print({json.dumps(LINE)!r}, flush=True)\nraise SystemExit(3)\n')
  lines, code = table.measure('one', [str(script)], dict(os.environ), HEAD)
  assert code == 3
  assert lines == [{'part': 'one', **LINE, 'met': True}]
  assert 'a step' in capfd.readouterr().out
