# SPDX-License-Identifier: Apache-2.0
"""Splits of rows, as pure functions of the number of rows and a seed."""

import dataclasses

import numpy as np

from data_pipelines.prepared.schema import SPLITS


def shuffle_splits(
  order: dict[str, np.ndarray], generator: np.random.Generator
) -> dict[str, np.ndarray]:
  """Shuffles the row numbers of each split in place, in the order train, validation, test."""
  for split in SPLITS:
    generator.shuffle(order[split])
  return order


@dataclasses.dataclass(frozen=True)
class Split:
  """A way to split rows.

  Attributes:
    train, validation, test: parts of the whole.
    by_time: rows are split in the order of the raw file, oldest first; else at random.
  """

  train: int
  validation: int
  test: int
  by_time: bool = False

  @property
  def parts(self) -> int:
    """Number of equal parts that the rows are cut into; fewer rows cannot be split."""
    return self.train + self.validation + self.test

  def rows(self, num_rows: int, seed: int) -> dict[str, np.ndarray]:
    """Returns the row numbers of each split, in the order in which they are written.

    Random: test is the first part of `numpy.random.default_rng(seed).permutation(num_rows)`,
    validation comes next, training is the rest. By time: training is the first part, test the
    last, and each is shuffled by the same generator, in the order train, validation, test.

    Args:
      num_rows: number of valid rows, at least `parts`, below 2^32.
      seed: 0 to 2**32 - 1.

    Returns:
      uint32 arrays by split.
    """
    generator = np.random.default_rng(seed)
    part = num_rows // self.parts
    numbers = np.arange(num_rows, dtype=np.uint32)
    if self.by_time:
      last = num_rows - self.test * part
      cuts = {
        'train': numbers[: last - self.validation * part],
        'validation': numbers[last - self.validation * part : last],
        'test': numbers[last:],
      }
      return shuffle_splits(cuts, generator)
    generator.shuffle(numbers)
    test, validation = self.test * part, (self.test + self.validation) * part
    return {
      'train': numbers[validation:],
      'validation': numbers[test:validation],
      'test': numbers[:test],
    }
