# SPDX-License-Identifier: Apache-2.0
"""Writes the tables of docs/models.md from the registered models: `make docs`.

A table stands between `<!-- NAME -->` and `<!-- end -->`; the rest of the page is written by hand.
"""

import functools
import pathlib
import re

import formulas
import jax
import numpy as np

from deres_jax import config, models
from deres_jax.costs import flops
from deres_jax.models.classic import CLASSICS
from deres_jax.models.inputs import Context

PAGE = pathlib.Path(__file__).resolve().parents[3] / 'docs' / 'models.md'
EXAMPLES = 128


@functools.cache
def figures(backbone: str, connector: str = 'prenorm') -> tuple[int, float]:
  """Dense parameters and forward FLOPs an example at the common size of the page."""
  c = config.base(f'model.backbone={backbone},model.connector={connector},model.depth=4')
  c.model.tokenizer = 'autosplit'
  c.model.embed_dim = 1 if backbone == 'lr' else 16
  c = config.resolve(c)
  module = models.build(c, models.Layout(39), 0.0)
  embeddings = jax.ShapeDtypeStruct((EXAMPLES, 39, models.embedding_width(c.model)[0]), np.float32)
  variables = jax.eval_shape(module.init, jax.random.key(0), embeddings, Context())
  counted = flops.count(lambda v, x: module.apply(v, x, Context()), variables, embeddings)
  return sum(x.size for x in jax.tree.leaves(variables['params'])), counted.total / EXAMPLES


def _name(name: str, kind) -> str:
  """The name, with a link to its file; of a fused class to the one that it must equal."""
  file = kind.__module__.replace('.fused_', '.').replace('.', '/')
  return f'[`{name}`](../{file}.py)'


def _paper(paper: str) -> str:
  is_arxiv = re.fullmatch(r'\d{4}\.\d{5}', paper)
  return f'[{paper}](https://arxiv.org/abs/{paper})' if is_arxiv else paper


def _size(backbone: str) -> tuple[str, str]:
  if backbone == 'din':  # reads sequences, which the common data has not
    return '', ''
  parameters, forward = figures(backbone)
  return f'{parameters:,}', f'{forward / 1e6:.2f}'


def _table(head: str, rows) -> str:
  rule = '|'.join('---' for _ in head.split('|'))
  lines = [f'| {" | ".join(cells)} |'.replace('|  |', '| |') for cells in rows]
  return '\n'.join([f'| {head} |', f'|{rule}|', *lines])


def _backbones() -> str:
  return _table(
    '`model.backbone` | paper | a layer | our reading | parameters | MFLOP an example | '
    'the paper’s own',
    (
      (_name(name, row.sublayers), _paper(row.paper), row.rule, row.ours, *_size(name), row.theirs)
      for name, row in models.TOKEN_BACKBONES.items()
    ),
  )


def _classics() -> str:
  return _table(
    '`model.backbone` | paper | logit | our reading | parameters | MFLOP an example',
    (
      (_name(name, row.kind), _paper(row.paper), row.rule, row.ours, *_size(name))
      for name, row in CLASSICS.items()
    ),
  )


def _connectors() -> str:
  base = figures('onetrans')[1]

  def cells(name, row):
    parameters, forward = figures('onetrans', name)
    extra = f'{100 * (forward / base - 1):.2f} %'
    return _name(name, row.kind), _paper(row.paper), row.rule, row.ours, f'{parameters:,}', extra

  return _table(
    '`model.connector` | paper | rule | our reading | parameters | extra',
    (cells(*item) for item in models.CONNECTORS.items()),
  )


def _formulas() -> str:
  rows = [*models.TOKEN_BACKBONES.items(), *CLASSICS.items(), *models.CONNECTORS.items()]
  return _table(
    'name | parameters | forward FLOPs',
    ((f'`{name}`', f'`{row.parameters}`', f'`{row.flops}`') for name, row in rows),
  )


def _symbols() -> str:
  return _table('symbol | meaning', ((f'`{s}`', text) for s, text in formulas.SYMBOLS.items()))


TABLES = {
  'backbones': _backbones,
  'classics': _classics,
  'connectors': _connectors,
  'symbols': _symbols,
  'formulas': _formulas,
}


def written(page: str) -> str:
  """Returns the page with all tables written anew."""
  for name, make in TABLES.items():
    before, mark, rest = page.partition(f'<!-- {name} -->\n')
    assert mark, f'docs/models.md has no place <!-- {name} -->'
    page = f'{before}{mark}{make()}\n<!-- end -->{rest.partition("<!-- end -->")[2]}'
  return page


if __name__ == '__main__':
  PAGE.write_text(written(PAGE.read_text()))
