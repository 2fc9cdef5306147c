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
import json
import operator
import os
import platform
import re
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))  # before what is installed

import scale_big
import scale_mesh
import scale_pod
import scale_steps

from deres_jax import allocator

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
_AIM = {'<=': operator.le, '<': operator.lt, '=': lambda a, b: abs(a - b) < 1e-3}
_ROW = '{:<92} {:>6} {:>9} {:>9} {:>8} {:>18} {}'
_HEAD = 'what', 'unit', 'ours', 'beside', 'ratio', 'spread', 'aim'


def machine() -> str:
  model = re.search(r'model name\s*: (.*)', Path('/proc/cpuinfo').read_text())
  return f'{os.cpu_count()} cores, {model[1] if model else platform.machine()}'


def met(line: dict) -> bool | None:
  """Whether a line reaches its aim; None where it has none. Aims without a ratio are of `ours`."""
  if not line['aim']:
    return None
  sign, number = line['aim'].split()
  return _AIM[sign](line['ours'] if line['ratio'] is None else line['ratio'], float(number))


def cells(line: dict) -> tuple[str, ...]:
  """What a line shows, by the columns of _HEAD."""

  def number(x):
    if x is None or x == int(x):
      return '' if x is None else f'{x:,.0f}'
    return f'{x:,.0f}' if abs(x) >= 1000 else f'{x:.4g}'

  aim = line['aim'] + {True: ', met', False: ', MISSED', None: ''}[line['met']]
  ratio = number(line['ratio']) + ('' if line.get('quiet', True) else '*')
  spread = ' to '.join(map(number, line.get('spread', ())))
  ours, beside = number(line['ours']), number(line['beside'])
  return line['what'], line['unit'], ours, beside, ratio, spread, aim


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
      f'| {" | ".join(_HEAD)} |\n|---|---|--:|--:|--:|---|---|',
      *(f'| {" | ".join(cells(line))} |' for line in result['table']),
      '',
    ]
  )


def part(name: str, big_rows: int):
  """Runs a part in this process and writes its lines to stdout as JSON."""
  run, _ = PARTS[name]
  for lines in run(big_rows) if name == 'big_table' else run():
    for line in lines:
      print(json.dumps(line), flush=True)


def measure(name: str, big_rows: int) -> list[dict]:
  """Runs a part in a process of its own and shows its lines as they come."""
  environ = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': f'--xla_force_host_platform_device_count={PARTS[name][1]}',
  }
  command = [sys.executable, __file__, f'--part={name}', f'--big_rows={big_rows}']
  lines = []
  with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as process:
    for text in process.stdout:
      line = {'part': name} | json.loads(text)
      lines.append(line | {'met': met(line)})
      print(_ROW.format(*cells(lines[-1])), flush=True)
  if process.returncode:
    raise subprocess.CalledProcessError(process.returncode, command)
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
    part(args.part, args.big_rows)
    return
  names = args.only.split(',')
  if unknown := set(names) - PARTS.keys():
    parser.error(f'--only: {", ".join(unknown)} is none of {", ".join(PARTS)}')
  began = time.monotonic()
  result = {
    'command': 'make bench-scale',
    'machine': machine(),
    'allocator': allocator.name(),
    'load_before': os.getloadavg()[0],
    'date': datetime.date.today().isoformat(),
    'versions': {name: metadata.version(name) for name in ('jax', 'jaxlib', 'flax', 'numpy')},
    'python': platform.python_version(),
  }
  print(f'{result["machine"]}; malloc of {result["allocator"]}; jax {result["versions"]["jax"]}')
  print(_ROW.format(*_HEAD))
  big_rows = args.big_rows or scale_big.affordable(args.memory_gib)
  result['table'] = [line for name in names for line in measure(name, big_rows)]
  result |= {'big_rows': big_rows, 'seconds': time.monotonic() - began}
  result['complete'] = set(names) >= PARTS.keys()
  missed = [line['what'] for line in result['table'] if line['met'] is False]
  print(f'{result["seconds"]:,.0f} s; aims missed: {"; ".join(missed) or "none"}')
  if args.out:
    args.out.write_text(json.dumps(result, indent=1) + '\n')
    args.out.with_suffix('.md').write_text(markdown(result))


if __name__ == '__main__':
  main()
