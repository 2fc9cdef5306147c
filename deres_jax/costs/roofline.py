# SPDX-License-Identifier: Apache-2.0
"""Lower bound of a training step's time on a machine: a bound, not a forecast.

Roofline model (Williams, Waterman & Patterson 2009) with a network: matmuls run at the device's
peak while memory moves at its peak, then the network carries the step's bytes at its peak. No
utilisation is guessed: real steps take longer. Only memory traffic is modelled, not counted: a
compiler that keeps activations on the chip between two matmuls moves less. Seconds, bytes and FLOP
are of one device.
"""

import dataclasses
from collections.abc import Mapping

from deres_jax.costs import collectives
from deres_jax.costs.machines import Machine


@dataclasses.dataclass(frozen=True)
class Work:
  """Work of one device in a training step.

  Attributes:
    rows: examples of the global batch.
    flops: FLOP of matmuls by type of the operands (`flops.Flops.matmul_by_dtype`).
    memory: bytes that its memory reads or writes, by purpose.
    wire: bytes that it sends, by kind of collective (`collectives.wire_bytes_by_kind`).
  """

  rows: int
  flops: Mapping[str, float]
  memory: Mapping[str, float]
  wire: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Bound:
  """Least seconds of a step, by resource."""

  rows: int
  compute_seconds: float
  memory_seconds: float
  network_seconds: float

  @property
  def step_seconds(self) -> float:
    """The longer of compute and memory, plus the network, which does not overlap."""
    return max(self.compute_seconds, self.memory_seconds) + self.network_seconds

  @property
  def rows_per_second(self) -> float:
    """Examples per second of all devices, at most."""
    return self.rows / self.step_seconds

  @property
  def limit(self) -> str:
    """The longest of the three: compute, memory or network."""
    seconds = {
      'compute': self.compute_seconds,
      'memory': self.memory_seconds,
      'network': self.network_seconds,
    }
    return max(seconds, key=lambda name: seconds[name])


def memory_bytes(
  matmul_bytes: float, requested: float, row_bytes: int, slot_bytes: int, dense_bytes: float
) -> dict[str, float]:
  """Returns the bytes that a device's memory moves in a step, by purpose.

  Args:
    matmul_bytes: bytes of operands and results, forward and backward (`flops.Flops.matmul_bytes`).
    requested: table rows that all devices together request of this one.
    row_bytes: bytes of a table row.
    slot_bytes: bytes of a row's optimizer state.
    dense_bytes: bytes of dense parameters and their optimizer state.
  """
  return {
    'matmuls': matmul_bytes,
    # Read for the lookup; read and written for the update.
    'table': requested * (row_bytes + 2 * (row_bytes + slot_bytes)),
    'dense state': 2 * dense_bytes,
  }


def bound(work: Work, machine: Machine) -> Bound:
  """Returns the least time of a step of this work on a machine.

  Raises:
    ValueError: the machine has no peak rate, or none for a type of operands.
  """
  missing = work.flops.keys() - machine.flops.keys()
  if missing or not machine.memory_bandwidth:
    raise ValueError(f'no peak of {machine.name} for {sorted(missing) or "anything"}')
  return Bound(
    rows=work.rows,
    compute_seconds=sum(n / machine.flops[dtype] for dtype, n in work.flops.items()),
    memory_seconds=sum(work.memory.values()) / machine.memory_bandwidth,
    network_seconds=sum(n / _rate(kind, machine) for kind, n in work.wire.items()),
  )


def _rate(kind: str, machine: Machine) -> float:
  return machine.all_to_all if kind in collectives.ALL_TO_ALL else machine.all_reduce


def assumptions(machine: Machine) -> tuple[str, ...]:
  """Returns the assumptions behind `bound`, one sentence each."""
  float32 = 'as one bfloat16 pass' if machine.platform == 'tpu' else 'as TF32'
  return (
    'a bound, no faster than this: every unit runs at its peak all the time',
    f'matmuls only, float32 operands {float32} (JAX default); elementwise work costs nothing',
    'memory: operands and results of each matmul move once (what stays on the chip between two '
    'matmuls moves less, so this term can be beaten); each table row asked for is read for the '
    'lookup, read and written with its slots for the update; dense state is read and written once',
    'the network waits for the rest of the step; no latencies; input from the hosts is free',
    *machine.notes,
  )
