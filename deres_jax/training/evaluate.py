# SPDX-License-Identifier: Apache-2.0
"""Exact figures of a model on a whole split."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from deres_jax.core.errors import Retry, UserError
from deres_jax.data.batches import Batches, Examples
from deres_jax.data.feed import Prefetch, feed
from deres_jax.data.schema import FIRST_TOKEN_ID
from deres_jax.metrics import exact, grouped
from deres_jax.pod import processes


class Stopped(Retry):
  """A host received a stop request before the figures were ready."""

  def __init__(self):
    super().__init__('before the figures of a split were there: the same command goes on')


def run(
  eval_step: Callable,
  params: Any,
  tables: tuple[jax.Array, ...],
  batches: Batches,
  mesh: Mesh,
  prefetch: Prefetch,
  stop_requested: Callable[[], bool],
  beat: Callable[[], None],
) -> tuple[dict[str, float], np.ndarray]:
  """Figures and logits [N] float32 of all N rows, as stored, on every host.

  The figures are those of `metrics.evaluate_logits`; of data with users and items also those of
  `gauc.gauc` and `gauc.item_aucs`.

  Args:
    eval_step: (params, tables, batch) -> logits, split over the mesh.
    stop_requested: whether this host received a stop request.
    beat: called after every batch.

  Raises:
    Stopped: when a host received a stop request.
    UserError: a logit is NaN.
  """
  schema = batches.schema
  item = schema.column(schema.items.field) if schema.items else None

  def select(examples: Examples) -> tuple[np.ndarray, ...]:
    # Copies: the ids of a whole window would live as long as a view of them.
    columns = [examples.labels.copy()]
    if schema.group:
      columns.append(examples.groups.copy())
    if schema.items:
      columns.append(examples.ids[:, item].copy())
    return tuple(columns)

  selected, out = [], []
  for device_batch in feed(batches, mesh, (0, batches.per_epoch), prefetch, stop_requested, select):
    if device_batch.stop:
      raise Stopped
    selected.append(device_batch.selected)
    # Fetched below, so that the device runs ahead.
    out.append(eval_step(params, tables, device_batch.batch))
    beat()
  logits = [_local(x) for x in out]
  b = len(logits[0])
  columns = [_padded(x, b) for x in zip(*selected, strict=True)]
  rows = batches.examples_until(batches.per_epoch)
  logits_N, labels_N, *others = (_joined(x)[:rows] for x in (np.stack(logits), *columns))
  nan_N = np.flatnonzero(np.isnan(logits_N))
  if len(nan_N):
    raise UserError(
      f'{len(nan_N)} of {rows} logits are NaN in evaluation, the first in row {nan_N[0]} as '
      'stored, though the parameters are finite: lower the learning rates in a new --workdir'
    )
  figures = exact.evaluate_logits(labels_N, logits_N)
  if schema.group:
    figures |= grouped.gauc(labels_N, logits_N, others[0])
  if schema.items:
    ids_N = others[-1] - batches.offset(item)
    figures |= grouped.item_aucs(
      labels_N, logits_N, ids_N, FIRST_TOKEN_ID, schema.items.head_below, schema.items.torso_below
    )
  return figures, logits_N


def _local(logits_B: jax.Array) -> np.ndarray:
  """This host's part."""
  shards = sorted(logits_B.addressable_shards, key=lambda s: s.index[0].start or 0)
  return np.concatenate([np.asarray(s.data) for s in shards])


def _padded(parts: tuple[np.ndarray, ...], b: int) -> np.ndarray:
  """A host's rows of each batch, at most b: [batches, b]."""
  out = np.zeros((len(parts), b), parts[0].dtype)
  for row, part in zip(out, parts, strict=True):
    row[: len(part)] = part
  return out


def _joined(x_Kb: np.ndarray) -> np.ndarray:
  """All hosts' rows in their order. [batches, b] on each of P hosts -> [batches * P * b]."""
  return np.moveaxis(processes.gather(x_Kb), 0, 1).reshape(-1)
