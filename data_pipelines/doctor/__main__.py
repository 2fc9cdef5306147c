# SPDX-License-Identifier: Apache-2.0
"""Checks a prepared folder against its schema.

  python -m data_pipelines.doctor DIR

Prints one line per check, "ok" or "FAILED", and a "note" of what is worth knowing; exit code 0 if
the folder is whole, else 2.
"""

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path

from data_pipelines.core import cli
from data_pipelines.core.cli import say
from data_pipelines.core.files import file_sha256
from data_pipelines.core.workers import Workers
from data_pipelines.doctor.checks import Checks
from data_pipelines.doctor.leaks import Leaks, check_vocabulary_counts
from data_pipelines.doctor.rows import read_split, row_plan
from data_pipelines.prepared.schema import (
  BLOCK_ROWS,
  FIRST_TOKEN_ID,
  PADDING_ID,
  REJECTS_FILE,
  SPLITS,
  VOCABULARY_FOLDER,
  Attribute,
  Field,
  RecordFile,
  Schema,
  check_inside,
  read_schema,
)
from data_pipelines.prepared.split_stats import SplitStats
from data_pipelines.prepared.tfds import split_files
from deres_jax.core.errors import UserError

PRINTED = 3


def check_folder(folder: Path, workers: Workers, tell: Callable[[str], None]) -> Checks:
  """Runs all checks on a prepared folder.

  Raises:
    UserError: there is no valid schema.json, or a file is a link that leads out of the folder.
  """
  checks = Checks(tell)
  schema = read_schema(folder)
  checks.holds('schema: all entries', True, '')
  tfds_folder = folder / schema.tfds
  vocabularies = (folder / VOCABULARY_FOLDER / name for name in schema.vocabulary)
  records = [path for split in SPLITS for path in split_files(tfds_folder, split)]
  check_inside(folder, [*vocabularies, *records, folder / REJECTS_FILE])
  _check_counts(schema, checks)
  _check_attributes(schema, checks)
  _check_rejects(folder, schema.raw.rows_rejected, checks)
  _check_vocabularies(folder, schema, checks)
  readable = True
  for name in ('dataset_info.json', 'features.json'):
    readable &= checks.holds(f'file {name}', (tfds_folder / name).is_file(), 'missing')
  plan, rows = row_plan(schema), {}
  for split in SPLITS:
    # A damaged record file is not opened: its contents cannot be the ones described.
    files = schema.splits[split].files
    if _check_files(tfds_folder, split, files, workers, checks) and readable:
      split_rows = read_split(split_files(tfds_folder, split), plan, split == 'train', workers)
      _check_content(split_rows.stats, split, schema, checks)
      if not split_rows.stats.faults:
        rows[split] = split_rows
  if 'train' in rows:
    check_vocabulary_counts(schema, rows['train'], plan, checks)
  if len(rows) == len(SPLITS):
    min_counts = {f: schema.fields[f].min_count for f, _ in plan.counted}
    Leaks(rows, split_files(tfds_folder, 'train'), plan, min_counts).check(checks, workers)
  return checks


def _check_counts(schema: Schema, checks: Checks) -> None:
  raw = schema.raw
  checks.equal('schema: rows in a block', BLOCK_ROWS, schema.block_rows)
  rows_used = raw.rows_written + raw.rows_rejected
  checks.equal('schema: rows read = written + rejected', raw.rows_read, rows_used)
  total = sum(schema.splits[split].rows for split in SPLITS)
  checks.equal('schema: rows written = rows of the splits', raw.rows_written, total)


def _vocabularies(schema: Schema) -> list[Field | Attribute]:
  """Returns the fields and attributes with a vocabulary of their own."""
  fields = [field for field in schema.fields if not field.hashed]
  return fields + [attribute for attribute in schema.attributes if attribute.field is None]


def _check_attributes(schema: Schema, checks: Checks) -> None:
  names = [field.name for field in schema.fields]
  names += [attribute.name for attribute in schema.attributes if attribute.field is None]
  repeated = sorted({name for name in names if names.count(name) > 1})
  checks.holds('schema: field names', not repeated, f'repeated: {", ".join(repeated)}')
  sizes = {field.name: field.vocab_size for field in schema.fields}
  shared = [attribute for attribute in schema.attributes if attribute.field is not None]
  checks.holds(
    'schema: attributes of events',
    shared == schema.attributes[: len(shared)]
    and all(attribute.vocab_size == sizes.get(attribute.field) for attribute in shared),
    'those that share the ids of a field must come first and name it and its size',
  )
  items = schema.items
  checks.holds(
    'schema: borders of head and torso',
    items is None
    or FIRST_TOKEN_ID <= items.head_below <= items.torso_below <= sizes.get(items.field, 0),
    f'{items} do not lie in order within the ids of a field',
  )


def _check_rejects(folder: Path, rows_rejected: int, checks: Checks) -> None:
  path = folder / REJECTS_FILE
  lines = path.read_bytes().count(b'\n') if path.is_file() else 0
  checks.equal(f'file {REJECTS_FILE}: rows', rows_rejected, lines)


def _check_vocabularies(folder: Path, schema: Schema, checks: Checks) -> None:
  fields = _vocabularies(schema)
  expected_names = [f'{field.name}.txt' for field in fields]
  checks.equal('schema: vocabulary files', sorted(expected_names), sorted(schema.vocabulary))
  good = True
  for field in fields:
    name = f'{field.name}.txt'
    path = folder / VOCABULARY_FOLDER / name
    if not path.is_file():
      good = checks.holds(f'vocabulary {name}', False, 'the file is missing')
      continue
    data = path.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    if sha256 != schema.vocabulary.get(name):
      good = checks.equal(f'vocabulary {name}: sha256', schema.vocabulary.get(name), sha256)
    size = data.count(b'\n') + FIRST_TOKEN_ID
    if size != field.vocab_size:
      good = checks.equal(f'vocabulary {name}: vocab_size', field.vocab_size, size)
  if good:
    checks.holds(f'vocabulary: {len(expected_names)} files', True, '')


def _check_files(
  folder: Path, split: str, files: dict[str, RecordFile], workers: Workers, checks: Checks
) -> bool:
  """Returns whether the record files of a split are those that the schema describes."""
  names = [path.name for path in split_files(folder, split)]
  good = checks.equal(f'{split}: record files', sorted(files), names)
  complete = []
  for name in sorted(set(files) & set(names)):
    size = (folder / name).stat().st_size
    if checks.equal(f'{split}: bytes of {name}', files[name].bytes, size):
      complete.append(name)
    else:
      good = False
  sums = workers.map(file_sha256, [folder / name for name in complete])
  for name, sha256 in zip(complete, sums, strict=True):
    good &= checks.equal(f'{split}: sha256 of {name}', files[name].sha256, sha256)
  return good


def _check_content(stats: SplitStats, split: str, schema: Schema, checks: Checks) -> None:
  expected = schema.splits[split]
  checks.holds(f'{split}: shapes and labels', not stats.faults, '; '.join(stats.faults[:PRINTED]))
  checks.equal(f'{split}: rows', expected.rows, stats.rows)
  checks.equal(f'{split}: blocks', expected.blocks, stats.blocks)
  short = [k for k, length in enumerate(stats.lengths[:-1]) if length != BLOCK_ROWS]
  checks.holds(f'{split}: full blocks', not short, f'shorter blocks: {short[:PRINTED]}')
  checks.equal(f'{split}: clicks', expected.clicks, stats.clicks)
  checks.equal(f'{split}: click rate', expected.click_rate, stats.click_rate)
  columns = [*schema.fields, *schema.attributes]
  outside = [
    f'{column.name}: expected ids {PADDING_ID + 1} to {column.vocab_size - 1}, '
    f'found {low} to {high}'
    for column, low, high in zip(columns, stats.min_id_K, stats.max_id_K, strict=True)
    if low <= high and (low <= PADDING_ID or high >= column.vocab_size)
  ]
  problem = '; '.join(outside[:PRINTED])
  checks.holds(f'{split}: ids in range', not outside or not stats.rows, problem)
  checks.equal(f'{split}: events', expected.events, stats.events)
  if schema.group and stats.rows:
    low, high, groups = stats.min_group, stats.max_group, schema.group.groups
    problem = f'expected 0 to {groups - 1}, found {low} to {high}'
    checks.holds(f'{split}: groups in range', 0 <= low <= high < groups, problem)
  wrong = [
    f'{field.name}: expected {field.oov_rate[split]}, found {rate}'
    for field, rate in zip(schema.fields, stats.oov_rate_F(), strict=True)
    if field.oov_rate[split] != rate
  ]
  problem = '; '.join(wrong[:PRINTED])
  checks.holds(f'{split}: out-of-vocabulary rates', not wrong, problem)
  checks.equal(f'{split}: content sha256', expected.content_sha256, stats.content_sha256)


def doctor(folder: Path, workers: int) -> int:
  """Checks a folder and prints the result; returns the exit code.

  Raises:
    UserError: the folder is not whole, or not a prepared data set at all.
  """
  with Workers(workers) as pool:
    checks = check_folder(folder, pool, say)
  if checks.failures:
    first = ' | '.join(checks.failures[:PRINTED])
    raise UserError(
      f'{folder} is not whole, {len(checks.failures)} of {checks.count} checks failed: '
      f'{first}; build it again'
    )
  say(f'{folder} is whole')
  return 0


def main(argv: list[str] | None = None) -> int:
  """Runs the command; returns the exit code."""
  parser = cli.OneLineParser('python -m data_pipelines.doctor', 'Checks a prepared folder.')
  parser.add_argument('folder', nargs='?', type=Path, metavar='DIR', help='the folder')
  parser.add_argument('--path', type=Path, help='the folder, as a flag')
  cli.add_workers_flag(parser, 'processes (default: all cores)')
  args = parser.parse_args(sys.argv[1:] if argv is None else argv)
  cli.check_workers(parser, args.workers)
  if (args.folder is None) == (args.path is None):
    parser.error('give one prepared folder: DIR or --path=DIR')
  folder = args.folder or args.path
  return cli.guarded(lambda: doctor(folder, args.workers))


if __name__ == '__main__':
  sys.exit(main())
