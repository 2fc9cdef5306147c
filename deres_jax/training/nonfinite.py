# SPDX-License-Identifier: Apache-2.0
"""What a NaN or an infinity in training comes from, said so that the user can look at the rows.

The step itself notices one and moves nothing (`deres_jax.training.step`). What is here runs when
that has happened, on the state just before it: once more the same gradients, and this time every
array of them is looked at; and before a checkpoint is written, on the whole state.

Shapes: b rows of a batch on one device, S ids of a row.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deres_jax.data.batches import Batches, put
from deres_jax.embeddings import optimizers
from deres_jax.kernels import library
from deres_jax.pod import mesh as mesh_lib
from deres_jax.pod import processes
from deres_jax.pod.mesh import AXIS
from deres_jax.training import step
from deres_jax.training.step_spec import StepSpec

Array = jax.Array
_SHOWN = 5  # rows of a batch that are named


def _finite(x: Array) -> Array:
  if x.dtype == jnp.uint16:  # of the bits of bfloat16
    x = optimizers.from_bits(x)
  return jnp.isfinite(x)


def make_finite_leaves(spec: StepSpec) -> Callable[[step.State], Any]:
  """state -> for each of its arrays whether all of it is finite, on every device."""
  check = jax.jit(
    lambda state: jax.tree.map(lambda x: jnp.all(_finite(x)), state),
    out_shardings=mesh_lib.sharding(spec.mesh, mesh_lib.REPLICATED),
  )
  return mesh_lib.serialize_dispatch(spec.mesh, check)


def first_of_state(leaves: step.State) -> str | None:
  """Name of the first array of a state that is not finite; None if all are.

  Args:
    leaves: what `make_finite_leaves` gave.
  """
  for path, finite in jax.tree_util.tree_leaves_with_path(jax.device_get(leaves)):
    if not finite:
      return f'state {_name(path)}'
  return None


class _Flags(NamedTuple):
  """What of a step is finite. Of rows this device's, of parameters all devices'."""

  params: Any
  grads: Any
  logits: Array  # [b]
  x: Array  # [b, S], the table rows that the model was given
  g_x: Array  # [b, S], the gradients by them


def _make_flags(spec: StepSpec) -> Callable:
  """(state, batch) -> _Flags."""
  tables = np.array(spec.column_tables)

  def by_column(x: Any) -> Array:
    """[b, S]; of several tables each has its own columns."""
    if not isinstance(x, tuple):
      return jnp.isfinite(x).all(-1)
    out = jnp.ones((x[0].shape[0], len(tables)), bool)
    for t, part in enumerate(x):
      out = out.at[:, tables == t].set(jnp.isfinite(part).all(-1))
    return out

  def body(state: step.State, batch: Any) -> _Flags:
    with library.using(spec.kernels):
      found = step.gradients(spec, state, batch)
    whole = jax.lax.psum(found.g_params, AXIS)
    params, grads = jax.tree.map(lambda x: jnp.isfinite(x).all(), (state.params, whole))
    logits = jnp.isfinite(found.logits)
    return _Flags(params, grads, logits, by_column(found.x), by_column(found.g_x))

  specs = _Flags(mesh_lib.REPLICATED, mesh_lib.REPLICATED, *[mesh_lib.BATCH] * 3)
  flags = jax.shard_map(
    body,
    mesh=spec.mesh,
    in_specs=(step.SPECS, step.BATCH_SPECS),
    out_specs=specs,
    check_vma=False,
  )
  return mesh_lib.serialize_dispatch(spec.mesh, jax.jit(flags))


def explain(spec: StepSpec, state: step.State, batches: Batches, index: int) -> str:
  """Where the step of batch `index` first is not finite, and where the batch is stored.

  Every process calls it; the rows that it names are those of this process.

  Args:
    state: before that step.
  """
  examples = batches.examples(index)
  host_batch = batches.host_batch(examples, batches.size(index))
  required_T = processes.gather(host_batch.required).max(axis=0)
  batch = put(batches.finish(host_batch, batches.capacities(required_T)), spec.mesh)
  flags = _make_flags(spec)(state, batch)
  rows_n, what = _first(spec, batches, examples.ids, flags)
  epoch, k = divmod(index, batches.per_epoch)
  block_n, row_n = batches.source_of(index)
  split = f'batch {k} of epoch {epoch} of split train'
  if not len(rows_n):
    blocks = np.unique(block_n)
    return f'{what}; {split}, from {len(blocks)} blocks, the first {blocks[:_SHOWN].tolist()}'
  places = ', '.join(f'{block_n[r]}:{row_n[r]}' for r in rows_n[:_SHOWN])
  more = f' and {len(rows_n) - _SHOWN} more' if len(rows_n) > _SHOWN else ''
  return f'{what}; {split}, rows stored as block:row {places}{more}'


def _first(
  spec: StepSpec, batches: Batches, ids_nS: np.ndarray, flags: _Flags
) -> tuple[np.ndarray, str]:
  """Rows of this host's part in which something is wrong, and what, in the order of the step."""
  n = len(ids_nS)
  x_nS, logits_n, g_nS = (_local(a)[:n] for a in (flags.x, flags.logits, flags.g_x))
  if not x_nS.all():
    return np.flatnonzero(~x_nS.all(1)), f'table row of {_id_of(batches, ids_nS, x_nS)}'
  for path, finite in jax.tree_util.tree_leaves_with_path(jax.device_get(flags.params)):
    if not finite:
      return np.zeros(0, int), f'parameter {_name(path)}'
  if not logits_n.all():
    bad_n = np.flatnonzero(~logits_n)
    return bad_n, f'logits of {len(bad_n)} of {n} rows, tables and parameters being finite'
  bad_n = np.flatnonzero(~g_nS.all(1))
  for path, finite in jax.tree_util.tree_leaves_with_path(jax.device_get(flags.grads)):
    if not finite:
      return bad_n, f'gradient of parameter {_name(path)}'
  if len(bad_n):
    return bad_n, f'gradient of the table row of {_id_of(batches, ids_nS, g_nS)}'
  return bad_n, 'the loss, or the sum of the squares of a gradient, exceeds float32'


def _id_of(batches: Batches, ids_nS: np.ndarray, finite_nS: np.ndarray) -> str:
  """The field and id of the first place that is not finite."""
  r, s = np.argwhere(~finite_nS)[0]
  schema = batches.schema
  column = schema.columns[s]
  what = f'field {schema.fields[column].name}' if s < len(schema.fields) else 'an event attribute'
  return f'{what}, id {ids_nS[r, s] - batches.offset(column)}'


def _name(path: tuple) -> str:
  return jax.tree_util.keystr(path, simple=True, separator='/')


def _local(x_B: Array) -> np.ndarray:
  """This host's part of an array that is split over the mesh."""
  shards = sorted(x_B.addressable_shards, key=lambda s: s.index[0].start or 0)
  return np.concatenate([np.asarray(s.data) for s in shards])
