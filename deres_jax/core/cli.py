# SPDX-License-Identifier: Apache-2.0
"""Parses the flags of a command, prints --help, and turns errors into exit codes.

Exit codes: 0 done, 1 a bug, 2 a user's mistake, with one line, 75 run the same command again
(preempted, another process or the coordinator lost, timed out), 130 interrupted.
"""

import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence

from absl import flags, logging

from deres_jax.core import experiments, files
from deres_jax.core.errors import Retry, UserError, printable

# Raised by ml_collections for a wrong override, and by Python for a wrong experiment file.
MISTAKES = (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError, UserError)


FAULT, MISTAKE, AGAIN, INTERRUPTED = 1, 2, 75, 130


_HELP = {'--help', '-help', '-h', '-?', '--helpshort', '-helpshort'}


_HELP_FULL = {'--helpfull', '-helpfull'}


def parse(argv: list[str]) -> list[str]:
  """Parses flags for `app.run(flags_parser=...)`; a wrong one ends in one line and exit code 2.

  --help prints a screen, --helpfull the flags of all modules; both end with code 0. --config may be
  the name of an experiment.
  """
  ours = argv[: argv.index('--')] if '--' in argv else argv
  if not (_HELP | _HELP_FULL).isdisjoint(ours):
    _help(not _HELP_FULL.isdisjoint(ours))
    sys.exit()
  try:
    return flags.FLAGS(experiments.in_arguments(argv))
  except MISTAKES as e:
    fail(e)


def _help(full: bool):
  doc = sys.modules['__main__'].__doc__
  if full:
    print(f'{doc}\n{flags.FLAGS.get_help()}')
  else:
    print(screen(doc, flags.FLAGS.get_key_flags_for_module(sys.argv[0])))


def this_command() -> list[str]:
  """Returns the command line of this process, to start it once more."""
  return [sys.executable, *sys.orig_argv[1:]]


def fail(e: Exception):
  """Prints `e` as one line and exits with code 2."""
  _print('error', e)
  sys.exit(MISTAKE)


def _print(kind: str, e: Exception):
  cause = e
  while cause.args and isinstance(cause.args[0], Exception):  # ml_collections wraps a KeyError
    cause = cause.args[0]
  text = ': '.join(str(cause.args[0] if cause.args else cause).split('\n'))
  text = ' '.join(text.split())
  if isinstance(e, AttributeError | KeyError):
    text = f'unknown config field {text}'
  print(f'{kind}: {printable(text)}', file=sys.stderr)


def code_of(e: BaseException) -> int | None:
  """Prints one line for a mistake, a retry or an interruption and returns its exit code.

  Returns None for every other exception.
  """
  if isinstance(e, UserError):
    _print('error', e)
    return MISTAKE
  if isinstance(e, Retry):
    _print('stopped', e)
    return AGAIN
  if isinstance(e, OSError) and (text := files.mendable(e)):
    _print('error', UserError(text))
    return MISTAKE
  if isinstance(e, KeyboardInterrupt):
    print('interrupted: the same command goes on from the last checkpoint', file=sys.stderr)
    return INTERRUPTED
  return None


def guarded(main: Callable[[list[str]], None]) -> Callable[[list[str]], None]:
  """Wraps `main` so that mistakes and interruptions end in one line and an exit code."""

  def run(argv: list[str]):
    logging.set_verbosity(logging.WARNING)
    try:
      main(argv)
    except (UserError, Retry, OSError, KeyboardInterrupt) as e:
      code = code_of(e)
      if code is None:
        raise
      sys.exit(code)

  return run


def no_arguments(argv: list[str]):
  """Raises UserError for arguments that are not flags."""
  if len(argv) > 1:
    raise UserError(f'unexpected argument {argv[1]!r}: settings are flags, --name=value')


ROWS, COLUMNS = 24, 80


_LAST = '--helpfull lists the flags of every library too; docs/commands.md says more.'


def screen(doc: str, own_flags: Sequence[flags.Flag]) -> str:
  """Returns the help screen of a command.

  Args:
    doc: docstring of the command: a paragraph, then its command lines, indented.
    own_flags: flags that the command defines, without those of libraries.
  """
  columns = min(COLUMNS, shutil.get_terminal_size((COLUMNS, ROWS)).columns)
  about, lines = doc.split('\n\n')[:2]
  parts = [
    textwrap.wrap(about, columns),
    [x for line in lines.splitlines() for x in _wrapped(line.strip(), '  ', ' ' * 6, columns)],
    _flags(own_flags, columns),
    textwrap.wrap(_LAST, columns),
  ]
  room = ROWS - sum(map(len, parts)) - len(parts)
  return ('\n' if room < 0 else '\n\n').join('\n'.join(part) for part in parts)


def _flags(own_flags: Sequence[flags.Flag], columns: int) -> list[str]:
  width = max((len(flag.name) for flag in own_flags), default=0) + 6
  out = []
  for flag in sorted(own_flags, key=lambda x: x.name):
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
