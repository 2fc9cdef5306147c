# SPDX-License-Identifier: Apache-2.0
"""Public functions of metrics, laws, embeddings and connectors show how to call them."""

import doctest
import importlib
import inspect
import pathlib

import pytest

REPO = pathlib.Path(__file__).resolve().parents[2]
ROOMS = ('metrics', 'scaling/laws', 'embeddings', 'models/connectors')
MODULES = {
  path.relative_to(REPO / 'deres_jax').with_suffix('').as_posix(): path
  for room in ROOMS
  for path in sorted((REPO / 'deres_jax' / room).glob('*.py'))
  if path.name != '__init__.py'
}


def _module(name: str):
  return importlib.import_module(f'deres_jax.{name.replace("/", ".")}')


def _has_method(cls: type) -> bool:
  return any(
    inspect.isfunction(value) or isinstance(value, classmethod | staticmethod)
    for name, value in vars(cls).items()
    if not name.startswith('_')
  )


def _without_example(name: str) -> set[str]:
  """Public functions, and public classes with methods, whose docstrings hold no `>>>`."""
  module = _module(name)
  missing = set()
  for member, value in vars(module).items():
    if member.startswith('_') or getattr(value, '__module__', '') != module.__name__:
      continue
    if inspect.isfunction(value) or (inspect.isclass(value) and _has_method(value)):
      texts = [value.__doc__]
      if inspect.isclass(value):
        texts += [x.__doc__ for x in vars(value).values() if inspect.isroutine(x)]
      if not any(text and '>>>' in text for text in texts):
        missing.add(f'{name}.{member}')
  return missing


@pytest.mark.parametrize('name', MODULES)
def test_examples_run(name):
  flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
  assert not doctest.testmod(_module(name), optionflags=flags).failed


def test_every_public_function_has_an_example():
  missing = set().union(*(_without_example(name) for name in MODULES))
  assert not missing, 'add an example (>>>) to the docstring'
