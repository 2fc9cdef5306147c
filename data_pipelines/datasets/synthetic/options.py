# SPDX-License-Identifier: Apache-2.0
"""Options of the planted data: a frozen dataclass, one command-line flag per field."""

import argparse
import dataclasses
import math

from data_pipelines.core import option_flags
from data_pipelines.core.option_flags import check, flag, text_of

ORDERS = (1, 2, 3, 4)
MAX_ROWS = 1 << 40  # splits start this far apart


@dataclasses.dataclass(frozen=True)
class SyntheticOptions:
  """All options that determine the planted data. Tuples have one entry per interaction order.

  The defaults are learnable in a minute: a small model comes near the Bayes AUC of 0.88, a linear
  one stays at 0.70. More values per field, more sets and a higher rank make them harder.
  """

  rows_train: int = flag(200_000, 'training rows')
  rows_validation: int = flag(40_000, 'validation rows')
  rows_test: int = flag(40_000, 'test rows')
  fields: int = flag(10, 'number of categorical fields')
  cardinality_min: int = flag(4, 'values of the smallest field; fields are log-spaced')
  cardinality_max: int = flag(40, 'values of the largest field')
  zipf: float = flag(1.05, 'exponent a: value v (from 0) has probability ~ (v + 1)^-a')
  click_rate: float = flag(0.256, 'expected share of clicks, between 0 and 1')
  logit_std: float = flag(2.0, 'standard deviation of the logit; 0 = labels are noise')
  order_shares: tuple[float, ...] = flag(
    (0.3, 0.4, 0.2, 0.1), "shares of the logit's variance by order 1,2,3,4; sum 1"
  )
  sets: tuple[int, ...] = flag((10, 6, 3, 1), 'planted field sets by order 1,2,3,4')
  rank: int = flag(1, 'latent factors of a planted pair')
  teacher_seed: int = flag(0, 'seed of the teacher (which sets, which factors)')
  seed: int = flag(0, 'seed of the rows and labels; the teacher does not change')

  def rows(self) -> dict[str, int]:
    """Returns the number of rows of each split."""
    return {
      'train': self.rows_train,
      'validation': self.rows_validation,
      'test': self.rows_test,
    }

  def cardinalities(self) -> list[int]:
    """Returns the number of values of each field, log-spaced from the smallest to the largest."""
    steps = max(self.fields - 1, 1)
    ratio = self.cardinality_max / self.cardinality_min
    return [round(self.cardinality_min * ratio ** (f / steps)) for f in range(self.fields)]


def validate(options: SyntheticOptions) -> None:
  """Raises UserError, naming the flag, if no teacher can be planted with these options."""
  o = options
  for split, rows in o.rows().items():
    check(1 <= rows <= MAX_ROWS, f'rows_{split}', rows, '1 to 2^40 rows')
  check(o.fields >= 1, 'fields', o.fields, 'at least 1 field')
  check(o.cardinality_min >= 2, 'cardinality_min', o.cardinality_min, 'at least 2 values')
  check(
    o.cardinality_min <= o.cardinality_max <= 1 << 30,
    'cardinality_max',
    o.cardinality_max,
    f'--cardinality_min={o.cardinality_min} to 2^30 values',
  )
  check(0 <= o.zipf <= 10, 'zipf', o.zipf, '0 to 10')
  check(0 < o.click_rate < 1, 'click_rate', o.click_rate, 'a rate between 0 and 1')
  check(0 <= o.logit_std <= 20, 'logit_std', o.logit_std, '0 to 20')
  check(1 <= o.rank < o.cardinality_min, 'rank', o.rank, '1 to --cardinality_min - 1 factors')
  for name, seed in (('seed', o.seed), ('teacher_seed', o.teacher_seed)):
    check(seed >= 0, name, seed, '0 or more')
  _validate_orders(o)


def _validate_orders(o: SyntheticOptions) -> None:
  shares, sets = text_of(o.order_shares), text_of(o.sets)
  check(
    len(o.order_shares) == len(ORDERS)
    and all(share >= 0 for share in o.order_shares)
    and math.isclose(sum(o.order_shares), 1, abs_tol=1e-9),
    'order_shares',
    shares,
    'four shares of at least 0 that sum to 1',
  )
  check(
    len(o.sets) == len(ORDERS) and all(count >= 0 for count in o.sets),
    'sets',
    sets,
    'four counts of at least 0',
  )
  for order, share, count in zip(ORDERS, o.order_shares, o.sets, strict=True):
    check(share == 0 or count > 0, 'sets', sets, f'a set of order {order}: its share is {share}')
  check(o.sets[0] <= o.fields, 'sets', sets, f'at most --fields={o.fields} sets of order 1')


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of `--dataset=synthetic`."""
  sets = {'sets': 'F, 0.6 F, 0.3 F, 0.1 F of F fields'}  # as many as fit the fields
  option_flags.add_flags(parser, SyntheticOptions, dependent=sets)


def from_flags(args: argparse.Namespace) -> SyntheticOptions:
  """Returns the options of parsed flags; raises UserError if no teacher can be planted."""
  values = option_flags.flag_values(args, SyntheticOptions)
  if values['sets'] is None:
    fields = args.fields
    values['sets'] = (fields, *(max(1, round(share * fields)) for share in (0.6, 0.3, 0.1)))
  options = SyntheticOptions(**values)
  validate(options)
  return options
