# SPDX-License-Identifier: Apache-2.0
"""Shows what is in a prepared folder: a table, a page with pictures, and the figures.

  python -m data_pipelines.describe DIR [--out=FOLDER]

Writes describe.html (one file, nothing is fetched, no script) and describe.json into FOLDER, by
default DIR/describe, which doctor and training leave alone.
"""

import json
import sys
from pathlib import Path

from data_pipelines.core.cli import OneLineParser, guarded, say
from data_pipelines.core.errors import UserError
from data_pipelines.core.workers import Workers, default_workers
from data_pipelines.describe.counts import count_folder
from data_pipelines.describe.figures import figures
from data_pipelines.describe.page import page
from data_pipelines.describe.text import text
from data_pipelines.prepared.schema import SPLITS, check_inside, read_schema, structure_problems
from data_pipelines.prepared.tfds import split_files

DEFAULT_OUT = 'describe'


def describe(folder: Path, out: Path, workers: int) -> int:
  """Counts, prints and writes; returns the exit code.

  Raises:
    UserError: not a whole prepared folder.
  """
  schema = read_schema(folder)
  problems = structure_problems(schema)
  if problems:
    raise UserError(f'{folder}: {problems[0]}; build it again')
  for split in SPLITS:
    expected = sorted(schema['splits'][split]['files'])
    files = split_files(folder / schema['tfds'], split)
    check_inside(folder, files)
    found = [path.name for path in files]
    if expected != found:
      raise UserError(
        f'{folder}: {split} has {len(found)} record files where schema.json names {len(expected)}; '
        f'python -m data_pipelines.doctor {folder} says more'
      )
  with Workers(workers) as pool:
    counts = count_folder(folder, schema, pool)
  described = figures(folder, schema, counts)
  out.mkdir(parents=True, exist_ok=True)
  (out / 'describe.json').write_text(json.dumps(described, indent=1, allow_nan=False) + '\n')
  (out / 'describe.html').write_text(page(described), encoding='utf-8')
  say(text(described))
  say(f'\n{out / "describe.html"}')
  return 0


def main(argv: list[str] | None = None) -> int:
  """The command; returns the exit code."""
  parser = OneLineParser(
    prog='python -m data_pipelines.describe', description='Shows what is in a prepared folder.'
  )
  parser.add_argument('folder', type=Path, metavar='DIR', help='the prepared folder')
  parser.add_argument('--out', type=Path, help=f'folder to write (default DIR/{DEFAULT_OUT})')
  parser.add_argument(
    '--workers', type=int, default=default_workers(), help='processes (default: all cores)'
  )
  args = parser.parse_args(sys.argv[1:] if argv is None else argv)
  if args.workers < 1:
    parser.error(f'--workers={args.workers}: expected at least 1')
  out = args.out or args.folder / DEFAULT_OUT
  return guarded(lambda: describe(args.folder, out, args.workers))


if __name__ == '__main__':
  sys.exit(main())
