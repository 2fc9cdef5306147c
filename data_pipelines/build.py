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
from data_pipelines.core import cli
from data_pipelines.core.cli import say
from data_pipelines.core.files import file_sha256
from data_pipelines.core.workers import Workers
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
  Schema,
  read_schema,
)
from data_pipelines.prepared.shards import BlockSource
from data_pipelines.prepared.staging import WORK, prepare_parent, staging_folder
from data_pipelines.prepared.writer import write_prepared
from data_pipelines.text import ingest
from deres_jax.core.errors import UserError

WORK_VERSION = 2  # of the intermediate files; a build goes on only from those of its own version
ENOUGH_SPACE = 0.8  # of the estimate, which may be a little too high


def parse_flags(argv: list[str], others: bool = False):
  """Returns the data set, its parsed flags and the unknown flags, which only `others` allows.

  Exits with code 2 on a mistake.
  """
  prog = f'python -m data_pipelines.{"beam_build" if others else "build"}'
  first = cli.OneLineParser(prog=prog, add_help=False)
  first.add_argument('--dataset')
  name = first.parse_known_args(argv)[0].dataset
  names = [name] if name in datasets.DATASETS else datasets.DATASETS
  about = '; '.join(f'{name}: {datasets.DATASETS[name].about}' for name in names)
  more = '' if name in datasets.DATASETS else ' --dataset=NAME --help lists its own flags.'
  parser = cli.OneLineParser(
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
  cli.add_workers_flag(parser, 'processes [all cores]', metavar='N')
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
  if dataset.raw_files is not None and args.raw is None:
    parser.error(f'--dataset={name} needs --raw=PATH, {dataset.about}')
  if dataset.raw_files is None and args.raw is not None:
    parser.error(f'--dataset={name} reads no raw file; leave out --raw={args.raw}')
  cli.check_workers(parser, args.workers)
  return dataset, args, unknown


def already_built(out: Path, dataset: Dataset, options: dict, raw_files: list[Path]) -> bool:
  """Returns whether `out` holds this data set already; if not, `out` is free to be written.

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
  advice = 'give another --out, or --overwrite to replace it'
  try:
    schema = read_schema(out)
  except UserError as error:
    raise UserError(
      f'--out={out}: holds a damaged prepared data set ({error}); {advice}'
    ) from error
  old = {'dataset': schema.dataset, **schema.build}
  new = {'dataset': dataset.name, **options}
  changes = [
    f'{key}: {old.get(key)} there, {new.get(key)} given'
    for key in new | old
    if old.get(key) != new.get(key)
  ]
  checksums = [file.sha256 for file in schema.raw.files]
  if not changes and [file_sha256(path) for path in raw_files] != checksums:
    changes.append('the raw files differ' if raw_files[1:] else 'the raw file differs')
  if changes:
    raise UserError(
      f'--out={out}: already holds another prepared data set ({"; ".join(changes)}); {advice}'
    )
  return True


def report(schema: Schema, out: Path, rejects: Rejects, seconds: float) -> None:
  """Prints the closing lines of a build."""
  raw = schema.raw
  say(f'rows read      {raw.rows_read:>15,}')
  say(f'rows written   {raw.rows_written:>15,}')
  say(f'rows rejected  {raw.rows_rejected:>15,}')
  for file_name, bad in rejects.first:
    say(f'  {file_name}, line {bad.line}: {bad.reason}')
  if rejects.count:
    say(f'  all rejected rows: {out / REJECTS_FILE}')
  for split in SPLITS:
    counts = schema.splits[split]
    say(f'{split:<14} {counts.rows:>15,} rows, click rate {counts.click_rate:.5f}')
  total = sum(field.vocab_size for field in schema.fields)
  say(f'vocabulary     {total:>15,} ids in {len(schema.fields)} fields')
  for split, metrics in schema.planted['splits'].items() if schema.planted else ():
    figures = ', '.join(f'{k} {"none" if v is None else f"{v:.5f}"}' for k, v in metrics.items())
    say(f'planted, {split}: {figures}')
  rate = raw.rows_read / max(seconds, 1e-9)
  say(f'{out} is ready ({seconds:.1f} s, {rate:,.0f} rows/s)')


def plan(dataset: Dataset, options: dict, raw_files: list[Path], compress: bool) -> dict:
  """Returns all that determines the bytes of a build; a stopped one goes on under an equal plan."""
  states = [(path, path.stat()) for path in raw_files]
  return {
    'dataset': dataset.name,
    'options': options,
    'compress': compress,
    'raw': [[str(path), state.st_size, state.st_mtime_ns] for path, state in states],
    'sizes': [FORMAT_VERSION, WORK_VERSION, BLOCK_ROWS, shards.SHARD_BLOCKS, ingest.CHUNK_BYTES],
  }


def build(dataset: Dataset, args, workers: Workers) -> int:
  """Builds the data set from parsed flags; returns the exit code.

  Raises:
    UserError: a user's mistake.
  """
  began = time.monotonic()
  out = args.out.absolute()
  options = dataset.options(args)
  raw_files = dataset.raw_files(args.raw.absolute(), options) if dataset.raw_files else []
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
    encoded = dataset.encode(options, raw_files, context)
    check_space(folder, encoded.source, args.compress)
    schema = write_prepared(context, dataset, options, encoded, args.compress)
  report(schema, out, context.rejects, time.monotonic() - began)
  return 0


def check_space(folder: Path, source: BlockSource, compress: bool) -> None:
  """Raises UserError if the disk has far too little space, judged by the first training block."""
  block = next(source.blocks('train', *shards.shards_of(source.rows['train'])[0]))
  data = b''.join(array.tobytes() for array in block.values())
  # Deflate comes within a tenth of ArrayRecord's own compression (measured).
  size = len(zlib.compress(data)) if compress else len(data)
  needed = size / len(block['label']) * sum(source.rows.values())
  free = shutil.disk_usage(folder).free
  if free < ENOUGH_SPACE * needed:
    raise UserError(
      f'--out={folder.parent}: about {needed / 1e6:,.1f} MB needed, {free / 1e6:,.1f} MB free; '
      'make room or give another --out'
    )


def main(argv: list[str] | None = None) -> int:
  """Runs the command; returns the exit code."""
  dataset, args, _ = parse_flags(sys.argv[1:] if argv is None else argv)
  return cli.guarded(lambda: build(dataset, args, Workers(args.workers)))


if __name__ == '__main__':
  sys.exit(main())
