# SPDX-License-Identifier: Apache-2.0
"""Exact figures of a model on a whole split."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from deres_jax import data, gauc, metrics


def run(
  eval_step: Callable, params: Any, rows: jax.Array, batches: data.Batches, mesh: Mesh, ahead: int
) -> tuple[dict[str, float], np.ndarray]:
  """Figures and logits [N] float32 of all N rows, as stored.

  The figures are those of `metrics.evaluate_logits`; of data with users and items also those of
  `gauc.gauc` and `gauc.item_aucs`.

  Args:
    eval_step: (params, rows, batch) -> logits.
  """
  schema = batches.schema

  def load(index):
    rows_n = batches.rows(index)
    items_n = rows_n.ids[:, schema.items.field] if schema.items else rows_n.groups
    # Copies: the ids of a whole window would live as long as a view of them.
    kept = (rows_n.labels.copy(), rows_n.groups.copy(), items_n.copy())
    return kept, data.put(batches.assemble(rows_n), mesh)

  kept, out = [], []
  for kept_n, batch in data.prefetch(load, 0, batches.per_epoch, 1, ahead):
    kept.append(kept_n)
    out.append(eval_step(params, rows, batch))  # fetched below: the device runs ahead
  labels_N, groups_N, items_N = map(np.concatenate, zip(*kept, strict=True))
  logits = [np.asarray(o)[: len(k[0])] for o, k in zip(out, kept, strict=True)]
  logits_N = np.concatenate(logits)
  figures = metrics.evaluate_logits(labels_N, logits_N)
  if schema.group:
    figures |= gauc.gauc(labels_N, logits_N, groups_N)
  if schema.items:
    ids_N = items_N - batches.offset(schema.items.field)
    figures |= gauc.item_aucs(labels_N, logits_N, ids_N, schema.items)
  return figures, logits_N
