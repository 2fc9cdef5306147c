# SPDX-License-Identifier: Apache-2.0
"""A trained run as one file that turns raw rows into click probabilities.

  python -m deres_jax.export --workdir=DIR --out=FILE [--platforms=cpu,cuda,tpu] [--data=PREPARED]

Takes the checkpoint with the best validation AUC. `deres_jax.serving` loads the file and needs
little more than jax for it; `deres_jax.artifact` says what is in it, docs/serving.md how to use it.

Shapes: b rows of a request, S ids of a row, E row width.
"""

import contextlib
import dataclasses
import json
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

from deres_jax import artifact, checkpoint, cli, inputs, models, parallel, step, train
from deres_jax import config as config_lib
from deres_jax.embedding import Tables
from deres_jax.errors import UserError
from deres_jax.models.layers import Context
from deres_jax.schema import Schema, load_schema
from deres_jax.setup import Setup, make_setup

Array = jax.Array

PLATFORMS = ('cpu', 'cuda', 'tpu')
_PACKAGES = ('deres_jax', 'jax', 'jaxlib', 'flax', 'numpy')
_PART_ROWS = 1 << 18  # of a table, written at a time

WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run.')
OUT = flags.DEFINE_string('out', None, 'File to write.')
FOR = flags.DEFINE_list('platforms', list(PLATFORMS), f'Some of {", ".join(PLATFORMS)}.')
DATA = flags.DEFINE_string('data', None, "The run's prepared folder, if it was moved.")


@dataclasses.dataclass(frozen=True)
class Trained:
  """The best state of a run.

  Attributes:
    params, rows: as of `step.State`, on one device.
    at: the step that they are of; auc: on the validation split, None if it was never evaluated.
  """

  config: config_lib.Config
  schema: Schema
  setup: Setup
  params: Any
  rows: tuple[Array, ...]
  at: int
  auc: float | None


def make_function(setup: Setup, schema: Schema, at: int) -> Callable:
  """(params, tables, ids [b, S] int32) -> click probabilities [b] float32.

  Ids count from 0 for each column, as in a prepared folder, and so do the tables' rows: those of a
  table's columns follow one another. Plain JAX forms, no kernels: it runs on every platform.

  Args:
    at: the step that the parameters are of.
  """
  tables, layout = setup.tables, setup.layout
  slots = np.array(setup.slot_tables)
  first_S = tables.offsets[np.array(schema.columns)] - tables.starts[slots].astype(np.int32)

  def rows_of(table: Array, here: np.ndarray, ids_bS: Array) -> Array:
    ids = ids_bS[:, here]
    # The padding of a history reads zeros, as in training.
    numbers = jnp.where((ids == 0) & (here >= layout.fields), len(table), ids + first_S[here])
    return table.at[numbers].get(mode='fill', fill_value=0)

  def probabilities(params: Any, rows: tuple[Array, ...], ids_bS: Array) -> Array:
    found = tuple(rows_of(x, np.flatnonzero(slots == t), ids_bS) for t, x in enumerate(rows))
    ctx = Context(progress=jnp.float32(at) / setup.steps)
    if layout.events:
      ctx = ctx.with_mask(ids_bS[:, layout.fields :: layout.event_fields] != 0)
    logits_b = setup.model.apply({'params': params}, found if len(found) > 1 else found[0], ctx)
    return jax.nn.sigmoid(logits_b.astype(jnp.float32))

  return probabilities


def best_of(workdir: pathlib.Path, data: str | None) -> Trained:
  """The checkpoint of a run with the best validation AUC.

  Args:
    data: the prepared folder; None: where config.json says that it is.

  Raises:
    UserError: no run, no checkpoint, no data or other data than the run's.
  """
  file = workdir / 'config.json'
  if not file.is_file():
    raise UserError(f'--workdir={workdir}: holds no config.json, so no run: give the folder of one')
  claimed = json.loads(file.read_text())
  c = config_lib.resolve(claimed['config'])
  folder = c.data.path if data is None else data
  if not pathlib.Path(folder).is_dir():
    raise UserError(
      f'the prepared folder {folder} of the run is not here: say where it is, --data=DIR'
    )
  schema = load_schema(folder)
  if schema.content != claimed['data_content']:
    raise UserError(f'{folder} holds other data than {workdir} was trained on: give --data=DIR')
  c = dataclasses.replace(c, train=dataclasses.replace(c.train, kernels='off'))
  setup = make_setup(c, schema, parallel.make_mesh(1), train.steps_of(c, schema))
  checkpoints = None
  if (workdir / 'checkpoints').is_dir():
    checkpoints = checkpoint.Checkpoints(workdir / 'checkpoints')
  if checkpoints is None or checkpoints.latest() is None:
    raise UserError(f'--workdir={workdir}: holds no finished checkpoint: train on (--mode=train)')
  best = checkpoints.best()
  at, auc = best if best else (checkpoints.latest(), None)
  params, rows = checkpoints.restore_params(at, step.abstract_state(setup))
  checkpoints.close()
  return Trained(c, schema, setup, params, rows, at, auc)


def _in_order(tables: Tables, t: int, rows: Array) -> Iterator[np.ndarray]:
  """The rows of table t by number, some at a time."""
  here, start = np.asarray(rows), int(tables.starts[t])
  for first in range(0, tables.parts[t].rows, _PART_ROWS):
    last = min(first + _PART_ROWS, tables.parts[t].rows)
    numbers = np.arange(start + first, start + last, dtype=np.int32)
    yield here[tables.places(numbers) - start]


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
      f'table_{t}', (table.rows, table.dim), rows.dtype, _in_order(run.setup.tables, t, rows)
    )
    for t, (table, rows) in enumerate(zip(run.setup.tables.parts, run.rows, strict=True))
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
  probabilities = make_function(run.setup, run.schema, run.at)
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
  """What description.json says, but for rows and what `deres_jax.artifact` adds."""
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


def main(argv: list[str]):
  cli.no_arguments(argv)
  if not WORKDIR.value or not OUT.value:
    raise UserError('give both --workdir=DIR, a trained run, and --out=FILE')
  out = pathlib.Path(OUT.value)
  if out.is_dir() or not out.parent.is_dir():
    what = 'is a folder' if out.is_dir() else f'there is no folder {out.parent}'
    raise UserError(f'--out={out}: {what}, expected a file to write')
  wrong = [name for name in FOR.value if name not in PLATFORMS]
  if wrong or not FOR.value:
    raise UserError(
      f'--platforms={",".join(FOR.value)}: expected some of {", ".join(PLATFORMS)}, by commas'
    )
  run = best_of(pathlib.Path(WORKDIR.value), DATA.value)
  write(run, out, FOR.value)
  print(
    f'{out}: {out.stat().st_size / 1e6:,.1f} MB, step {run.at}, for {", ".join(FOR.value)}; '
    'docs/serving.md says how to load it'
  )


if __name__ == '__main__':
  app.run(cli.guarded(main), flags_parser=cli.parse)
