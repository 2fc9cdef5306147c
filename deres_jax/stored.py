# SPDX-License-Identifier: Apache-2.0
"""DeLong's test of pairs of runs, from the logits that each stored."""

import pathlib
from typing import Any

import numpy as np

from deres_jax import blocks, compare, paired
from deres_jax import schema as schema_lib
from deres_jax.errors import UserError
from deres_jax.runs import Curve


def labels(path: str, content: dict[str, str]) -> np.ndarray:
  """Labels of the test split of a prepared folder, in the order of stored logits.

  Raises UserError where the folder is not the one with checksums `content`.
  """
  schema = schema_lib.load_schema(path)
  if schema.content != content:
    raise UserError(f'--data={path}: is not what the runs were trained on: give that folder')
  test = blocks.Blocks(schema, 'test')
  count = -(-test.rows // schema.block_rows)
  return np.concatenate([test.read(i).labels for i in range(count)])


def delong(curves: list[Curve], reference: Curve, labels_N: np.ndarray) -> list[dict[str, Any]]:
  """Each run less the reference's of the same size and seed; Holm over all of these tests."""
  by_size = {cell.size: cell for cell in reference.cells}
  lines = [
    {
      'curve': curve.name,
      'size': cell.size,
      'seed': seed,
      **paired.delong(labels_N, logits(run, labels_N), logits(base, labels_N)),
    }
    for curve in curves
    for cell in curve.cells
    if curve is not reference and cell.size in by_size
    for seed, run in cell.runs.items()
    if (base := by_size[cell.size].runs.get(seed))
  ]
  adjusted = paired.holm([line['p'] for line in lines])
  return [{**line, 'p_holm': p} for line, p in zip(lines, adjusted, strict=True)]


def logits(run: compare.Run, labels_N: np.ndarray) -> np.ndarray:
  """Stored logits of a run on the test split; raises UserError where there are none that fit."""
  file = pathlib.Path(run.folder) / 'runs' / run.id / 'test_logits.npy'
  if not file.is_file():
    raise UserError(f'{file}: no such file: the run stored no logits, leave --data out')
  try:
    logits_N = np.load(file, allow_pickle=False)
  except (ValueError, EOFError, OSError) as e:  # of other bytes, of pickled ones, of a part
    raise UserError(f'{file}: is not an array of logits ({e}): leave --data out') from e
  if logits_N.shape != labels_N.shape:
    raise UserError(f'{file} has {logits_N.shape} logits for {len(labels_N)} rows of test')
  return logits_N
