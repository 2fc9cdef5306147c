# SPDX-License-Identifier: Apache-2.0
"""requirements.lock is what pyproject.toml asks for."""

import pathlib
import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPO = pathlib.Path(__file__).resolve().parents[2]
LOCK = (REPO / 'requirements.lock').read_text()
PINNED = dict(re.findall(r'^([a-z0-9.-]+)(?:\[[^]]*\])?==([^ \\]+)', LOCK, re.MULTILINE))
PROJECT = tomllib.loads((REPO / 'pyproject.toml').read_text())
WANTED = [
  *PROJECT['project']['dependencies'],
  *PROJECT['project']['optional-dependencies']['dev'],
  *PROJECT['build-system']['requires'],
]


@pytest.mark.parametrize('text', WANTED)
def test_every_requirement_is_pinned_within_its_range(text):
  wanted = Requirement(text)
  pinned = PINNED.get(canonicalize_name(wanted.name))
  assert pinned and wanted.specifier.contains(pinned), f'{text}, pinned {pinned}: run make lock'


def test_every_package_has_hashes():
  blocks = re.split(r'\n(?=[a-z0-9])', LOCK.strip())
  assert len(blocks) == len(PINNED) > 40
  assert all(re.search(r'--hash=sha256:[0-9a-f]{64}', block) for block in blocks)
