# SPDX-License-Identifier: Apache-2.0
"""Raw file to prepared data.

  python -m data_pipelines.build --dataset=criteo --raw=train.txt --out=DIR [--seed=S] ...
  python -m data_pipelines.build --dataset=synthetic --out=DIR [--rows_train=N] ...
  python -m data_pipelines.build --dataset=synthetic_social --out=DIR [--users=N] ...

`--dataset=NAME --help` lists a data set's own flags. The same command again changes nothing.
"""

import shutil
import sys
import time
import zlib
from pathlib import Path

from data_pipelines import datasets
from data_pipelines.core.cli import OneLineParser, guarded, say
from data_pipelines.core.errors import UserError
from data_pipelines.core.files import file_sha256
from data_pipelines.core.workers import Workers, default_workers
from data_pipelines.prepared import shards
from data_pipelines.prepared.dataset import BuildContext, Dataset
from data_pipelines.prepared.rejects import Rejects
from data_pipelines.prepared.schema import (
  BLOCK_ROWS,
  FORMAT_VERSION,
  REJECTS_FILE,
  SCHEMA_FILE,
  SPLITS,
  VOCABULARY_FOLDER,
  read_schema,
  structure_problems,
)
from data_pipelines.prepared.shards import BlockSource
from data_pipelines.prepared.staging import WORK, prepare_parent, staging_folder
from data_pipelines.prepared.writer import write_prepared
from data_pipelines.text import ingest

ENOUGH_SPACE = 0.8  # refuse below this share of the estimate, which may be a little too high


def parse_flags(argv: list[str], others: bool = False):
  """The chosen data set, its parsed flags and, if `others` may be given, the unknown ones.

  Exits with code 2 on a mistake.
  """
  prog = f'python -m data_pipelines.{"beam_build" if others else "build"}'
  first = OneLineParser(prog=prog, add_help=False)
  first.add_argument('--dataset')
  name = first.parse_known_args(argv)[0].dataset
  shown = [name] if name in datasets.DATASETS else datasets.DATASETS
  about = '; '.join(f'{x}: {datasets.DATASETS[x].about}' for x in shown)
  more = '' if name in datasets.DATASETS else ' --dataset=NAME --help lists its own flags.'
  parser = OneLineParser(
    prog=prog,
    usage='%(prog)s --dataset=NAME --out=DIR [flags]',
    description=f'Raw file to prepared data. {about}.{more}',
  )
  parser.add_argument(
    '--dataset', required=True, metavar='NAME', help=' or '.join(datasets.DATASETS)
  )
  parser.add_argument('--raw', type=Path, metavar='PATH', help='raw data file or folder')
  parser.add_argument('--out', type=Path, required=True, metavar='DIR', help='folder to write')
  parser.add_argument('--overwrite', action='store_true', help='replace a prepared --out')
  parser.add_argument(
    '--workers', type=int, default=default_workers(), metavar='N', help='processes [all cores]'
  )
  parser.add_argument(
    '--compress',
    action='store_true',
    help='smaller records (about a third) that read at half speed',
  )
  if name is not None and name not in datasets.DATASETS:
    parser.error(f'--dataset={name}: unknown; choose from {", ".join(datasets.DATASETS)}')
  if name is not None:
    datasets.DATASETS[name].add_flags(parser)
  args, unknown = parser.parse_known_args(argv)
  if unknown and not others:
    parser.error(f'unrecognized arguments: {" ".join(unknown)}')
  dataset = datasets.DATASETS[args.dataset]
  if dataset.needs_raw and args.raw is None:
    parser.error(f'--dataset={name} needs --raw=PATH, {dataset.about}')
  if not dataset.needs_raw and args.raw is not None:
    parser.error(f'--dataset={name} reads no raw file; leave out --raw={args.raw}')
  if args.workers < 1:
    parser.error(f'--workers={args.workers}: expected at least 1')
  return dataset, args, unknown


def already_built(out: Path, dataset: Dataset, options: dict, raw_files: list[Path]) -> bool:
  """True if `out` holds this very data set, False if it is free to be written.

  Raises:
    UserError: `out` holds something else.
  """
  if not out.exists() or (out.is_dir() and not any(out.iterdir())):
    return False
  if not (out / SCHEMA_FILE).exists():
    raise UserError(
      f'--out={out}: exists and is no prepared data set (no {SCHEMA_FILE}); '
      'give a new or empty folder'
    )
  schema = read_schema(out)
  if problems := structure_problems(schema):
    raise UserError(
      f'--out={out}: holds a prepared data set whose {SCHEMA_FILE} is damaged ({problems[0]}); '
      'give another --out, or --overwrite to replace it'
    )
  there = {'dataset': schema['dataset'], **schema['build']}
  given = {'dataset': dataset.name, **options}
  changed = [
    f'{key}: {there.get(key)} there, {given.get(key)} given'
    for key in given | there
    if there.get(key) != given.get(key)
  ]
  there = [file['sha256'] for file in schema['raw']['files']]
  if not changed and [file_sha256(path) for path in raw_files] != there:
    one = len(raw_files) == 1
    changed.append('the raw file is another one' if one else 'the raw files are others')
  if changed:
    raise UserError(
      f'--out={out}: already holds another prepared data set ({"; ".join(changed)}); '
      'give another --out, or --overwrite to replace it'
    )
  return True


def report(schema: dict, out: Path, rejects: Rejects, seconds: float) -> None:
  """Prints the closing lines of a build."""
  raw = schema['raw']
  say(f'rows read      {raw["rows_read"]:>15,}')
  say(f'rows written   {raw["rows_written"]:>15,}')
  say(f'rows rejected  {raw["rows_rejected"]:>15,}')
  for file_name, bad in rejects.first:
    say(f'  {file_name}, line {bad.line}: {bad.reason}')
  if rejects.count:
    say(f'  all rejected rows: {out / REJECTS_FILE}')
  for split in SPLITS:
    entry = schema['splits'][split]
    say(f'{split:<14} {entry["rows"]:>15,} rows, click rate {entry["click_rate"]:.5f}')
  total = sum(field['vocab_size'] for field in schema['fields'])
  say(f'vocabulary     {total:>15,} ids in {len(schema["fields"])} fields')
  for split, known in schema.get('planted', {}).get('splits', {}).items():
    figures = ', '.join(f'{k} {"none" if v is None else f"{v:.5f}"}' for k, v in known.items())
    say(f'planted, {split}: {figures}')
  rate = raw['rows_read'] / max(seconds, 1e-9)
  say(f'{out} is ready ({seconds:.1f} s, {rate:,.0f} rows/s)')


def plan(dataset: Dataset, options: dict, raw_files: list[Path], compress: bool) -> dict:
  """All that determines the bytes of a build; a stopped one goes on only under an equal plan."""
  states = [(path, path.stat()) for path in raw_files]
  return {
    'dataset': dataset.name,
    'options': options,
    'compress': compress,
    'raw': [[str(path), state.st_size, state.st_mtime_ns] for path, state in states],
    'sizes': [FORMAT_VERSION, BLOCK_ROWS, shards.SHARD_BLOCKS, ingest.CHUNK_BYTES],
  }


def build(dataset: Dataset, args, workers: Workers) -> int:
  """Builds the data set from parsed flags, on `workers`; returns the exit code.

  Raises:
    UserError: a mistake that the user can mend.
  """
  began = time.monotonic()
  out = args.out.absolute()
  options = dataset.options(args)
  raw = args.raw.absolute() if dataset.needs_raw else None
  raw_files = dataset.raw_files(raw, options) if raw is not None else []
  prepare_parent(out)
  replace = args.overwrite and (out / SCHEMA_FILE).exists()
  if not replace and already_built(out, dataset, options, raw_files):
    say(f'{out} already holds this data set, nothing to do')
    return 0
  with (
    staging_folder(out, plan(dataset, options, raw_files, args.compress), say) as folder,
    workers,
  ):
    (folder / VOCABULARY_FOLDER).mkdir()
    context = BuildContext(folder, folder / WORK, workers, Rejects(folder), say)
    encoded = dataset.encode(options, raw, context)
    check_space(folder, encoded.source, args.compress)
    schema = write_prepared(context, dataset, options, encoded, args.compress)
  report(schema, out, context.rejects, time.monotonic() - began)
  return 0


def check_space(folder: Path, source: BlockSource, compress: bool) -> None:
  """Compares the free space with what the rows will take, judged by the first training block.

  Raises:
    UserError: far too little; an hour of writing would end with a full disk.
  """
  block = next(source.blocks('train', *shards.shards_of(source.rows['train'])[0]))
  data = b''.join(array.tobytes() for array in block.values())
  # Deflate comes within a tenth of what ArrayRecord's own compression yields (measured).
  size = len(zlib.compress(data)) if compress else len(data)
  needed = size / len(block['label']) * sum(source.rows.values())
  free = shutil.disk_usage(folder).free
  if free < ENOUGH_SPACE * needed:
    raise UserError(
      f'--out={folder.parent}: about {needed / 1e6:,.1f} MB needed, {free / 1e6:,.1f} MB free; '
      'make room or give another --out'
    )


def main(argv: list[str] | None = None) -> int:
  """The command; returns the exit code."""
  dataset, args, _ = parse_flags(sys.argv[1:] if argv is None else argv)
  return guarded(lambda: build(dataset, args, Workers(args.workers)))


if __name__ == '__main__':
  sys.exit(main())
