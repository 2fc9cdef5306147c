# SPDX-License-Identifier: Apache-2.0
"""The page of `deres_jax.inspect`: one file, inline SVG, no script, nothing fetched.

All text that comes from files is escaped.
"""

import html
from typing import Any

from deres_jax.inspect import charts
from deres_jax.inspect.charts import signed
from deres_jax.report import svg
from deres_jax.report.html import Html, table
from deres_jax.report.style import STYLE
from deres_jax.report.svg import Look, key

_STYLE = """
.map{max-width:100%}.box .map{max-width:none}svg.heat text{fill:var(--text)}
.ground{fill:var(--panel)}rect.pos,path.pos{fill:var(--c1)}rect.neg,path.neg{fill:var(--c2)}
svg .mean-of{font-size:13px;font-weight:600}svg .sd-of{font-size:10.5px;fill:var(--soft)!important}
.middle{stroke:currentColor;stroke-width:5;stroke-linecap:round}
.small{display:grid;grid-template-columns:repeat(auto-fill,minmax(11rem,1fr));gap:1.2rem 1.6rem}
.small h3{margin:0 0 .2rem}.word{font-weight:650;white-space:nowrap}
.claims{display:grid;grid-template-columns:minmax(0,1.1fr) minmax(0,1fr);gap:.9rem 2.4rem}
.checks :is(td,th){vertical-align:middle}.claims p{margin:0}.strip{min-width:12rem}
@media(max-width:42rem){.claims{grid-template-columns:minmax(0,1fr);gap:.2rem}
.claims p:nth-child(even){margin-bottom:.9rem}}
"""

_LOOKS = {
  'identity path': Look('c1', 'circle'),
  'recall path': Look('c2', 'triangle'),
  'sub-layer output': Look('c3', 'square'),
  'what is read': Look('c0', 'diamond'),
}
_NORMS = dict(zip(('identity', 'recall', 'branch', 'read'), _LOOKS, strict=True))


def site_name(name: str) -> str:
  """'attention_0' -> '1 attention': layers count from 1."""
  kind, _, layer = name.rpartition('_')
  return f'{int(layer) + 1} {kind}' if kind and layer.isdigit() else name


def interval(x: dict[str, Any], form: str = '.5f') -> str:
  """'−0.02536 [−0.02544, −0.02528]'."""
  if x['figure'] is None:
    return 'no figure'
  return f'{signed(x["figure"], form)} [{signed(x["low"], form)}, {signed(x["high"], form)}]'


def summary(c: dict[str, Any]) -> str:
  """The claims and the AUC, for a terminal."""
  lines = [f'{c["split"]} auc {c["untouched"]["auc"]:.5f} of step {c["step"]}, {c["rows"]:,} rows']
  for x in c['claims']:
    remark = f' ({x["remark"]})' if x['remark'] else ''
    lines.append(f'{x["verdict"]}: {x["claim"]}: {interval(x)}{remark}')
  return '\n'.join(lines)


# Sections.


def _claims(c: dict[str, Any]) -> str:
  out = []
  for x in c['claims']:
    remark = f'; {x["remark"]}' if x['remark'] else ''
    word = f'<span class="word">{html.escape(x["verdict"])}</span>'
    measured = f'<span class="soft">{html.escape(x["measured"] + remark)}</span>'
    out.append(
      f'<p><b>{html.escape(x["claim"])}</b>: {word}</p>'
      f'<p class="figure">{html.escape(interval(x))} {measured}</p>'
    )
  return f'<div class="claims">{"".join(out)}</div>'


def _gates(c: dict[str, Any]) -> str:
  if not c['gates']:
    return ''
  names = [site_name(c['sites'][g['site']]) for g in c['gates']]
  drawn = ''.join(
    charts.gates(names, c['gates'], width, kind) for width, kind in ((940, 'wide'), (400, 'narrow'))
  )
  static = not any(g['depends_on_input'] for g in c['gates'])
  rows = [
    [name, f'{g["mean"]:.3f}', f'{g["quantiles"]["0.05"]:.3f}', f'{g["quantiles"]["0.5"]:.3f}',
     f'{g["quantiles"]["0.95"]:.3f}', f'{g["near_0"]:.1%}', f'{g["near_1"]:.1%}']
    for name, g in zip(names, c['gates'], strict=True)
  ]  # fmt: skip
  head = ['', 'mean', '5 %', 'median', '95 %', 'below 0.05', 'above 0.95']
  over = 'hidden dimensions; it is the same for all rows' if static else 'dimensions and rows'
  return (
    f'<h2>Gates by depth</h2><p>The gate g multiplies '
    f'{html.escape(c["gate_multiplies"])}. Its values over {over}.</p>'
    f'<figure>{drawn}<figcaption>Hills: histogram. Thin line: 5 to 95 %; thick: 25 to 75 %; dot: '
    f'median; dashed: 0.5.</figcaption></figure>{table(head, rows, "Gates")}'
  )


_KEY = (
  'Blue: positive mean; orange with ▾ and a minus: negative (forgetting). Bar at the foot: share '
  'of rows and tokens whose weight is negative. ±: standard deviation over rows and tokens.'
)


def _cells(w: dict[str, Any], row: int, columns: list[str], part=None) -> dict:
  """Cells of one row of a map; `part` picks an output where weights are a matrix."""
  picked = {k: w[k] if part is None else w[k][part] for k in ('mean', 'sd', 'negative')}
  return {
    (row, columns.index(name)): {k: picked[k][j] for k in picked}
    for j, name in enumerate(w['sources'])
  }


def _columns(some: list[dict[str, Any]]) -> list[str]:
  """All sources in the order of depth, the open block last."""
  names = list(dict.fromkeys(name for w in some for name in w['sources']))
  return sorted(names, key=lambda name: name == 'open block')


def _top(cells: dict) -> float:
  return max(abs(cell['mean']) for cell in cells.values())


def _map(rows: list[str], columns: list[str], cells: dict, said: str) -> str:
  drawn = charts.heat(rows, columns, cells, said, _top(cells))
  return f'<div class="box" tabindex="0" role="region" aria-label="{said}">{drawn}</div>'


def _by_read(c: dict[str, Any], some: list[dict[str, Any]], said: str, part=None) -> str:
  columns, cells = _columns(some), {}
  for i, w in enumerate(some):
    cells |= _cells(w, i, columns, part)
  return _map([site_name(c['sites'][w['site']]) for w in some], columns, cells, said)


def _recall(c: dict[str, Any]) -> str:
  some = [w for w in c['weights'] if w['kind'] == 'recall']
  if not some:
    return ''
  return (
    '<h2>What each read takes from what came before</h2><p>A row for each read, the deepest last; '
    f'a column for each source.</p><figure>{_by_read(c, some, "Weights by read and source")}'
    f'<figcaption>{_KEY}</figcaption></figure>'
  )


def _streams(c: dict[str, Any]) -> str:
  """Maps of connectors with several streams."""
  kinds = {kind: [w for w in c['weights'] if w['kind'] == kind] for kind in
           ('pre', 'res', 'pre_res', 'post')}  # fmt: skip
  if not kinds['post']:
    return ''
  both = bool(kinds['pre_res'])
  pre, first = (kinds['pre_res'], 0) if both else (kinds['pre'], None)
  small = []
  for w in kinds['pre_res'] or kinds['res']:
    outputs, columns = range(both, len(w['mean'])), list(w['sources'])
    cells = {}
    for i, k in enumerate(outputs):
      cells |= _cells(w, i, columns, k)
    short = [name.removeprefix('stream ') for name in columns]
    drawn = charts.heat(short, short, cells, 'Mixing of streams', _top(cells))
    small.append(f'<div><h3>{html.escape(site_name(c["sites"][w["site"]]))}</h3>{drawn}</div>')
  return (
    '<h2>Streams</h2><h3>What a sub-layer reads of each stream (H<sup>pre</sup>)</h3>'
    f'{_by_read(c, pre, "H pre", first)}<h3>What each stream takes of its output '
    f'(H<sup>post</sup>)</h3>{_by_read(c, kinds["post"], "H post")}'
    '<h3>How streams are mixed (H<sup>res</sup>): row, the new stream; column, the old one</h3>'
    f'<div class="small">{"".join(small)}</div><p class="note">{_KEY}</p>'
  )


def _fields(c: dict[str, Any]) -> str:
  """Recall weights, and gates that depend on the input, by kind of token over deep reads."""
  deep = [
    w for w in c['weights']
    if w['kind'] == 'recall' and w['tokens'] and w['site'] >= (len(c['sites']) - 1) / 2
  ]  # fmt: skip
  if not deep:
    return ''
  columns, rows = _columns(deep), list(deep[0]['tokens'])  # a pyramid drops some later
  cells = {}
  for j, name in enumerate(columns):
    having = [w for w in deep if name in w['sources']]
    for i, kind in enumerate(rows):
      own = [(w['tokens'][kind], w['sources'].index(name)) for w in having if kind in w['tokens']]
      if own:
        mean, negative = (sum(x[k][at] for x, at in own) / len(own) for k in ('mean', 'negative'))
        cells[i, j] = {'mean': mean, 'sd': 0.0, 'negative': negative}
  gates = [g for g in c['gates'] if g['tokens']]
  said = ''
  if gates:
    head = ['', *(site_name(c['sites'][g['site']]) for g in gates)]
    lines = [
      [kind, *(f'{g["tokens"][kind]["mean"]:.3f}' if kind in g['tokens'] else '' for g in gates)]
      for kind in rows
    ]
    said = f'<h3>Mean gate</h3>{table(head, lines, "Mean gate by kind of token")}'
  return (
    '<h2>By kind of token</h2><p>Mean weight on each source, over the reads of the last half of '
    'the depth that have it.</p><figure>'
    f'{_map(rows, columns, cells, "Weights by token and source")}</figure>{said}'
  )


def _depth(c: dict[str, Any]) -> str:
  names = [site_name(name) for name in c['sites']]
  norms = {
    title: [(d['site'], d['rms'][k]) for d in c['depth'] if k in d['rms']]
    for k, title in _NORMS.items()
  }
  norms = {title: points for title, points in norms.items() if points}
  one = {'value': Look('c1', 'circle')}

  def single(title: str, field: str, note: str, zero: bool = True) -> str:
    points = [(d['site'], d[field]) for d in c['depth'] if d[field] is not None]
    drawn = charts.lines({'value': points}, one, names, title, zero)
    return f'<figure><h3>{title}</h3>{drawn}<figcaption>{note}</figcaption></figure>'

  looks = {k: _LOOKS[k] for k in norms}
  tokens = f'{c["gradient_tokens"]:.3g}'
  return (
    '<h2>By depth</h2><div class="pair"><figure><h3>Size of the paths</h3>'
    f'{key(looks)}{charts.lines(norms, looks, names, "Size of the paths")}<figcaption>Root mean '
    'square of a token, mean over rows and tokens. What is read is the mixture before its norm.'
    '</figcaption></figure>'
    + single(
      'Gradient', 'gradient',
      'L2 norm of the gradient of a row’s loss with respect to the output of the sub-layer, mean '
      f'over {c["gradient_rows"]:,} rows; with respect to the tokens before the first: {tokens}.',
    )
    + single(
      'Effective rank', 'effective_rank',
      f'Of what is read: exp of the entropy of singular values of all tokens less their mean; at '
      f'most {c["dim"]}.',
    )
    + single('Cosine to the embedding', 'cosine', 'Of what is read, mean over rows and tokens.',
             zero=False)
    + '</div>'
  )  # fmt: skip


def _checks(c: dict[str, Any]) -> str:
  if not c['checks']:
    return ''
  widths = sorted(x['interval'] for x in c['checks'])
  reach = max(4 * widths[len(widths) // 2], 1e-6)
  low = max(min(x['difference'] - x['interval'] for x in c['checks']), -3 * reach)
  high = min(max(x['difference'] + x['interval'] for x in c['checks']), reach)
  scale = svg.Scale(min(low, -reach / 4), max(high, reach / 4), 6, 214)
  rows = []
  for x in c['checks']:
    ends = f'[{signed(x["difference"] - x["interval"], ".5f")}, '
    ends += f'{signed(x["difference"] + x["interval"], ".5f")}]'
    said = f'{x["change"]}: {signed(x["difference"], ".5f")} {ends}'
    drawn = charts.strip(scale, x['difference'], x['interval'], said)
    p = f'{x["p_holm"]:.2g}' if x['p_holm'] > 1e-99 else '< 1e-99'
    figures = f'{x["auc"]:.5f}', signed(x['difference'], '.5f'), ends, p
    rows.append([x['change'], *figures, Html(drawn)])
  scaled = (
    ' The weights that are left are scaled to sum to 1 again.' if c['simplex'] else
    ' The weights that are left stay as they are.'
  )  # fmt: skip
  stays = '; it stays in the identity path' if 'identity' in c['depth'][0]['rms'] else ''
  head = ['change', 'AUC', 'difference', '95 % interval', 'p (Holm)', '']
  untouched = c['untouched']
  return (
    '<h2>What each part is worth</h2><p>The trained model with one thing changed at every read, on '
    f'the same {c["rows"]:,} rows; untouched it has AUC {untouched["auc"]:.5f} ± '
    f'{untouched["auc_se"]:.5f}. A source that is removed is read by no sub-layer and not by the '
    f'head{stays}.{scaled} Intervals are DeLong’s, paired.</p>'
    f'{table(head, rows, "Changes and what they cost", kind="checks")}'
    '<p class="note">A trained model with a part taken out is not a model trained without it: a '
    'small cost may still mean that training would have been worse.</p>'
  )


def _made(c: dict[str, Any]) -> str:
  items = [
    ('run', f'{c["workdir"]}, step {c["step"]}, seed {c["seed"]}, config {c["config_hash"]}'),
    ('rows', f'the first {c["rows"]:,} of {c["rows_of_split"]:,} of {c["split"]}'),
    ('versions', ', '.join(f'{k} {v}' for k, v in c['versions'].items())),
  ]
  listed = ''.join(f'<dt>{k}</dt><dd>{html.escape(v)}</dd>' for k, v in items)
  return (
    f'<h2>How it was made</h2><dl>{listed}</dl><p class="note">All figures: '
    '<a href="inspect.json">inspect.json</a>. Definitions: docs/inspect.md.</p>'
  )


def page(c: dict[str, Any]) -> str:
  """The whole page, of the content of inspect.json."""
  what = f'{c["backbone"]} + {c["connector"]}, {c["layers"]} layers'
  return (
    '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width,initial-scale=1">'
    f'<title>Inside {html.escape(what)}</title><style>{STYLE}{_STYLE}</style></head><body><header>'
    f'<p class="over">Inside a trained model</p><h1>{html.escape(what)} on '
    f'{html.escape(c["dataset"])}</h1><p class="over">seed {c["seed"]}, step {c["step"]}, '
    f'{c["rows"]:,} rows of {html.escape(c["split"])}, AUC {c["untouched"]["auc"]:.5f}</p></header>'
    f'<main><h2>Forgetting, in two claims</h2>{_claims(c)}<p class="note">95 % intervals over rows '
    'of data, of this one trained model: other seeds may say otherwise.</p>'
    f'{_recall(c)}{_streams(c)}{_gates(c)}{_checks(c)}{_depth(c)}{_fields(c)}{_made(c)}'
    '</main></body></html>\n'
  )
