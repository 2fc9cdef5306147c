# SPDX-License-Identifier: Apache-2.0
"""Do the splits keep apart? Rows that stand in two of them, vocabularies that saw more than train.

Equal rows occur honestly: a click log has few values in many fields, and rare ones all become
unknown. So a split is judged by what training itself shows. Where rows are dealt at random, a
held-out row meets an equal one in training about as often as a training row meets another equal
one there; copied rows come on top. Three things are allowed for:

- A held-out row is unknown more often: its tokens were counted without it. The training rows are
  therefore judged as if each were held out, with its tokens that just reach min_count unknown.
- Splits by time drift. Where a split repeats itself more than training does, that is its measure.
- Chance. It fails only what the measure, raised by its error and one per cent of the rows, would
  show less than once in three million times.

Shapes: N rows, F fields, V ids of a vocabulary.
"""

import functools
import math
from pathlib import Path

import numpy as np
from scipy import special

from data_pipelines.core.workers import Workers
from data_pipelines.doctor.checks import Checks
from data_pipelines.doctor.rows import RowPlan, SplitRows, looked_at, row_hashes
from data_pipelines.prepared.records import read_shard
from data_pipelines.prepared.schema import FIRST_TOKEN_ID, OOV_ID

TOLERATED = 0.01  # of a split's rows, above what is expected
ERRORS = 5.0  # standard errors that the expected share may be off
CHANCE = 3e-7  # one-sided, of five standard errors
PAIRS = (('validation', 'train'), ('test', 'train'), ('test', 'validation'))
SHOWN = 3


def member_N(rows_N: np.ndarray, sorted_M: np.ndarray) -> np.ndarray:
  """Which rows stand among the others, which are ascending: bool [N]."""
  if not len(sorted_M):
    return np.zeros(len(rows_N), bool)
  place_N = np.minimum(np.searchsorted(sorted_M, rows_N), len(sorted_M) - 1)
  return sorted_M[place_N] == rows_N


def repeated_N(sorted_N: np.ndarray) -> np.ndarray:
  """Which of ascending rows have an equal one beside them: bool [N]."""
  out_N = np.zeros(len(sorted_N), bool)
  equal = sorted_N[1:] == sorted_N[:-1]
  out_N[1:] |= equal
  out_N[:-1] |= equal
  return out_N


def too_many(found: int, rows: int, repeated: int, of_rows: int) -> bool:
  """Whether more rows of a split stand in training than chance and drift explain.

  Args:
    found, rows: rows of the split that stand in the other one, and all of its rows.
    repeated, of_rows: the measure: rows that have an equal one within their own split.
  """
  rate = (repeated + 1) / (of_rows + 2)
  # Equal rows come in pairs at least, which doubles the variance of independent ones.
  error = math.sqrt(2 * rate * (1 - rate) / max(1, of_rows))
  highest = min(1.0, rate + ERRORS * error + TOLERATED)
  return found > highest * rows and bool(special.bdtrc(found - 1, rows, highest) < CHANCE)


def share(count: int, rows: int) -> str:
  """A number of rows and its share, as doctor prints it."""
  return f'{count:,} of {rows:,} ({count / max(1, rows):.2%})'


def _read_held_out(path: Path, plan: RowPlan, first_F: np.ndarray) -> np.ndarray:
  """Hashes of rows as they are and as if held out, where these differ: uint64 [N, 2]."""
  out = [np.zeros((0, 2), np.uint64)]
  for block in read_shard(path, plan.shape):
    border_NF = block['ids'] >= first_F
    some_N = border_NF.any(axis=1)
    rows = {name: array[some_N] for name, array in block.items()}
    held_out = rows | {'ids': np.where(border_NF[some_N], np.int32(OOV_ID), rows['ids'])}
    hashes_N2 = np.stack([row_hashes(x, plan.shape) for x in (rows, held_out)], axis=1)
    out.append(hashes_N2[looked_at(hashes_N2[:, 1], plan)])
  return np.concatenate(out)


class Leaks:
  """Judges the rows of all splits.

  Training is read a second time only where the first look does not clear a split.
  """

  def __init__(
    self, splits: dict[str, SplitRows], files: list[Path], plan: RowPlan, min_counts: dict[int, int]
  ):
    """Args: rows by split, training's files, how they were read, min_count by counted field."""
    self._splits, self._files, self._plan, self._min_counts = splits, files, plan, min_counts
    self._repeated = {
      split: int(np.count_nonzero(repeated_N(rows.hashes_N))) for split, rows in splits.items()
    }

  def held_out(self, workers: Workers) -> int:
    """Training rows that would have an equal one among the others if they were held out."""
    train = self._splits['train']
    first_F = np.full(self._plan.shape.fields, np.iinfo(np.int32).max, np.int32)
    for f, counts_V in train.counts.items():
      rare = np.flatnonzero(counts_V[FIRST_TOKEN_ID:] > self._min_counts[f])
      first_F[f] = FIRST_TOKEN_ID + (rare[-1] + 1 if len(rare) else 0)
    found = self._repeated['train']
    # Of a row that is not looked at as it is, no equal one is known: it counts, which excuses more.
    known_N = train.hashes_N[repeated_N(train.hashes_N)]
    read = functools.partial(_read_held_out, plan=self._plan, first_F=first_F)
    for pairs_N2 in workers.map(read, self._files):
      alone_N = ~member_N(pairs_N2[:, 0], known_N)
      found += int(np.count_nonzero(alone_N & member_N(pairs_N2[:, 1], train.hashes_N)))
    return found

  def check(self, checks: Checks, workers: Workers) -> None:
    """Tells what stands where; fails a split of which too much stands elsewhere."""
    if self._plan.drop_bits:
      checks.note(f'duplicates: counted on one in {1 << self._plan.drop_bits} of the distinct rows')
    rows = {split: len(found.hashes_N) for split, found in self._splits.items()}
    train = (self._repeated['train'], rows['train'])
    checks.note(f'train: {share(*train)} rows have an equal one in train, label aside')
    as_held_out = None
    for split, other in PAIRS:
      mine_N, others_N = self._splits[split].hashes_N, self._splits[other].hashes_N
      found = int(np.count_nonzero(member_N(mine_N, others_N)))
      what = f'{split}: rows that stand in {other} too'
      checks.note(f'{what}: {share(found, rows[split])}, label aside')
      measures = [train, (self._repeated[split], rows[split])]
      bad = all(too_many(found, rows[split], *measure) for measure in measures)
      if bad and self._min_counts:
        if as_held_out is None:
          as_held_out = self.held_out(workers)
        measures[0] = (as_held_out, rows['train'])
        bad = too_many(found, rows[split], *measures[0])
      expected = max(count / max(1, of_rows) for count, of_rows in measures)
      checks.holds(
        what,
        not bad,
        f'{share(found, rows[split])}, where equal rows explain {expected:.2%}; rows of {split} '
        f'were copied into {other}',
      )


def check_vocabulary_counts(schema: dict, train: SplitRows, plan: RowPlan, checks: Checks) -> None:
  """Every token must have been kept by the training rows alone, and be in their order.

  Ids that a sequence shares may owe their count to its events. How a data set orders those is its
  own affair, but for the items, whose order says which are head and torso.
  """
  fields = schema['fields']
  items = schema['items']['field'] if schema['items'] else None
  rare, unordered = [], []
  for f, _ in plan.counted:
    name, least = fields[f]['name'], fields[f]['min_count']
    rows_V = train.counts[f]
    seen_V = rows_V + train.events[f] if f in train.events else rows_V
    few = np.flatnonzero(seen_V[FIRST_TOKEN_ID:] < least) + FIRST_TOKEN_ID
    if len(few):
      rare.append(
        f'{name}: {len(few):,} ids occur in fewer than {least} training rows, as id {few[0]} in '
        f'{seen_V[few[0]]}'
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
    '; '.join(rare[:SHOWN]) + '; it was counted on other rows',
  )
  checks.holds(
    'vocabulary: ids fall in training count', not unordered, '; '.join(unordered[:SHOWN])
  )
