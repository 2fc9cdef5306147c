# SPDX-License-Identifier: Apache-2.0
"""Exact figures of a model on a whole split."""

from collections.abc import Callable

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


def evaluate(
  logits_of: Callable,
  batches: Batches,
  mesh: Mesh,
  prefetch: Prefetch,
  stop_requested: Callable[[], bool],
  beat: Callable[[], None],
) -> tuple[dict[str, float], np.ndarray]:
  """Evaluates a model on a split.

  Args:
    logits_of: batch -> logits, split over the mesh.
    beat: called after every batch.

  Returns:
    Figures of `exact.evaluate_logits`, for data with users and items also of `grouped.gauc` and
    `grouped.item_aucs`; and the logits [N] float32 of all rows as stored. Identical on every host.

  Raises:
    Stopped: a host received a stop request.
    UserError: a logit is NaN.
  """
  schema = batches.schema
  item = schema.column(schema.items.field) if schema.items else None

  def select(examples: Examples) -> tuple[np.ndarray, ...]:
    # Copies: a view would keep the ids of a whole window alive.
    columns = [examples.labels.copy()]
    if schema.group:
      columns.append(examples.groups.copy())
    if schema.items:
      columns.append(examples.ids[:, item].copy())
    return tuple(columns)

  selected, logits = [], []
  epoch = 0, batches.per_epoch
  for batch, columns, stop in feed(batches, mesh, epoch, prefetch, stop_requested, select):
    if stop:
      raise Stopped
    selected.append(columns)
    logits.append(logits_of(batch))  # fetched below, so that the device runs ahead
    beat()
  logits = np.stack([local_part(x) for x in logits])
  columns = [_padded(x, logits.shape[1]) for x in zip(*selected, strict=True)]
  rows = batches.examples_until(batches.per_epoch)
  logits_N, labels_N, *others = (_joined(x)[:rows] for x in (logits, *columns))
  _check(logits_N)
  figures = exact.evaluate_logits(labels_N, logits_N)
  if schema.group:
    figures |= grouped.gauc(labels_N, logits_N, others[0])
  if schema.items:
    ids_N = others[-1] - batches.offset(item)
    figures |= grouped.item_aucs(
      labels_N, logits_N, ids_N, FIRST_TOKEN_ID, schema.items.head_below, schema.items.torso_below
    )
  return figures, logits_N


def _check(logits_N: np.ndarray):
  nan_N = np.flatnonzero(np.isnan(logits_N))
  if len(nan_N):
    raise UserError(
      f'{len(nan_N)} of {len(logits_N)} logits are NaN in evaluation, the first in row {nan_N[0]} '
      'as stored, though the parameters are finite: lower the learning rates in a new --workdir'
    )


def local_part(x_B: jax.Array) -> np.ndarray:
  """Returns this host's part of an array that is split over the mesh."""
  shards = sorted(x_B.addressable_shards, key=lambda s: s.index[0].start or 0)
  return np.concatenate([np.asarray(s.data) for s in shards])


def _padded(parts: tuple[np.ndarray, ...], b: int) -> np.ndarray:
  """Pads a host's examples of each batch, at most b, to [batches, b]."""
  out = np.zeros((len(parts), b), parts[0].dtype)
  for row, part in zip(out, parts, strict=True):
    row[: len(part)] = part
  return out


def _joined(x_Kb: np.ndarray) -> np.ndarray:
  """Joins all hosts' examples in order. [batches, b] on each of P hosts -> [batches * P * b]."""
  return np.moveaxis(processes.gather(x_Kb), 0, 1).reshape(-1)
