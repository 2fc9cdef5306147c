# SPDX-License-Identifier: Apache-2.0
"""Config strings: 'connector=mhc,depth=16', the part of --config after the colon.

A field is named by its path (model.depth), or by its last part alone if only one section has it
(depth). For a name of several sections (block_layers, dropout, path) the error lists the fields.
"""

import ast
import difflib
import math
from typing import Any

from ml_collections import ConfigDict

from deres_jax.core.errors import UserError, excerpt


def apply(config: ConfigDict, overrides: str) -> ConfigDict:
  """Sets fields of `config`; each text is parsed as the type of the field's default.

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
  """Returns the full names of fields and the texts they are set to, in order; raises UserError."""
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
  matches = [f'{section}.{field}' for section, field in nested if field == name]
  if len(matches) == 1:
    return matches[0]
  if matches:
    raise UserError(f'config field {name!r} is in several sections: give {" or ".join(matches)}')
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
  raise UserError(f'config {name}={excerpt(text)}: expected a {kind.__name__}')


def as_float(value: float) -> float:
  """Returns a float; infinity, which `resolve` refuses, for a number that is too large."""
  try:
    return float(value)
  except OverflowError:
    return math.inf


Overrides = dict[str, Any]


def as_text(overrides: Overrides) -> str:
  """Returns 'model.depth=8, optim.dense_lr=0.003'."""
  return ', '.join(f'{k}={as_flag(v)}' for k, v in overrides.items())


def as_flag(value: Any) -> str:
  """Returns a value as a flag takes it, exactly for every type of field."""
  return str(value).lower() if isinstance(value, bool) else str(value)
