# SPDX-License-Identifier: Apache-2.0
"""The one exception that stands for a user's mistake."""


class UserError(Exception):
  """A user's mistake: the message is one line, the commands print it and exit with code 2.

  The line says what was given, what was expected and what to do.
  """
