# SPDX-License-Identifier: Apache-2.0
"""How a command says that it cannot go on: one line and an exit code, never a stack trace."""


class UserError(Exception):
  """A mistake of the user's: says what was given, what was expected, and what to do.

  The message is one line and holds the numbers. The commands print it to stderr and exit with 2;
  every other exception is a fault of ours, keeps its trace and exits with 1. Of a message above
  `LONGEST` characters, which repeats what was given at length, begin and end are kept.
  """

  LONGEST = 4000

  def __init__(self, message: str):
    left_out = len(message) - self.LONGEST
    if left_out > 0:
      half = self.LONGEST // 2
      message = f'{message[:half]} ... ({left_out:,} characters) ... {message[-half:]}'
    super().__init__(message)


class Retry(Exception):
  """Nothing is wrong with the command: run it again and it goes on. Exit code 75 (EX_TEMPFAIL).

  The message is one line that says what happened: a preemption, a lost process, a time-out.
  """


def printable(text: str) -> str:
  """Text that comes from a file, as a terminal may show it: what would steer it is escaped."""
  return ''.join(c if c.isprintable() else c.encode('unicode_escape').decode() for c in text)


def shown(value: object) -> str:
  """A value (as Python writes it) or an error as part of a line: its beginning if it is long."""
  text = ' '.join(str(value).split()) if isinstance(value, Exception) else repr(value)
  return text if len(text) <= 300 else text[:300] + '...'


def choose(name: str, choices: dict, what: str):
  """Returns choices[name], or raises UserError naming the valid ones."""
  if name not in choices:
    raise UserError(f'unknown {what} {shown(name)}: choose one of {", ".join(sorted(choices))}')
  return choices[name]
