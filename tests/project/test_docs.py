# SPDX-License-Identifier: Apache-2.0
"""Figures that stand in docs/ are the code's."""

import pathlib
import re

import jax
import numpy as np
import pytest

from deres_jax import config, models
from deres_jax.costs import flops
from deres_jax.models.inputs import Context

PAGE = (pathlib.Path(__file__).resolve().parents[2] / 'docs' / 'models.md').read_text()
ROWS = 128


def table(title):
  """Rows of the table under a heading: name -> cells by column."""
  lines = PAGE.split(f'## {title}\n')[1].split('\n## ')[0].splitlines()
  head, _, *body = [[c.strip() for c in l.split('|')[1:-1]] for l in lines if l.startswith('|')]
  out = {}
  for cells in body:
    names = re.findall(r'`(\w+)`', cells[0])
    for place, name in enumerate(names):
      # Two models in one line have their figures side by side.
      own = [c.split(' / ')[place % len(c.split(' / '))] for c in cells]
      out[name] = dict(zip(head, own, strict=True))
  return out


def figures(backbone, connector='prenorm'):
  """Dense parameters, and forward FLOPs a row, at the common size of the page."""
  c = config.base(f'model.backbone={backbone},model.connector={connector},model.depth=4')
  c.model.tokenizer = 'autosplit'
  c.model.embed_dim = 1 if backbone == 'lr' else 16
  c = config.resolve(c)
  module = models.build(c, models.Layout(39), 0.0)
  rows = jax.ShapeDtypeStruct((ROWS, 39, models.row_width(c)[0]), np.float32)
  variables = jax.eval_shape(module.init, jax.random.key(0), rows, Context())
  counted = flops.count(lambda v, r: module.apply(v, r, Context()), variables, rows)
  return sum(x.size for x in jax.tree.leaves(variables['params'])), counted.total / ROWS


BACKBONES = table('Token backbones') | table('Classic models')
CONNECTORS = table('Connectors')


def test_every_model_and_connector_has_a_row():
  assert BACKBONES.keys() == models.BACKBONES.keys()
  assert CONNECTORS.keys() == models.CONNECTORS.keys()


@pytest.mark.parametrize('name', [n for n in BACKBONES if n != 'din'])  # din needs sequences
def test_figures_of_a_backbone(name):
  parameters, forward = figures(name)
  row = BACKBONES[name]
  assert (row['parameters'], row['MFLOP a row']) == (f'{parameters:,}', f'{forward / 1e6:.2f}')


@pytest.mark.parametrize('name', CONNECTORS)
def test_figures_of_a_connector(name):
  parameters, forward = figures('onetrans', name)
  extra = forward / figures('onetrans')[1] - 1
  row = CONNECTORS[name]
  assert row['parameters'] == f'{parameters:,}'
  assert float(row['extra'].rstrip(' %')) == pytest.approx(100 * extra, abs=0.006)


@pytest.mark.parametrize('path', sorted(set(re.findall(r'test_\w+\.py', PAGE))))
def test_named_tests_are_there(path):
  assert list(pathlib.Path(__file__).parents[1].rglob(path)), path
