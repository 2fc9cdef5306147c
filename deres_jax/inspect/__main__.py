# SPDX-License-Identifier: Apache-2.0
"""Inspects a trained model: gates, depth weights, norms by depth, and what ablating each costs.

  python -m deres_jax.inspect --workdir=RUN --out=DIR

Writes inspect.json, inspect.html and its charts as inspect.pdf and .png (docs/inspect.md). Takes
the best checkpoint so far of a run that is still going, and writes nothing to its folder.
"""

import pathlib
from importlib import metadata
from typing import Any

from absl import app, flags

from deres_jax import config as config_lib
from deres_jax import models
from deres_jax.core import cli, files
from deres_jax.core.errors import UserError
from deres_jax.inspect import claims, findings, page
from deres_jax.report import charts
from deres_jax.training.checkpoints import restore
from deres_jax.training.checkpoints.restore import Trained
from deres_jax.training.logs import progress


def load(workdir: pathlib.Path) -> Trained:
  """Loads the best checkpoint of a run.

  Raises:
    UserError: without a finished checkpoint, or for a classic model, which has no stream.
  """
  c, _ = restore.config_of(workdir)
  if models.connector_name(c.model) == 'none':
    raise UserError(
      f'--workdir={workdir}: {c.model.backbone} is a classic model, which has no residual stream '
      'to inspect: give a run with a token backbone, such as onetrans'
    )
  return restore.load(workdir)


def inspect(model: Trained, workdir: str, split: str, rows: int) -> dict[str, Any]:
  """Returns the content of inspect.json.

  Raises:
    UserError: for a split that does not exist or too few rows.
  """
  c, schema = model.config, model.schema
  if split not in schema.splits:
    raise UserError(f'--split={split}: expected one of {", ".join(schema.splits)}')
  if rows < 1:
    raise UserError(f'--rows={rows}: expected at least 1')
  rows = min(rows, schema.splits[split].rows)
  batches = findings.batches_of(model, split, rows)
  steps = -(-rows // batches.batch_size)
  bar = progress.Progress(steps, 0, steps)
  try:
    measured = findings.measure(model, batches, rows, lambda done: bar.step(done, f'of {split}'))
  finally:
    bar.close()
  clicks = int(measured.labels_N.sum())
  if min(clicks, rows - clicks) < 2:
    raise UserError(
      f'--rows={rows}: {clicks} of these rows of {split} are clicks, and an interval of AUC takes '
      'two rows of each kind: take more'
    )
  summary = findings.summarise(model, measured)
  return {
    'workdir': workdir,
    'config_hash': config_lib.config_hash(c),
    'backbone': c.model.backbone,
    'connector': c.model.connector,
    'layers': c.model.depth,
    'dim': c.model.dim,
    'seed': c.seed,
    'step': model.at,
    'dataset': schema.dataset,
    'split': split,
    'rows': len(measured.labels_N),
    'rows_of_split': schema.splits[split].rows,
    'versions': {name: metadata.version(name) for name in ('deres_jax', 'jax', 'flax', 'numpy')},
    'claims': claims.claims(summary),
    **summary,
  }


def _define_flags():
  flags.DEFINE_string('workdir', None, 'Folder of a run, finished or under way.')
  flags.DEFINE_string('out', None, 'Folder for inspect.json and inspect.html.')
  flags.DEFINE_string('split', 'validation', 'Split whose rows the model is run on.')
  flags.DEFINE_integer('rows', 100_000, 'So many rows of it, the first ones; fewer: all.')


def main(argv: list[str]):
  """Writes inspect.json, inspect.html and its charts."""
  cli.no_arguments(argv)
  f = flags.FLAGS
  if not f.workdir or not f.out:
    raise UserError('give both --workdir=RUN and --out=DIR')
  out = files.output_folder(f.out)
  c = inspect(load(pathlib.Path(f.workdir)), f.workdir, f.split, f.rows)
  out.mkdir(parents=True, exist_ok=True)
  files.write_json(out / 'inspect.json', c)
  charts.save(out / 'inspect', page.figures(c))
  files.write(out / 'inspect.html', page.page(c))
  print(f'{page.summary(c)}\n{out / "inspect.html"}')


if __name__ == '__main__':
  _define_flags()
  app.run(cli.guarded(main), flags_parser=cli.parse)
