# SPDX-License-Identifier: Apache-2.0
"""Preparing and reading rows beside other ways, in one run: `make bench-data`.

  python tests/bench/data.py --out=FILE.json [--rows=10000000]

Prints a table and writes it as JSON. Raw rows are invented (criteo_text.py), the reader's rows are
those that were just prepared. Rates are of one run each; compare only what stands in one table.
"""

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
for folder in ('scale_parts', 'parts', '../helpers', '../embeddings', '../..'):
  sys.path.insert(0, str(HERE / folder))  # the project stands before what is installed

import criteo_text
import reading
from process import measure

SMALL = 1_000_000  # rows that the other ways are given too
SEED = 0
MIN_COUNT = 10


def build_command(raw: Path, out: Path) -> list[str]:
  """`data_pipelines.build` with its defaults."""
  module = [sys.executable, '-m', 'data_pipelines.build', '--dataset=criteo']
  return [*module, f'--raw={raw}', f'--out={out}', f'--min_count={MIN_COUNT}']


def peer_command(way: str, raw: Path, out: Path) -> list[str]:
  """The same work done by peers.py."""
  script = HERE / 'parts' / 'peers.py'
  return [sys.executable, str(script), way, str(raw), str(out), str(MIN_COUNT)]


def preparing(folder: Path, rows: int) -> list[dict]:
  """Rows of the table on raw text to prepared data."""
  table = []

  def run(what: str, count: int, command: list[str]) -> None:
    found = measure(command)
    line = {
      'what': what,
      'rows': count,
      'seconds': found.seconds,
      'rows_per_second': count / found.seconds,
      'cpu_seconds': found.cpu_seconds,
      'peak_mib': found.peak_mib,
    }
    table.append(line)
    print(
      f'{what:<28} {count:>12,} {found.seconds:>9.1f} {line["rows_per_second"]:>12,.0f} '
      f'{found.peak_mib:>9,.0f}',
      flush=True,
    )

  print(f'{"prepare":<28} {"rows":>12} {"seconds":>9} {"rows/s":>12} {"peak MiB":>9}')
  for count in sorted({SMALL, rows}):
    raw = folder / f'raw-{count}'
    criteo_text.write(raw, count, SEED)
    run('data_pipelines.build', count, build_command(raw, folder / f'prepared-{count}'))
  for way in ('pandas', 'fuxictr'):
    out = folder / way
    out.mkdir()
    name = {'pandas': 'pandas', 'fuxictr': 'FuxiCTR-style, by column'}[way]
    run(name, SMALL, peer_command(way, folder / f'raw-{SMALL}', out))
  return table


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--out', type=Path, required=True, help='JSON file to write')
  parser.add_argument('--rows', type=int, default=10_000_000, help='rows of the large raw file')
  parser.add_argument('--folder', type=Path, help='for temporary files (default: a new one)')
  args = parser.parse_args()
  folder = Path(tempfile.mkdtemp(dir=args.folder, prefix='bench-data-'))
  try:
    result = {
      'machine': f'{os.cpu_count()} cores, {platform.machine()}',
      'python': platform.python_version(),
      'preparing': preparing(folder, args.rows),
      'reading': reading.table(folder / f'prepared-{args.rows}', folder / 'reading'),
    }
  finally:
    shutil.rmtree(folder)
  args.out.write_text(json.dumps(result, indent=1) + '\n')


if __name__ == '__main__':
  main()
