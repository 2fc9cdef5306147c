# SPDX-License-Identifier: Apache-2.0
"""A trained run as one file that turns raw rows into click probabilities.

  python -m deres_jax.export --workdir=DIR --out=FILE [--platforms=cpu,cuda,tpu] [--data=PREPARED]

Takes the checkpoint with the best validation AUC. `deres_jax.serving` loads the file and needs
little more than jax for it; `deres_jax.serving.artifact` says what is in it, docs/serving.md how to
use it.

Shapes: b rows of a request, S ids of a row, E row width.
"""

import contextlib
import pathlib
import platform
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax import export

from deres_jax import config as config_lib
from deres_jax import models
from deres_jax.core import cli
from deres_jax.core.errors import UserError
from deres_jax.data.schema import Schema
from deres_jax.embeddings.layout import Tables
from deres_jax.models.inputs import Context
from deres_jax.serving import artifact, inputs
from deres_jax.training.checkpoints import restore
from deres_jax.training.checkpoints.restore import Trained
from deres_jax.training.step_spec import StepSpec

Array = jax.Array

PLATFORMS = ('cpu', 'cuda', 'tpu')
_PACKAGES = ('deres_jax', 'jax', 'jaxlib', 'flax', 'numpy')
_PART_ROWS = 1 << 18  # of a table, written at a time


def make_function(spec: StepSpec, schema: Schema, at: int) -> Callable:
  """(params, tables, ids [b, S] int32) -> click probabilities [b] float32.

  Ids count from 0 for each column, as in a prepared folder, and so do the tables' rows: those of a
  table's columns follow one another. Plain JAX forms, no kernels: it runs on every platform.

  Args:
    at: the step that the parameters are of.
  """
  tables, layout = spec.tables, spec.layout
  slots = np.array(spec.column_tables)
  first_S = tables.column_offsets[np.array(schema.columns)] - tables.table_offsets[slots].astype(
    np.int32
  )

  def rows_of(table: Array, here: np.ndarray, ids_bS: Array) -> Array:
    ids = ids_bS[:, here]
    # The padding of a history reads zeros, as in training.
    numbers = jnp.where((ids == 0) & (here >= layout.fields), len(table), ids + first_S[here])
    return table.at[numbers].get(mode='fill', fill_value=0)

  def probabilities(params: Any, rows: tuple[Array, ...], ids_bS: Array) -> Array:
    found = tuple(rows_of(x, np.flatnonzero(slots == t), ids_bS) for t, x in enumerate(rows))
    ctx = Context(progress=jnp.float32(at) / spec.steps)
    if layout.events:
      ctx = ctx.with_mask(ids_bS[:, layout.fields :: layout.event_fields] != 0)
    logits_b = spec.model.apply({'params': params}, found if len(found) > 1 else found[0], ctx)
    return jax.nn.sigmoid(logits_b.astype(jnp.float32))

  return probabilities


def _in_order(tables: Tables, t: int, rows: Array) -> Iterator[np.ndarray]:
  """The rows of table t by number, some at a time."""
  here, start = np.asarray(rows), int(tables.table_offsets[t])
  for first in range(0, tables.parts[t].rows, _PART_ROWS):
    last = min(first + _PART_ROWS, tables.parts[t].rows)
    numbers = np.arange(start + first, start + last, dtype=np.int32)
    yield here[tables.storage_index(numbers) - start]


def _weights(run: Trained) -> tuple[list[artifact.Weight], Any]:
  """All weights, and how the function's arguments (params, tables) are made of them."""
  dense, structure = jax.tree_util.tree_flatten_with_path(run.params)
  weights = [
    artifact.Weight(
      jax.tree_util.keystr(path, simple=True, separator='.'),
      x.shape,
      x.dtype,
      iter([np.asarray(x)]),
    )
    for path, x in dense
  ]
  weights += [
    artifact.Weight(
      f'table_{t}', (table.rows, table.dim), rows.dtype, _in_order(run.spec.tables, t, rows)
    )
    for t, (table, rows) in enumerate(zip(run.spec.tables.parts, run.tables, strict=True))
  ]
  return weights, structure


@contextlib.contextmanager
def _without_places() -> Iterator[None]:
  """What is lowered inside names no source lines.

  Else the file would hold this machine's paths, and other bytes for the same run elsewhere.
  """
  before = jax.config.jax_traceback_in_locations_limit
  jax.config.update('jax_traceback_in_locations_limit', 0)
  try:
    yield
  finally:
    jax.config.update('jax_traceback_in_locations_limit', before)


def exported(run: Trained, platforms: list[str]) -> tuple[export.Exported, list[artifact.Weight]]:
  """(weights, ids [b, S] int32) -> click probabilities [b] for any b, and the weights."""
  weights, structure = _weights(run)
  probabilities = make_function(run.spec, run.schema, run.at)
  dense = structure.num_leaves

  def function(arrays: list[Array], ids_bS: Array) -> Array:
    params = jax.tree.unflatten(structure, arrays[:dense])
    return probabilities(params, tuple(arrays[dense:]), ids_bS)

  arrays = [jax.ShapeDtypeStruct(w.shape, w.dtype) for w in weights]
  shape = export.symbolic_shape(f'b, {len(run.schema.columns)}')
  ids = jax.ShapeDtypeStruct(shape, np.int32)
  with _without_places():
    return export.export(jax.jit(function), platforms=platforms)(arrays, ids), weights


def describe(run: Trained, function: export.Exported) -> dict[str, Any]:
  """What description.json says, but for rows and what `deres_jax.serving.artifact` adds."""
  c = run.config
  return {
    'backbone': c.model.backbone,
    'connector': models.connector_of(c),
    'config_hash': config_lib.config_hash(c),
    'config': config_lib.as_dict(c),
    'step': run.at,
    'auc_validation': run.auc,
    'dataset': run.schema.dataset,
    'data_content': run.schema.content,
    'platforms': list(function.platforms),
    'calling_convention_version': function.calling_convention_version,
    'versions': {
      'python': platform.python_version(),
      **{name: metadata.version(name) for name in _PACKAGES},
    },
  }


def write(run: Trained, out: pathlib.Path, platforms: list[str]):
  """Writes the file of a run."""
  rows, vocabularies = inputs.describe(run.schema), inputs.vocabularies(run.schema)
  function, weights = exported(run, platforms)
  description = describe(run, function)
  description |= {'inputs': rows, 'example': [inputs.example(rows, vocabularies)]}
  artifact.write(out, description, bytes(function.serialize()), vocabularies, weights)


def _define_flags():
  flags.DEFINE_string('workdir', None, 'Folder of the run.')
  flags.DEFINE_string('out', None, 'File to write.')
  flags.DEFINE_list('platforms', list(PLATFORMS), f'Some of {", ".join(PLATFORMS)}.')
  flags.DEFINE_string('data', None, "The run's prepared folder, if it was moved.")


def main(argv: list[str]):
  """The command: writes the file of a run."""
  cli.no_arguments(argv)
  f = flags.FLAGS
  if not f.workdir or not f.out:
    raise UserError('give both --workdir=DIR, a trained run, and --out=FILE')
  export_run(pathlib.Path(f.workdir), pathlib.Path(f.out), f.platforms, f.data)


def export_run(workdir: pathlib.Path, out: pathlib.Path, platforms: list[str], data: str | None):
  """Writes the file of the best checkpoint of a run. Raises UserError."""
  if out.is_dir() or not out.parent.is_dir():
    what = 'is a folder' if out.is_dir() else f'there is no folder {out.parent}'
    raise UserError(f'--out={out}: {what}, expected a file to write')
  if not platforms or not set(platforms) <= set(PLATFORMS):
    raise UserError(
      f'--platforms={",".join(platforms)}: expected some of {", ".join(PLATFORMS)}, by commas'
    )
  run = restore.load(workdir, data)
  write(run, out, platforms)
  print(
    f'{out}: {out.stat().st_size / 1e6:,.1f} MB, step {run.at}, for {", ".join(platforms)}; '
    'docs/serving.md says how to load it'
  )


if __name__ == '__main__':
  _define_flags()
  app.run(cli.guarded(main), flags_parser=cli.parse)
