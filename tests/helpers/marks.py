# SPDX-License-Identifier: Apache-2.0
"""Cases of a test that take longer than they are likely to tell: `make test-slow` runs them."""

import pytest


def slow(*values) -> object:
  """A case that is left out of the suite."""
  return pytest.param(*values, marks=pytest.mark.slow)
