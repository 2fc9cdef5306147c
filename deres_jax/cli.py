# SPDX-License-Identifier: Apache-2.0
"""How every command ends: 0 done, 2 a user's mistake in one line, 130 interrupted, 1 our fault."""

import sys
from collections.abc import Callable

from absl import flags, logging

from deres_jax.errors import UserError


def parse(argv: list[str]) -> list[str]:
  """Parses flags; a wrong one costs one line and exit code 2. For `app.run(flags_parser=...)`."""
  try:
    return flags.FLAGS(argv)
  # What ml_collections raises for a wrong override, and Python for a wrong experiment file.
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError, UserError) as e:
    fail(e)


def fail(e: Exception):
  """Prints `e` as one line and exits with code 2."""
  cause = e
  while cause.args and isinstance(cause.args[0], Exception):  # ml_collections wraps a KeyError
    cause = cause.args[0]
  text = ': '.join(str(cause.args[0] if cause.args else cause).split('\n'))
  text = ' '.join(text.split())
  if isinstance(e, AttributeError | KeyError):
    text = f'unknown config field {text}'
  print(f'error: {text}', file=sys.stderr)
  sys.exit(2)


def guarded(main: Callable[[list[str]], None]) -> Callable[[list[str]], None]:
  """`main` with a user's mistakes and interruptions turned into a line and an exit code."""

  def run(argv: list[str]):
    logging.set_verbosity(logging.WARNING)
    try:
      main(argv)
    except UserError as e:
      fail(e)
    except KeyboardInterrupt:
      print('interrupted: the same command goes on from the last checkpoint', file=sys.stderr)
      sys.exit(130)

  return run


def no_arguments(argv: list[str]):
  """Raises UserError for anything that is not a flag."""
  if len(argv) > 1:
    raise UserError(f'unexpected argument {argv[1]!r}: settings are flags, --name=value')
