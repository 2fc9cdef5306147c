# SPDX-License-Identifier: Apache-2.0
"""The tables of docs/models.md are what the registered models state and compute."""

import pathlib
import re

import models_page
import pytest

PAGE = models_page.PAGE.read_text()


def test_the_tables_are_written_from_the_registered_models():
  assert models_page.written(PAGE) == PAGE, 'docs/models.md is stale: run `make docs`'


@pytest.mark.parametrize('path', sorted(set(re.findall(r'test_\w+\.py', PAGE))))
def test_named_tests_are_there(path):
  assert list(pathlib.Path(__file__).parents[1].rglob(path)), path
