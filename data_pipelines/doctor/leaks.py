# SPDX-License-Identifier: Apache-2.0
"""Finds leaks between splits: rows copied from one to another, vocabularies counted beyond train.

Equal rows are normal: many fields of a click log have few values, and rare values all become
unknown. So training itself is the reference. With rows split at random, a held-out row has an equal
one in training about as often as a training row has another equal one there; copied rows come on
top. The test allows for three things:

- A held-out row has more unknown ids: its tokens were counted without it. So each training row is
  compared as if it were held out, its tokens that just reach min_count replaced by the unknown id.
- Splits by time drift. If a split repeats itself more than training does, that is the reference.
- Chance. A split fails only if the reference, raised by its error and one per cent of the rows,
  would give as many equal rows less than once in three million times.

Shapes: N rows, F fields, V ids of a vocabulary.
"""

import functools
import math
from pathlib import Path

import numpy as np
from scipy import special

from data_pipelines.core.workers import Workers
from data_pipelines.doctor.checks import Checks
from data_pipelines.doctor.rows import RowPlan, SplitRows, row_hashes, sampled
from data_pipelines.prepared.records import read_shard
from data_pipelines.prepared.schema import FIRST_TOKEN_ID, OOV_ID, Schema

TOLERATED = 0.01  # of a split's rows, above the expected share
ERRORS = 5.0  # standard errors of the expected share
CHANCE = 3e-7  # one-sided, of five standard errors
PAIRS = (('validation', 'train'), ('test', 'train'), ('test', 'validation'))
PRINTED = 3


def member_N(rows_N: np.ndarray, sorted_M: np.ndarray) -> np.ndarray:
  """Returns which rows are among the others, which ascend: bool [N]."""
  if not len(sorted_M):
    return np.zeros(len(rows_N), bool)
  place_N = np.minimum(np.searchsorted(sorted_M, rows_N), len(sorted_M) - 1)
  return sorted_M[place_N] == rows_N


def repeated_N(sorted_N: np.ndarray) -> np.ndarray:
  """Returns which of ascending rows have an equal neighbour: bool [N]."""
  out_N = np.zeros(len(sorted_N), bool)
  equal = sorted_N[1:] == sorted_N[:-1]
  out_N[1:] |= equal
  out_N[:-1] |= equal
  return out_N


def too_many(copies: int, rows: int, repeated: int, of_rows: int) -> bool:
  """Returns whether more rows of a split are in another split than the reference explains.

  Args:
    copies, rows: rows of the split that are in the other one too, and all of its rows.
    repeated, of_rows: the reference: rows that have an equal one in their own split, and all rows.
  """
  rate = (repeated + 1) / (of_rows + 2)
  # Equal rows come in pairs at least, which doubles the variance of independent ones.
  error = math.sqrt(2 * rate * (1 - rate) / max(1, of_rows))
  highest = min(1.0, rate + ERRORS * error + TOLERATED)
  return copies > highest * rows and bool(special.bdtrc(copies - 1, rows, highest) < CHANCE)


def share(count: int, rows: int) -> str:
  """Formats a number of rows and its share."""
  return f'{count:,} of {rows:,} ({count / max(1, rows):.2%})'


def _read_held_out(path: Path, plan: RowPlan, first_F: np.ndarray) -> np.ndarray:
  """Returns the hashes of rows, and as if held out, where these differ: uint64 [N, 2]."""
  out = [np.zeros((0, 2), np.uint64)]
  for block in read_shard(path, plan.shape):
    border_NF = block['ids'] >= first_F
    changed_N = border_NF.any(axis=1)
    rows = {name: array[changed_N] for name, array in block.items()}
    held_out = rows | {'ids': np.where(border_NF[changed_N], np.int32(OOV_ID), rows['ids'])}
    hashes_N2 = np.stack([row_hashes(x, plan.shape) for x in (rows, held_out)], axis=1)
    out.append(hashes_N2[sampled(hashes_N2[:, 1], plan)])
  return np.concatenate(out)


class Leaks:
  """Compares the rows of all splits; reads training again only if a split would fail otherwise."""

  def __init__(
    self, splits: dict[str, SplitRows], files: list[Path], plan: RowPlan, min_counts: dict[int, int]
  ):
    """Args: rows by split, training's files, their plan, min_count by counted field."""
    self._splits, self._files, self._plan, self._min_counts = splits, files, plan, min_counts
    self._repeated = {
      split: int(np.count_nonzero(repeated_N(rows.hashes_N))) for split, rows in splits.items()
    }

  def held_out(self, workers: Workers) -> int:
    """Counts the training rows that would have an equal one if they were held out."""
    train = self._splits['train']
    first_F = np.full(self._plan.shape.fields, np.iinfo(np.int32).max, np.int32)
    for f, counts_V in train.counts.items():
      rare = np.flatnonzero(counts_V[FIRST_TOKEN_ID:] > self._min_counts[f])
      first_F[f] = FIRST_TOKEN_ID + (rare[-1] + 1 if len(rare) else 0)
    repeated = self._repeated['train']
    # A row outside the sample has no known equal: counting it only raises the expectation.
    known_N = train.hashes_N[repeated_N(train.hashes_N)]
    read = functools.partial(_read_held_out, plan=self._plan, first_F=first_F)
    for pairs_N2 in workers.map(read, self._files):
      alone_N = ~member_N(pairs_N2[:, 0], known_N)
      repeated += int(np.count_nonzero(alone_N & member_N(pairs_N2[:, 1], train.hashes_N)))
    return repeated

  def check(self, checks: Checks, workers: Workers) -> None:
    """Reports equal rows between splits; fails a split with too many."""
    if self._plan.drop_bits:
      checks.note(f'duplicates: counted on one in {1 << self._plan.drop_bits} of the distinct rows')
    rows = {split: len(split_rows.hashes_N) for split, split_rows in self._splits.items()}
    train = (self._repeated['train'], rows['train'])
    checks.note(f'train: {share(*train)} rows have an equal one in train, label aside')
    as_held_out = None
    for split, other in PAIRS:
      member = member_N(self._splits[split].hashes_N, self._splits[other].hashes_N)
      copies = int(np.count_nonzero(member))
      name = f'{split}: rows that stand in {other} too'
      checks.note(f'{name}: {share(copies, rows[split])}, label aside')
      references = [train, (self._repeated[split], rows[split])]
      bad = all(too_many(copies, rows[split], *reference) for reference in references)
      if bad and self._min_counts:
        if as_held_out is None:
          as_held_out = self.held_out(workers)
        references[0] = (as_held_out, rows['train'])
        bad = too_many(copies, rows[split], *references[0])
      expected = max(count / max(1, of_rows) for count, of_rows in references)
      checks.holds(
        name,
        not bad,
        f'{share(copies, rows[split])}, where equal rows explain {expected:.2%}; rows of {split} '
        f'were copied into {other}',
      )


def check_vocabulary_counts(
  schema: Schema, train: SplitRows, plan: RowPlan, checks: Checks
) -> None:
  """Checks that every token occurs often enough in training, and that ids fall in its counts there.

  Events count too for ids that a sequence shares; a data set may order those ids as it likes,
  except the items' ids, whose order says which are head and torso.
  """
  items = schema.items.field if schema.items else None
  rare, unordered = [], []
  for f, _ in plan.counted:
    name, least = schema.fields[f].name, schema.fields[f].min_count
    rows_V = train.counts[f]
    total_V = rows_V + train.events[f] if f in train.events else rows_V
    few = np.flatnonzero(total_V[FIRST_TOKEN_ID:] < least) + FIRST_TOKEN_ID
    if len(few):
      rare.append(
        f'{name}: {len(few):,} ids occur in fewer than {least} training rows, as id {few[0]} in '
        f'{total_V[few[0]]}'
      )
    rising = np.flatnonzero(np.diff(rows_V[FIRST_TOKEN_ID:]) > 0) + FIRST_TOKEN_ID
    if len(rising) and (f not in train.events or name == items):
      unordered.append(f'{name}: id {rising[0] + 1} is more frequent than id {rising[0]}')
  if not plan.counted:
    checks.note('vocabulary: no field says how often a token must occur in train')
    return
  checks.holds(
    'vocabulary: every token occurs often enough in train',
    not rare,
    '; '.join(rare[:PRINTED]) + '; it was counted on other rows',
  )
  checks.holds(
    'vocabulary: ids fall in training count', not unordered, '; '.join(unordered[:PRINTED])
  )
