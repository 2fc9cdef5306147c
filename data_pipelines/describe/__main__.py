# SPDX-License-Identifier: Apache-2.0
"""Shows what is in a prepared folder: a table, a page with pictures, and the figures.

  python -m data_pipelines.describe DIR [--out=FOLDER]

Writes describe.html (one file, nothing is fetched, no script), its charts as describe.pdf and .png,
and describe.json into FOLDER, by default DIR/describe, which doctor and training leave alone.
"""

import json
import sys
from pathlib import Path

from data_pipelines.core import cli
from data_pipelines.core.cli import say
from data_pipelines.core.workers import Workers
from data_pipelines.describe import page
from data_pipelines.describe.counts import count_folder
from data_pipelines.describe.figures import figures
from data_pipelines.describe.text import text
from data_pipelines.prepared.schema import SPLITS, check_inside, read_schema
from data_pipelines.prepared.tfds import split_files
from deres_jax.core import files
from deres_jax.core.errors import UserError
from deres_jax.report import charts

DEFAULT_OUT = 'describe'


def describe(folder: Path, out: Path, workers: int) -> int:
  """Prints the table and writes the page and the figures; returns the exit code.

  Raises:
    UserError: not a whole prepared folder.
  """
  schema = read_schema(folder)
  for split in SPLITS:
    expected = sorted(schema.splits[split].files)
    paths = split_files(folder / schema.tfds, split)
    check_inside(folder, paths)
    names = [path.name for path in paths]
    if expected != names:
      raise UserError(
        f'{folder}: {split} has {len(names)} record files where schema.json names {len(expected)}; '
        f'python -m data_pipelines.doctor {folder} says more'
      )
  with Workers(workers) as pool:
    counts = count_folder(folder, schema, pool)
  described = figures(folder, schema, counts)
  out.mkdir(parents=True, exist_ok=True)
  files.write(out / 'describe.json', json.dumps(described, indent=1, allow_nan=False) + '\n')
  drawn = page.figures(described)
  charts.save(out / 'describe', drawn)
  files.write(out / 'describe.html', page.page(described, drawn))
  say(text(described))
  say(f'\n{out / "describe.html"}')
  return 0


def main(argv: list[str] | None = None) -> int:
  """Runs the command; returns the exit code."""
  parser = cli.OneLineParser(
    'python -m data_pipelines.describe', 'Shows what is in a prepared folder.'
  )
  parser.add_argument('folder', type=Path, metavar='DIR', help='the prepared folder')
  parser.add_argument('--out', type=Path, help=f'folder to write (default DIR/{DEFAULT_OUT})')
  cli.add_workers_flag(parser, 'processes (default: all cores)')
  args = parser.parse_args(sys.argv[1:] if argv is None else argv)
  cli.check_workers(parser, args.workers)
  out = args.out or args.folder / DEFAULT_OUT
  return cli.guarded(lambda: describe(args.folder, out, args.workers))


if __name__ == '__main__':
  sys.exit(main())
