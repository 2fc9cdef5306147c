# SPDX-License-Identifier: Apache-2.0
"""Options of the planted data: one frozen dataclass, one command-line flag a field."""

import argparse
import dataclasses
import math

from data_pipelines.errors import UserError

ORDERS = (1, 2, 3, 4)
MAX_ROWS = 1 << 40  # splits start this far apart


def _flag(default, text: str):
  return dataclasses.field(default=default, metadata={'help': text})


@dataclasses.dataclass(frozen=True)
class SyntheticOptions:
  """What determines the planted data, all of it. Tuples have one entry an interaction order.

  The defaults are learnable in a minute: a small model comes near the Bayes AUC of 0.88, a linear
  one stays at 0.70. More values a field, sets and rank make them as hard as one likes.
  """

  rows_train: int = _flag(200_000, 'training rows')
  rows_validation: int = _flag(40_000, 'validation rows')
  rows_test: int = _flag(40_000, 'test rows')
  fields: int = _flag(10, 'number of categorical fields')
  cardinality_min: int = _flag(4, 'values of the smallest field; fields are log-spaced')
  cardinality_max: int = _flag(40, 'values of the largest field')
  zipf: float = _flag(1.05, 'exponent a: value v (from 0) has probability ~ (v + 1)^-a')
  click_rate: float = _flag(0.256, 'expected share of clicks, between 0 and 1')
  logit_std: float = _flag(2.0, 'standard deviation of the logit; 0 = labels are noise')
  order_shares: tuple[float, ...] = _flag(
    (0.3, 0.4, 0.2, 0.1), "shares of the logit's variance by order 1,2,3,4; sum 1"
  )
  sets: tuple[int, ...] = _flag((10, 6, 3, 1), 'planted field sets by order 1,2,3,4')
  rank: int = _flag(1, 'latent factors of a planted pair')
  teacher_seed: int = _flag(0, 'seed of the teacher (which sets, which factors)')
  seed: int = _flag(0, 'seed of the rows and labels; the teacher does not change')

  def rows(self) -> dict[str, int]:
    """Rows by split."""
    return {
      'train': self.rows_train,
      'validation': self.rows_validation,
      'test': self.rows_test,
    }

  def cardinalities(self) -> list[int]:
    """Number of values by field, log-spaced from the smallest to the largest."""
    steps = max(self.fields - 1, 1)
    ratio = self.cardinality_max / self.cardinality_min
    return [round(self.cardinality_min * ratio ** (f / steps)) for f in range(self.fields)]


def _check(holds: bool, flag: str, value, expected: str) -> None:
  if not holds:
    raise UserError(f'--{flag}={value}: expected {expected}')


def validate(options: SyntheticOptions) -> None:
  """Raises UserError, naming the flag, if a teacher cannot be planted as asked."""
  o = options
  for split, rows in o.rows().items():
    _check(1 <= rows <= MAX_ROWS, f'rows_{split}', rows, '1 to 2^40 rows')
  _check(o.fields >= 1, 'fields', o.fields, 'at least 1 field')
  _check(o.cardinality_min >= 2, 'cardinality_min', o.cardinality_min, 'at least 2 values')
  _check(
    o.cardinality_min <= o.cardinality_max <= 1 << 30,
    'cardinality_max',
    o.cardinality_max,
    f'--cardinality_min={o.cardinality_min} to 2^30 values',
  )
  _check(0 <= o.zipf <= 10, 'zipf', o.zipf, '0 to 10')
  _check(0 < o.click_rate < 1, 'click_rate', o.click_rate, 'a rate between 0 and 1')
  _check(0 <= o.logit_std <= 20, 'logit_std', o.logit_std, '0 to 20')
  _check(1 <= o.rank < o.cardinality_min, 'rank', o.rank, '1 to --cardinality_min - 1 factors')
  for flag in ('seed', 'teacher_seed'):
    _check(getattr(o, flag) >= 0, flag, getattr(o, flag), '0 or more')
  _validate_orders(o)


def _validate_orders(o: SyntheticOptions) -> None:
  shares, sets = text_of(o.order_shares), text_of(o.sets)
  _check(
    len(o.order_shares) == len(ORDERS)
    and all(share >= 0 for share in o.order_shares)
    and math.isclose(sum(o.order_shares), 1, abs_tol=1e-9),
    'order_shares',
    shares,
    'four shares of at least 0 that sum to 1',
  )
  _check(
    len(o.sets) == len(ORDERS) and all(count >= 0 for count in o.sets),
    'sets',
    sets,
    'four counts of at least 0',
  )
  for order, share, count in zip(ORDERS, o.order_shares, o.sets, strict=True):
    _check(share == 0 or count > 0, 'sets', sets, f'a set of order {order}: its share is {share}')
  _check(o.sets[0] <= o.fields, 'sets', sets, f'at most --fields={o.fields} sets of order 1')


def text_of(value) -> str:
  """An option's value as it is typed on the command line."""
  return ','.join(map(str, value)) if isinstance(value, tuple) else str(value)


def _tuple_of(kind):
  def parse(text: str) -> tuple:
    return tuple(kind(part) for part in text.split(','))

  parse.__name__ = f'comma-separated {kind.__name__}'  # argparse names it in its message
  return parse


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Flags of `--dataset=synthetic`."""
  for field in dataclasses.fields(SyntheticOptions):
    many = isinstance(field.default, tuple)
    kind = _tuple_of(type(field.default[0])) if many else type(field.default)
    default, shown = field.default, text_of(field.default)
    if field.name == 'sets':  # as many as fit the fields
      default, shown = None, 'F, 0.6 F, 0.3 F, 0.1 F of F fields'
    text = f'{field.metadata["help"]} (default {shown})'
    parser.add_argument(f'--{field.name}', type=kind, default=default, help=text)


def default_sets(fields: int) -> tuple[int, ...]:
  """Planted sets by order for a number of fields."""
  return (fields, *(max(1, round(share * fields)) for share in (0.6, 0.3, 0.1)))


def from_flags(args: argparse.Namespace) -> SyntheticOptions:
  """The options of parsed flags.

  Raises:
    UserError: a value that cannot be planted.
  """
  names = [field.name for field in dataclasses.fields(SyntheticOptions)]
  values = {name: vars(args)[name] for name in names}
  values['sets'] = values['sets'] or default_sets(args.fields)
  options = SyntheticOptions(**values)
  validate(options)
  return options


def to_json(options: SyntheticOptions) -> dict:
  """The options with tuples as lists, as they read back from JSON."""
  values = dataclasses.asdict(options)
  return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def from_json(values: dict) -> SyntheticOptions:
  """Inverse of to_json."""
  return SyntheticOptions(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
