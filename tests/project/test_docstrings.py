# SPDX-License-Identifier: Apache-2.0
"""Public things have a docstring; docstrings have one form and use plain words."""

import ast
import pathlib
import re

import pytest

REPO = pathlib.Path(__file__).resolve().parents[2]
FILES = sorted(f for p in ('deres_jax', 'data_pipelines') for f in (REPO / p).rglob('*.py'))
# Phrases that a native reader stumbles over.
STUMBLES = re.compile(
  r'\b(is|are|was|were) (told|looked at|looked for|asked for|spoken of)\b|\bso (many|few|wide)\b'
  r'|\bsays? so\b|\bwithout a word\b|\bstands? (beside|together|in it)\b|(^|[.:] )What [a-z]',
  re.MULTILINE,
)


def _one_line_property(node) -> bool:
  decorators = [d.id for d in node.decorator_list if isinstance(d, ast.Name)]
  return 'property' in decorators and len(node.body) == 1


def _undocumented(node, name: str):
  """Yields public things below `node` without a docstring; methods of subclasses need none."""
  overrides = isinstance(node, ast.ClassDef) and bool(node.bases)
  for child in node.body:
    if not isinstance(child, ast.ClassDef | ast.FunctionDef) or child.name.startswith('_'):
      continue
    full = f'{name}{child.name}'
    if isinstance(child, ast.ClassDef):
      if not ast.get_docstring(child):
        yield full
      yield from _undocumented(child, f'{full}.')
    elif not ast.get_docstring(child) and not overrides and not _one_line_property(child):
      yield full


def _malformed(tree: ast.Module):
  """Yields the docstrings, private ones too, that break the form."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
      text = ast.get_docstring(node)
      if not text:
        continue
      first, _, rest = text.partition('\n')
      plain = not STUMBLES.search(text)
      if not (first[0].isupper() and first.endswith('.') and rest[:1] in ('', '\n') and plain):
        yield first


def _name(path: pathlib.Path) -> str:
  return str(path.relative_to(REPO))


@pytest.mark.parametrize('path', FILES, ids=_name)
def test_public_things_have_a_docstring(path):
  tree = ast.parse(path.read_text())
  assert not tree.body or ast.get_docstring(tree), 'the module'
  assert not list(_undocumented(tree, ''))


@pytest.mark.parametrize('path', FILES, ids=_name)
def test_first_lines_are_one_plain_sentence(path):
  assert not list(_malformed(ast.parse(path.read_text())))


@pytest.mark.parametrize(
  'text',
  [
    'lower case.',
    'No full stop',
    'Two\nlines.',
    'What it holds.',
    'Rows, so many.',
    'All is told.',
  ],
)
def test_malformed_docstrings_are_found(text):
  assert list(_malformed(ast.parse(f'"""{text}"""')))


def test_missing_docstrings_are_found():
  tree = ast.parse(
    'class A:\n  def run(self): pass\nclass B(A):\n  """B."""\n  def run(self): pass'
  )
  assert list(_undocumented(tree, '')) == ['A', 'A.run']
