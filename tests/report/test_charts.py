# SPDX-License-Identifier: Apache-2.0
"""The drawing module: SVG fit for a page, vector PDF, equal bytes, and names that do no harm."""

import re

import pytest
from pages import Node

from deres_jax.report import charts

HOSTILE = '<script>$\\frac{$&"\x1b\x01x'


def drawn(name='a'):
  ax = charts.axes(300, 200, 40, 20, 10, 40)
  charts.limits(ax, 1, 1000, log=True)
  ax.set_ylim(0, 1)
  charts.x_ticks(ax, [1, 10, 100], [name, '10', '100'])
  charts.y_ticks(ax, *charts.round_ticks(0, 1))
  charts.mark(ax, 10, 0.5, charts.Look('c1', 'o'), 4, 'run', name)
  charts.label(ax, name, (10, 0.5))
  charts.whisker(ax, 0.2, (None, 20), charts.Look('c2', 's'))
  return charts.legend(ax.figure, {name: charts.Look('c1', 'o')})


def test_equal_figures_give_equal_bytes(tmp_path):
  for name in ('a', 'b'):
    charts.save(tmp_path / name, {'title': drawn()})
  assert charts.svg(drawn(), 'x', 'a') == charts.svg(drawn(), 'x', 'a')
  for end in ('pdf', 'png'):
    assert (tmp_path / f'a.{end}').read_bytes() == (tmp_path / f'b.{end}').read_bytes()


def test_a_pdf_is_vectors_and_has_a_page_for_each_chart(tmp_path):
  charts.save(tmp_path / 'x', {'one': drawn(), 'two': drawn()})
  pdf = (tmp_path / 'x.pdf').read_bytes()
  assert pdf.startswith(b'%PDF') and b'/Subtype /Image' not in pdf
  assert len(re.findall(rb'/Type /Page\b', pdf)) == 2


def test_colours_are_variables_text_is_text_and_ids_begin_with_the_name():
  text = charts.svg(drawn(), 'x', 'a chart')
  [picture] = Node(text).all('svg')
  assert not re.search(r'#[0-9a-f]{6}|font-family|xmlns|<style', text)
  assert 'var(--c1)' in text and '10' in [x.text for x in picture.all('text')]
  ids = re.findall(r' id="([^"]*)"', text)
  assert ids and all(x.startswith('x-') for x in ids) and len(ids) == len(set(ids))
  assert set(re.findall(r'#([\w-]+)', text)) <= set(ids)


def test_hostile_names_are_neither_tags_nor_formulas(tmp_path):
  figure = drawn(HOSTILE)
  text = charts.svg(figure, 'x', HOSTILE)
  assert '<script' not in text and '\x1b' not in text and '\\frac' in Node(text).text
  charts.save(tmp_path / 'x', {HOSTILE: figure})


@pytest.mark.parametrize(
  ('ends', 'arrows', 'heads'),
  [((2, 20), (False, False), 0), ((None, 20), (False, False), 1), ((2, 1e9), (False, False), 1),
   ((None, None), (False, False), 2), ((2, 20), (True, False), 1), ((1e8, 1e9), (False, False), 1)],
)  # fmt: skip
def test_ends_that_are_open_or_beyond_the_axis_are_arrows(ends, arrows, heads):
  ax = charts.axes(300, 30)
  charts.limits(ax, 1, 1000, log=True, room=0)
  ax.set_ylim(0, 1)
  charts.whisker(ax, 0.5, ends, charts.Look('c1', 'o'), arrows=arrows)
  [group] = Node(charts.svg(ax.figure, 'x', '')).all('g', 'whisker')
  assert len(group.all('path')) == 1 + heads
