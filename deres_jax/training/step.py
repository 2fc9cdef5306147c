# SPDX-License-Identifier: Apache-2.0
"""The training and evaluation steps: pure functions, one compiled program each.

The body runs under shard_map and reads like a program for one device with named collectives: look
up embeddings, differentiate with respect to (dense parameters, embeddings), sum the dense gradient
over devices, send the gradients of embeddings to the rows' owners.

Shapes: b examples of a batch on one device, m of a micro-batch, S ids of an example, L events of
its history, E embedding width.
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
from deres_jax.metrics.streaming import StreamState
from deres_jax.models.inputs import Context
from deres_jax.pod import mesh as mesh_lib
from deres_jax.pod.mesh import AXIS
from deres_jax.training.step_spec import StepSpec, abstract_embeddings

Array = jax.Array


class State(NamedTuple):
  """Everything that training changes."""

  step: Array  # number of steps done, int32; with the seed it is also the position in the data
  params: Any  # dense parameters, replicated
  opt: Any  # optax state of the dense parameters, replicated
  tables: tuple[Array, ...]  # embedding tables [N, E], sharded over the mesh
  table_opt_state: tuple[dict[str, Array], ...]  # of the sparse optimizer, sharded like the tables
  # Number of steps skipped because a loss or gradient was not finite, int32. They change nothing.
  # Once it exceeds StepSpec.nan_limit, no step changes anything, not even `step`.
  skipped: Array = np.int32(0)


_ALL, _SHARDED = mesh_lib.REPLICATED, mesh_lib.TABLE
SPECS = State(_ALL, _ALL, _ALL, tables=_SHARDED, table_opt_state=_SHARDED, skipped=_ALL)
# A batch is split over the mesh, except the number of its examples.
BATCH_SPECS = Batch(*[mesh_lib.BATCH] * 5, num_examples=_ALL)


def init_params(spec: StepSpec) -> Any:
  """Returns the initial dense parameters, a function of the seed alone."""
  shapes = abstract_embeddings(spec.tables, spec.column_tables, 1)
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  return spec.model.init(jax.random.key(spec.seed), zeros, Context())['params']


def _init(spec: StepSpec) -> State:
  params = init_params(spec)
  key = jax.random.fold_in(jax.random.key(spec.seed, impl='threefry2x32'), 1)
  tables = jax.shard_map(
    lambda: exchange.init_tables(key, spec.tables, spec.table_init_std),
    mesh=spec.mesh,
    in_specs=(),
    out_specs=mesh_lib.TABLE,
    check_vma=False,
  )()
  return State(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt=spec.optimizer.init(params),
    tables=tables,
    table_opt_state=tuple(spec.sparse_optimizer.init(table) for table in tables),
    skipped=jnp.zeros((), jnp.int32),
  )


def _abstract(mesh: Mesh, tree: Any, placement: PartitionSpec) -> Any:
  to = mesh_lib.sharding(mesh, placement)
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=to), tree)


def abstract_state(spec: StepSpec) -> State:
  """Returns shapes, types and shardings of the state; allocates nothing."""
  shapes = jax.eval_shape(lambda: _init(spec))
  return State(*(_abstract(spec.mesh, x, p) for x, p in zip(shapes, SPECS, strict=True)))


def init_state(spec: StepSpec) -> State:
  """Returns the state at step 0, created sharded: no device ever holds a whole table."""
  shardings = jax.tree.map(lambda x: x.sharding, abstract_state(spec))
  return jax.jit(lambda: _init(spec), out_shardings=shardings)()


def init_stream(spec: StepSpec, total: StreamState | None = None) -> StreamState:
  """Returns streaming metrics, one state a device [D, ...], that continue from the sum `total`."""
  return _start_stream(spec.mesh)(StreamState.zeros() if total is None else total)


@functools.cache  # compiled once, not at every line of metrics
def _start_stream(mesh: Mesh) -> Callable:
  def start(total):
    return jax.tree.map(lambda x: jnp.zeros((mesh.size, *x.shape), x.dtype).at[0].set(x), total)

  return jax.jit(start, out_shardings=mesh_lib.sharding(mesh, mesh_lib.BATCH))


def abstract_stream(spec: StepSpec, summed: bool = True) -> StreamState:
  """Returns shapes, types and shardings of what `make_sum_stream` or `init_stream` returns."""
  if summed:
    zeros = jax.eval_shape(StreamState.zeros)
    return _abstract(spec.mesh, zeros, mesh_lib.REPLICATED)
  return _abstract(spec.mesh, jax.eval_shape(lambda: init_stream(spec)), mesh_lib.BATCH)


def abstract_batch(spec: StepSpec, batch: Batch) -> Batch:
  """Returns shapes, types and shardings on the mesh of a global batch."""
  return Batch(*(_abstract(spec.mesh, x, p) for x, p in zip(batch, BATCH_SPECS, strict=True)))


def bce_sum(logits_B: Array, labels_B: Array, weights_B: Array) -> Array:
  """Returns the weighted sum of binary cross-entropies, softplus(z) - y z. Scalar, float32."""
  return jnp.sum(weights_B * (jax.nn.softplus(logits_B) - labels_B * logits_B))


def micro_grads(loss: Callable, params: Any, x: Any, rest: tuple, micro: int):
  """Differentiates a sum over examples, `micro` examples at a time: they fit into a CPU's cache.

  Args:
    loss: (params, x_m, *rest_m) -> (scalar sum, output of each example).
    x, rest: arrays [b, ...]; only x is differentiated. `micro` divides b.

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


def gather_columns(spec: StepSpec, embeddings: tuple[Array, ...], inverse_bS: Array) -> Any:
  """Returns the model's input: the embedding of every id, from those that this device requested.

  [b, S, E]; with several tables a tuple, each with its own columns in order.
  """
  take = ops.take if library.on() else lambda x, at: x[at]
  if len(embeddings) == 1:
    return take(embeddings[0], inverse_bS)
  columns = np.array(spec.column_tables)
  return tuple(take(x, inverse_bS[:, columns == t]) for t, x in enumerate(embeddings))


def scatter_add_columns(
  spec: StepSpec, embeddings: tuple[Array, ...], inverse_bS: Array, g: Any
) -> list[Array]:
  """Returns the gradients of the requested embeddings: the transpose of `gather_columns`."""

  def add_up(x: Array, at: Array, g: Array) -> Array:
    return ops.sum_by_row(g, at, len(x)) if library.on() else jnp.zeros_like(x).at[at].add(g)

  if len(embeddings) == 1:
    return [add_up(embeddings[0], inverse_bS, g)]
  columns = np.array(spec.column_tables)
  return [add_up(x, inverse_bS[:, columns == t], g[t]) for t, x in enumerate(embeddings)]


def _lookup(tables: tuple[Array, ...], batch: Batch) -> tuple[tuple[Array, ...], list[Array]]:
  """Returns, for each table, the embeddings this device requests and the ids requested of it."""
  pairs = [
    exchange.lookup(table, ids.reshape(-1))
    for table, ids in zip(tables, batch.unique_ids, strict=True)
  ]
  return tuple(embeddings for embeddings, _ in pairs), [requested for _, requested in pairs]


def _progress(spec: StepSpec, step: Array) -> Array:
  """Returns the share of the run that is done."""
  return step.astype(jnp.float32) / spec.steps


def _mask(spec: StepSpec, event_mask: Array) -> Array | None:
  return event_mask if spec.layout.events else None


def _example_keys(spec: StepSpec, step: Array, examples: int) -> Array:
  """Returns a PRNG key for each example of this device, by its place in the global batch."""
  key = jax.random.fold_in(jax.random.key(spec.seed), 2)
  key = jax.random.fold_in(key, step)
  first = jax.lax.axis_index(AXIS) * examples
  return jax.vmap(jax.random.fold_in, (None, 0))(key, first + jnp.arange(examples))


class Gradients(NamedTuple):
  """A device's part of the forward and backward pass of a step."""

  requested: list[Array]  # for each table the ids requested of this device
  embeddings: tuple[Array, ...]  # for each table the embeddings that this device requested
  x: Any  # the model's input, from `gather_columns`
  loss: Array  # this device's share of the mean loss of the batch
  logits: Array  # [b]
  g_params: Any  # gradient of `loss` with respect to the dense parameters
  g_x: Any  # and to x


def gradients(spec: StepSpec, state: State, batch: Batch) -> Gradients:
  """Differentiates the loss on this device's examples. Runs inside shard_map."""
  b = batch.labels.shape[0]
  embeddings, requested = _lookup(state.tables, batch)
  keys_b = _example_keys(spec, state.step, b) if spec.noise else None
  progress = _progress(spec, state.step)

  def loss(params, x_mSE, event_mask_mL, labels_m, weights_m, keys_m):
    ctx = Context(keys_m, progress, _mask(spec, event_mask_mL))
    logits_m, aux = spec.model.apply({'params': params}, x_mSE, ctx, mutable=['aux'])
    total = bce_sum(logits_m, labels_m, weights_m)
    aux = [bce_sum(z, labels_m, weights_m) for z in jax.tree.leaves(aux)]
    if aux:
      total += spec.aux_weight * sum(aux) / len(aux)
    # Divided here, so that gradients of micro-batches and devices only have to be added.
    return total / batch.num_examples, logits_m

  x_bSE = gather_columns(spec, embeddings, batch.inverse)
  rest = batch.event_mask, batch.labels, batch.weights, keys_b
  out = micro_grads(loss, state.params, x_bSE, rest, spec.micro_batch)
  return Gradients(requested, embeddings, x_bSE, *out)


def _sum_over_devices(tree: Any) -> Any:
  """Sums over devices in a single collective, whatever the number of arrays."""
  if jax.lax.axis_size(AXIS) == 1:
    return tree
  flat, unravel = ravel_pytree(tree)
  return unravel(jax.lax.psum(flat, AXIS))


def _sum_of_squares(tree: Any) -> Array:
  return sum(jnp.vdot(x, x) for x in jax.tree.leaves(tree))


def _train_body(spec: StepSpec, state: State, stream: StreamState, batch: Batch):
  grads = gradients(spec, state, batch)
  g_tables = scatter_add_columns(spec, grads.embeddings, batch.inverse, grads.g_x)
  # A step that is not finite on one device is skipped on all. Squares, because they overflow here
  # whenever they would in the optimizers.
  local = grads.loss + _sum_of_squares(g_tables)
  g_params, total = _sum_over_devices((grads.g_params, local))
  finite = jnp.isfinite(total + _sum_of_squares(g_params))
  frozen = state.skipped > spec.nan_limit
  ok = finite & ~frozen
  skipped = state.skipped + (~finite & ~frozen)

  updates, opt = spec.optimizer.update(g_params, state.opt, state.params)
  lr = spec.table_lr * spec.factor(state.step)
  updated = [
    exchange.update(spec.sparse_optimizer, *table, lr, state.step, ok)
    for table in zip(state.tables, state.table_opt_state, grads.requested, g_tables, strict=True)
  ]
  params = optax.apply_updates(state.params, updates)
  params, opt = jax.tree.map(
    lambda new, old: jnp.where(ok, new, old), (params, opt), (state.params, state.opt)
  )
  new = State(
    step=state.step + (skipped <= spec.nan_limit),
    params=params,
    opt=opt,
    tables=tuple(table for table, _ in updated),
    table_opt_state=tuple(opt_state for _, opt_state in updated),
    skipped=skipped,
  )
  weights_b = jnp.where(ok, batch.weights, 0.0)
  metrics = StreamState.from_batch(grads.logits, batch.labels, weights_b)
  metrics = jax.tree.map(lambda x: x[0], stream).merge(metrics)
  return new, jax.tree.map(lambda x: x[None], metrics)


def shard_mapped(spec: StepSpec, body: Callable, in_specs: Any, out_specs: Any) -> Callable:
  """Maps `body`, (spec, ...) -> ..., over the devices, with the kernels that `spec` chose."""

  def with_kernels(*args):
    with library.using(spec.kernels):
      return body(spec, *args)

  return jax.shard_map(
    with_kernels,
    mesh=spec.mesh,
    in_specs=in_specs,
    out_specs=out_specs,
    check_vma=False,  # gradients of replicated parameters are summed by hand, in one psum
  )


def make_train_step(spec: StepSpec) -> Callable:
  """Returns (state, stream, batch) -> (state, stream). Both arguments are donated."""
  step = shard_mapped(
    spec, _train_body, (SPECS, mesh_lib.BATCH, BATCH_SPECS), (SPECS, mesh_lib.BATCH)
  )
  return mesh_lib.serialize_dispatch(spec.mesh, jax.jit(step, donate_argnums=(0, 1)))


def forward(
  spec: StepSpec, params: Any, tables: tuple[Array, ...], step: Array, batch: Batch
) -> Array:
  """Returns a device's logits [b] float32, without dropout. Runs inside shard_map."""
  embeddings, _ = _lookup(tables, batch)
  ctx = Context(progress=_progress(spec, step), mask_BT=_mask(spec, batch.event_mask))
  x = gather_columns(spec, embeddings, batch.inverse)
  return spec.model.apply({'params': params}, x, ctx).astype(jnp.float32)


def make_eval_step(spec: StepSpec) -> Callable:
  """Returns (params, tables, step, batch) -> logits [B] float32, split over the mesh.

  `step` is the step that the parameters are from: annealed temperatures depend on it.
  """
  in_specs = mesh_lib.REPLICATED, mesh_lib.TABLE, mesh_lib.REPLICATED, BATCH_SPECS
  step = shard_mapped(spec, forward, in_specs, mesh_lib.BATCH)
  return mesh_lib.serialize_dispatch(spec.mesh, jax.jit(step))


def make_sum_stream(spec: StepSpec) -> Callable:
  """Returns stream [D, ...] -> its sum over devices, replicated."""
  total = jax.jit(
    lambda stream: jax.tree.map(lambda x: jnp.sum(x, axis=0), stream),
    out_shardings=mesh_lib.sharding(spec.mesh, mesh_lib.REPLICATED),
  )
  return mesh_lib.serialize_dispatch(spec.mesh, total)
