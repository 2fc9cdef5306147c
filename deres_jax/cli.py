# SPDX-License-Identifier: Apache-2.0
"""How every command ends.

0 done, 1 our fault, 2 a user's mistake in one line, 75 run the same command again (preempted,
another process or the coordinator lost, timed out), 130 interrupted.
"""

import sys
from collections.abc import Callable

from absl import flags, logging

from deres_jax import experiment_file, usage
from deres_jax.errors import Retry, UserError, printable

# What ml_collections raises for a wrong override, and Python for a wrong experiment file.
MISTAKES = (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError, UserError)
FAULT, MISTAKE, AGAIN, INTERRUPTED = 1, 2, 75, 130

_HELP = {'--help', '-help', '-h', '-?', '--helpshort', '-helpshort'}
_HELP_FULL = {'--helpfull', '-helpfull'}


def parse(argv: list[str]) -> list[str]:
  """Parses flags; a wrong one costs one line and exit code 2. For `app.run(flags_parser=...)`.

  --help prints a screen, --helpfull the flags of all modules; both end with code 0. --config may be
  the name of an experiment.
  """
  ours = argv[: argv.index('--')] if '--' in argv else argv
  if not (_HELP | _HELP_FULL).isdisjoint(ours):
    _help(not _HELP_FULL.isdisjoint(ours))
    sys.exit()
  try:
    return flags.FLAGS(experiment_file.in_arguments(argv))
  except MISTAKES as e:
    fail(e)


def _help(full: bool):
  doc = sys.modules['__main__'].__doc__
  if full:
    print(f'{doc}\n{flags.FLAGS.get_help()}')
  else:
    print(usage.screen(doc, flags.FLAGS.get_key_flags_for_module(sys.argv[0])))


def this_command() -> list[str]:
  """The command line of this process, to start it once more."""
  return [sys.executable, *sys.orig_argv[1:]]


def fail(e: Exception):
  """Prints `e` as one line and exits with code 2."""
  _say('error', e)
  sys.exit(MISTAKE)


def _say(kind: str, e: Exception):
  cause = e
  while cause.args and isinstance(cause.args[0], Exception):  # ml_collections wraps a KeyError
    cause = cause.args[0]
  text = ': '.join(str(cause.args[0] if cause.args else cause).split('\n'))
  text = ' '.join(text.split())
  if isinstance(e, AttributeError | KeyError):
    text = f'unknown config field {text}'
  print(f'{kind}: {printable(text)}', file=sys.stderr)


def code_of(e: BaseException) -> int | None:
  """Prints the line of a mistake, a retry or an interruption and returns its exit code.

  None, and nothing printed, for every other exception.
  """
  if isinstance(e, UserError):
    _say('error', e)
    return MISTAKE
  if isinstance(e, Retry):
    _say('stopped', e)
    return AGAIN
  if isinstance(e, KeyboardInterrupt):
    print('interrupted: the same command goes on from the last checkpoint', file=sys.stderr)
    return INTERRUPTED
  return None


def guarded(main: Callable[[list[str]], None]) -> Callable[[list[str]], None]:
  """`main` with a user's mistakes and interruptions turned into a line and an exit code."""

  def run(argv: list[str]):
    logging.set_verbosity(logging.WARNING)
    try:
      main(argv)
    except (UserError, Retry, KeyboardInterrupt) as e:
      sys.exit(code_of(e))

  return run


def no_arguments(argv: list[str]):
  """Raises UserError for anything that is not a flag."""
  if len(argv) > 1:
    raise UserError(f'unexpected argument {argv[1]!r}: settings are flags, --name=value')
