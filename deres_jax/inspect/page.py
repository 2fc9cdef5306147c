# SPDX-License-Identifier: Apache-2.0
"""The page of `deres_jax.inspect`, from the content of inspect.json."""

from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from deres_jax.inspect import charts
from deres_jax.report import charts as drawing
from deres_jax.report import html
from deres_jax.report.charts import Look
from deres_jax.report.wording import number

# Names and looks of the paths whose size is drawn, by their key in inspect.json.
_PATHS = {
  'identity': ('identity path', Look('c1', 'o')),
  'recall': ('recall path', Look('c2', '^')),
  'branch': ('sub-layer output', Look('c3', 's')),
  'read': ('what is read', Look('c0', 'D')),
}
_DEPTH_TITLES = {
  'rms': 'Size of the paths',
  'gradient': 'Gradient',
  'effective_rank': 'Effective rank',
  'cosine': 'Cosine to the embedding',
}


def site_name(name: str) -> str:
  """Returns 'attention_0' as '1 attention': layers count from 1."""
  kind, _, layer = name.rpartition('_')
  return f'{int(layer) + 1} {kind}' if kind and layer.isdigit() else name


def interval(x: dict[str, Any], form: str = '.5f') -> str:
  """Returns '−0.02536 [−0.02544, −0.02528]'."""
  if x['figure'] is None:
    return 'no figure'
  return f'{number(x["figure"], form)} [{number(x["low"], form)}, {number(x["high"], form)}]'


def summary(c: dict[str, Any]) -> str:
  """Returns the claims and the AUC, for a terminal."""
  lines = [f'{c["split"]} auc {c["untouched"]["auc"]:.5f} of step {c["step"]}, {c["rows"]:,} rows']
  for x in c['claims']:
    remark = f' ({x["remark"]})' if x['remark'] else ''
    lines.append(f'{x["verdict"]}: {x["claim"]}: {interval(x)}{remark}')
  return '\n'.join(lines)


# Maps of weights.


def _row(w: dict[str, Any], row: int, columns: list[str], output: int | None = None) -> dict:
  """Returns the cells of one row of a map; `output` picks a row where weights are a matrix."""
  picked = {k: w[k] if output is None else w[k][output] for k in ('mean', 'sd', 'negative')}
  return {
    (row, columns.index(name)): {k: picked[k][j] for k in picked}
    for j, name in enumerate(w['sources'])
  }


def _columns(weights: list[dict[str, Any]]) -> list[str]:
  """Returns all sources in the order of depth, the open block last."""
  names = list(dict.fromkeys(name for w in weights for name in w['sources']))
  return sorted(names, key=lambda name: name == 'open block')


def _by_read(c: dict[str, Any], weights: list[dict[str, Any]], output: int | None = None) -> Figure:
  columns, cells = _columns(weights), {}
  for i, w in enumerate(weights):
    cells |= _row(w, i, columns, output)
  return charts.heat([site_name(c['sites'][w['site']]) for w in weights], columns, cells)


def _of_kind(c: dict[str, Any], kind: str) -> list[dict[str, Any]]:
  return [w for w in c['weights'] if w['kind'] == kind]


def _recall(c: dict[str, Any]) -> Figure | None:
  weights = _of_kind(c, 'recall')
  return _by_read(c, weights) if weights else None


def _streams(c: dict[str, Any]) -> dict[str, Any] | None:
  """Returns the maps of a connector with several streams."""
  post, both = _of_kind(c, 'post'), _of_kind(c, 'pre_res')
  if not post:
    return None
  pre = _by_read(c, both, 0) if both else _by_read(c, _of_kind(c, 'pre'))
  mixing = []
  for w in both or _of_kind(c, 'res'):
    columns, cells = list(w['sources']), {}
    for i, k in enumerate(range(bool(both), len(w['mean']))):
      cells |= _row(w, i, columns, k)
    names = [name.removeprefix('stream ') for name in columns]
    mixing.append((site_name(c['sites'][w['site']]), charts.heat(names, names, cells)))
  return {'pre': pre, 'post': _by_read(c, post), 'mixing': mixing}


# By kind of token.


def _deep(c: dict[str, Any]) -> list[dict[str, Any]]:
  """Returns the recall weights of the last half of the depth that vary by kind of token."""
  middle = (len(c['sites']) - 1) / 2
  return [w for w in _of_kind(c, 'recall') if w['tokens'] and w['site'] >= middle]


def _tokens(c: dict[str, Any]) -> Figure | None:
  """Draws the mean weight on each source by kind of token, over deep reads."""
  deep = _deep(c)
  if not deep:
    return None
  columns, rows, cells = _columns(deep), list(deep[0]['tokens']), {}  # a pyramid drops some later
  for j, source in enumerate(columns):
    for i, kind in enumerate(rows):
      values = [
        (w['tokens'][kind], w['sources'].index(source))
        for w in deep
        if source in w['sources'] and kind in w['tokens']
      ]
      if values:
        mean, negative = (
          sum(x[k][at] for x, at in values) / len(values) for k in ('mean', 'negative')
        )
        cells[i, j] = {'mean': mean, 'sd': 0.0, 'negative': negative}
  return charts.heat(rows, columns, cells)


# Gates, depth and changes.


def _gates(c: dict[str, Any]) -> list[Figure]:
  """Returns the chart of the gates, if there are any, for laptops and for phones."""
  names = [site_name(c['sites'][g['site']]) for g in c['gates']]
  return [charts.gates(names, c['gates'], wide) for wide in (True, False) if names]


def _depth(c: dict[str, Any]) -> dict[str, Figure]:
  """Draws what changes with depth, by the field of inspect.json."""
  names = [site_name(name) for name in c['sites']]
  sizes = {
    title: [(d['site'], d['rms'][key]) for d in c['depth'] if key in d['rms']]
    for key, (title, _) in _PATHS.items()
  }
  out = {'rms': charts.lines({k: v for k, v in sizes.items() if v}, dict(_PATHS.values()), names)}
  for field in ('gradient', 'effective_rank', 'cosine'):
    points = [(d['site'], d[field]) for d in c['depth'] if d[field] is not None]
    looks = {'value': Look('c1', 'o')}
    out[field] = charts.lines({'value': points}, looks, names, zero=field != 'cosine')
  return out


def _paths(c: dict[str, Any]) -> dict[str, Look]:
  """Returns the looks of the paths that the model has."""
  return dict(path for key, path in _PATHS.items() if any(key in d['rms'] for d in c['depth']))


# The page.


def _heat_svg(figure: Figure | None, name: str, description: str) -> Markup | None:
  return figure and drawing.svg(figure, name, description, 'heat', full_size=True)


def figures(c: dict[str, Any]) -> dict[str, Figure]:
  """Returns the charts to be saved beside the page, by their titles."""
  streams = _streams(c) or {'pre': None, 'post': None, 'mixing': []}
  gates = dict(zip(['Gates by depth'], _gates(c), strict=False))
  depth = _depth(c)
  drawing.legend(depth['rms'], _paths(c))
  drawn = {
    'Weights by read and source': _recall(c),
    'H pre': streams['pre'],
    'H post': streams['post'],
    **{f'H res, {name}': figure for name, figure in streams['mixing']},
    **gates,
    **{_DEPTH_TITLES[field]: figure for field, figure in depth.items()},
    'Weights by token and source': _tokens(c),
  }
  return {title: figure for title, figure in drawn.items() if figure}


def page(c: dict[str, Any]) -> str:
  """Returns the page as HTML, from the content of inspect.json."""
  gates = [
    drawing.svg(figure, f'gates-{kind}', 'Gates by depth', kind)
    for figure, kind in zip(_gates(c), ('wide', 'narrow'), strict=False)
  ]
  if streams := _streams(c):
    streams['pre'] = _heat_svg(streams['pre'], 'pre', 'H pre')
    streams['post'] = _heat_svg(streams['post'], 'post', 'H post')
    streams['mixing'] = [
      (name, _heat_svg(figure, f'mixing{i}', 'Mixing of streams'))
      for i, (name, figure) in enumerate(streams['mixing'])
    ]
  return html.render(
    'inspect.html',
    {
      'c': c,
      'model': f'{c["backbone"]} + {c["connector"]}, {c["layers"]} layers',
      'interval': interval,
      'sites': [site_name(name) for name in c['sites']],
      'kinds': list(_deep(c)[0]['tokens']) if _deep(c) else [],
      'recall': _heat_svg(_recall(c), 'recall', 'Weights by read and source'),
      'streams': streams,
      'gates': Markup('').join(gates),
      'strips': charts.strips(c['checks']),
      'paths': _paths(c),
      'depth': {k: drawing.svg(v, k, _DEPTH_TITLES[k]) for k, v in _depth(c).items()},
      'depth_titles': _DEPTH_TITLES,
      'tokens': _heat_svg(_tokens(c), 'tokens', 'Weights by token and source'),
      'facts': [
        ('run', f'{c["workdir"]}, step {c["step"]}, seed {c["seed"]}, config {c["config_hash"]}'),
        ('rows', f'the first {c["rows"]:,} of {c["rows_of_split"]:,} of {c["split"]}'),
        ('versions', ', '.join(f'{k} {v}' for k, v in c['versions'].items())),
      ],
    },
  )
