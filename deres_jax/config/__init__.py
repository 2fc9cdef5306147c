# SPDX-License-Identifier: Apache-2.0
"""Every setting of a run, once: its name, default, unit and range.

An experiment file starts from `base()`, changes what it needs and returns the result from
`get_config()`. `resolve()` freezes it and checks everything that can be checked before data or
devices are touched; below `resolve()` no code sees a ConfigDict.
"""

import dataclasses
import hashlib
import importlib.util
import json
import math
import pathlib
import types
import typing
from typing import Any

from ml_collections import ConfigDict

from deres_jax.config import checks, fields
from deres_jax.config import overrides as overrides_lib
from deres_jax.core.errors import UserError, shown


def base(overrides: str = '') -> ConfigDict:
  """Returns every field at its default, locked: an unknown name is an error.

  Args:
    overrides: what stands after the colon in `--config=NAME:model.depth=16,seed=1`.
  """
  config = ConfigDict(dataclasses.asdict(fields.Config())).lock()
  return update(config, overrides)


def load(file: str, sibling: str) -> types.ModuleType:
  """Another experiment in the same folder, as a module. It is executed.

  Args:
    file: `__file__` of the experiment that asks.
    sibling: file name of the other, such as 'criteo_8l.py'.
  """
  path = pathlib.Path(file).with_name(sibling)
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def variant_of(file: str, sibling: str) -> ConfigDict:
  """What `get_config()` of another experiment in the same folder returns, to be changed."""
  return load(file, sibling).get_config()


def update(config: ConfigDict, overrides: str) -> ConfigDict:
  """Applies 'a.b=v,w=1' to `config`, as `deres_jax.config.overrides` says."""
  return overrides_lib.apply(config, overrides)


def resolve(config: ConfigDict) -> fields.Config:
  """Freezes `config` and checks it; raises UserError with one line for the first mistake."""
  frozen = _freeze(fields.Config, config, '')
  checks.check(frozen)
  return frozen


_MOST = 2**53  # of a whole number that every reader of JSON takes as it is; no field needs more


def _freeze(kind: type, node, path: str):
  if not isinstance(node, ConfigDict | dict):
    raise UserError(f'config {path or "root"} is {shown(node)}: expected a section')
  known = typing.get_type_hints(kind)
  for key in node:
    if key not in known:
      raise UserError(f'unknown config field {path + key!r}: choose one of {", ".join(known)}')
  values = {}
  for key, hint in known.items():
    if key not in node:
      raise UserError(f'config field {path + key!r} is missing: start from config.base()')
    value = node[key]
    if dataclasses.is_dataclass(hint):
      value = _freeze(hint, value, f'{path}{key}.')
    elif hint is float and type(value) is int:
      value = overrides_lib.as_float(value)
    elif type(value) is not hint:
      raise UserError(f'config {path}{key}={shown(value)}: expected a {hint.__name__}')
    if hint is float and not math.isfinite(value):
      raise UserError(f'config {path}{key}={value}: expected a finite number')
    if hint is int and not -_MOST < value < _MOST:
      raise UserError(f'config {path}{key}={shown(value)}: expected a number below 2^53')
    values[key] = value
  return kind(**values)


def as_dict(config: fields.Config) -> dict[str, Any]:
  """The whole config as nested plain dicts (what `config.json` holds)."""
  return dataclasses.asdict(config)


def identity(config: fields.Config) -> dict[str, Any]:
  """The fields that decide what a run computes, flat: {'model.depth': 8, ...}."""
  out = {}

  def walk(node, prefix):
    for field in dataclasses.fields(node):
      value = getattr(node, field.name)
      if dataclasses.is_dataclass(value):
        walk(value, f'{prefix}{field.name}.')
      elif 'operational' not in field.metadata and not (
        'later' in field.metadata and value == field.default
      ):
        out[prefix + field.name] = value

  walk(config, '')
  return out


def config_hash(config: fields.Config) -> str:
  """Run identity: 12 hex digits of SHA-256 over `identity(config)`."""
  text = json.dumps(identity(config), sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:12]
