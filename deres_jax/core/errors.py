# SPDX-License-Identifier: Apache-2.0
"""Errors that end a command with one line and an exit code, without a stack trace."""


class UserError(Exception):
  """A mistake of the user's. The message says what was given, what was expected, and what to do.

  It is one line; commands print it to stderr and exit with code 2. Every other exception is a bug,
  keeps its trace and exits with 1. Of a message longer than `LONGEST` characters the beginning and
  the end are kept.
  """

  LONGEST = 4000

  def __init__(self, message: str):
    left_out = len(message) - self.LONGEST
    if left_out > 0:
      half = self.LONGEST // 2
      message = f'{message[:half]} ... ({left_out:,} characters) ... {message[-half:]}'
    super().__init__(message)


class Retry(Exception):
  """The same command, run again, will go on. Exit code 75 (EX_TEMPFAIL).

  The message is one line that names the cause: a preemption, a lost process, a time-out.
  """


def printable(text: str) -> str:
  """Escapes control characters of a text, so that a terminal can print it."""
  return ''.join(c if c.isprintable() else c.encode('unicode_escape').decode() for c in text)


def excerpt(value: object) -> str:
  """Returns a value's repr, or an error's message, as part of a line; cut if it is long."""
  text = ' '.join(str(value).split()) if isinstance(value, Exception) else repr(value)
  return text if len(text) <= 300 else text[:300] + '...'


def choose(name: str, choices: dict, what: str):
  """Returns choices[name], or raises UserError naming the valid ones."""
  if name not in choices:
    raise UserError(f'unknown {what} {excerpt(name)}: choose one of {", ".join(sorted(choices))}')
  return choices[name]
