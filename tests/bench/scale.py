# SPDX-License-Identifier: Apache-2.0
"""Steps on large tables and many devices beside other ways: `make bench-scale`.

  python tests/bench/scale.py --out=FILE.json [--only=by_vocabulary,...] [--big_rows=N]

Prints a table and writes it as JSON, and beside it as Markdown: docs/results/scaling_out.*. Every
part is a process of its own; what a line compares is timed in turns in one process. `ratio` is the
median of the rounds' ratios ours / beside, the spread their quartiles (of two rounds, and of times
without a ratio: lowest and highest); a line with a `*` was taken while other processes had more
than a tenth of the cores.
"""

import argparse
import datetime
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
for folder in ('scale_parts', 'parts', '../helpers', '../embeddings', '../..'):
  sys.path.insert(0, str(HERE / folder))  # the project stands before what is installed

import scale_big
import scale_mesh
import scale_pod
import scale_steps
import table

from deres_jax.core import allocator

PARTS = {
  'by_vocabulary': (scale_steps.by_vocabulary, 1),
  'beside_dense': (scale_steps.beside_dense, 1),
  'slots': (scale_steps.slots, 1),
  'exchanges': (scale_mesh.exchanges, 8),
  'hot_rows': (scale_mesh.hot_rows, 1),
  'merged_in_hosts': (scale_mesh.merged_in_hosts, 1),
  'big_table': (scale_big.big_table, 8),
  'pods': (scale_pod.pods, 1),
}
_HEAD = 'what', 'unit', 'ours', 'beside', 'ratio', 'spread', 'aim'


def markdown(result: dict) -> str:
  """The page of docs/results."""
  return '\n'.join(
    [
      '# Steps on large tables and many devices',
      '',
      f'`{result["command"]}`, {result["date"]}: {result["machine"]}, no accelerator; malloc of '
      f'{result["allocator"]}, jax {result["versions"]["jax"]}.',
      'Columns and marks: the head of `tests/bench/scale.py`; what it says: '
      '[../scaling_out.md](../scaling_out.md).',
      '',
      *table.markdown(result['table'], _HEAD),
      '',
    ]
  )


def measure(name: str, big_rows: int) -> list[dict]:
  """Lines of a part."""
  environ = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': f'--xla_force_host_platform_device_count={PARTS[name][1]}',
  }
  command = [__file__, f'--part={name}', f'--big_rows={big_rows}']
  lines, code = table.measure(name, command, environ, _HEAD)
  if code:
    raise subprocess.CalledProcessError(code, command)
  return lines


def main():
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--out', type=Path, help='JSON file to write')
  parser.add_argument('--only', default=','.join(PARTS), help='names of parts, by commas')
  parser.add_argument('--memory_gib', type=float, default=13.0, help='that the big table may take')
  parser.add_argument(
    '--big_rows', type=int, default=0, help='rows of the big table (default: what fits memory_gib)'
  )
  parser.add_argument('--part', help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.part:
    run, _ = PARTS[args.part]
    table.write_lines(run(args.big_rows) if args.part == 'big_table' else run())
    return
  names = args.only.split(',')
  if unknown := set(names) - PARTS.keys():
    parser.error(f'--only: {", ".join(unknown)} is none of {", ".join(PARTS)}')
  began = time.monotonic()
  result = {
    'command': 'make bench-scale',
    'machine': table.machine(),
    'allocator': allocator.name(),
    'load_before': os.getloadavg()[0],
    'date': datetime.date.today().isoformat(),
    'versions': table.versions('jax', 'jaxlib', 'flax', 'numpy'),
    'python': platform.python_version(),
  }
  print(f'{result["machine"]}; malloc of {result["allocator"]}; jax {result["versions"]["jax"]}')
  print(table.row(_HEAD, _HEAD))
  big_rows = args.big_rows or scale_big.affordable(args.memory_gib)
  result['table'] = [line for name in names for line in measure(name, big_rows)]
  result |= {'big_rows': big_rows, 'seconds': time.monotonic() - began}
  result['complete'] = set(names) >= PARTS.keys()
  missed = [line['what'] for line in result['table'] if line['met'] is False]
  print(f'{result["seconds"]:,.0f} s; aims missed: {"; ".join(missed) or "none"}')
  if args.out:
    table.write(result, markdown(result), args.out)


if __name__ == '__main__':
  main()
