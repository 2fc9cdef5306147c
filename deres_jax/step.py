# SPDX-License-Identifier: Apache-2.0
"""The training and evaluation steps: pure functions, one compiled program each.

The body runs under shard_map and reads like a program for one device with named collectives:
look up the rows, differentiate with respect to (dense parameters, rows), sum the dense gradient
over devices, send row gradients home.

Shapes: b rows of a batch on one device, m rows of a micro-batch, S ids of a row, L events of its
history, E row width, C ids.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import Mesh

from deres_jax import config as config_lib
from deres_jax import embedding, losses, models, optim, parallel, streaming
from deres_jax.data import Batch
from deres_jax.errors import UserError
from deres_jax.models.layers import Context
from deres_jax.parallel import AXIS
from deres_jax.schema import Schema

Array = jax.Array

# An activation [128 * 39, 64] float32 is 1.3 MB: it stays in a core's cache.
CPU_MICRO_BATCH = 128


class State(NamedTuple):
  """All that training changes.

  Attributes:
    step: number of steps done, int32; with the seed it is also the position in the data.
    params: dense parameters; on every device.
    opt: optax state of the dense parameters; on every device.
    rows: the table [R, GROUP, E]; split over the mesh.
    slots: the row optimizer's state; split like the table.
  """

  step: Array
  params: Any
  opt: Any
  rows: Array
  slots: dict[str, Array]


SPECS = State(
  step=parallel.REPLICATED,
  params=parallel.REPLICATED,
  opt=parallel.REPLICATED,
  rows=parallel.TABLE,
  slots=parallel.TABLE,
)


@dataclasses.dataclass(frozen=True)
class Setup:
  """The parts that a step is made of."""

  mesh: Mesh
  model: nn.Module
  layout: models.Layout
  table: embedding.Table
  optimizer: optax.GradientTransformation
  row_optimizer: embedding.RowOptimizer
  factor: Callable[[Array], Array]  # schedule of both learning rates
  table_lr: float
  table_init_std: float
  micro_batch: int  # rows that a device works on at a time; divides its part of a batch
  noise: bool  # whether the model draws dropout
  aux_weight: float  # of the auxiliary losses' mean
  steps: int  # length of the run
  seed: int


def layout_of(schema: Schema) -> models.Layout:
  """What a row's ids are, for models."""
  sequence = schema.sequence
  if sequence is None:
    return models.Layout(len(schema.fields))
  targets = sequence.columns[: sequence.shared]
  return models.Layout(len(schema.fields), sequence.length, len(sequence.attributes), targets)


def make_setup(
  c: config_lib.Config,
  vocab_sizes: tuple[int, ...],
  layout: models.Layout,
  click_rate: float,
  mesh: Mesh,
  steps: int,
) -> Setup:
  """The parts of the step of a config; allocates nothing on devices.

  Args:
    vocab_sizes: ids of each of the table's columns.
    layout: what a model is given of them.
    click_rate: of the training rows.
    steps: length of the run.

  Raises:
    UserError: sizes that do not fit each other, the mesh or the table.
  """
  parallel.check_batch(c.data.batch_size, mesh, 'data.batch_size')
  parallel.check_batch(c.data.eval_batch_size, mesh, 'data.eval_batch_size')
  table = embedding.Table(vocab_sizes, *models.row_width(c))
  table.check(mesh.size)
  model = models.build(c, layout, math.log(click_rate / (1 - click_rate)))
  rows_BSE = jax.ShapeDtypeStruct((1, layout.slots, table.dim), jnp.float32)
  variables = jax.eval_shape(model.init, jax.random.key(0), rows_BSE, Context())
  factor = optim.schedule(c.optim, steps)
  o = c.optim
  return Setup(
    mesh=mesh,
    model=model,
    layout=layout,
    table=table,
    optimizer=optim.dense(o, factor, variables['params']),
    row_optimizer=embedding.RowOptimizer(o.table, o.table_eps, o.table_l2, o.adam_b1, o.adam_b2),
    factor=factor,
    table_lr=o.table_lr,
    table_init_std=o.table_init_std,
    micro_batch=_micro_batch(c.train.micro_batch, c.data.batch_size // mesh.size, mesh),
    noise=c.model.dropout > 0 or c.model.embed_dropout > 0 or c.mlp.dropout > 0,
    aux_weight=c.model.aux_weight,
    steps=steps,
    seed=c.seed,
  )


def _micro_batch(wanted: int, rows: int, mesh: Mesh) -> int:
  """Rows at a time of a device's `rows`: what is wanted, or what is fast on this platform."""
  if wanted == -1:
    on_cpu = mesh.devices.flat[0].platform == 'cpu'
    return CPU_MICRO_BATCH if on_cpu and rows % CPU_MICRO_BATCH == 0 else rows
  if wanted and rows % wanted:
    raise UserError(
      f'config train.micro_batch={wanted} does not divide the {rows} rows that each device '
      'gets of a batch: change it or data.batch_size, or set it to 0'
    )
  return wanted or rows


def _shardings(mesh: Mesh, tree: State) -> State:
  return State(
    *(
      jax.tree.map(lambda _, s=spec: parallel.sharding(mesh, s), part)
      for spec, part in zip(SPECS, tree, strict=True)
    )
  )


def init_params(setup: Setup) -> Any:
  """Dense parameters at the start; a function of the seed alone."""
  rows_BSE = jnp.zeros((1, setup.layout.slots, setup.table.dim))
  return setup.model.init(jax.random.key(setup.seed), rows_BSE, Context())['params']


def _init(setup: Setup) -> State:
  params = init_params(setup)
  key = jax.random.fold_in(jax.random.key(setup.seed), 1)
  return State(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt=setup.optimizer.init(params),
    rows=embedding.init_rows(key, setup.table, setup.table_init_std),
    slots=setup.row_optimizer.init(setup.table),
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


def init_stream(setup: Setup) -> streaming.StreamState:
  """Streaming metrics of no rows, one state a device: [D, ...], summed when read."""

  def zeros():
    return jax.tree.map(
      lambda x: jnp.zeros((setup.mesh.size, *x.shape), x.dtype), streaming.StreamState.zeros()
    )

  to = parallel.sharding(setup.mesh, parallel.BATCH)
  return jax.jit(zeros, out_shardings=to)()


def micro_grads(loss: Callable, params: Any, x: Array, rest: tuple, micro: int):
  """Value, auxiliary output and gradient of a sum over rows, `micro` rows at a time.

  Activations of a micro-batch stay in a CPU's cache; the sums are those of the whole batch.

  Args:
    loss: (params, x_m, *rest_m) -> (scalar sum, outputs a row).
    x: [b, ...], differentiated too; rest: arrays [b, ...] that are not.
    micro: rows at a time, a divisor of b.

  Returns:
    (sum, outputs [b, ...], gradient of params, gradient of x [b, ...]).
  """
  grad = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
  b = x.shape[0]
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
  return total, join(out), gp, join(gx)


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


def _train_body(setup: Setup, state: State, stream: streaming.StreamState, batch: Batch):
  b = batch.labels.shape[0]
  total_weight = jax.lax.psum(jnp.sum(batch.weights), AXIS)
  rows_CE = embedding.lookup(state.rows, batch.unique)
  keys_b = _row_keys(setup, state.step, b) if setup.noise else None

  progress = _progress(setup, state.step)

  def loss(params, rows_mSE, there_mL, labels_m, weights_m, keys_m):
    ctx = Context(keys_m, progress, _mask(setup, there_mL))
    logits_m, aux = setup.model.apply({'params': params}, rows_mSE, ctx, mutable=['aux'])
    total = losses.bce_sum(logits_m, labels_m, weights_m)
    aux = [losses.bce_sum(z, labels_m, weights_m) for z in jax.tree.leaves(aux)]
    if aux:
      total += setup.aux_weight * sum(aux) / len(aux)
    # Divided here, so that gradients of micro-batches and devices only have to be added.
    return total / total_weight, logits_m

  _, logits_b, g_params, g_bSE = micro_grads(
    loss,
    state.params,
    rows_CE[batch.inverse],
    (batch.there, batch.labels, batch.weights, keys_b),
    setup.micro_batch,
  )
  g_params = jax.lax.psum(g_params, AXIS)
  g_CE = jnp.zeros_like(rows_CE).at[batch.inverse].add(g_bSE)

  updates, opt = setup.optimizer.update(g_params, state.opt, state.params)
  lr = setup.table_lr * setup.factor(state.step)
  rows, slots = embedding.update(
    setup.row_optimizer, state.rows, state.slots, batch.unique, g_CE, lr, state.step
  )
  new = State(
    step=state.step + 1,
    params=optax.apply_updates(state.params, updates),
    opt=opt,
    rows=rows,
    slots=slots,
  )
  seen = streaming.StreamState.from_batch(logits_b, batch.labels, batch.weights)
  mine = jax.tree.map(lambda x: x[0], stream).merge(seen)
  return new, jax.tree.map(lambda x: x[None], mine)


def make_train_step(setup: Setup) -> Callable:
  """(state, stream, batch) -> (state, stream). Both are donated: the old ones are gone."""
  step = jax.shard_map(
    lambda *args: _train_body(setup, *args),
    mesh=setup.mesh,
    in_specs=(SPECS, parallel.BATCH, parallel.BATCH),
    out_specs=(SPECS, parallel.BATCH),
    check_vma=False,  # gradients of replicated parameters are summed by the psum above, by hand
  )
  return jax.jit(step, donate_argnums=(0, 1))


def make_eval_step(setup: Setup) -> Callable:
  """(params, rows, step, batch) -> logits [B] float32 on every device.

  `step` is the one that the parameters are of: annealed temperatures depend on it.
  """

  def body(params, rows, step, batch):
    rows_bSE = embedding.lookup(rows, batch.unique)[batch.inverse]
    ctx = Context(progress=_progress(setup, step), mask_BT=_mask(setup, batch.there))
    logits = setup.model.apply({'params': params}, rows_bSE, ctx)
    return jax.lax.all_gather(logits.astype(jnp.float32), AXIS, tiled=True)

  step = jax.shard_map(
    body,
    mesh=setup.mesh,
    in_specs=(parallel.REPLICATED, parallel.TABLE, parallel.REPLICATED, parallel.BATCH),
    out_specs=parallel.REPLICATED,
    check_vma=False,
  )
  return jax.jit(step)


def make_read_stream(setup: Setup) -> Callable:
  """stream -> its figures on the host, summed over devices."""
  total = jax.jit(
    lambda stream: jax.tree.map(lambda x: jnp.sum(x, axis=0), stream),
    out_shardings=parallel.sharding(setup.mesh, parallel.REPLICATED),
  )
  return lambda stream: jax.device_get(total(stream)).compute()
