# SPDX-License-Identifier: Apache-2.0
"""The guide does what it says: its commands run, in order, with the files that its pages show."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

REPO = pathlib.Path(__file__).resolve().parents[1]
DOCS = REPO / 'docs'
BLOCK = re.compile(r'(?:^`([\w./]+)`\n\n)?^```(\w+)\n(.*?)^```$', re.M | re.S)


def blocks(page: str) -> list[tuple[str, str, str]]:
  """(file that is named above it or '', language, text) of every fenced block with a language."""
  return BLOCK.findall((DOCS / page).read_text())


def fresh(folder: pathlib.Path) -> pathlib.Path:
  """A copy of what a page needs of a clone."""
  for name in ('deres_jax', 'data_pipelines', 'experiments'):
    shutil.copytree(REPO / name, folder / name, ignore=shutil.ignore_patterns('__pycache__'))
  (folder / 'tests').mkdir()
  shutil.copytree(REPO / 'tests' / 'models', folder / 'tests' / 'models')
  shutil.copy(REPO / 'tests' / 'conftest.py', folder / 'tests')
  shutil.copy(REPO / 'pyproject.toml', folder)
  return folder


def sh(script: str, folder: pathlib.Path, **variables: str) -> str:
  """What a block prints, run as it stands; a failure shows it all."""
  path = f'{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'
  environ = {**os.environ, 'PATH': path, **variables}
  # Simulated devices are for tests in this process.
  environ['XLA_FLAGS'] = '--xla_backend_optimization_level=0'
  done = subprocess.run(
    ['sh', '-e', '-c', script],
    cwd=folder,
    env=environ,
    capture_output=True,
    text=True,
    check=False,
  )
  assert not done.returncode, f'{script}\n{done.stdout}\n{done.stderr}'
  return done.stdout + done.stderr


def put(page: str, folder: pathlib.Path):
  """Writes the files of a page and applies its diffs."""
  for name, language, text in blocks(page):
    if name:
      (folder / name).write_text(text)
    elif language == 'diff':
      subprocess.run(
        ['git', 'apply', '--recount', '-'], cwd=folder, input=text, text=True, check=True
      )


def commands(page: str) -> list[str]:
  return [text for _, language, text in blocks(page) if language == 'sh']


@pytest.fixture(scope='module')
def house(tmp_path_factory, planted) -> pathlib.Path:
  """A clone with the pages' additions, and planted data where the tutorial puts it."""
  folder = fresh(tmp_path_factory.mktemp('guide'))
  for page in ('connector', 'backbone', 'dataset', 'sweep'):
    put(f'extend/{page}.md', folder)
  (folder / 'runs' / 'tutorial').mkdir(parents=True)
  (folder / 'runs' / 'tutorial' / 'data').symlink_to(planted)
  return folder


@pytest.mark.parametrize('page', ['connector', 'backbone'])
def test_a_page_s_module_trains_and_is_its_equation(house, page):
  train, test = commands(f'extend/{page}.md')
  assert 'test auc' in sh(train, house)
  assert re.search(r'[12] passed', sh(test, house))
