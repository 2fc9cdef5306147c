# SPDX-License-Identifier: Apache-2.0
"""Labels of a prepared test split and the logits that runs stored for it."""

import pathlib

import numpy as np

from deres_jax.compare import runs
from deres_jax.core.errors import UserError
from deres_jax.data import blocks
from deres_jax.data import schema as schema_lib


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


def logits(run: runs.Run, labels_N: np.ndarray) -> np.ndarray:
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
