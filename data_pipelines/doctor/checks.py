# SPDX-License-Identifier: Apache-2.0
"""The report of doctor: one line per check."""

from collections.abc import Callable


class Checks:
  """Prints the result of each check and collects the failures."""

  def __init__(self, tell: Callable[[str], None]):
    self._tell = tell
    self.count = 0
    self.failures: list[str] = []

  def note(self, text: str) -> None:
    """Prints something worth knowing that is neither good nor bad."""
    self._tell(f'note    {text}')

  def equal(self, name: str, expected, found) -> bool:
    """Checks that `found` equals `expected`."""
    return self.holds(name, expected == found, f'expected {expected}, found {found}')

  def holds(self, name: str, good: bool, problem: str) -> bool:
    """Records a check that is good or has a problem."""
    self.count += 1
    if good:
      self._tell(f'ok      {name}')
    else:
      self._tell(f'FAILED  {name}: {problem}')
      self.failures.append(f'{name}: {problem}')
    return good
