# SPDX-License-Identifier: Apache-2.0
"""The training and evaluation steps: pure functions, one compiled program each.

The body runs under shard_map and reads like a program for one device with named collectives:
look up the rows, differentiate with respect to (dense parameters, rows), sum the dense gradient
over devices, send row gradients home.

Shapes: b rows of a batch on one device, m rows of a micro-batch, S ids of a row, L events of its
history, E row width, C rows that a device asks for.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, PartitionSpec

from deres_jax.data.batches import Batch
from deres_jax.embeddings import exchange
from deres_jax.kernels import library, ops
from deres_jax.metrics import streaming
from deres_jax.models.inputs import Context
from deres_jax.pod import mesh as mesh_lib
from deres_jax.pod.mesh import AXIS
from deres_jax.training.step_spec import Setup, abstract_rows

Array = jax.Array


class State(NamedTuple):
  """All that training changes.

  Attributes:
    step: number of steps done, int32; with the seed it is also the position in the data.
    params: dense parameters; on every device.
    opt: optax state of the dense parameters; on every device.
    rows: the tables [N, E]; split over the mesh.
    slots: the row optimizer's state of each table; split like it.
    skipped: number of steps in which a loss or a gradient was not finite, int32. They move nothing;
      from the one on that exceeds `Setup.nan_limit` no step does, nor does `step` go on.
  """

  step: Array
  params: Any
  opt: Any
  rows: tuple[Array, ...]
  slots: tuple[dict[str, Array], ...]
  skipped: Array = np.int32(0)


SPECS = State(
  step=mesh_lib.REPLICATED,
  params=mesh_lib.REPLICATED,
  opt=mesh_lib.REPLICATED,
  rows=mesh_lib.TABLE,
  slots=mesh_lib.TABLE,
  skipped=mesh_lib.REPLICATED,
)


def _shardings(mesh: Mesh, tree: State) -> State:
  return State(
    *(
      jax.tree.map(lambda _, s=spec: mesh_lib.sharding(mesh, s), part)
      for spec, part in zip(SPECS, tree, strict=True)
    )
  )


def init_params(setup: Setup) -> Any:
  """Dense parameters at the start; a function of the seed alone."""
  shapes = abstract_rows(setup.tables, setup.slot_tables, 1)
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  return setup.model.init(jax.random.key(setup.seed), zeros, Context())['params']


def _init(setup: Setup) -> State:
  params = init_params(setup)
  key = jax.random.fold_in(jax.random.key(setup.seed, impl='threefry2x32'), 1)

  def rows():
    return tuple(
      exchange.init_rows(jax.random.fold_in(key, t) if t else key, table, setup.table_init_std)
      for t, table in enumerate(setup.tables.parts)
    )

  rows = jax.shard_map(
    rows, mesh=setup.mesh, in_specs=(), out_specs=mesh_lib.TABLE, check_vma=False
  )()
  return State(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt=setup.optimizer.init(params),
    rows=rows,
    slots=tuple(setup.row_optimizer.init(table) for table in rows),
    skipped=jnp.zeros((), jnp.int32),
  )


def abstract_state(setup: Setup) -> State:
  """Shapes, types and shardings of the state; allocates nothing."""
  tree = jax.eval_shape(lambda: _init(setup))
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    tree,
    _shardings(setup.mesh, tree),
  )


def init_state(setup: Setup) -> State:
  """The state at step 0, born sharded: no device ever holds a whole table."""
  shardings = jax.tree.map(lambda x: x.sharding, abstract_state(setup))
  return jax.jit(lambda: _init(setup), out_shardings=shardings)()


def init_stream(setup: Setup, total: streaming.StreamState | None = None) -> streaming.StreamState:
  """Streaming metrics, one state a device [D, ...], summed when read.

  Args:
    total: what `make_sum_stream` gave for the rows so far; None: no rows.
  """
  return _start_stream(setup.mesh)(streaming.StreamState.zeros() if total is None else total)


@functools.cache  # compiled once, not at every line of metrics
def _start_stream(mesh: Mesh) -> Callable:
  def start(total):
    return jax.tree.map(lambda x: jnp.zeros((mesh.size, *x.shape), x.dtype).at[0].set(x), total)

  return jax.jit(start, out_shardings=mesh_lib.sharding(mesh, mesh_lib.BATCH))


def abstract_stream(setup: Setup, summed: bool = True) -> streaming.StreamState:
  """Shapes, types and shardings of what `make_sum_stream` (if not summed, `init_stream`) gives."""
  to = mesh_lib.sharding(setup.mesh, mesh_lib.REPLICATED if summed else mesh_lib.BATCH)
  axis = () if summed else (setup.mesh.size,)
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((*axis, *x.shape), x.dtype, sharding=to),
    jax.eval_shape(streaming.StreamState.zeros),
  )


def abstract_batch(setup: Setup, batch: Batch) -> Batch:
  """Shapes, types and shardings on the mesh of a whole batch on the host, or of one as large."""

  def of(part: Any, spec: PartitionSpec) -> Any:
    to = mesh_lib.sharding(setup.mesh, spec)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=to), part)

  return Batch(*(of(part, spec) for part, spec in zip(batch, BATCH_SPECS, strict=True)))


def micro_grads(loss: Callable, params: Any, x: Any, rest: tuple, micro: int):
  """Value, auxiliary output and gradient of a sum over rows, `micro` rows at a time.

  Activations of a micro-batch stay in a CPU's cache; the sums are those of the whole batch.

  Args:
    loss: (params, x_m, *rest_m) -> (scalar sum, outputs a row).
    x: arrays [b, ...], differentiated too; rest: arrays [b, ...] that are not.
    micro: rows at a time, a divisor of b.

  Returns:
    (sum, outputs [b, ...], gradient of params, gradient of x [b, ...]).
  """
  grad = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
  b = jax.tree.leaves(x)[0].shape[0]
  if micro == b:
    (total, out), (gp, gx) = grad(params, x, *rest)
    return total, out, gp, gx

  def split(a):
    return a.reshape(b // micro, micro, *a.shape[1:])

  def join(a):
    return a.reshape(b, *a.shape[2:])

  def body(carry, part):
    (total, out), (gp, gx) = grad(params, *part)
    return jax.tree.map(jnp.add, carry, (total, gp)), (out, gx)

  zero = (jnp.zeros(()), jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params))
  (total, gp), (out, gx) = jax.lax.scan(body, zero, jax.tree.map(split, (x, *rest)))
  return total, join(out), gp, jax.tree.map(join, gx)


def _progress(setup: Setup, step: Array) -> Array:
  """Share of the run that is done after `step` steps."""
  return step.astype(jnp.float32) / setup.steps


def _mask(setup: Setup, there_BL: Array) -> Array | None:
  return there_BL if setup.layout.events else None


def _row_keys(setup: Setup, step: Array, rows: int) -> Array:
  """A PRNG key for each of this device's rows, by its place in the global batch."""
  key = jax.random.fold_in(jax.random.key(setup.seed), 2)
  key = jax.random.fold_in(key, step)
  first = jax.lax.axis_index(AXIS) * rows
  return jax.vmap(jax.random.fold_in, (None, 0))(key, first + jnp.arange(rows))


def by_slot(setup: Setup, rows: tuple[Array, ...], inverse_bS: Array) -> Any:
  """Rows of the batch from those that were asked for: what the model is given.

  Of one table [b, S, E]; of several a tuple, each with the slots of its table in order.
  """
  take = ops.take if library.on() else lambda x, at: x[at]
  if len(rows) == 1:
    return take(rows[0], inverse_bS)
  slots = np.array(setup.slot_tables)
  return tuple(take(x, inverse_bS[:, slots == t]) for t, x in enumerate(rows))


def sum_by_slot(setup: Setup, rows: tuple[Array, ...], inverse_bS: Array, g: Any) -> list[Array]:
  """The transpose of `by_slot`: gradients of the rows that were asked for."""

  def add_up(x: Array, at: Array, g: Array) -> Array:
    return ops.sum_by_row(g, at, len(x)) if library.on() else jnp.zeros_like(x).at[at].add(g)

  if len(rows) == 1:
    return [add_up(rows[0], inverse_bS, g)]
  slots = np.array(setup.slot_tables)
  return [add_up(x, inverse_bS[:, slots == t], g[t]) for t, x in enumerate(rows)]


def _lookup(tables: tuple[Array, ...], batch: Batch) -> tuple[tuple[Array, ...], list[Array]]:
  """For each table the rows that this device asks for, and what it is asked for."""
  found = [
    exchange.lookup(table, ids.reshape(-1)) for table, ids in zip(tables, batch.ids, strict=True)
  ]
  return tuple(rows for rows, _ in found), [asked for _, asked in found]


def _sum_over_devices(tree: Any) -> Any:
  """psum as one collective, whatever the number of arrays."""
  if jax.lax.axis_size(AXIS) == 1:
    return tree
  flat, unravel = ravel_pytree(tree)
  return unravel(jax.lax.psum(flat, AXIS))


class Gradients(NamedTuple):
  """What a device's rows of a batch give.

  Attributes:
    asked: for each table what this device is asked for.
    x: what the model was given, as of `by_slot`.
    loss: their part of the mean loss of the batch; logits: [b].
    params: gradient of `loss` by the dense parameters; slots: by x.
  """

  asked: list[Array]
  rows: tuple[Array, ...]
  x: Any
  loss: Array
  logits: Array
  params: Any
  slots: Any


def gradients(setup: Setup, state: State, batch: Batch) -> Gradients:
  """Runs inside shard_map, on this device's rows."""
  b = batch.labels.shape[0]
  rows, asked = _lookup(state.rows, batch)
  keys_b = _row_keys(setup, state.step, b) if setup.noise else None

  progress = _progress(setup, state.step)

  def loss(params, rows_mSE, there_mL, labels_m, weights_m, keys_m):
    ctx = Context(keys_m, progress, _mask(setup, there_mL))
    logits_m, aux = setup.model.apply({'params': params}, rows_mSE, ctx, mutable=['aux'])
    total = bce_sum(logits_m, labels_m, weights_m)
    aux = [bce_sum(z, labels_m, weights_m) for z in jax.tree.leaves(aux)]
    if aux:
      total += setup.aux_weight * sum(aux) / len(aux)
    # Divided here, so that gradients of micro-batches and devices only have to be added.
    return total / batch.rows, logits_m

  x_bSE = by_slot(setup, rows, batch.inverse)
  rest = batch.there, batch.labels, batch.weights, keys_b
  out = micro_grads(loss, state.params, x_bSE, rest, setup.micro_batch)
  return Gradients(asked, rows, x_bSE, *out)


def _sum_of_squares(tree: Any) -> Array:
  return sum(jnp.vdot(x, x) for x in jax.tree.leaves(tree))


def _train_body(setup: Setup, state: State, stream: streaming.StreamState, batch: Batch):
  found = gradients(setup, state, batch)
  g_rows = sum_by_slot(setup, found.rows, batch.inverse, found.slots)
  # Not finite on one device: on none. Of squares, as what overflows in the optimizers does here.
  mine = found.loss + _sum_of_squares(g_rows)
  g_params, all_of = _sum_over_devices((found.params, mine))
  finite = jnp.isfinite(all_of + _sum_of_squares(g_params))
  held = state.skipped > setup.nan_limit
  ok = finite & ~held
  skipped = state.skipped + (~finite & ~held)

  updates, opt = setup.optimizer.update(g_params, state.opt, state.params)
  lr = setup.table_lr * setup.factor(state.step)
  moved = [
    exchange.update(setup.row_optimizer, *table, lr, state.step, ok)
    for table in zip(state.rows, state.slots, found.asked, g_rows, strict=True)
  ]
  params = optax.apply_updates(state.params, updates)
  params, opt = jax.tree.map(
    lambda new, old: jnp.where(ok, new, old), (params, opt), (state.params, state.opt)
  )
  new = State(
    step=state.step + (skipped <= setup.nan_limit),
    params=params,
    opt=opt,
    rows=tuple(rows for rows, _ in moved),
    slots=tuple(slots for _, slots in moved),
    skipped=skipped,
  )
  weights_b = jnp.where(ok, batch.weights, 0.0)
  seen = streaming.StreamState.from_batch(found.logits, batch.labels, weights_b)
  mine = jax.tree.map(lambda x: x[0], stream).merge(seen)
  return new, jax.tree.map(lambda x: x[None], mine)


# A batch is split over the mesh but for the number of its rows.
BATCH_SPECS = Batch(*[mesh_lib.BATCH] * 5, rows=mesh_lib.REPLICATED)


def make_train_step(setup: Setup) -> Callable:
  """(state, stream, batch) -> (state, stream). Both are donated: the old ones are gone."""

  def body(*args):
    with library.using(setup.kernels):
      return _train_body(setup, *args)

  step = jax.shard_map(
    body,
    mesh=setup.mesh,
    in_specs=(SPECS, mesh_lib.BATCH, BATCH_SPECS),
    out_specs=(SPECS, mesh_lib.BATCH),
    check_vma=False,  # gradients of replicated parameters are summed by the psum above, by hand
  )
  return mesh_lib.settled(setup.mesh, jax.jit(step, donate_argnums=(0, 1)))


def forward(
  setup: Setup, params: Any, tables: tuple[Array, ...], step: Array, batch: Batch
) -> Array:
  """Logits [b] float32 of a device's part of a batch, without noise; for bodies of shard_map."""
  rows, _ = _lookup(tables, batch)
  ctx = Context(progress=_progress(setup, step), mask_BT=_mask(setup, batch.there))
  x = by_slot(setup, rows, batch.inverse)
  return setup.model.apply({'params': params}, x, ctx).astype(jnp.float32)


def make_eval_step(setup: Setup) -> Callable:
  """(params, rows, step, batch) -> logits [B] float32, split over the mesh like the batch.

  `step` is the one that the parameters are of: annealed temperatures depend on it.
  """

  def body(*args):
    with library.using(setup.kernels):
      return forward(setup, *args)

  step = jax.shard_map(
    body,
    mesh=setup.mesh,
    in_specs=(mesh_lib.REPLICATED, mesh_lib.TABLE, mesh_lib.REPLICATED, BATCH_SPECS),
    out_specs=mesh_lib.BATCH,
    check_vma=False,
  )
  return mesh_lib.settled(setup.mesh, jax.jit(step))


def make_sum_stream(setup: Setup) -> Callable:
  """stream [D, ...] -> its sum over devices, on every device."""
  total = jax.jit(
    lambda stream: jax.tree.map(lambda x: jnp.sum(x, axis=0), stream),
    out_shardings=mesh_lib.sharding(setup.mesh, mesh_lib.REPLICATED),
  )
  return mesh_lib.settled(setup.mesh, total)


def make_read_stream(setup: Setup) -> Callable:
  """stream -> its figures on the host, summed over devices."""
  total = make_sum_stream(setup)
  return lambda stream: jax.device_get(total(stream)).compute()


def bce_sum(logits_B: jax.Array, labels_B: jax.Array, weights_B: jax.Array) -> jax.Array:
  """Weighted sum of binary cross-entropies from logits: softplus(z) - y z. Scalar, float32."""
  return jnp.sum(weights_B * (jax.nn.softplus(logits_B) - labels_B * logits_B))
