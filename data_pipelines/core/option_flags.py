# SPDX-License-Identifier: Apache-2.0
"""Options of generated data: a frozen dataclass whose fields are the command-line flags."""

import argparse
import dataclasses
from collections.abc import Mapping
from typing import TypeVar

from deres_jax.core.errors import UserError

Options = TypeVar('Options')


def flag(default, text: str):
  """Returns a field of an options dataclass: its default and its line of help."""
  return dataclasses.field(default=default, metadata={'help': text})


def check(holds: bool, name: str, value, expected: str) -> None:
  """Raises UserError, naming the flag and its value, unless the condition holds."""
  if not holds:
    raise UserError(f'--{name}={value}: expected {expected}')


def text_of(value) -> str:
  """Returns an option's value as it is typed on the command line."""
  return ','.join(map(str, value)) if isinstance(value, tuple) else str(value)


def _tuple_of(kind):
  def parse(text: str) -> tuple:
    return tuple(kind(part) for part in text.split(','))

  parse.__name__ = f'comma-separated {kind.__name__}'  # argparse names it in its message
  return parse


def add_flags(
  parser: argparse.ArgumentParser, options: type, dependent: Mapping[str, str] | None = None
) -> None:
  """Adds a flag for each field.

  Args:
    options: the dataclass; types are those of the defaults.
    dependent: the fields whose default depends on other flags, and the text that says how; the
      value of such a flag is None if it is not given.
  """
  dependent = dependent or {}
  for field in dataclasses.fields(options):
    many = isinstance(field.default, tuple)
    kind = _tuple_of(type(field.default[0])) if many else type(field.default)
    default, default_text = field.default, text_of(field.default)
    if field.name in dependent:
      default, default_text = None, dependent[field.name]
    text = f'{field.metadata["help"]} (default {default_text})'
    parser.add_argument(f'--{field.name}', type=kind, default=default, metavar='X', help=text)


def flag_values(args: argparse.Namespace, options: type) -> dict:
  """Returns the parsed flags of an options dataclass, by field."""
  return {field.name: vars(args)[field.name] for field in dataclasses.fields(options)}


def to_json(options) -> dict:
  """Returns the options with tuples as lists, as JSON gives them back."""
  values = dataclasses.asdict(options)
  return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def from_json(values: dict, options: type[Options]) -> Options:
  """Inverse of to_json."""
  return options(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
