# SPDX-License-Identifier: Apache-2.0
"""Plans a step on a mesh that need not be here: memory, bytes sent, the least time.

The training step is compiled for the mesh from shapes alone, for the first batch of the data; no
array is made and nothing runs. Bytes of the state come from shapes; temporary memory and bytes sent
from the compiled program; the least bytes that must be sent from the unique ids of the batch
(docs/scaling_out.md); the time is a lower bound (`deres_jax.costs.roofline`). Bytes and FLOP are
those of one device.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from deres_jax.config import fields
from deres_jax.costs import collectives, flops, roofline
from deres_jax.costs.machines import Machine
from deres_jax.data.batches import Batch
from deres_jax.training import step
from deres_jax.training.plan import counts
from deres_jax.training.step_spec import StepSpec


@dataclasses.dataclass(frozen=True)
class MeshPlan:
  """A step of a config on a machine."""

  base: counts.Plan  # what holds on any mesh
  machine: Machine
  compiler: str  # a sentence: which compiler was used, and for what
  rows: int  # of the global batch
  real: int  # rows that are not padding
  widths: tuple[int, ...]  # of each table
  distinct: tuple[float, ...]  # of each table: mean number of unique ids of a device
  capacities: tuple[int, ...]  # of each table: ids that a device can request from an owner
  bytes_batch: int
  bytes_temporary: int | None  # memory beside state and batch; None: the compiler gave up
  bytes_total: int  # memory; if the compiler gave up, the number in its message or the least
  wire: Mapping[str, float]  # bytes sent in a step, by kind of collective
  least: float  # bytes that must be sent for the unique ids of the batch
  for_capacities: float  # bytes that must be sent if each capacity is filled
  work: roofline.Work
  bound: roofline.Bound | None  # None: the machine's speeds are not known
  unknown: tuple[str, ...]  # primitives without a FLOP count, which `work` leaves out

  @property
  def spare(self) -> int | None:
    """Bytes of a device's memory left over, negative if there is too little; None: not known."""
    return self.machine.memory - self.bytes_total if self.machine.memory else None


def for_machine(c: fields.Config, machine: Machine) -> fields.Config:
  """Returns the config with the micro-batch that is fast on the machine, not on this one."""
  if c.train.micro_batch != -1 or machine.platform == 'cpu':
    return c
  return dataclasses.replace(c, train=dataclasses.replace(c.train, micro_batch=0))


def make(
  c: fields.Config, spec: StepSpec, batch: Batch, machine: Machine, compiler: str
) -> MeshPlan:
  """Plans a step on the mesh of a machine.

  Args:
    batch: a global batch on the host.
    compiler: from `machines.mesh`.
  """
  D, tables = spec.mesh.size, spec.tables.parts
  base = counts.make(c, spec)
  state, batch_shapes = step.abstract_state(spec), step.abstract_batch(spec, batch)
  counted = counts.count_train(spec, state.params, len(batch.labels) // D)
  widths = tuple(table.dim for table in tables)
  distinct = tuple(
    float(np.sum(ids < table.size // D)) / D
    for ids, table in zip(batch.unique_ids, tables, strict=True)
  )
  capacities = tuple(ids.shape[1] for ids in batch.unique_ids)
  full = tuple(D * K for K in capacities)
  dense = base.params_dense + 1  # beside the gradients one float: whether they are finite
  known = base.bytes_dense_state + base.bytes_table + base.bytes_table_slots
  bytes_batch = _bytes_here(batch_shapes)
  try:
    temporary, total, wire = _compile(spec, state, batch_shapes)
  except jax.errors.JaxRuntimeError as e:
    if 'RESOURCE_EXHAUSTED' not in str(e):
      raise
    temporary, total = None, max(known + bytes_batch, _used(str(e)), machine.memory + 1)
    wire = collectives.exchange_bytes(D, full, widths, dense)
  work = roofline.Work(
    len(batch.labels),
    counted.matmul_by_dtype,
    _memory(state, counted, full, base.bytes_dense_state),
    wire,
  )
  return MeshPlan(
    base=base,
    machine=machine,
    compiler=compiler,
    rows=len(batch.labels),
    real=int(batch.num_examples),
    widths=widths,
    distinct=distinct,
    capacities=capacities,
    bytes_batch=bytes_batch,
    bytes_temporary=temporary,
    bytes_total=total,
    wire=wire,
    least=sum(collectives.exchange_bytes(D, distinct, widths, dense).values()),
    for_capacities=sum(collectives.exchange_bytes(D, full, widths, dense).values()),
    work=work,
    bound=roofline.bound(work, machine) if machine.flops else None,
    unknown=(*sorted(counted.unknown), *(['while'] if counted.unbounded else [])),
  )


def _compile(spec: StepSpec, state: step.State, batch: Batch) -> tuple[int, int, dict[str, float]]:
  """Compiles the step; returns temporary bytes, all bytes and bytes sent by kind."""
  stream = step.abstract_stream(spec, summed=False)
  compiled = step.make_train_step(spec).lower(state, stream, batch).compile()
  m = compiled.memory_analysis()
  used = m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes
  wire = collectives.wire_bytes_by_kind(collectives.parse(compiled.as_text()))
  return m.temp_size_in_bytes, used + m.temp_size_in_bytes, wire


def _bytes_here(tree: Any) -> int:
  """Counts the bytes on one device."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
  )


def _memory(
  state: step.State, counted: flops.Flops, requested: tuple[int, ...], bytes_dense: int
) -> dict[str, float]:
  """Sums `roofline.memory_bytes` over all tables."""
  out = roofline.memory_bytes(counted.matmul_bytes, 0, 0, 0, bytes_dense)
  for table, opt_state, n in zip(state.tables, state.table_opt_state, requested, strict=True):
    row, slot = (
      sum(math.prod(x.shape[1:]) * x.dtype.itemsize for x in jax.tree.leaves(part))
      for part in (table, opt_state)
    )
    out['table'] += roofline.memory_bytes(0, n, row, slot, 0)['table']
  return out


def _used(message: str) -> int:
  """Reads the memory that a compiler reports: 'Used 25.00G of 15.75G hbm'."""
  match = re.search(r'Used ([\d.]+)([KMG]) of', message)
  return int(float(match[1]) * 1024 ** (1 + 'KMG'.index(match[2]))) if match else 0


# A TPU copies the whole table in every step if its rows are wider than _NARROW and not a multiple
# of _LANES: docs/scaling_out.md, "How a TPU lays out a table".
_NARROW, _LANES = 56, 128


def text(p: MeshPlan) -> str:
  """Formats a plan."""
  m, D = p.machine, p.machine.devices
  room = f', {size(m.memory)} each' if m.memory else ''
  temporaries = 'not known: the compiler gave up'
  if p.bytes_temporary is not None:
    temporaries = size(p.bytes_temporary)
  lines = [
    ('machine', f'{m.name}: {_of(D, "device")} on {_of(m.hosts, "host")}{room}'),
    ('program', p.compiler),
    *counts.lines(p.base, size),
    ('batch', f'{p.rows:,} rows, {p.rows // D:,} a device, {size(p.bytes_batch)} of it'),
    ('temporaries, a device', temporaries),
    ('altogether, a device', _fits(p)),
    *_network(p),
    *_time(p),
  ]
  return '\n'.join([counts.aligned(lines), *_warnings(p), 'assumptions:', *_assumptions(p)])


def size(n: float) -> str:
  """Formats bytes in powers of 1024."""
  for unit in ('bytes', 'KiB', 'MiB'):
    if n < 1024:
      return f'{n:,.0f} bytes' if unit == 'bytes' else f'{n:,.2f} {unit}'
    n /= 1024
  return f'{n:,.2f} GiB'


def _of(n: int, what: str) -> str:
  return f'{n:,} {what}{"s" if n > 1 else ""}'


def _fits(p: MeshPlan) -> str:
  if p.spare is None:
    return f'{size(p.bytes_total)}: memory of a device is not known'
  at_least = 'at least ' if p.bytes_temporary is None else ''
  if p.spare < 0:
    return f'{at_least}{size(p.bytes_total)}: DOES NOT FIT, by {size(-p.spare)}'
  return f'{size(p.bytes_total)}: fits, {size(p.spare)} to spare'


def _network(p: MeshPlan) -> list[tuple[str, str]]:
  D, total = p.machine.devices, sum(p.wire.values())
  kinds = ', '.join(f'{kind} {size(n)}' for kind, n in p.wire.items()) or 'nothing'
  tables = [
    (
      f'table of width {E}',
      f'{U:,.1f} different rows a device, {U / D:,.1f} of an owner, capacity {K:,}',
    )
    for E, U, K in zip(p.widths, p.distinct, p.capacities, strict=True)
  ]
  extra = total / p.least - 1 if p.least else 0
  more = f'; {abs(extra):.1%} {"more" if extra >= 0 else "less"} is sent'
  return [
    *tables,
    ('sent, a device and step', f'{kinds}; together {size(total)}'),
    ('least for this batch', f'{size(p.least)}{more}'),
    ('for full capacities', size(p.for_capacities)),
  ]


def _time(p: MeshPlan) -> list[tuple[str, str]]:
  if p.bound is None:
    return [('time', f'no bound: there are no figures of {p.machine.name}')]
  b, m = p.bound, p.machine
  flops = ', '.join(f'{n:.4g} FLOP {t} at {m.flops[t]:.4g}/s' for t, n in p.work.flops.items())
  moved = ', '.join(f'{what} {n:.4g} B' for what, n in p.work.memory.items())
  rates = f'all-to-all {m.all_to_all:.4g} B/s, others {m.all_reduce:.4g} B/s'
  sent = ', '.join(f'{kind} {n:.4g} B' for kind, n in p.work.wire.items()) or 'nothing'
  return [
    ('compute', f'{b.compute_seconds * 1e3:.4g} ms: {flops or "no matmul"}'),
    ('memory', f'{b.memory_seconds * 1e3:.4g} ms: {moved} at {m.memory_bandwidth:.4g} B/s'),
    ('network', f'{b.network_seconds * 1e3:.4g} ms: {sent}; {rates}'),
    ('step, at least', f'{b.step_seconds * 1e3:.4g} ms'),
    ('rows a second, at most', f'{b.rows_per_second:,.0f}; {b.limit} limits it'),
  ]


def _warnings(p: MeshPlan) -> list[str]:
  out = []
  for E in p.widths:
    if p.machine.platform == 'tpu' and E > _NARROW and E % _LANES:
      out.append(
        f'warning: rows of {E} columns: the TPU compiler copies the whole table in every step; '
        f'take up to {_NARROW} columns or a multiple of {_LANES}'
      )
  if p.real < p.rows:
    out.append(
      f'warning: the data has only {p.real:,} rows for the batch: different rows are too few'
    )
  if p.unknown:
    out.append(f'warning: FLOP of {", ".join(p.unknown)} are not counted')
  return out


def _assumptions(p: MeshPlan) -> list[str]:
  assumptions = [
    'the batch is the first one of the data; capacities hold nearly all others',
    'least: (1 - 1 / devices) (different rows (8 width + 4) + 8 dense parameters) bytes, float32; '
    'a compiler that rounds rows to bfloat16 before it sends them can send less',
    'memory is that of a training step: batches that wait (data.prefetch) and evaluation are extra',
  ]
  if p.bytes_temporary is None:
    assumptions.append('bytes sent are those of full capacities, as there is no program to read')
  assumptions += roofline.assumptions(p.machine) if p.bound else p.machine.notes
  return [f'  - {line}' for line in assumptions]
