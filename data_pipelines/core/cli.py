# SPDX-License-Identifier: Apache-2.0
"""What the commands share: one-line errors, exit codes, progress lines."""

import argparse
import errno
import sys
from collections.abc import Callable

from data_pipelines.core.errors import UserError

USER_MISTAKE = 2
INTERRUPTED = 130

# Faults of the place, not of the program: told in one line.
_PLACE_ERRORS = (
  errno.ENOSPC,
  errno.EDQUOT,
  errno.EACCES,
  errno.EPERM,
  errno.EROFS,
  errno.ENOTDIR,
  errno.EEXIST,
  errno.ENOTEMPTY,
  errno.ENAMETOOLONG,
)

_COLUMNS = 80  # of --help


class OneLineParser(argparse.ArgumentParser):
  """An argument parser whose error is one line, without the usage."""

  def __init__(self, **kwargs):
    super().__init__(allow_abbrev=False, formatter_class=_short, **kwargs)

  def error(self, message: str):
    """Prints the message and exits with code 2."""
    self.exit(USER_MISTAKE, f'error: {message}; see --help\n')


def _short(prog: str) -> argparse.HelpFormatter:
  """Lays out --help: what a flag does beside its name."""
  return argparse.HelpFormatter(prog, max_help_position=22, width=_COLUMNS)


def printable(text: str) -> str:
  """Text with names from files in it, as a terminal may show it: but for newlines and tabs, what
  would steer it is escaped."""
  return ''.join(
    c if c.isprintable() or c in '\n\t' else c.encode('unicode_escape').decode() for c in text
  )


def say(line: str) -> None:
  """Prints a progress line at once."""
  print(printable(line), flush=True)


def guarded(command: Callable[[], int]) -> int:
  """Runs a command; a user's mistake becomes one line on standard error and exit code 2."""
  try:
    return command()
  except UserError as error:
    line = str(error)
  except KeyboardInterrupt:
    print('interrupted; the same command goes on from here', file=sys.stderr)
    return INTERRUPTED
  except MemoryError as error:
    line = f'not enough memory ({error}); a damaged folder may ask for it: see its doctor'
  except OSError as error:
    if error.errno not in _PLACE_ERRORS:
      raise
    place = error.filename or 'output'
    line = f'{place}: {error.strerror}; give another place, or make room and run it again'
  print(f'error: {printable(line)}', file=sys.stderr)
  return USER_MISTAKE
