# SPDX-License-Identifier: Apache-2.0
"""A trained run as one file that turns raw rows into click probabilities.

  python -m deres_jax.export --workdir=DIR --out=FILE [--platforms=cpu,cuda,tpu] [--data=PREPARED]

Exports the checkpoint with the best validation AUC. `deres_jax.serving` loads the file and needs
little more than jax; `deres_jax.serving.artifact` describes the file, docs/serving.md its use.

Shapes: b rows of a request, S ids of a row.
"""

import pathlib
import platform
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
from absl import app, flags
from jax import export

from deres_jax import config as config_lib
from deres_jax import models
from deres_jax.core import cli, files
from deres_jax.core.errors import UserError
from deres_jax.embeddings.layout import Tables
from deres_jax.models.inputs import Context
from deres_jax.serving import artifact, recipes
from deres_jax.training.checkpoints import restore
from deres_jax.training.checkpoints.restore import Trained

Array = jax.Array

PLATFORMS = ('cpu', 'cuda', 'tpu')
_PACKAGES = ('deres_jax', 'jax', 'jaxlib', 'flax', 'numpy')
_PART_ROWS = 1 << 18  # of a table, written at a time


def _by_id(tables: Tables, t: int, table: Array) -> Iterator[np.ndarray]:
  """Yields the rows of table t in the order of their ids, part by part."""
  stored, start = np.asarray(table), int(tables.table_offsets[t])
  rows = tables.parts[t].rows
  for first in range(0, rows, _PART_ROWS):
    ids = np.arange(start + first, start + min(first + _PART_ROWS, rows), dtype=np.int32)
    yield stored[tables.storage_index(ids) - start]


def _weights(run: Trained) -> tuple[list[artifact.Weight], Any]:
  """Returns all weights, and the tree structure of the dense ones, which come first."""
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
  tables = run.spec.tables
  for t, (part, table) in enumerate(zip(tables.parts, run.tables, strict=True)):
    shape = (part.rows, part.dim)
    weights.append(artifact.Weight(f'table_{t}', shape, table.dtype, _by_id(tables, t, table)))
  return weights, structure


def export_function(
  run: Trained, platforms: list[str]
) -> tuple[export.Exported, list[artifact.Weight]]:
  """Exports (weights, ids [b, S] int32) -> click probabilities [b] float32 for any b.

  Ids start at 0 for each column, as in a prepared folder; a table holds its columns one after
  another, row by id. Uses plain JAX, no kernels, so that it runs on every platform.

  Returns:
    The function, and its weights.
  """
  spec, columns = run.spec, np.array(run.schema.columns)
  layout, table_S = spec.layout, np.array(spec.column_tables)
  first_S = spec.tables.table_offsets[table_S].astype(np.int32)
  offset_S = spec.tables.column_offsets[columns] - first_S
  weights, structure = _weights(run)
  dense = structure.num_leaves

  def gather(table: Array, columns: np.ndarray, ids_bS: Array) -> Array:
    ids = ids_bS[:, columns]
    # The padding of a history reads zeros, as in training.
    is_padding = (ids == 0) & (columns >= layout.fields)
    rows = jnp.where(is_padding, len(table), ids + offset_S[columns])
    return table.at[rows].get(mode='fill', fill_value=0)

  def function(arrays: list[Array], ids_bS: Array) -> Array:
    params = jax.tree.unflatten(structure, arrays[:dense])
    x = tuple(
      gather(table, np.flatnonzero(table_S == t), ids_bS) for t, table in enumerate(arrays[dense:])
    )
    ctx = Context(progress=jnp.float32(run.at) / spec.steps)
    if layout.events:
      ctx = ctx.with_mask(ids_bS[:, layout.fields :: layout.event_fields] != 0)
    logits_b = spec.model.apply({'params': params}, x if len(x) > 1 else x[0], ctx)
    return jax.nn.sigmoid(logits_b.astype(jnp.float32))

  arrays = [jax.ShapeDtypeStruct(w.shape, w.dtype) for w in weights]
  ids = jax.ShapeDtypeStruct(export.symbolic_shape(f'b, {len(columns)}'), np.int32)
  # Without source lines: they would put this machine's paths into the file.
  before = jax.config.jax_traceback_in_locations_limit
  jax.config.update('jax_traceback_in_locations_limit', 0)
  try:
    return export.export(jax.jit(function), platforms=platforms)(arrays, ids), weights
  finally:
    jax.config.update('jax_traceback_in_locations_limit', before)


def write(run: Trained, out: pathlib.Path, platforms: list[str]):
  """Writes the file of a run."""
  columns, vocabularies = recipes.inputs_of(run.schema), recipes.vocabularies_of(run.schema)
  function, weights = export_function(run, platforms)
  c = run.config
  description = {
    'backbone': c.model.backbone,
    'connector': models.connector_name(c.model),
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
    'inputs': msgspec.to_builtins(columns),
    'example': [recipes.example(columns, vocabularies)],
  }
  artifact.write(out, description, bytes(function.serialize()), vocabularies, weights)


def main(argv: list[str]):
  """Runs the command."""
  cli.no_arguments(argv)
  f = flags.FLAGS
  if not f.workdir or not f.out:
    raise UserError('give both --workdir=DIR, a trained run, and --out=FILE')
  export_run(pathlib.Path(f.workdir), f.out, f.platforms, f.data)


def export_run(workdir: pathlib.Path, out: str, platforms: list[str], data: str | None):
  """Writes the file of a run's best checkpoint; raises UserError."""
  path = files.output_file(out)
  if not platforms or not set(platforms) <= set(PLATFORMS):
    raise UserError(
      f'--platforms={",".join(platforms)}: expected some of {", ".join(PLATFORMS)}, as in cpu,tpu'
    )
  run = restore.load(workdir, data)
  write(run, path, platforms)
  print(
    f'{path}: {path.stat().st_size / 1e6:,.1f} MB, step {run.at}, for {", ".join(platforms)}; '
    'docs/serving.md says how to load it'
  )


if __name__ == '__main__':
  flags.DEFINE_string('workdir', None, 'Folder of the run.')
  flags.DEFINE_string('out', None, 'File to write.')
  flags.DEFINE_list('platforms', list(PLATFORMS), f'Some of {", ".join(PLATFORMS)}.')
  flags.DEFINE_string('data', None, "The run's prepared folder, if it was moved.")
  app.run(cli.guarded(main), flags_parser=cli.parse)
