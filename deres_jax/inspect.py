# SPDX-License-Identifier: Apache-2.0
"""Looks into a trained model: gates, depth weights, norms by depth, and what each is worth.

  python -m deres_jax.inspect --workdir=RUN --out=DIR

Writes inspect.json and inspect.html (docs/inspect.md). The run may still be under way: nothing in
its folder is written, and its best checkpoint so far is taken.
"""

import contextlib
import dataclasses
import json
import pathlib
import tempfile
from collections.abc import Iterator
from importlib import metadata
from typing import Any

from absl import app, flags

from deres_jax import (
  checkpoint,
  cli,
  findings,
  inspect_claims,
  inspect_page,
  models,
  step,
  train,
  writer,
)
from deres_jax import config as config_lib
from deres_jax.errors import Retry, UserError

WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of a run, finished or under way.')
OUT = flags.DEFINE_string('out', None, 'Folder for inspect.json and inspect.html.')
SPLIT = flags.DEFINE_string('split', 'validation', 'Split whose rows the model is run on.')
ROWS = flags.DEFINE_integer('rows', 100_000, 'So many rows of it, the first ones; fewer: all.')


@contextlib.contextmanager
def _snapshot(folder: pathlib.Path) -> Iterator[checkpoint.Checkpoints]:
  """The finished checkpoints of a folder that a run may be writing to.

  They are opened through links in a folder of our own: opening a folder of checkpoints removes
  unfinished ones, and what is unfinished there may be the run's.
  """
  with tempfile.TemporaryDirectory() as own:
    for entry in folder.iterdir():
      if 'tmp' not in entry.name:
        (pathlib.Path(own) / entry.name).symlink_to(entry.absolute())
    checkpoints = checkpoint.Checkpoints(pathlib.Path(own))
    try:
      yield checkpoints
    finally:
      checkpoints.close()


def _config(workdir: pathlib.Path) -> tuple[config_lib.Config, dict[str, Any]]:
  """The run's config, and all that config.json says."""
  file = workdir / 'config.json'
  if not file.is_file():
    raise UserError(f'--workdir={workdir}: holds no config.json, expected the folder of a run')
  try:
    stored = json.loads(file.read_text())
    c = config_lib.resolve(stored['config'])
    stored['data_content'].items()
  except (ValueError, KeyError, TypeError, AttributeError) as e:
    raise UserError(f'{file}: damaged ({e!r}): start the run anew') from e
  # As the plain JAX forms define it, which every machine computes.
  return dataclasses.replace(c, train=dataclasses.replace(c.train, kernels='off')), stored


def load(workdir: pathlib.Path) -> findings.Model:
  """The best checkpoint of a run. Raises UserError where there is none, or nothing to look into."""
  if not workdir.is_dir():
    raise UserError(f'--workdir={workdir}: no such folder, expected the folder of a run')
  c, stored = _config(workdir)
  if models.connector_of(c) == 'none':
    raise UserError(
      f'--workdir={workdir}: {c.model.backbone} is a classic model, which has no residual stream '
      'to look into: give a run with a token backbone, such as onetrans'
    )
  folder = workdir / 'checkpoints'
  if not folder.is_dir():
    raise UserError(f'--workdir={workdir}: holds no checkpoints: train first')
  run = train.assemble(c)
  if stored['data_content'] != run.schema.content:
    raise UserError(
      f'--workdir={workdir}: was trained on other data than {run.schema.path}: put the old data '
      'back there, or start the run anew'
    )
  with _snapshot(folder) as checkpoints:
    best = checkpoints.best()
    chosen = best[0] if best else checkpoints.latest()
    if chosen is None:
      raise UserError(f'--workdir={workdir}: holds no finished checkpoint: train on')
    try:
      params, tables = checkpoints.restore_params(chosen, step.abstract_state(run.setup))
    except FileNotFoundError as e:
      raise Retry(f'checkpoint {chosen} of {workdir} was replaced by the run meanwhile') from e
  return findings.Model(c, run.schema, run.setup, params, tables, chosen)


def inspect(model: findings.Model, workdir: str, split: str, rows: int) -> dict[str, Any]:
  """The content of inspect.json. Raises UserError for a split or rows that cannot be."""
  c, schema = model.config, model.schema
  if split not in schema.splits:
    raise UserError(f'--split={split}: expected one of {", ".join(schema.splits)}')
  if rows < 1:
    raise UserError(f'--rows={rows}: expected at least 1')
  rows = min(rows, schema.splits[split].rows)
  batches = findings.batches_of(model, split, rows)
  progress = writer.Progress(-(-rows // batches.batch_size), 0)
  try:
    seen = findings.look(model, batches, rows, lambda done: progress.step(done, f'of {split}'))
  finally:
    progress.close()
  clicks = int(seen.labels_N.sum())
  if min(clicks, rows - clicks) < 2:
    raise UserError(
      f'--rows={rows}: {clicks} of these rows of {split} are clicks, and an interval of AUC takes '
      'two rows of each kind: take more'
    )
  found = findings.content(model, seen)
  return {
    'workdir': workdir,
    'config_hash': config_lib.config_hash(c),
    'backbone': c.model.backbone,
    'connector': c.model.connector,
    'layers': c.model.depth,
    'dim': c.model.dim,
    'seed': c.seed,
    'step': model.step,
    'dataset': schema.dataset,
    'split': split,
    'rows': len(seen.labels_N),
    'rows_of_split': schema.splits[split].rows,
    'versions': {name: metadata.version(name) for name in ('deres_jax', 'jax', 'flax', 'numpy')},
    'claims': inspect_claims.claims(found),
    **found,
  }


def main(argv: list[str]):
  cli.no_arguments(argv)
  if not WORKDIR.value or not OUT.value:
    raise UserError('give both --workdir=RUN and --out=DIR')
  model = load(pathlib.Path(WORKDIR.value))
  c = inspect(model, WORKDIR.value, SPLIT.value, ROWS.value)
  out = pathlib.Path(OUT.value)
  out.mkdir(parents=True, exist_ok=True)
  writer.write_json(out / 'inspect.json', c)
  (out / 'inspect.html').write_text(inspect_page.page(c))
  print(f'{inspect_page.summary(c)}\n{out / "inspect.html"}')


if __name__ == '__main__':
  app.run(cli.guarded(main), flags_parser=cli.parse)
