# SPDX-License-Identifier: Apache-2.0
"""The audit in result.json."""

import json
import pathlib
import subprocess
import sys

import pytest

from deres_jax.data.schema import load_schema
from deres_jax.training import result

REPO = pathlib.Path(__file__).resolve().parents[2]


def git(folder, *args):
  name = ['-c', 'user.name=a', '-c', 'user.email=a@b', '-c', 'commit.gpgsign=false']
  return subprocess.run(['git', *name, *args], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path):
  try:
    git(tmp_path, 'init', '-q')
  except FileNotFoundError:
    pytest.skip('no git here')
  (tmp_path / 'source.py').write_text('1\n')
  git(tmp_path, 'add', 'source.py')
  git(tmp_path, 'commit', '-q', '-m', 'first')
  return tmp_path


def test_the_git_revision_is_that_of_the_source_file(repository, monkeypatch):
  source = repository / 'source.py'
  found = result.git(source)
  assert len(found['revision']) == 40 and found['dirty'] is False
  monkeypatch.setenv('GIT_DIR', '/nowhere')  # of another repository
  assert result.git(source) == found
  source.write_text('2\n')
  assert result.git(source) == {**found, 'dirty': True}
  (repository / 'installed').mkdir()
  other = repository / 'installed' / 'package.py'  # as in a .venv of somebody's project
  other.write_text('')
  assert result.git(other) is None
  monkeypatch.setenv('PATH', '')
  assert result.git(source) is None


def test_no_program_that_a_repository_names_is_run(repository):
  made = repository / 'made'
  git(repository, 'config', 'core.fsmonitor', f'touch {made}')
  assert result.git(repository / 'source.py')['dirty'] is False
  assert not made.exists()


def test_only_listed_environment_variables_are_recorded():
  given = {'XLA_FLAGS': '--a', 'JAX_ENABLE_X64': '0', 'JAX_API_KEY': 's', 'AWS_SECRET': 's'}
  assert result.environment(given) == {'XLA_FLAGS': '--a', 'JAX_ENABLE_X64': '0'}


def test_the_audit_is_json_and_has_every_split(planted):
  found = json.loads(json.dumps(result.audit(load_schema(str(planted))), allow_nan=False))
  schema = json.loads((planted / 'schema.json').read_text())
  for split, x in schema['splits'].items():
    assert found['data'][split] == {k: x[k] for k in ('rows', 'clicks', 'content_sha256')}
  assert {'scipy', 'grain', 'tensorflow-datasets', 'orbax-checkpoint'} <= found['versions'].keys()
  assert found['host']['cores'] >= 1 and found['host']['processor']
  assert pathlib.Path(sys.argv[0]).name in found['command']
