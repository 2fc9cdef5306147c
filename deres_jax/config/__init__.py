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
from deres_jax.core.errors import UserError, excerpt


def base(overrides: str = '') -> ConfigDict:
  """Returns every field at its default, locked: an unknown name is an error.

  Args:
    overrides: a config string, the part of `--config=NAME:model.depth=16,seed=1` after the colon.
  """
  config = ConfigDict(dataclasses.asdict(fields.Config())).lock()
  return update(config, overrides)


def load(file: str, sibling: str) -> types.ModuleType:
  """Executes another experiment in the same folder and returns its module.

  Args:
    file: `__file__` of the calling experiment.
    sibling: file name of the other one, such as 'criteo_8l.py'.
  """
  path = pathlib.Path(file).with_name(sibling)
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def variant_of(file: str, sibling: str) -> ConfigDict:
  """Returns the config of another experiment in the same folder, to be changed."""
  return load(file, sibling).get_config()


def update(config: ConfigDict, overrides: str) -> ConfigDict:
  """Applies a config string such as 'a.b=v,w=1' to `config` (`deres_jax.config.overrides`)."""
  return overrides_lib.apply(config, overrides)


def resolve(config: ConfigDict) -> fields.Config:
  """Freezes and checks a config; raises UserError for the first mistake."""
  frozen = _freeze(fields.Config, config, '')
  checks.check(frozen)
  return frozen


_MOST = 2**53  # larger whole numbers are not exact in every reader of JSON


def _freeze(kind: type, node, path: str):
  if not isinstance(node, ConfigDict | dict):
    raise UserError(f'config {path or "root"} is {excerpt(node)}: expected a section')
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
      raise UserError(f'config {path}{key}={excerpt(value)}: expected a {hint.__name__}')
    if hint is float and not math.isfinite(value):
      raise UserError(f'config {path}{key}={value}: expected a finite number')
    if hint is int and not -_MOST < value < _MOST:
      raise UserError(f'config {path}{key}={excerpt(value)}: expected a number below 2^53')
    values[key] = value
  return kind(**values)


def as_dict(config: fields.Config) -> dict[str, Any]:
  """Returns the config as nested dicts, as in `config.json`."""
  return dataclasses.asdict(config)


def identity(config: fields.Config) -> dict[str, Any]:
  """Returns the fields that decide what a run computes: {'model.depth': 8, ...}."""
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
  """Returns the id of a run: 12 hex digits of SHA-256 over `identity(config)`."""
  text = json.dumps(identity(config), sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:12]
