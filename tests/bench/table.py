# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks share: parts in processes of their own, their lines, a table, a page.

A benchmark is a dict of parts, functions that yield lists of lines. A line is a dict with `what`,
`unit`, a number for each further column, and where it has them `ratio`, `spread` [low, high], `aim`
(a comparison with the ratio, or of `ours` where there is none) and `quiet`.
"""

import json
import operator
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

_AIM = {
  '<=': operator.le,
  '<': operator.lt,
  '>=': operator.ge,
  '=': lambda a, b: abs(a - b) < 1e-3,
}
_WIDTHS = {'what': 92, 'unit': 8, 'spread': 18, 'aim': 16}  # of text; of numbers 9


def machine() -> str:
  model = re.search(r'model name\s*: (.*)', Path('/proc/cpuinfo').read_text())
  return f'{os.cpu_count()} cores, {model[1] if model else platform.machine()}'


def versions(*packages: str) -> dict[str, str]:
  """Of those that are installed."""
  there = {d.name for d in metadata.distributions()}
  return {name: metadata.version(name) for name in packages if name in there}


def met(line: dict) -> bool | None:
  """Whether a line reaches its aim; None where it has none. Aims without a ratio are of `ours`."""
  if not line['aim']:
    return None
  sign, number = line['aim'].split()
  ratio = line.get('ratio')
  return _AIM[sign](line['ours'] if ratio is None else ratio, float(number))


def _number(x: float | None) -> str:
  if x is None or x == int(x):
    return '' if x is None else f'{x:,.0f}'
  return f'{x:,.0f}' if abs(x) >= 1000 else f'{x:.4g}'


def cells(line: dict, head: tuple[str, ...]) -> tuple[str, ...]:
  """What a line shows, by the columns of `head`."""
  texts = {
    'what': line['what'],
    'unit': line['unit'],
    'ratio': _number(line.get('ratio')) + ('' if line.get('quiet', True) else '*'),
    'spread': ' to '.join(map(_number, line.get('spread') or ())),
    'aim': line['aim'] + {True: ', met', False: ', MISSED', None: ''}[line['met']],
    'note': line.get('note') or '',
  }
  return tuple(texts[name] if name in texts else _number(line.get(name)) for name in head)


def row(cells: Iterable[str], head: tuple[str, ...]) -> str:
  """A row of the table in a terminal."""
  padded = (
    text.ljust(_WIDTHS[name]) if name in _WIDTHS else text if name == 'note' else text.rjust(9)
    for name, text in zip(head, cells, strict=True)
  )
  return ' '.join(padded).rstrip()


def markdown(lines: list[dict], head: tuple[str, ...]) -> list[str]:
  """Rows of the table on a page."""
  marks = ('---' if name in _WIDTHS or name == 'note' else '--:' for name in head)
  return [
    f'| {" | ".join(head)} |',
    f'|{"|".join(marks)}|',
    *(f'| {" | ".join(cells(line, head))} |' for line in lines),
  ]


def write_lines(groups: Iterable[list[dict]]):
  """What a part found, to stdout as JSON, for `measure` of another process."""
  for group in groups:
    for line in group:
      print(json.dumps(line), flush=True)


def measure(
  name: str, arguments: list[str], environ: dict[str, str], head: tuple[str, ...]
) -> tuple[list[dict], int]:
  """Runs a part in a process of its own and shows its lines as they come.

  Args:
    arguments: of Python, for a script that gives the part's lines to `write_lines`.

  Returns:
    (the lines with `part` and `met`, exit code of the process).
  """
  lines = []
  command = [sys.executable, *arguments]
  with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as process:
    for text in process.stdout:
      line = {'part': name} | json.loads(text)
      lines.append(line | {'met': met(line)})
      print(row(cells(lines[-1], head), head), flush=True)
  return lines, process.returncode


def write(result: dict, page: str, out: Path):
  """The result as JSON, and the page beside it."""
  out.write_text(json.dumps(result, indent=1) + '\n')
  out.with_suffix('.md').write_text(page)
