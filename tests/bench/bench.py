# SPDX-License-Identifier: Apache-2.0
"""This project beside what a user would take instead, and beside the machine's limit: `make bench`.

  python tests/bench/bench.py --out=FILE.json [--only=steps,...] [--rounds=5]
    [--allocator=auto|jemalloc|system]

Prints a table and writes it as JSON, and beside it as Markdown. Every part is a process of its own,
all with the same malloc; what a line compares is timed in turns in one process. `ratio` is the
median over the rounds: how many times as fast as the peer (`>=`), or the time over the peer's
(`<=`); the spread is lowest to highest, or the quartiles of more rounds than five. A line with `*`
was taken while other processes had more than a tenth of the cores. `limit` of a step is the time of
its matrix products alone at the rate of the line `float32 product`. docs/performance.md explains
the lines.
"""

import argparse
import datetime
import os
import platform
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
for folder in ('scale_parts', 'parts', '../helpers', '../embeddings', '../..'):
  sys.path.insert(0, str(HERE / folder))  # the project stands before what is installed

import table

from deres_jax.core import allocator

PARTS = ('depth', 'steps', 'tables', 'disk', 'start', 'serving', 'evaluation')
HEAD = 'what', 'unit', 'ours', 'peer', 'limit', 'ratio', 'spread', 'aim', 'note'


def markdown(result: dict) -> str:
  """The page of docs/results."""
  versions = ', '.join(f'{name} {version}' for name, version in result['versions'].items())
  return '\n'.join(
    [
      '# Beside peers and limits',
      '',
      f'`{result["command"]}`, {result["date"]}: {result["machine"]}; malloc of '
      f'{result["allocator"]}; {versions}. {result["seconds"] / 60:.0f} minutes.',
      'Columns and marks: the head of `tests/bench/bench.py`; what the lines say: '
      '[../performance.md](../performance.md).',
      '',
      *table.markdown(result['table'], HEAD),
      *(f'\nThe part `{name}` failed with exit code {code}.' for name, code in result['failed']),
      '',
    ]
  )


def main():
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--out', type=Path, help='JSON file to write')
  parser.add_argument('--only', default=','.join(PARTS), help='names of parts, by commas')
  parser.add_argument('--rounds', type=int, default=5, help='in which a line is measured')
  parser.add_argument('--allocator', default='auto', choices=['auto', 'jemalloc', 'system'])
  parser.add_argument('--part', help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.part:
    module = __import__(args.part)
    table.write_lines(getattr(module, args.part)(args.rounds))
    return
  names = args.only.split(',')
  if unknown := set(names) - set(PARTS):
    parser.error(f'--only: {", ".join(unknown)} is none of {", ".join(PARTS)}')
  environ = allocator.environment(os.environ | {allocator.VARIABLE: args.allocator})
  environ['JAX_PLATFORMS'] = environ.get('JAX_PLATFORMS', 'cpu')
  preloaded = 'jemalloc' in environ.get('LD_PRELOAD', '')
  given = [x for x in sys.argv[1:] if not x.startswith('--out=')]
  result = {
    'command': ' '.join(['python tests/bench/bench.py', *given]) if given else 'make bench',
    'machine': table.machine(),
    'allocator': 'jemalloc' if preloaded else allocator.name(),
    'load_before': os.getloadavg()[0],
    'date': datetime.date.today().isoformat(),
    'versions': table.versions('jax', 'jaxlib', 'flax', 'numpy', 'torch', 'scikit-learn'),
    'python': platform.python_version(),
    'parts': {},  # seconds of each
    'table': [],
    'failed': [],
  }
  print(f'{result["machine"]}; malloc of {result["allocator"]}; {result["versions"]}')
  print(table.row(HEAD, HEAD))
  began = time.monotonic()
  for name in names:
    part = [__file__, f'--part={name}', f'--rounds={args.rounds}']
    started = time.monotonic()
    lines, code = table.measure(name, part, environ, HEAD)
    result['parts'][name] = time.monotonic() - started
    result['table'] += lines
    result['failed'] += [(name, code)] if code else []
  result |= {'seconds': time.monotonic() - began, 'complete': set(names) >= set(PARTS)}
  missed = [line['what'] for line in result['table'] if line['met'] is False]
  print(f'{result["seconds"]:,.0f} s; aims missed: {"; ".join(missed) or "none"}')
  if args.out:
    table.write(result, markdown(result), args.out)
  if result['failed']:
    sys.exit(f'parts that failed: {", ".join(name for name, _ in result["failed"])}')


if __name__ == '__main__':
  main()
