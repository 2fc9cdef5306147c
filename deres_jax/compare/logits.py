# SPDX-License-Identifier: Apache-2.0
"""Labels of a prepared test split and the logits that runs stored for it."""

import numpy as np

from deres_jax.compare import runs
from deres_jax.core.errors import UserError
from deres_jax.data import blocks
from deres_jax.data import schema as schema_lib


def labels(path: str, content: dict[str, str]) -> np.ndarray:
  """Reads the labels of the test split of a prepared folder, in the order of stored logits.

  Raises:
    UserError: the folder has other checksums than `content`.
  """
  schema = schema_lib.load_schema(path)
  if schema.content != content:
    raise UserError(f'--data={path}: is not what the runs were trained on: give that folder')
  test = blocks.Blocks(schema, 'test')
  count = -(-test.rows // schema.block_rows)
  return np.concatenate([test.read(i).labels for i in range(count)])


def logits(run: runs.Run, labels_N: np.ndarray) -> np.ndarray:
  """Reads the logits that a run stored for the test split.

  Raises:
    UserError: there are none, they are damaged, or they are not of these rows.
  """
  file = run.workdir / 'test_logits.npy'
  if not file.exists():
    raise UserError(f'{file}: no such file: the run stored no logits, leave --data out')
  try:
    logits_N = np.asarray(np.load(file, allow_pickle=False))
  except (ValueError, EOFError, OSError, MemoryError) as e:  # other bytes, pickled objects, a part
    raise UserError(f'{file}: is not an array of logits ({e}): leave --data out') from e
  if (
    logits_N.shape != labels_N.shape
    or logits_N.dtype.kind != 'f'
    or not np.isfinite(logits_N).all()
  ):
    raise UserError(
      f'{file}: expected {len(labels_N)} finite logits, one for each row of test, found '
      f'{logits_N.dtype}{list(logits_N.shape)}: leave --data out'
    )
  return logits_N
