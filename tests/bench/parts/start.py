# SPDX-License-Identifier: Apache-2.0
"""How long a run takes to its first step, and how compile time grows with depth.

A start is what a user types, as a process of its own with a cache folder of its own; it ends when
the first line of metrics.jsonl is there, which holds figures of the first step. Compiling is timed
from tracing the step of experiments/criteo_8l.py to its program, with nothing cached.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import scale_made

from deres_jax.core import allocator
from deres_jax.training import step

REPO = Path(__file__).resolve().parents[3]
COLD, COMPILES = 3, 2  # rounds of what takes long
DEPTHS = 8, 32
# experiments/criteo_8l.py, but for the length of the run.
CRITEO = (
  'model.tokenizer=autosplit,model.head=concat,optim.table_lr=0.1,optim.table_init_std=0.1,'
  'optim.schedule=wsd,optim.warmup=0.05,optim.decay=0.25'
)
VOCABULARY, BATCH = 100_000, 512
# Settings of whoever measures: a user has none of them.
_NOT_A_USERS = 'JAX_', 'XLA_', 'DERES_JAX_', 'LD_PRELOAD', 'MALLOC_CONF', 'PYTHONDONTWRITE'


def start(rounds: int) -> Iterator[list[dict]]:
  """Starts of the quickstart, then programs of 32 layers beside those of 8."""
  with tempfile.TemporaryDirectory() as folder:
    data = Path(folder, 'data')
    build = [sys.executable, '-m', 'data_pipelines.build', '--dataset=synthetic', f'--out={data}']
    subprocess.run(build, cwd=REPO, capture_output=True, check=True)
    caches = [Path(folder, f'cache{i}') for i in range(COLD)]
    cold = [_first_step(data, cache) for cache in caches]
    warm = [_first_step(data, caches[0]) for _ in range(rounds)]
  note = f'experiments/quickstart.py, malloc of {"jemalloc" if allocator.find() else "the system"}'
  yield [
    _line('start to the first step, nothing compiled', cold, note),
    _line('start to the first step, the second time', warm, note, '<= 5'),
  ]
  jax.config.update('jax_enable_compilation_cache', False)
  for connector in ('prenorm', 'deres'):
    yield [_compile(connector)]


def _line(what: str, seconds: list[float], note: str, aim: str = '') -> dict:
  return {
    'what': what,
    'unit': 's',
    'ours': statistics.median(seconds),
    'peer': None,
    'limit': None,
    'ratio': None,
    'spread': [min(seconds), max(seconds)],
    'aim': aim,
    'rounds': len(seconds),
    'note': note,
  }


def _first_step(data: Path, cache: Path) -> float:
  """Seconds from the start of a run to its first line of metrics."""
  environ = {k: v for k, v in os.environ.items() if not k.startswith(_NOT_A_USERS)}
  environ |= {'XDG_CACHE_HOME': str(cache), 'JAX_PLATFORMS': 'cpu'}
  with tempfile.TemporaryDirectory() as workdir:
    metrics = Path(workdir, 'metrics.jsonl')
    command = [sys.executable, '-m', 'deres_jax.main', '--config=experiments/quickstart.py']
    command += [f'--workdir={workdir}', f'--config.data.path={data}', '--config.train.log_steps=1']
    began = time.monotonic()
    process = subprocess.Popen(command, cwd=REPO, env=environ, stderr=subprocess.DEVNULL)
    try:
      while not (metrics.exists() and metrics.stat().st_size):
        if process.poll() is not None:
          raise subprocess.CalledProcessError(process.returncode, command)
        time.sleep(0.01)
      return time.monotonic() - began
    finally:
      process.kill()
      process.wait()


def _compile(connector: str) -> dict:
  """The step of the deeper model beside that of the shallower one."""
  makers = [_maker(connector, depth) for depth in DEPTHS]
  rounds = [[make() for make in makers] for _ in range(COMPILES)]
  ratios = [deep / shallow for shallow, deep in rounds]
  shallow, deep = map(statistics.median, zip(*rounds, strict=True))
  what = f'compiling a step of {DEPTHS[1]} layers beside {DEPTHS[0]}: {connector}'
  note = f'{DEPTHS[0]} layers: {shallow:.1f} s'
  return _line(what, [deep], note, '<= 4') | {
    'ratio': statistics.median(ratios),
    'spread': [min(ratios), max(ratios)],
    'rounds': COMPILES,
  }


def _maker(connector: str, depth: int) -> Callable[[], float]:
  """Compiles a step when it is called and returns the seconds that took."""
  settings = f'{CRITEO},model.connector={connector},model.depth={depth}'
  spec, batches = scale_made.parts(settings, VOCABULARY, BATCH, 1, VOCABULARY)
  state, stream = step.abstract_state(spec), step.abstract_stream(spec, summed=False)
  batch = step.abstract_batch(spec, batches['zipf'][0])

  def make() -> float:
    jax.clear_caches()
    began = time.monotonic()
    step.make_train_step(spec).lower(state, stream, batch).compile()
    return time.monotonic() - began

  return make
