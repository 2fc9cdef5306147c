# SPDX-License-Identifier: Apache-2.0
"""Config strings: 'connector=mhc,depth=16', what stands after the colon of --config.

A field is named by its path (model.depth), or by its last name alone where only one section has it
(depth). Names that several sections have (block_layers, dropout, path) are never guessed: the error
lists the fields, and the long name is to be given.
"""

import ast
import difflib
import math
from typing import Any

from ml_collections import ConfigDict

from deres_jax.core.errors import UserError, shown


def apply(config: ConfigDict, overrides: str) -> ConfigDict:
  """Sets fields of `config`, each text read in the type of the field's default.

  Raises: UserError.
  """
  for name, text in settings(config, overrides):
    *path, leaf = name.split('.')
    node = config
    for key in path:
      node = _child(node, key, name)
    old = _child(node, leaf, name)
    if isinstance(old, ConfigDict):
      raise UserError(f'config {name!r} is a section: name one of its fields, {_fields(old)}')
    node[leaf] = _parse(text, type(old), name)
  return config


def settings(config: ConfigDict, overrides: str) -> list[tuple[str, str]]:
  """Full names of fields and the texts that they are set to, in order. Raises UserError."""
  out = []
  for item in filter(None, overrides.split(',')):
    name, equals, text = item.partition('=')
    if not equals:
      raise UserError(f'config string {item!r}: expected name=value, such as model.depth=16')
    out.append((name if '.' in name else _full_name(config, name), text))
  return out


def _full_name(config: ConfigDict, name: str) -> str:
  if name in config:
    return name
  nested = [(k, field) for k, v in config.items() if isinstance(v, ConfigDict) for field in v]
  found = [f'{section}.{field}' for section, field in nested if field == name]
  if len(found) == 1:
    return found[0]
  if found:
    raise UserError(f'config field {name!r} is in several sections: give {" or ".join(found)}')
  near = difflib.get_close_matches(name, {field for _, field in nested})
  close = [f'{section}.{field}' for section, field in nested if field in near]
  meant = f'did you mean {" or ".join(close)}? ' if close else ''
  raise UserError(f'unknown config field {name!r}: {meant}sections are {_fields(config)}')


def _child(node: ConfigDict, key: str, name: str):
  if not isinstance(node, ConfigDict) or key not in node:
    fields = _fields(node) if isinstance(node, ConfigDict) else 'none, it is a value'
    raise UserError(f'unknown config field {name!r}: {key!r} is not one of {fields}')
  return node[key]


def _fields(node: ConfigDict) -> str:
  return ', '.join(sorted(node))


def _parse(text: str, kind: type, name: str):
  if kind is str:
    return text
  if kind is bool and text.lower() in ('true', 'false'):
    return text.lower() == 'true'
  try:
    value = ast.literal_eval(text)
  except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # as it documents
    value = None
  if kind is float and type(value) in (int, float):
    return as_float(value)
  if kind is int and type(value) is int:
    return value
  raise UserError(f'config {name}={shown(text)}: expected a {kind.__name__}')


def as_float(value: float) -> float:
  """Infinity, which `config.resolve` refuses, for a whole number that no float holds."""
  try:
    return float(value)
  except OverflowError:
    return math.inf


Overrides = dict[str, Any]


def as_text(overrides: Overrides) -> str:
  """Formats overrides: 'model.depth=8, optim.dense_lr=0.003'."""
  return ', '.join(f'{k}={as_flag(v)}' for k, v in overrides.items())


def as_flag(value: Any) -> str:
  """As a flag takes it: exact for every type of field."""
  return str(value).lower() if isinstance(value, bool) else str(value)
