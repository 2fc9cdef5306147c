# SPDX-License-Identifier: Apache-2.0
"""What doctor says: one line a check."""

from collections.abc import Callable


class Checks:
  """Prints the outcome of each check and remembers the failures."""

  def __init__(self, tell: Callable[[str], None]):
    self._tell = tell
    self.count = 0
    self.failures: list[str] = []

  def note(self, what: str) -> None:
    """Something worth knowing that is neither good nor bad."""
    self._tell(f'note    {what}')

  def equal(self, what: str, expected, found) -> bool:
    """One check: found must equal expected."""
    return self.holds(what, expected == found, f'expected {expected}, found {found}')

  def holds(self, what: str, good: bool, problem: str) -> bool:
    """One check that is good or has a problem."""
    self.count += 1
    if good:
      self._tell(f'ok      {what}')
    else:
      self._tell(f'FAILED  {what}: {problem}')
      self.failures.append(f'{what}: {problem}')
    return good
