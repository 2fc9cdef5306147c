# SPDX-License-Identifier: Apache-2.0
"""The malloc of a run: what is asked for, what it gets, and that it starts itself anew once."""

import json
import os
import pathlib
import platform
import subprocess
import sys

import numpy as np
import pytest

from deres_jax.core import allocator
from deres_jax.core.errors import UserError

REPO = pathlib.Path(__file__).resolve().parents[2]
LIBRARY = '/usr/lib/libjemalloc.so.2'
SYSTEM = platform.libc_ver()[0] or 'system'
KEEP = 'oversize_threshold:0,dirty_decay_ms:-1,muzzy_decay_ms:-1'


@pytest.fixture
def found(monkeypatch):
  """Sets what is found on this machine."""
  return lambda library: monkeypatch.setattr(allocator, 'find', lambda: library)


@pytest.fixture(scope='module')
def installed() -> str:
  library = allocator.find()
  if library is None:
    pytest.skip('jemalloc is not installed here (apt install libjemalloc2)')
  return library


@pytest.mark.parametrize(
  'environ, added',
  [
    ({}, {'LD_PRELOAD': LIBRARY, 'MALLOC_CONF': KEEP}),
    ({'LD_PRELOAD': ''}, {'LD_PRELOAD': LIBRARY, 'MALLOC_CONF': KEEP}),
    ({'LD_PRELOAD': 'a.so b.so'}, {'LD_PRELOAD': f'{LIBRARY} a.so b.so', 'MALLOC_CONF': KEEP}),
    ({'MALLOC_CONF': 'narenas:1'}, {'LD_PRELOAD': LIBRARY}),
    ({allocator.VARIABLE: 'jemalloc'}, {'LD_PRELOAD': LIBRARY, 'MALLOC_CONF': KEEP}),
  ],
)
def test_jemalloc_comes_before_what_is_preloaded(found, environ, added):
  found(LIBRARY)
  got = allocator.environment({'HOME': '/h', **environ})
  assert got == {'HOME': '/h', **environ, **added, allocator.VARIABLE: 'system'}
  assert allocator.environment(got) == got  # what starts from there stays as it is


@pytest.mark.parametrize(
  'environ',
  [
    {allocator.VARIABLE: 'system'},
    {'LD_PRELOAD': '/opt/lib/libtcmalloc_minimal.so.4'},
    {'LD_PRELOAD': 'a.so:libjemalloc.so.2', allocator.VARIABLE: 'jemalloc'},
    {'LD_PRELOAD': '/usr/lib/libmimalloc.so'},
  ],
)
def test_what_was_chosen_stays(found, environ):
  found(LIBRARY)
  assert allocator.environment(environ) == environ


def test_without_the_library_auto_is_the_system_s(found):
  found(None)
  assert allocator.environment({'A': 'b'}) == {'A': 'b'}
  with pytest.raises(UserError, match='apt install libjemalloc2'):
    allocator.environment({allocator.VARIABLE: 'jemalloc'})
  with pytest.raises(UserError, match='expected one of auto, jemalloc, system'):
    allocator.environment({allocator.VARIABLE: 'jemaloc'})


def test_only_linux_is_looked_at(monkeypatch):
  monkeypatch.setattr(sys, 'platform', 'darwin')
  assert allocator.find() is None


# A command that begins as deres_jax.main does, counts its starts and says which malloc it got.
STARTS = """
import os, pathlib, sys
from deres_jax.core import allocator
with pathlib.Path(sys.argv[1]).open('a') as f:
  f.write(f'{os.getpid()} {sys.argv[2:]}' + chr(10))
os.environ.pop('LD_PRELOAD', None) if sys.argv[2:] == ['lost'] else None
allocator.preload()
print(allocator.name())
"""


def call(arguments: list[str], environ: dict[str, str]) -> subprocess.CompletedProcess:
  """Python with nothing preloaded by whoever runs the tests."""
  clean = {k: v for k, v in os.environ.items() if k not in ('LD_PRELOAD', 'MALLOC_CONF')}
  return subprocess.run(
    [sys.executable, *arguments],
    env={**clean, **environ},
    capture_output=True,
    text=True,
    cwd=REPO,
    timeout=120,
    check=False,
  )


def start(tmp_path, asked: str, *more: str) -> tuple[subprocess.CompletedProcess, list[str]]:
  """A start of that command, and a line for each time it began."""
  file = tmp_path / 'starts.txt'
  done = call(['-c', STARTS, str(file), *more], {allocator.VARIABLE: asked})
  return done, file.read_text().splitlines()


@pytest.mark.parametrize('arguments', [['a b', '--c=d'], ['lost']])
def test_a_process_starts_itself_anew_once(installed, tmp_path, arguments):
  """... and as what it was; also where LD_PRELOAD gets lost on the way."""
  done, starts = start(tmp_path, 'auto', *arguments)
  assert (done.returncode, done.stdout, done.stderr) == (0, 'jemalloc\n', '')
  assert len(starts) == 2 and starts[0] == starts[1] and starts[0].endswith(str(arguments))


def test_told_not_to_it_does_not(tmp_path):
  done, starts = start(tmp_path, 'system')
  assert done.stdout == f'{SYSTEM}\n' and len(starts) == 1


@pytest.mark.parametrize('asked', ['jemalloc', 'other'])
def test_a_mistake_is_one_line_and_code_2(asked):
  code = 'from deres_jax.core import allocator as a; a.find = lambda: None; a.preload(); print(1)'
  done = call(['-c', code], {allocator.VARIABLE: asked})
  assert (done.returncode, done.stdout, done.stderr.count('\n')) == (2, '', 1)
  assert done.stderr.startswith(f'error: {allocator.VARIABLE}={asked}: ')


EXPERIMENT = """
from deres_jax import config

def get_config(arg=''):
  c = config.base()
  c.data.batch_size = 128
  c.data.eval_batch_size = 512
  c.model.depth = 1
  c.model.dim = 8
  c.model.heads = 2
  c.model.embed_dim = 4
  c.deres.block_layers = 1
  c.train.epochs = 0.0
  c.train.steps = 20
  return config.update(c, arg)
"""


def test_runs_say_which_they_had_and_end_in_the_same_bits(installed, planted, tmp_path):
  (tmp_path / 'tiny.py').write_text(EXPERIMENT)
  logits = []
  for asked, name in (('jemalloc', 'jemalloc'), ('system', SYSTEM)):
    command = ['-m', 'deres_jax.main', f'--config={tmp_path}/tiny.py', '--config.mesh.devices=1']
    command += [f'--workdir={tmp_path / asked}', f'--config.data.path={planted}']
    done = call(command, {allocator.VARIABLE: asked})
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / asked / 'result.json').read_text())
    assert result['allocator'] == name and f'malloc of {name} ' in done.stdout
    logits.append(np.load(result['test_logits']))
  np.testing.assert_array_equal(*logits)


KEEPS = """
import pathlib
from deres_jax.core import allocator
def resident():  # MiB
  return int(pathlib.Path('/proc/self/statm').read_text().split()[1]) * 4096 / 2**20
blocks = [b'x' * 2**20 for _ in range(64)]
del blocks
kept = resident()
allocator.give_back()
print(kept - resident())
"""


def test_what_it_keeps_can_be_given_back(installed):
  keep = {**allocator.environment({}), 'PYTHONMALLOC': 'malloc'}
  given = float(call(['-c', KEEPS], keep).stdout)
  assert given > 60


def test_without_jemalloc_there_is_nothing_to_give_back():
  done = call(['-c', KEEPS], {allocator.VARIABLE: 'system'})
  assert (done.returncode, done.stderr) == (0, '')
