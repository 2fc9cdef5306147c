# SPDX-License-Identifier: Apache-2.0
"""Figures of describe equal plain loops; its page is well-formed, self-contained and safe."""

import json
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from invented_rows import REPOSITORY
from pages import Node, marks, points
from prepared_rows import write_folder
from scipy import stats

from data_pipelines.describe import __main__ as describe
from data_pipelines.describe import charts
from data_pipelines.describe.figures import click_point, coverage, wilson
from data_pipelines.describe.text import percent
from data_pipelines.doctor import __main__ as doctor
from data_pipelines.prepared.dataset import FieldInfo
from data_pipelines.prepared.schema import Attribute, Group, Items, Sequence
from deres_jax.report import charts as drawing

ROWS = {'train': 5000, 'validation': 300, 'test': 200}
NASTY = '<b>&"\'item'
FIELDS = (
  FieldInfo(NASTY, 402, 0, 0.0),
  FieldInfo('few', 6, 0, 0.25),
  FieldInfo('hash', 40_000_002, 0, 0.0, hashed=True),
)
SEQUENCE = Sequence(4, [Attribute('item', 402, NASTY), Attribute('kind<i>', 9, None)])
ITEMS = Items(NASTY, 10, 60)


def invented(rows=ROWS, clicks=None):
  rng = np.random.default_rng(0)
  columns = {}
  for split, count in rows.items():
    ids = np.stack(
      [
        np.minimum(rng.zipf(1.3, size=count), 401),
        rng.integers(1, 6, size=count),
        rng.integers(1, 50, size=count) ** 4 + 1,
      ],
      axis=1,
    ).astype(np.int32)
    events = rng.integers(2, 9, size=(count, 4, 2)).astype(np.int32)
    for i, length in enumerate(rng.integers(0, 5, size=count)):
      events[i, : 4 - length] = 0
    label = rng.random(count) < (0.1 + 0.1 * ids[:, 1] if clicks is None else clicks)
    columns[split] = {
      'ids': ids,
      'label': label.astype(np.uint8),
      'events': events,
      'group': np.minimum(rng.zipf(1.5, size=count), 80).astype(np.int32) - 1,
    }
  return columns


@pytest.fixture(scope='module')
def columns():
  return invented()


@pytest.fixture(scope='module')
def folder(tmp_path_factory, columns):
  out = tmp_path_factory.mktemp('describe') / 'x'
  write_folder(out, FIELDS, columns, SEQUENCE, Group('user<u>', 80), ITEMS)
  assert describe.main([str(out), '--workers=1']) == 0
  return out


@pytest.fixture(scope='module')
def figures(folder):
  return json.loads((folder / 'describe/describe.json').read_text())


@pytest.fixture(scope='module')
def page(folder):
  return (folder / 'describe/describe.html').read_text()


@pytest.mark.parametrize('f', range(3))
def test_field_figures_equal_those_of_loops(columns, figures, f):
  field = figures['fields'][f]
  ids, label = columns['train']['ids'][:, f].tolist(), columns['train']['label'].tolist()
  rows = Counter(i for i in ids if i > 1)
  clicks = Counter(i for i, y in zip(ids, label, strict=True) if i > 1 and y)
  falling = [count for _, count in rows.most_common()]
  known = sum(falling)
  assert field['name'] == FIELDS[f].name and field['vocab_size'] == FIELDS[f].vocab_size
  for split in ROWS:
    unknown = columns[split]['ids'][:, f].tolist().count(1) / ROWS[split]
    assert field['unknown_rate'][split] == unknown
  assert field['ids_seen'] == len(rows)
  assert field['commonest_share'] == falling[0] / ROWS['train']
  for name, share in (('ids_of_half', 0.5), ('ids_of_90_percent', 0.9)):
    needed = next(k for k in range(len(falling) + 1) if sum(falling[:k]) >= share * known)
    assert field[name] == needed
  assert field['seen_once'] == falling.count(1) / len(falling)
  assert field['seen_rarely'] == sum(count < 10 for count in falling) / len(falling)
  assert field['rank_frequency'][0] == [1, falling[0]]
  assert field['rank_frequency'][-1] == [len(falling), falling[-1]]
  assert all(falling[rank - 1] == count for rank, count in field['rank_frequency'])
  top = field['commonest']
  assert [point['rows'] for point in top] == falling[:10]
  for point in top:
    assert (point['rows'], point['clicks']) == (rows[point['id']], clicks[point['id']])
  rates = [point['click_rate'] for point in top if point['rows'] >= 100]
  assert field['click_rate_range'] == [min(rates), max(rates)]


def test_click_rates_by_frequency_and_by_id(columns, figures):
  item, few, _ = figures['fields']
  assert item['click_rates_by'] == 'frequency' and few['click_rates_by'] == 'id'
  values = Counter(i for i in columns['train']['ids'][:, 1].tolist() if i > 1)
  expected = [f't{i}' for i, _ in values.most_common()]
  assert [point['label'] for point in few['click_rates']] == expected and len(expected) == 4
  ids = columns['train']['ids'][:, 0]
  label = columns['train']['label']
  rows = Counter(i for i in ids.tolist() if i > 1)
  before, group = 0, {}
  for i, count in sorted(rows.items(), key=lambda pair: (-pair[1], pair[0])):
    group[i] = int(10 * (before + count / 2) / sum(rows.values()))
    before += count
  for point in item['click_rates']:
    mine = [i for i, g in group.items() if str(g + 1) == point['label']]
    here = np.isin(ids, mine)
    assert point['ids'] == len(mine)
    assert (point['rows'], point['clicks']) == (int(here.sum()), int(label[here].sum()))
  assert sum(point['rows'] for point in item['click_rates']) == sum(rows.values())


def test_splits_sequence_users_and_items(columns, figures):
  for split, parts in columns.items():
    n, label = ROWS[split], parts['label']
    assert figures['splits'][split]['clicks'] == int(label.sum())
    lengths = [sum(event[0] != 0 for event in row) for row in parts['events'].tolist()]
    sequence = figures['sequence']
    assert sequence['mean_events'][split] == sum(lengths) / n
    assert sequence['empty'][split] == lengths.count(0) / n
    assert sequence['full'][split] == lengths.count(4) / n
    users, known = set(parts['group'].tolist()), set(columns['train']['group'].tolist())
    groups = figures['groups']
    assert groups['seen'][split] == len(users)
    again = sum(user in known for user in parts['group'].tolist()) / n
    assert groups['rows_of_groups_in_train'][split] == again
    item = parts['ids'][:, 0]
    for part, here in zip(
      figures['items']['parts'],
      ((item >= 2) & (item < 10), (item >= 10) & (item < 60), (item >= 60) | (item < 2)),
      strict=True,
    ):
      assert part['rows'][split] == int(here.sum())
      assert part['click_rate'][split] == int(label[here].sum()) / int(here.sum())
  train = Counter(columns['train']['group'].tolist())
  assert groups['mean_rows_train'] == ROWS['train'] / len(train)
  assert groups['median_rows_train'] == float(np.median(list(train.values())))
  for low, high, count in groups['groups_by_rows_train']:
    assert count == sum(low <= rows <= high for rows in train.values())
  assert [part['ids'] for part in figures['items']['parts']] == [8, 50, 342]


def test_missing_and_unknown_are_distinguished():
  assert coverage(0.0, 0.1, False) == {
    'known': 0.9,
    'missing': 0.0,
    'unknown': 0.1,
    'missing_kept': None,
  }
  kept = coverage(0.5, 0.125, True)
  assert (kept['known'], kept['missing'], kept['unknown']) == (0.375, 0.5, 0.125)
  assert kept['missing_kept']
  within = coverage(0.125, 0.5, False)
  assert (within['known'], within['missing'], within['unknown']) == (0.5, 0.125, 0.375)
  assert within['missing_kept'] is False


@pytest.mark.parametrize('clicks, rows', [(0, 10), (3, 10), (10, 10), (250, 1000)])
def test_wilson(clicks, rows):
  expected = stats.binomtest(clicks, rows).proportion_ci(method='wilson')
  assert wilson(clicks, rows) == pytest.approx((expected.low, expected.high), abs=1e-9)


def everything(node):
  """All elements of a page."""
  for child in node.children:
    yield child
    yield from everything(child)


def test_page_is_well_formed_alone_and_escaped(page):
  tree = Node(page)
  nodes = list(everything(tree))
  assert not {'script', 'link', 'img', 'iframe', 'i', 'u'} & {node.tag for node in nodes}
  for node in nodes:
    for name, value in node.attrs.items():
      assert not name.startswith('on') and name not in ('src', 'srcset', 'xlink:href')
      assert name != 'href' or value.startswith('#') or value in ('describe.json', 'describe.pdf')
  assert not re.search(r'url\((?!#)', page) and '@import' not in page and '//' not in page
  assert page.count('&lt;b&gt;&amp;') >= 2 and '<b>' not in page
  assert 'kind<i>' in tree.text and 'user<u>' in tree.text
  ids = [node.attrs['id'] for node in nodes if 'id' in node.attrs]
  links = {node.attrs['href'] for node in nodes if node.tag in ('a', 'use')}
  assert len(ids) == len(set(ids)) and {f'#f{f}' for f in range(3)} <= links
  assert {link[1:] for link in links if link.startswith('#')} <= set(ids)
  # A chart of lengths, one of users, and one of each field.
  assert len(tree.all('svg')) == 2 + 3


def test_charts_stay_within_their_frames(page):
  for svg in re.findall(r'<svg .*?</svg>', page):
    width, height = map(float, re.search(r'viewBox="0 0 (\S+) (\S+)"', svg).groups())
    for name, value in re.findall(r' (x|y)="(.*?)"', svg):
      assert 0 <= float(value) <= (width if name == 'x' else height), svg
    assert 'nan' not in svg and 'inf"' not in svg


def test_bars_and_click_rates_stand_where_their_figures_are(figures):
  frame = {'ids': 100, 'rows': 5000, 'mean': 0.2, 'rate': 0.5}
  drawn = charts.field(figures['fields'][1], frame)
  drawn.axes[2].set_ylim(0, 0.5)
  rates = {p['label']: p['click_rate'] for p in figures['fields'][1]['click_rates']}
  places = marks(Node(drawing.svg(drawn, 'x', '')), 'dot')
  bottom, top = (drawn.axes[2].transData.transform((0, y))[1] for y in (0, 0.5))
  height = 72 * drawn.get_figheight()
  assert len(places) == sum(rate <= 0.5 for rate in rates.values()) > 0
  for tip, (_, y) in places.items():
    rate = 0.5 * (height - y - bottom) / (top - bottom)
    assert rate == pytest.approx(rates[tip.split(':')[0]], abs=1e-3)
  picture = Node(drawing.svg(charts.bars(['a', 'b', 'c'], [1, 2, 4], str, ''), 'x', ''))
  sizes = [np.ptp(box[:, 1]) for box in points(picture, 'bar')]
  assert np.array(sizes) / sizes[0] == pytest.approx([1, 2, 4], rel=1e-3)


def test_a_click_rate_beyond_the_axis_is_hollow():
  x = {
    'click_rates_by': 'id',
    'click_rates': [click_point('a', 1000, 100), click_point('long & <strange>', 3, 3)],
    'coverage': coverage(0.0, 0.1, False),
    'rank_frequency': [[1, 1000], [2, 3]],
  }
  svg = drawing.svg(charts.field(x, {'ids': 2, 'rows': 1003, 'mean': 0.1, 'rate': 0.3}), 'x', '')
  test_charts_stay_within_their_frames(svg)
  assert svg.count('class="dot"') == svg.count('class="beyond"') == 1
  assert 'long &amp; …' in svg


def test_text_fits_a_terminal(folder, capsys):
  assert describe.main([str(folder), f'--out={folder}/other', '--workers=1']) == 0
  printed = capsys.readouterr().out.splitlines()
  assert all(len(line) <= 100 for line in printed[:-1])
  table = [line for line in printed if line.startswith(('field ', NASTY, 'few ', 'hash '))]
  assert len(table) == 4 and len({len(line) for line in table}) == 1
  assert (folder / 'other/describe.html').is_file()
  assert (folder / 'other/describe.pdf').read_bytes().startswith(b'%PDF')
  assert (folder / 'other/describe.png').read_bytes().startswith(b'\x89PNG')


def test_doctor_ignores_the_page(folder, capsys):
  assert doctor.main([str(folder), '--workers=1']) == 0, capsys.readouterr().err


@pytest.mark.parametrize('clicks', [0.0, 1.0])
def test_one_class_and_empty_splits(tmp_path, clicks):
  rows = {'train': 50, 'validation': 0, 'test': 1}
  out = write_folder(
    tmp_path / 'x', FIELDS, invented(rows, clicks), SEQUENCE, Group('user', 80), ITEMS
  )
  assert describe.main([str(out), '--workers=1']) == 0
  figures = json.loads((out / 'describe/describe.json').read_text())
  assert figures['splits']['train']['click_rate'] == clicks
  assert figures['splits']['validation']['rows'] == 0
  page = (out / 'describe/describe.html').read_text()
  Node(page)
  test_charts_stay_within_their_frames(page)


def test_mistakes_are_one_line_errors(folder, tmp_path, capsys):
  assert describe.main([str(tmp_path / 'none')]) == 2
  (tmp_path / 'file').write_text('')
  assert describe.main([str(folder), f'--out={tmp_path}/file']) == 2
  errors = capsys.readouterr().err.splitlines()
  assert len(errors) == 2 and all(line.startswith('error: ') for line in errors)
  with pytest.raises(SystemExit) as stop:
    describe.main([])
  assert stop.value.code == 2 and capsys.readouterr().err.count('\n') == 1


def test_command_on_two_processes(folder, figures, tmp_path):
  done = subprocess.run(
    [sys.executable, '-m', 'data_pipelines.describe', folder, f'--out={tmp_path}', '--workers=2'],
    cwd=REPOSITORY,
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert done.returncode == 0, done.stderr
  assert json.loads((tmp_path / 'describe.json').read_text()) == figures


def test_shares_are_not_rounded_away():
  assert [percent(x) for x in (0, 1e-9, 0.1234, 0.99999, 1)] == [
    *('0', '<0.1', '12.3', '>99.9', '100'),
  ]
