# SPDX-License-Identifier: Apache-2.0
"""Batches on the mesh, one after another, with what all hosts have to agree on before a step.

Two things are known to one host only: the capacities that its part of a batch needs, and whether it
was asked to stop. Hosts that disagree would run different programs and wait for one another for
ever. So the largest of all hosts' numbers is taken, on the devices, for batches that are ahead: it
is there when the step is, and no step waits for it.
"""

import collections
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from deres_jax.data import batches as batches_lib
from deres_jax.data.batches import Batch, Batches, Draft
from deres_jax.pod import mesh as mesh_lib

# Batches whose numbers are under way while a step runs. Each holds its rows on the host.
_LAG = 2


class Fed(NamedTuple):
  """A batch that all hosts are ready for.

  Attributes:
    batch: on the mesh.
    kept: what `keep` gave for it.
    stop: whether a host was asked to stop; all hosts see it with the same batch.
  """

  batch: Batch
  kept: Any
  stop: bool


class Ahead(NamedTuple):
  """How far and by how many threads batches are read ahead."""

  threads: int
  batches: int


def feed(
  batches: Batches,
  mesh: Mesh,
  span: tuple[int, int],
  ahead: Ahead,
  asked: Callable[[], bool],
  keep: Callable[[batches_lib.Rows], Any] = lambda rows: None,
) -> Iterator[Fed]:
  """Batches span[0] .. span[1] - 1.

  Args:
    asked: whether this host was asked to stop.
    keep: what to keep of this host's rows of a batch.
  """

  def load(index: int) -> tuple[Any, Draft]:
    rows = batches.rows(index)
    return keep(rows), batches.draft(rows, batches.size(index))

  def finish(draft: Draft, capacities: tuple[int, ...]) -> Batch:
    return batches_lib.put(batches.finish(draft, capacities), mesh)

  if jax.process_count() == 1:

    def ready(index: int) -> tuple[Any, Batch]:
      kept, draft = load(index)
      return kept, finish(draft, batches.capacities(draft.need))

    for kept, batch in batches_lib.prefetch(ready, *span, ahead.threads, ahead.batches):
      yield Fed(batch, kept, asked())
    return

  largest = mesh_lib.make_largest(mesh)
  waiting = collections.deque()

  def next_ready() -> Fed:
    kept, draft, numbers = waiting.popleft()
    *need_T, stop = np.asarray(numbers).tolist()
    return Fed(finish(draft, batches.capacities(need_T)), kept, bool(stop))

  for kept, draft in batches_lib.prefetch(load, *span, ahead.threads, ahead.batches):
    waiting.append((kept, draft, largest(np.append(draft.need, np.int32(asked())))))
    if len(waiting) > _LAG:
      yield next_ready()
  while waiting:
    yield next_ready()
