# SPDX-License-Identifier: Apache-2.0
"""Every public module, class, function and method says what it is."""

import ast
import pathlib

import pytest

REPO = pathlib.Path(__file__).resolve().parents[2]
FILES = sorted(f for p in ('deres_jax', 'data_pipelines') for f in (REPO / p).rglob('*.py'))

# A Linen module's class tells shapes and parameters; the methods of a connector are the contract
# at the head of models/connectors/deres.py, and its class says what this one does in them.
TOLD_BY_CLASS = ('setup', 'start', 'read', 'write', 'finish')


def obvious(node) -> bool:
  """A property of one line."""
  decorators = [d.id for d in node.decorator_list if isinstance(d, ast.Name)]
  return 'property' in decorators and len(node.body) == 1


def silent(node, name: str, linen: bool = False):
  """Names of what stands below `node` and says nothing."""
  for child in node.body:
    if not isinstance(child, ast.ClassDef | ast.FunctionDef) or child.name.startswith('_'):
      continue
    full, said = f'{name}{child.name}', ast.get_docstring(child)
    if isinstance(child, ast.ClassDef):
      if not said:
        yield full
      yield from silent(child, f'{full}.', linen)
    elif not said and not obvious(child) and not (linen and child.name in TOLD_BY_CLASS):
      yield full


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(REPO)))
def test_all_that_is_public_has_a_docstring(path):
  tree = ast.parse(path.read_text())
  assert not tree.body or ast.get_docstring(tree), 'the module'
  assert not list(silent(tree, '', linen='models' in path.parts))
