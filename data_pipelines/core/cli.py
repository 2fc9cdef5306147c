# SPDX-License-Identifier: Apache-2.0
"""Flags, progress lines and exit codes of the commands."""

import argparse
import sys
from collections.abc import Callable

from data_pipelines.core.workers import default_workers
from deres_jax.core import files
from deres_jax.core.cli import INTERRUPTED, MISTAKE
from deres_jax.core.errors import UserError, printable

_COLUMNS = 80  # of --help


class OneLineParser(argparse.ArgumentParser):
  """An argument parser whose error is one line, without the usage."""

  def __init__(
    self,
    prog: str,
    description: str | None = None,
    usage: str | None = None,
    add_help: bool = True,
  ):
    super().__init__(prog, usage, description, add_help=add_help, allow_abbrev=False)
    self.formatter_class = lambda prog: argparse.HelpFormatter(prog, 2, 22, _COLUMNS)

  def error(self, message: str):
    """Prints the message and exits with code 2."""
    self.exit(MISTAKE, f'error: {message}; see --help\n')


def add_workers_flag(parser: OneLineParser, text: str, metavar: str = 'WORKERS') -> None:
  """Adds --workers, of type int, whose default is all cores."""
  parser.add_argument('--workers', type=int, default=default_workers(), metavar=metavar, help=text)


def check_workers(parser: OneLineParser, workers: int) -> None:
  """Ends the command if there would be no worker."""
  if workers < 1:
    parser.error(f'--workers={workers}: expected at least 1')


def say(text: str) -> None:
  """Prints lines at once; what would steer a terminal is escaped."""
  print('\n'.join(map(printable, text.split('\n'))), flush=True)


def guarded(command: Callable[[], int]) -> int:
  """Runs a command; returns its exit code.

  A user's mistake gives a one-line error and exit code 2.
  """
  try:
    return command()
  except UserError as error:
    line = str(error)
  except KeyboardInterrupt:
    print('interrupted; the same command goes on from here', file=sys.stderr)
    return INTERRUPTED
  except MemoryError as error:
    line = f'not enough memory ({error}); a damaged folder may ask for it: see its doctor'
  except (OSError, RuntimeError) as error:  # ArrayRecord quotes the system in a RuntimeError
    problem = files.mendable(error)
    if problem is None:
      raise
    line = f'{problem}, then run it again'
  print(f'error: {printable(line)}', file=sys.stderr)
  return MISTAKE
