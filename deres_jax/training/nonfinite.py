# SPDX-License-Identifier: Apache-2.0
"""Finds where a NaN or an infinity in training comes from, so that the user can look at the rows.

The step itself detects one and changes nothing (`deres_jax.training.step`). Afterwards `explain`
computes the same gradients once more, from the state before the step, and checks every array of
them. Before a checkpoint is written, `make_finite_leaves` checks the whole state.

Shapes: b examples of a batch on one device, S ids of an example; n examples of this host.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deres_jax.data.batches import Batches, put
from deres_jax.embeddings import optimizers
from deres_jax.pod import mesh as mesh_lib
from deres_jax.pod import processes
from deres_jax.pod.mesh import AXIS
from deres_jax.training import step
from deres_jax.training.evaluate import local_part
from deres_jax.training.step_spec import StepSpec

Array = jax.Array
_LISTED = 5  # rows or blocks named in a message


def _finite(x: Array) -> Array:
  if x.dtype == jnp.uint16:  # bits of bfloat16
    x = optimizers.from_bits(x)
  return jnp.isfinite(x)


def make_finite_leaves(spec: StepSpec) -> Callable[[step.State], Any]:
  """Returns state -> for each of its arrays whether all of it is finite, replicated."""
  check = jax.jit(
    lambda state: jax.tree.map(lambda x: jnp.all(_finite(x)), state),
    out_shardings=mesh_lib.sharding(spec.mesh, mesh_lib.REPLICATED),
  )
  return mesh_lib.serialize_dispatch(spec.mesh, check)


def first_of_state(leaves: step.State) -> str | None:
  """Returns the name of the first array that is not finite, from `make_finite_leaves`, or None."""
  name = _first_false(leaves)
  return f'state {name}' if name else None


def _first_false(tree: Any) -> str | None:
  for path, finite in jax.tree_util.tree_leaves_with_path(jax.device_get(tree)):
    if not finite:
      return jax.tree_util.keystr(path, simple=True, separator='/')
  return None


class _Finite(NamedTuple):
  """Which parts of a step are finite: parameters on all devices, examples of this device."""

  params: Any
  grads: Any
  logits: Array  # [b]
  x: Array  # [b, S], the model's input
  g_x: Array  # [b, S], its gradient


def _make_finite(spec: StepSpec) -> Callable:
  """Returns (state, batch) -> _Finite."""
  column_tables = np.array(spec.column_tables)

  def by_column(x: Any) -> Array:
    # [b, S]; with several tables, each has its own columns.
    if not isinstance(x, tuple):
      return jnp.isfinite(x).all(-1)
    out = jnp.ones((x[0].shape[0], len(column_tables)), bool)
    for t, part in enumerate(x):
      out = out.at[:, column_tables == t].set(jnp.isfinite(part).all(-1))
    return out

  def body(spec: StepSpec, state: step.State, batch: Any) -> _Finite:
    g = step.gradients(spec, state, batch)
    g_params = jax.lax.psum(g.g_params, AXIS)
    params, grads = jax.tree.map(lambda x: jnp.isfinite(x).all(), (state.params, g_params))
    return _Finite(params, grads, jnp.isfinite(g.logits), by_column(g.x), by_column(g.g_x))

  out_specs = _Finite(mesh_lib.REPLICATED, mesh_lib.REPLICATED, *[mesh_lib.BATCH] * 3)
  finite = step.shard_mapped(spec, body, (step.SPECS, step.BATCH_SPECS), out_specs)
  return mesh_lib.serialize_dispatch(spec.mesh, jax.jit(finite))


def explain(spec: StepSpec, state: step.State, batches: Batches, index: int) -> str:
  """Says where the step of batch `index` first is not finite, and where the batch is stored.

  Every process must call it, with the state before that step; it names rows of this process.
  """
  examples = batches.examples(index)
  host_batch = batches.host_batch(examples, batches.size(index))
  required_T = processes.gather(host_batch.required).max(axis=0)
  batch = put(batches.finish(host_batch, batches.capacities(required_T)), spec.mesh)
  finite = _make_finite(spec)(state, batch)
  bad_n, what = _first_cause(batches, examples.ids, finite)
  epoch, k = divmod(index, batches.per_epoch)
  block_n, row_n = batches.source_of(index)
  split = f'batch {k} of epoch {epoch} of split train'
  if not len(bad_n):
    blocks = np.unique(block_n)
    return f'{what}; {split}, from {len(blocks)} blocks, the first {blocks[:_LISTED].tolist()}'
  places = ', '.join(f'{block_n[r]}:{row_n[r]}' for r in bad_n[:_LISTED])
  more = f' and {len(bad_n) - _LISTED} more' if len(bad_n) > _LISTED else ''
  return f'{what}; {split}, rows stored as block:row {places}{more}'


def _first_cause(batches: Batches, ids_nS: np.ndarray, finite: _Finite) -> tuple[np.ndarray, str]:
  """Returns which examples are affected, and by what: the first cause in the order of the step."""
  n = len(ids_nS)
  x_nS, logits_n, g_nS = (local_part(a)[:n] for a in (finite.x, finite.logits, finite.g_x))
  if not x_nS.all():
    return np.flatnonzero(~x_nS.all(1)), f'table row of {_first_id(batches, ids_nS, x_nS)}'
  if name := _first_false(finite.params):
    return np.zeros(0, int), f'parameter {name}'
  if not logits_n.all():
    bad_n = np.flatnonzero(~logits_n)
    return bad_n, f'logits of {len(bad_n)} of {n} rows, tables and parameters being finite'
  bad_n = np.flatnonzero(~g_nS.all(1))
  if name := _first_false(finite.grads):
    return bad_n, f'gradient of parameter {name}'
  if len(bad_n):
    return bad_n, f'gradient of the table row of {_first_id(batches, ids_nS, g_nS)}'
  return bad_n, 'the loss, or the sum of the squares of a gradient, exceeds float32'


def _first_id(batches: Batches, ids_nS: np.ndarray, finite_nS: np.ndarray) -> str:
  """Names field and id of the first embedding that is not finite."""
  r, s = np.argwhere(~finite_nS)[0]
  schema = batches.schema
  column = schema.columns[s]
  what = f'field {schema.fields[column].name}' if s < len(schema.fields) else 'an event attribute'
  return f'{what}, id {ids_nS[r, s] - batches.offset(column)}'
