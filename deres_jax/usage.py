# SPDX-License-Identifier: Apache-2.0
"""What --help prints: a command in one screen of 24 lines x 80 columns."""

import shutil
import textwrap
from collections.abc import Sequence

from absl import flags

ROWS, COLUMNS = 24, 80
_LAST = '--helpfull lists the flags of every library too; docs/commands.md says more.'


def screen(doc: str, own: Sequence[flags.Flag]) -> str:
  """The first sentence and the command lines of a module's docstring, and its flags.

  Args:
    doc: docstring of the command: a paragraph, then its command lines, indented.
    own: flags that the command defines; those of libraries are left out.
  """
  columns = min(COLUMNS, shutil.get_terminal_size((COLUMNS, ROWS)).columns)
  about, lines = doc.split('\n\n')[:2]
  parts = [
    textwrap.wrap(about, columns),
    [x for line in lines.splitlines() for x in _wrapped(line.strip(), '  ', ' ' * 6, columns)],
    _flags(own, columns),
    textwrap.wrap(_LAST, columns),
  ]
  room = ROWS - sum(map(len, parts)) - len(parts)
  return ('\n' if room < 0 else '\n\n').join('\n'.join(part) for part in parts)


def _flags(own: Sequence[flags.Flag], columns: int) -> list[str]:
  width = max((len(flag.name) for flag in own), default=0) + 6
  out = []
  for flag in sorted(own, key=lambda x: x.name):
    out += _wrapped(_about(flag), f'  --{flag.name}'.ljust(width), ' ' * width, columns)
  return out


def _about(flag: flags.Flag) -> str:
  default = ','.join(flag.default) if isinstance(flag.default, list) else str(flag.default)
  if default in ('None', 'False', '') or 'default' in flag.help:
    return flag.help
  return f'{flag.help} [{default}]'


def _wrapped(text: str, first: str, later: str, columns: int) -> list[str]:
  return textwrap.wrap(
    text,
    columns,
    initial_indent=first,
    subsequent_indent=later,
    break_on_hyphens=False,
  )
