# SPDX-License-Identifier: Apache-2.0
"""A description as one HTML page."""

import math

from matplotlib.figure import Figure

from data_pipelines.describe import charts
from data_pipelines.describe.figures import ENOUGH_ROWS
from data_pipelines.describe.text import percent
from deres_jax.report import charts as drawing
from deres_jax.report import html
from deres_jax.report.wording import compact

MOST_BARS = 34


def _lengths(s: dict, rows: int) -> tuple[str, Figure]:
  """Returns a note on the lengths of sequences, and their chart."""
  counts = s['rows_by_length_train']
  wide = math.ceil(len(counts) / MOST_BARS)
  starts = range(0, len(counts), wide)
  shares = [sum(counts[start : start + wide]) / max(1, rows) for start in starts]
  axis = 'events in a row' if wide == 1 else f'events in a row (from, {wide} lengths a bar)'
  note = (
    f'Up to {s["length"]} events of {", ".join(s["attributes"])}; '
    f'{s["mean_events"]["train"]:.1f} on average in train, none in '
    f'{percent(s["empty"]["train"])} % of the rows, full in {percent(s["full"]["train"])} %.'
  )
  return note, charts.bars([str(start) for start in starts], shares, charts.percent_tick, axis)


def _groups(g: dict) -> tuple[str, Figure]:
  """Returns a note on the rows of groups, such as users, and their chart."""
  labels, counts = [], []
  for low, high, count in g['groups_by_rows_train']:
    label = str(low) if low == high else f'{low}-{high}'
    labels.append(label if len(label) <= charts.LONGEST else f'{compact(low)}+')
    counts.append(count)
  again = g['rows_of_groups_in_train']
  note = (
    f'{g["groups"]:,} in all, {g["seen"]["train"]:,} in train, with {g["mean_rows_train"]:.1f} '
    f'rows each (median {g["median_rows_train"]:.0f}). Of the rows of validation and test '
    f'{percent(again["validation"])} % and {percent(again["test"])} % are of those. '
    'Bars: how many have so many rows.'
  )
  return note, charts.bars(labels, counts, compact, 'rows in train')


def _frame(x: dict) -> dict:
  """Returns axes that all fields share, so that they can be compared at a glance."""
  mean = x['splits']['train']['click_rate']
  points = [point for field in x['fields'] for point in field['click_rates']]
  # A rare id with three clicks of three rows would flatten all others.
  rates = [point['click_rate'] for point in points if point['rows'] >= ENOUGH_ROWS]
  return {
    'ids': max(field['ids_seen'] for field in x['fields']),
    'rows': x['splits']['train']['rows'],
    'mean': mean,
    'rate': min(1.0, 1.1 * max([*rates, mean])) or 0.01,
  }


def _behaviour(x: dict) -> dict[str, tuple[str, Figure]]:
  """Returns notes and charts of sequences and groups, by their titles."""
  out = {}
  if x['sequence']:
    out['Behaviour sequence'] = _lengths(x['sequence'], x['splits']['train']['rows'])
  if x['groups']:
    out[f'Rows by {x["groups"]["name"]}'] = _groups(x['groups'])
  return out


def figures(x: dict) -> dict[str, Figure]:
  """Returns the charts to be saved beside the page, by their titles."""
  frame = _frame(x)
  fields = {field['name']: charts.field(field, frame) for field in x['fields']}
  return {**{title: figure for title, (_, figure) in _behaviour(x).items()}, **fields}


def page(x: dict, drawn: dict[str, Figure]) -> str:
  """Returns the page as HTML; `drawn` is `figures(x)`."""
  behaviour = [
    {'title': title, 'note': note, 'chart': drawing.svg(drawn[title], f'b{i}', title)}
    for i, (title, (note, _)) in enumerate(_behaviour(x).items())
  ]
  words = 'shares of known, missing and unknown values, rows of each id by rank, click rates'
  fields = [
    drawing.svg(drawn[field['name']], f'c{f}', f'{field["name"]}: {words}')
    for f, field in enumerate(x['fields'])
  ]
  return html.render(
    'describe.html',
    {
      'x': x,
      'options': ', '.join(f'{k} {v}' for k, v in x['build'].items() if v is not None),
      'behaviour': behaviour,
      'items': x['items'],
      'percent': percent,
      'enough_rows': ENOUGH_ROWS,
      'charts': fields,
    },
  )
