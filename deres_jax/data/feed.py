# SPDX-License-Identifier: Apache-2.0
"""Feeds batches to the mesh, once all hosts agree on what a step needs.

Two facts are known to one host only: the capacities that its slice of a batch requires, and whether
it received a stop request. Hosts that disagree would run different programs and deadlock. So the
devices compute the maximum over all hosts, a few batches ahead: it is ready when the step is, and
no step waits for it.
"""

import collections
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from deres_jax.data import batches as batches_lib
from deres_jax.data.batches import Batch, Batches, HostBatch
from deres_jax.data.blocks import Examples
from deres_jax.pod import mesh as mesh_lib

# Batches whose maxima are being computed while a step runs. Each keeps its examples on the host.
_LAG = 2


class DeviceBatch(NamedTuple):
  """A batch that all hosts are ready for.

  Attributes:
    batch: on the mesh.
    selected: what `select` returned for it.
    stop: whether any host received a stop request; all hosts see it with the same batch.
  """

  batch: Batch
  selected: Any
  stop: bool


class Prefetch(NamedTuple):
  """How many batches to read ahead, and by how many threads."""

  threads: int
  batches: int


def feed(
  batches: Batches,
  mesh: Mesh,
  batch_range: tuple[int, int],
  prefetch: Prefetch,
  stop_requested: Callable[[], bool],
  select: Callable[[Examples], Any] = lambda examples: None,
) -> Iterator[DeviceBatch]:
  """Yields batches batch_range[0] .. batch_range[1] - 1.

  Args:
    stop_requested: whether this host received a stop request.
    select: returns what the caller needs of this host's examples of a batch.
  """

  def load(index: int) -> tuple[Any, HostBatch]:
    examples = batches.examples(index)
    return select(examples), batches.host_batch(examples, batches.size(index))

  def finish(host_batch: HostBatch, capacities: tuple[int, ...]) -> Batch:
    return batches_lib.put(batches.finish(host_batch, capacities), mesh)

  if jax.process_count() == 1:

    def load_and_finish(index: int) -> tuple[Any, Batch]:
      selected, host_batch = load(index)
      return selected, finish(host_batch, batches.capacities(host_batch.required))

    loaded = batches_lib.prefetch(load_and_finish, *batch_range, *prefetch)
    for selected, batch in loaded:
      yield DeviceBatch(batch, selected, stop_requested())
    return

  max_over_hosts = mesh_lib.make_max_over_processes(mesh)
  waiting = collections.deque()

  def next_ready() -> DeviceBatch:
    selected, host_batch, maxima = waiting.popleft()
    *required_T, stop = np.asarray(maxima).tolist()
    return DeviceBatch(finish(host_batch, batches.capacities(required_T)), selected, bool(stop))

  for selected, host_batch in batches_lib.prefetch(load, *batch_range, *prefetch):
    local = np.append(host_batch.required, np.int32(stop_requested()))
    waiting.append((selected, host_batch, max_over_hosts(local)))
    if len(waiting) > _LAG:
      yield next_ready()
  while waiting:
    yield next_ready()
