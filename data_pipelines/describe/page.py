# SPDX-License-Identifier: Apache-2.0
"""A description as one HTML page: inline SVG, no script, nothing fetched, all text escaped."""

import html
import math

from data_pipelines.describe import charts
from data_pipelines.describe.figures import ENOUGH_ROWS
from data_pipelines.describe.text import percent, rate_range
from data_pipelines.prepared.schema import SPLITS

MOST_BARS = 34

STYLE = """
:root{color-scheme:light dark;--text:#1b1f24;--soft:#57606a;--rule:#d8dee4;--grid:#eaeef2;
--page:#fff;--card:#fff;--blue:#0969da;--amber:#bf8700;--grey:#afb8c1}
@media(prefers-color-scheme:dark){:root{--text:#e6edf3;--soft:#9198a1;--rule:#30363d;
--grid:#21262d;--page:#0d1117;--card:#0d1117;--blue:#58a6ff;--amber:#d29922;--grey:#565e67}}
*{box-sizing:border-box}
body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:0 auto;padding:1.5rem 1rem 4rem;
color:var(--text);background:var(--page);-webkit-text-size-adjust:100%}
h1{font-size:1.5rem;line-height:1.2;margin:0 0 .2rem;overflow-wrap:anywhere}
h2{font-size:1.1rem;margin:2.4rem 0 .6rem}
h3{font-size:.95rem;margin:0;overflow-wrap:anywhere}
p{margin:.4rem 0;max-width:46rem}
a{color:inherit;text-decoration-color:var(--rule);text-underline-offset:3px}
.soft,.note{color:var(--soft)}.note{font-size:.85rem}
.box{overflow-x:auto;margin:.6rem 0}
table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums;
white-space:nowrap}
td,th{padding:.28rem .7rem;border-bottom:1px solid var(--grid);text-align:right;
font-weight:normal}
thead th{color:var(--soft);border:0;line-height:1.3}
thead tr:last-child th{border-bottom:1px solid var(--rule)}
thead th[colspan]{text-align:center;padding-bottom:0}
td:first-child,th:first-child{text-align:left;padding-left:0}
.fields{width:100%}
.fields th:first-child{position:sticky;left:0;background:var(--page);
padding-right:1rem;max-width:11rem;overflow:hidden;text-overflow:ellipsis}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(20rem,100%),1fr));
gap:1rem}
.card{border:1px solid var(--rule);border-radius:8px;padding:.8rem .9rem .6rem;
background:var(--card);min-width:0}
.card .note{margin:.1rem 0 .5rem}
.card .key-line{font-size:.72rem;letter-spacing:-.01em;margin-bottom:0}
.key-line span{white-space:nowrap;margin-right:.2em}.key-line .key{margin-right:.3em}
.card .what{margin:.7rem 0 .1rem;font-size:.8rem;color:var(--soft)}
svg{display:block;width:100%;height:auto}
svg text{font:11px system-ui,sans-serif;fill:var(--soft);font-variant-numeric:tabular-nums}
.grid{stroke:var(--grid)}.mean{stroke:var(--soft);stroke-dasharray:3 3}
.curve{fill:none;stroke:var(--blue);stroke-width:1.8;stroke-linejoin:round}
.dot{fill:var(--blue)}.beyond{fill:var(--page);stroke:var(--blue);stroke-width:1.4}
.interval{stroke:var(--blue);stroke-width:1.4;opacity:.55}
.known{fill:var(--blue)}.missing{fill:var(--amber)}.unknown{fill:var(--grey)}
@media(max-width:30rem){td,th{padding:.28rem .4rem}.card{padding:.7rem .7rem .5rem}}
.key{display:inline-block;width:.7em;height:.7em;border-radius:2px}
.key.known{background:var(--blue)}.key.missing{background:var(--amber)}
.key.unknown{background:var(--grey)}
"""


def _table(head: list[str], rows: list[list[str]], kind: str = '') -> str:
  """Args: heading rows as HTML; rows of cells, of which the first is HTML and others are text."""
  body = ''.join(
    f'<tr><th scope="row">{row[0]}</th>'
    + ''.join(f'<td>{html.escape(cell)}</td>' for cell in row[1:])
    + '</tr>'
    for row in rows
  )
  heads = ''.join(f'<tr>{row}</tr>' for row in head)
  return (
    f'<div class="box"><table class="{kind}"><thead>{heads}</thead><tbody>{body}</tbody></table>'
    '</div>'
  )


def _heads(*names: str) -> str:
  return ''.join(f'<th scope="col">{name}</th>' for name in names)


def _head(x: dict) -> str:
  raw = x['raw']
  options = ', '.join(f'{k} {v}' for k, v in x['build'].items() if v is not None)
  files = ''.join(
    f'<br>{html.escape(str(file["name"]))}, {file["bytes"]:,} bytes' for file in raw['files']
  )
  rejected = f'{raw["rows_rejected"]:,}' if raw['rows_rejected'] else 'none'
  rows = [
    [
      split,
      f'{s["rows"]:,}',
      f'{s["clicks"]:,}',
      f'{100 * s["click_rate"]:.2f} %',
      f'{100 * s["low"]:.2f} to {100 * s["high"]:.2f} %' if s['rows'] else '',
    ]
    for split in SPLITS
    for s in [x['splits'][split]]
  ]
  return (
    f'<h1>{html.escape(x["dataset"])}</h1>'
    f'<p class="soft">{raw["rows_read"]:,} rows read, {rejected} rejected; {len(x["fields"])} '
    f'fields{files}</p><p class="note">{html.escape(options)}</p>'
    + _table([_heads('', 'rows', 'clicks', 'click rate', '95 % interval')], rows)
  )


def _card(title: str, note: str, body: str, anchor: str = '') -> str:
  mark = f' id="{anchor}"' if anchor else ''
  return (
    f'<section class="card"{mark}><h3>{html.escape(title)}</h3>'
    f'<p class="note">{html.escape(note)}</p>{body}</section>'
  )


def _lengths(s: dict, rows: int) -> str:
  counts = s['rows_by_length_train']
  wide = math.ceil(len(counts) / MOST_BARS)
  starts = range(0, len(counts), wide)
  labels = [str(start) for start in starts]
  shares = [sum(counts[start : start + wide]) / max(1, rows) for start in starts]
  said = 'events in a row' if wide == 1 else f'events in a row (from, {wide} lengths a bar)'
  note = (
    f'Up to {s["length"]} events of {", ".join(s["attributes"])}; '
    f'{s["mean_events"]["train"]:.1f} on average in train, none in '
    f'{percent(s["empty"]["train"])} % of the rows, full in {percent(s["full"]["train"])} %.'
  )
  return _card('Behaviour sequence', note, charts.bars(labels, shares, _percent_tick, said))


def _percent_tick(tick: float) -> str:
  return f'{round(100 * tick, 6):g} %'


def _groups(g: dict) -> str:
  labels = [
    str(low) if low == high else f'{low}-{high}' for low, high, _ in g['groups_by_rows_train']
  ]
  labels = [
    label if len(label) <= 8 else f'{charts.compact(low)}+'
    for label, (low, _, _) in zip(labels, g['groups_by_rows_train'], strict=True)
  ]
  counts = [count for _, _, count in g['groups_by_rows_train']]
  again = g['rows_of_groups_in_train']
  note = (
    f'{g["groups"]:,} in all, {g["seen"]["train"]:,} in train, with {g["mean_rows_train"]:.1f} '
    f'rows each (median {g["median_rows_train"]:.0f}). Of the rows of validation and test '
    f'{percent(again["validation"])} % and {percent(again["test"])} % are of those. '
    'Bars: how many have so many rows.'
  )
  return _card(
    f'Rows by {g["name"]}', note, charts.bars(labels, counts, charts.compact, 'rows in train')
  )


def _items(items: dict) -> str:
  rows = [
    [
      part['part'],
      f'{part["ids"]:,}',
      *(f'{percent(part["share"][split])} %' for split in SPLITS),
      *(
        f'{100 * part["click_rate"][split]:.2f} %' if part['rows'][split] else ''
        for split in SPLITS
      ),
    ]
    for part in items['parts']
  ]
  head = [
    '<th></th><th></th><th colspan="3">share of rows</th><th colspan="3">click rate</th>',
    _heads(html.escape(items['field']), 'ids', *SPLITS, *SPLITS),
  ]
  return (
    '<h2>Items</h2><p class="note">Head: the commonest items, which make half of the known '
    'training rows; torso: up to nine tenths; tail: all others, unknown ones among them.</p>'
    + _table(head, rows)
  )


def _field_rows(fields: list[dict]) -> str:
  head = [
    '<th></th><th></th><th></th><th colspan="3">unknown, %</th><th></th>'
    '<th colspan="2">ids in</th><th colspan="2">ids seen, %</th><th></th>',
    _heads(
      'field',
      'ids',
      'missing, %',
      'train',
      'valid.',
      'test',
      'top id, %',
      '50 %',
      '90 %',
      'once',
      '&lt; 10 times',
      'click rate, %',
    ),
  ]
  rows = [
    [
      f'<a href="#f{f}">{html.escape(x["name"])}</a>',
      f'{x["vocab_size"]:,}',
      percent(x['missing_rate_train']),
      *(percent(x['unknown_rate'][split]) for split in SPLITS),
      percent(x['commonest_share']),
      f'{x["ids_of_half"]:,}',
      f'{x["ids_of_90_percent"]:,}',
      percent(x['seen_once']),
      percent(x['seen_rarely']),
      rate_range(x['click_rate_range']).replace('-', ' to '),
    ]
    for f, x in enumerate(fields)
  ]
  return (
    '<h2>Fields</h2>'
    + _table(head, rows, 'fields')
    + '<p class="note">Of training rows, where no split is named. ids: size of the vocabulary, '
    'with padding and the unknown id. ids in 50 %, 90 %: the fewest ids that make this share of '
    'the known rows. click rate: lowest and highest of the ten commonest ids that have '
    f'{ENOUGH_ROWS} rows.</p>'
  )


def _field_card(f: int, x: dict, frame: dict) -> str:
  cover = x['coverage']
  kinds = [f'{x["vocab_size"]:,} ids']
  if x['hashed']:
    kinds.append(f'hashed, {x["ids_seen"]:,} occur')
  elif x['min_count'] > 1:
    kinds.append(f'from {x["min_count"]} rows on')
  if cover['missing_kept'] is not None:
    kinds.append('missing is a token' if cover['missing_kept'] else 'missing as unknown')
  said = ' '.join(
    f'<span><span class="key {kind}"></span>{kind} {percent(cover[kind])} %</span>'
    for kind in ('known', 'missing', 'unknown')
    if cover[kind] > 0
  )
  each = x['click_rates_by'] == 'id'
  by = 'value' if each else 'tenth of the rows, from common to rare ids'
  places = None if each else [int(point['label']) - 1 for point in x['click_rates']]
  body = (
    charts.coverage(cover['known'], cover['missing'], cover['unknown'])
    + f'<p class="note key-line">{said}</p><p class="what">Rows of each id</p>'
    + charts.rank_frequency(x['rank_frequency'], frame['ids'], frame['rows'])
    + '<p class="what">Click rate</p>'
    + charts.click_rates(x['click_rates'], frame['mean'], frame['rate'], by, places)
  )
  return _card(x['name'], ', '.join(kinds), body, f'f{f}')


def _frame(x: dict) -> dict:
  """Axes that all fields share, so that they can be compared at a glance."""
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


def page(x: dict) -> str:
  """The whole page."""
  frame = _frame(x)
  people = ''
  if x['sequence']:
    people += _lengths(x['sequence'], x['splits']['train']['rows'])
  if x['groups']:
    people += _groups(x['groups'])
  people = f'<h2>Behaviour</h2><div class="cards">{people}</div>' if people else ''
  items = _items(x['items']) if x['items'] else ''
  cards = ''.join(_field_card(f, field, frame) for f, field in enumerate(x['fields']))
  return (
    '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width,initial-scale=1">'
    f'<title>{html.escape(x["dataset"])}</title><style>{STYLE}</style></head><body>'
    f'{_head(x)}{people}{items}{_field_rows(x["fields"])}'
    '<h2>Field by field</h2><p class="note">Training rows. All fields share their axes. Click '
    'rates have 95 % binomial intervals; the dashed line is the click rate of all training rows, '
    'a hollow dot lies beyond the axis.</p>'
    f'<div class="cards">{cards}</div></body></html>\n'
  )
