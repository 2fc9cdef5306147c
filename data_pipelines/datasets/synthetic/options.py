# SPDX-License-Identifier: Apache-2.0
"""Options of the planted data: a frozen dataclass, one command-line flag per field."""

import dataclasses

from data_pipelines.core.option_flags import Options, flag
from data_pipelines.prepared.schema import SPLITS

ORDERS = (1, 2, 3, 4)
MAX_ROWS = 1 << 40  # splits start this far apart


@dataclasses.dataclass(frozen=True)
class SyntheticOptions(Options):
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
    return {split: vars(self)[f'rows_{split}'] for split in SPLITS}

  def cardinalities(self) -> list[int]:
    """Returns the number of values of each field, log-spaced from the smallest to the largest."""
    steps = max(self.fields - 1, 1)
    ratio = self.cardinality_max / self.cardinality_min
    return [round(self.cardinality_min * ratio ** (f / steps)) for f in range(self.fields)]

  def __post_init__(self):
    """Plants as many sets as fit the fields where the flag was not given."""
    if self.sets is None:
      counts = (max(1, round(share * self.fields)) for share in (0.6, 0.3, 0.1))
      object.__setattr__(self, 'sets', (self.fields, *counts))

  def validate(self) -> None:
    """See Options.validate."""
    for split, rows in self.rows().items():
      self.check(f'rows_{split}', 1 <= rows <= MAX_ROWS, '1 to 2^40 rows')
    low, high = self.cardinality_min, self.cardinality_max
    self.check('fields', self.fields >= 1, 'at least 1 field')
    self.check('cardinality_min', low >= 2, 'at least 2 values')
    self.check('cardinality_max', low <= high <= 1 << 30, f'--cardinality_min={low} to 2^30 values')
    self.check('zipf', 0 <= self.zipf <= 10, '0 to 10')
    self.check('click_rate', 0 < self.click_rate < 1, 'a rate between 0 and 1')
    self.check('logit_std', 0 <= self.logit_std <= 20, '0 to 20')
    self.check('rank', 1 <= self.rank < low, '1 to --cardinality_min - 1 factors')
    self.check('seed', self.seed >= 0, '0 or more')
    self.check('teacher_seed', self.teacher_seed >= 0, '0 or more')
    self.check_shares('order_shares', len(ORDERS))
    counts = self.sets
    self.check('sets', len(counts) == len(ORDERS) and min(counts) >= 0, 'four counts of at least 0')
    for order, share, count in zip(ORDERS, self.order_shares, counts, strict=True):
      self.check('sets', share == 0 or count > 0, f'a set of order {order}: its share is {share}')
    self.check('sets', counts[0] <= self.fields, f'at most --fields={self.fields} sets of order 1')
