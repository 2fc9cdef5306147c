# SPDX-License-Identifier: Apache-2.0
"""Made-up batches of any vocabulary, and how steps are timed: shared by the parts of scale.py.

39 fields whose sizes rise in geometric steps from 10 ids, as in exchange.py. Ids are from
Zipf(1.05) cut at the field's size, or uniform. Where vocabularies are compared, a batch is drawn
for the smallest; for a larger one each of its ids is moved to an id of its own in the larger field,
so that batches of all vocabularies are equal but for where their rows stand.
"""

import dataclasses
import functools
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax
import made
import msgspec
import numpy as np

from deres_jax import config
from deres_jax.data import batches as batches_lib
from deres_jax.data.blocks import Examples
from deres_jax.pod import mesh as mesh_lib
from deres_jax.training import step
from deres_jax.training.step_spec import StepSpec, make_step_spec

FIELDS, EXPONENT = 39, 1.05
QUIET = 0.1  # of all cores, at most, for other processes while a sample is taken


def sizes(rows: int) -> np.ndarray:
  """Ids of each field, `rows` in all."""
  low, high = 10.0, float(rows)
  while high - low > 0.5:
    top = (low + high) / 2
    low, high = (low, top) if np.geomspace(10, top, FIELDS).sum() > rows else (top, high)
  out = np.geomspace(10, low, FIELDS).astype(np.int64)
  out[-1] += rows - out.sum()
  return out


def draw(size: int, n: int, kind: str, generator: np.random.Generator) -> np.ndarray:
  """n ids of a field."""
  if kind == 'uniform':
    return generator.integers(0, size, n)
  total = _zipf(size)
  return np.searchsorted(total, generator.random(n) * total[-1])


@functools.cache
def _zipf(size: int) -> np.ndarray:
  return np.cumsum(np.arange(1, size + 1) ** -EXPONENT)


class MadeBlocks:
  """One batch, drawn for `drawn_for` ids, as the only block of data of a larger vocabulary."""

  def __init__(self, rows: int, vocabulary: int, kind: str, drawn_for: int):
    generator = np.random.default_rng(0)
    columns = []
    for small, large in zip(sizes(drawn_for), sizes(vocabulary), strict=True):
      ids = draw(small, rows, kind, generator)
      stretch = large / small
      first = np.floor(ids * stretch)
      moved = first + np.floor(_unit(ids) * (np.floor((ids + 1) * stretch) - first))
      columns.append(np.minimum(moved, large - 1).astype(np.int32))
    self.rows = rows
    self._rows = Examples(
      np.stack(columns, 1),
      (generator.random(rows) < 0.25).astype(np.uint8),
      np.zeros(rows, np.int32),
    )
    self.schema = msgspec.structs.replace(
      made.schema(sizes(vocabulary), rows=rows), block_rows=rows
    )

  def size(self, index: int) -> int:
    return self.rows

  def read(self, index: int) -> Examples:
    return self._rows


def _unit(ids: np.ndarray) -> np.ndarray:
  """A number from [0, 1) that is the same for equal ids: the golden ratio's multiples."""
  return ids * 0.6180339887498949 % 1


def parts(
  overrides: str, vocabulary: int, batch_rows: int, devices: int, drawn_for: int
) -> tuple[StepSpec, dict[str, batches_lib.Batches]]:
  """The StepSpec of a config and its batches by kind, for so many rows of tables."""
  c = config.resolve(
    config.base(f'{overrides},data.batch_size={batch_rows},data.eval_batch_size={batch_rows}')
  )
  mesh = mesh_lib.make_mesh(devices)
  blocks = {
    kind: MadeBlocks(batch_rows, vocabulary, kind, drawn_for) for kind in ('zipf', 'uniform')
  }
  spec = make_step_spec(c, blocks['zipf'].schema, mesh, 1000)
  return spec, {
    kind: batches_lib.Batches(b, spec.tables, batch_rows, devices, 64, None)
    for kind, b in blocks.items()
  }


class Trained:
  """A state and the compiled steps that move it, one for each batch."""

  def __init__(self, spec: StepSpec, batches: dict[str, batches_lib.Batches]):
    self.state, self.stream = step.init_state(spec), step.init_stream(spec)
    self.batches = {kind: batches_lib.put(b[0], spec.mesh) for kind, b in batches.items()}
    train = step.make_train_step(spec)
    self.compiled = {
      kind: train.lower(self.state, self.stream, batch).compile()
      for kind, batch in self.batches.items()
    }

  def steps(self, kind: str) -> Callable[[int], None]:
    """Does so many steps on the batch."""

    def run(n: int):
      for _ in range(n):
        self.state, self.stream = self.compiled[kind](self.state, self.stream, self.batches[kind])
      self.state.step.block_until_ready()
      self.state.tables[0].block_until_ready()

    return run

  def bytes(self) -> int:
    """Of tables and slots."""
    return sum(x.nbytes for x in jax.tree.leaves((self.state.tables, self.state.table_opt_state)))

  def temporary(self, kind: str) -> int:
    """Bytes that the compiled step needs beside its arguments and results."""
    return self.compiled[kind].memory_analysis().temp_size_in_bytes


@dataclasses.dataclass(frozen=True)
class Times:
  """Milliseconds of each variant, a round after another, and others' share of the cores."""

  ms: dict[str, list[float]]
  others: dict[str, list[float]]

  def _quiet(self, names: tuple[str, ...]) -> tuple[list[int], bool]:
    """Rounds to believe, and whether they are quiet ones."""
    n = len(self.ms[names[0]])
    quiet = [r for r in range(n) if all(self.others[name][r] < QUIET for name in names)]
    return (quiet, True) if len(quiet) >= 3 else (list(range(n)), False)

  def line(self, what: str, ours: str, beside: str, aim: str = '') -> dict:
    """Medians, and the median and quartiles of the rounds' ratios ours / beside."""
    rounds, quiet = self._quiet((ours, beside))
    a, b = (np.array([self.ms[name][r] for r in rounds]) for name in (ours, beside))
    low, middle, high = np.quantile(a / b, (0.25, 0.5, 0.75))
    return {
      'what': what,
      'unit': 'ms',
      'ours': statistics.median(a),
      'beside': statistics.median(b),
      'ratio': float(middle),
      'spread': [float(low), float(high)],
      'aim': aim,
      'rounds': len(rounds),
      'quiet': quiet,
    }

  def beside(
    self,
    what: str,
    ours: str,
    aim: str = '',
    peer: str = '',
    limit: str = '',
    unit: str = 'ms',
    work: float | tuple[float, float] = 0,
    note: str = '',
  ) -> dict:
    """A line of bench.py: medians, and how many times as fast as the peer, else the limit, we are.

    Args:
      work: what is done at a time, over a millisecond of it is `unit`; a pair: by us and by the
        other. 0: shown are milliseconds.
    """
    other = peer or limit
    rounds, quiet = self._quiet((ours, other) if other else (ours,))

    def shown(name: str, work: float) -> np.ndarray:
      ms = np.array([self.ms[name][r] for r in rounds])
      return work / ms if work else ms

    pair = work if isinstance(work, tuple) else (work, work)
    a, b = shown(ours, pair[0]), shown(other, pair[1]) if other else None
    ratios = None if b is None else a / b if pair[0] else b / a
    spread = a if ratios is None else ratios
    middle = None if b is None else float(np.median(b))
    return {
      'what': what,
      'unit': unit,
      'ours': float(np.median(a)),
      'peer': middle if peer else None,
      'limit': None if peer else middle,
      'ratio': None if ratios is None else float(np.median(ratios)),
      'spread': [float(x) for x in np.quantile(spread, (0.25, 0.75) if len(a) > 5 else (0, 1))],
      'aim': aim,
      'rounds': len(rounds),
      'quiet': quiet,
      'note': note,
    }


def round_robin(
  variants: dict[str, Callable[[int], None]],
  rounds: int = 7,
  most: int = 12,
  seconds: float = 0.25,
  pause: float = 0.0,
) -> Times:
  """Times variants in turns until `rounds` rounds were quiet, at most `most` of them.

  Args:
    variants: each does its work so many times and waits for it.
    seconds: a sample's least length.
    pause: seconds before each sample, in which another library's threads may go to sleep.
  """
  turns = {}
  for name, run in variants.items():
    run(1)
    began = time.perf_counter()
    run(1)
    turns[name] = max(1, round(seconds / (time.perf_counter() - began)))
  times = Times({name: [] for name in variants}, {name: [] for name in variants})
  for _ in range(most):
    for name, run in variants.items():
      time.sleep(pause)
      began, busy = time.perf_counter(), _others()
      run(turns[name])
      elapsed = time.perf_counter() - began
      times.ms[name].append(1e3 * elapsed / turns[name])
      times.others[name].append(max(0.0, _others() - busy) / elapsed / os.cpu_count())
    each = zip(*times.others.values(), strict=True)
    if sum(max(others) < QUIET for others in each) >= rounds:
      break
  return times


def _others() -> float:
  """Processor seconds that other processes have had so far. Linux only (/proc)."""
  user, nice, system, _, _, *more = map(
    int, Path('/proc/stat').read_text().split('\n')[0].split()[1:9]
  )
  own = os.times()
  return (user + nice + system + sum(more)) / os.sysconf('SC_CLK_TCK') - own.user - own.system
