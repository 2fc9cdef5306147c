# SPDX-License-Identifier: Apache-2.0
"""Exact figures of a model on a whole split."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from deres_jax import data, metrics


def run(
  eval_step: Callable, params: Any, rows: jax.Array, batches: data.Batches, mesh: Mesh, ahead: int
) -> tuple[dict[str, float], np.ndarray]:
  """Figures (`metrics.evaluate_logits`) and logits [N] float32 of all N rows, as stored.

  eval_step: (params, rows, batch) -> logits.
  """

  def load(index):
    batch = batches[index]
    return batch.labels[: batches.rows(index)], data.put(batch, mesh)

  labels, out = [], []
  for labels_n, batch in data.prefetch(load, 0, batches.per_epoch, 1, ahead):
    labels.append(labels_n)
    out.append(eval_step(params, rows, batch))  # fetched below: the device runs ahead
  logits_N = np.concatenate([np.asarray(o)[: len(y)] for o, y in zip(out, labels, strict=True)])
  return metrics.evaluate_logits(np.concatenate(labels), logits_N), logits_N
