# SPDX-License-Identifier: Apache-2.0
"""Options of generated data: a frozen dataclass whose fields are the command-line flags."""

import abc
import argparse
import dataclasses
import math
from collections.abc import Mapping
from typing import TypeVar

from deres_jax.core.errors import UserError

T = TypeVar('T', bound='Options')


def flag(default, text: str):
  """Returns a field of an options dataclass: its default and its line of help."""
  return dataclasses.field(default=default, metadata={'help': text})


def check(holds: bool, name: str, value, expected: str) -> None:
  """Raises UserError, naming the flag and its value, unless the condition holds."""
  if not holds:
    raise UserError(f'--{name}={_text(value)}: expected {expected}')


class Options(abc.ABC):
  """Base of the dataclasses."""

  @abc.abstractmethod
  def validate(self) -> None:
    """Raises UserError, naming the flag, if a value is out of range."""

  def check(self, name: str, holds: bool, expected: str) -> None:
    """Raises UserError, naming the flag and its value, unless the condition holds."""
    check(holds, name, vars(self)[name], expected)

  def check_shares(self, name: str, count: int) -> None:
    """Raises UserError unless the values of a flag are shares of a whole."""
    shares = vars(self)[name]
    sums_to_one = math.isclose(sum(shares), 1, abs_tol=1e-9) and min(shares) >= 0
    expected = 'four shares of at least 0 that sum to 1'
    self.check(name, len(shares) == count and sums_to_one, expected)


def _text(value) -> str:
  """Returns an option's value as it is typed on the command line."""
  return ','.join(map(str, value)) if isinstance(value, tuple) else str(value)


def _tuple_of(kind):
  def parse(text: str) -> tuple:
    return tuple(kind(part) for part in text.split(','))

  parse.__name__ = f'comma-separated {kind.__name__}'  # argparse names it in its message
  return parse


def add_flags(
  parser: argparse.ArgumentParser, options: type[Options], dependent: Mapping[str, str]
) -> None:
  """Adds a flag for each field.

  Args:
    options: the dataclass; types are those of the defaults.
    dependent: the fields whose default depends on other flags, and the text that says how; the
      value of such a flag is None if it is not given.
  """
  for field in dataclasses.fields(options):
    many = isinstance(field.default, tuple)
    kind = _tuple_of(type(field.default[0])) if many else type(field.default)
    default, default_text = field.default, _text(field.default)
    if field.name in dependent:
      default, default_text = None, dependent[field.name]
    text = f'{field.metadata["help"]} (default {default_text})'
    parser.add_argument(f'--{field.name}', type=kind, default=default, metavar='X', help=text)


def from_flags(args: argparse.Namespace, options: type[T]) -> T:
  """Returns the options of parsed flags; raises UserError if a value is out of range."""
  parsed = options(**{field.name: vars(args)[field.name] for field in dataclasses.fields(options)})
  parsed.validate()
  return parsed


def to_json(options: Options) -> dict:
  """Returns the options with tuples as lists, as JSON gives them back."""
  values = dataclasses.asdict(options)
  return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
