# SPDX-License-Identifier: Apache-2.0
"""Eight simulated devices, a compilation cache, and prepared folders shared by all tests."""

import fcntl
import gc
import os
import pathlib
import signal
from collections.abc import Callable

import quick

REPO = pathlib.Path(__file__).resolve().parents[1]

# A shell that starts tests in the background has their commands ignore interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ['XLA_FLAGS'] = ' '.join(
  [
    os.environ.get('XLA_FLAGS', ''),
    '--xla_force_host_platform_device_count=8',
    quick.XLA_FLAGS,
  ]
)
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(REPO / '.pytest_cache' / 'xla'))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.2')
# Where in Python each operation of a program stands: a tenth of the time to trace it.
os.environ.setdefault('JAX_TRACEBACK_IN_LOCATIONS_LIMIT', '0')

import jax
import pytest
from absl import flags

from data_pipelines import build

flags.FLAGS.mark_as_parsed()
jax.config.update('jax_numpy_rank_promotion', 'allow')


def pytest_collection_finish():
  """Looks for garbage seldom, and not among what imports made."""
  gc.collect()
  gc.freeze()
  gc.set_threshold(50_000, 20, 20)


@pytest.fixture(scope='module', autouse=True)
def forgotten():
  """A worker holds the compiled programs of one file of tests, not of all."""
  yield
  jax.clear_caches()


@pytest.fixture(scope='session')
def once(tmp_path_factory) -> Callable:
  """(name, make) -> a folder that one worker makes for all: `make(folder)` fills it."""
  root = tmp_path_factory.getbasetemp()
  if 'PYTEST_XDIST_WORKER' in os.environ:
    root = root.parent

  def shared(name: str, make: Callable[[pathlib.Path], None]) -> pathlib.Path:
    folder = root / name
    with (root / f'{name}.lock').open('w') as lock:
      fcntl.flock(lock, fcntl.LOCK_EX)
      if not folder.exists():
        partial = root / f'{name}.partial'
        make(partial)
        partial.rename(folder)
    return folder

  return shared


@pytest.fixture(scope='session')
def planted(tmp_path_factory) -> pathlib.Path:
  """A small planted data set: 6,000 / 1,500 / 1,500 rows of 6 fields."""
  out = tmp_path_factory.mktemp('planted') / 'data'
  rows = ['--rows_train=6000', '--rows_validation=1500', '--rows_test=1500']
  teacher = ['--fields=6', '--cardinality_max=40']
  code = build.main(['--dataset=synthetic', f'--out={out}', *rows, *teacher])
  assert not code
  return out


@pytest.fixture(scope='session')
def feed(once) -> pathlib.Path:
  """A small planted feed: 160 users of 10 rows; histories of up to 6 events, many shorter."""

  def make(out: pathlib.Path):
    sizes = ['--users=160', '--impressions=10', '--warmup=6', '--items=50', '--tags=5']
    flags = ['--dataset=synthetic_social', '--authors=10', '--interests=2', '--events=6']
    assert not build.main([*flags, *sizes, f'--out={out}'])

  return once('feed', make)


@pytest.fixture(scope='session')
def samples() -> pathlib.Path:
  """The folder of real samples; tests that need it skip where it is absent."""
  folder = pathlib.Path(os.environ.get('DERES_DATA_SAMPLES', REPO.parent / 'shared' / 'data'))
  if not (folder / 'criteo_sample.tsv.gz').is_file():
    pytest.skip(f'no real samples in {folder}: set DERES_DATA_SAMPLES')
  return folder
