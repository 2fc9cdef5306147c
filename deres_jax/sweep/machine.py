# SPDX-License-Identifier: Apache-2.0
"""Cores, memory and accelerator that runs side by side can use.

Limits of a container (cgroup v1 and v2) count where they are below those of the machine.
"""

import importlib.metadata
import importlib.util
import math
import os
import pathlib
import pkgutil
import subprocess
import sys
from collections.abc import Iterable

from deres_jax.core.errors import UserError

_ASK = 'import jax; print(jax.default_backend())'


def cores(jobs: int) -> list[set[int] | None]:
  """Returns the cores of each of `jobs` runs: equal shares, so that their speeds compare.

  None: all cores, for a single job or where a process cannot choose its cores (macOS).
  """
  if jobs == 1 or not hasattr(os, 'sched_getaffinity'):
    return [None] * jobs
  available = sorted(os.sched_getaffinity(0))
  share = len(available) // jobs
  if not share:
    raise UserError(f'--jobs={jobs}: this process has {len(available)} cores, one job needs one')
  return [set(available[i * share : (i + 1) * share]) for i in range(jobs)]


def core_count() -> int:
  """Returns the number of whole cores that this process may use, by affinity and quota."""
  has_affinity = hasattr(os, 'sched_getaffinity')
  count = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
  quotas = [quota for folder in _groups('cpu') for quota in _quota(folder)]
  return max(1, min([count, *quotas]))


def memory() -> int:
  """Returns the bytes of main memory that this process and its children may use."""
  names = 'memory.max', 'memory.limit_in_bytes'
  limits = [n for folder in _groups('memory') for name in names for n in _numbers(folder / name)]
  return min([os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE'), *limits])


def _quota(folder: pathlib.Path) -> list[int]:
  """Returns the whole cores that a control group grants; empty without a limit."""
  v2 = _numbers(folder / 'cpu.max')
  v1 = [*_numbers(folder / 'cpu.cfs_quota_us'), *_numbers(folder / 'cpu.cfs_period_us')]
  return [math.floor(pair[0] / pair[1]) for pair in (v2, v1) if len(pair) == 2 and pair[0] > 0]


def _numbers(file: pathlib.Path) -> list[int]:
  """Reads the whole numbers in a control group's file; empty without a limit or a file."""
  try:
    return [int(word) for word in file.read_text().split() if word.lstrip('-').isdecimal()]
  except OSError:
    return []


def _groups(controller: str) -> Iterable[pathlib.Path]:
  """Returns the folders of this process's control group and of those above it."""
  root = pathlib.Path('/sys/fs/cgroup')
  try:
    lines = pathlib.Path('/proc/self/cgroup').read_text().splitlines()
  except OSError:  # not Linux
    return []
  out = []
  for line in lines:
    _, names, path = line.split(':', 2)
    if not names or controller in names.split(','):
      base = root / controller if names else root
      # In a container the path may be the host's; the root is then the group itself.
      inside = base / path.lstrip('/')
      out += [inside, *(p for p in inside.parents if p.is_relative_to(base))]
  return out


def platform() -> str:
  """Returns where runs will compute: 'cpu', 'gpu', 'tpu', or 'busy' for a device in use.

  Without a JAX plugin it is the CPU. Otherwise another process asks JAX, so that this one never
  holds a device; for a TPU that is held already it gets no answer.
  """
  first = os.environ.get('JAX_PLATFORMS', '').split(',')[0]
  if first == 'cpu' or (not first and not _has_plugin()):
    return 'cpu'
  environ = {**os.environ, 'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'}
  child = subprocess.run(
    [sys.executable, '-c', _ASK], env=environ, capture_output=True, text=True, check=False
  )
  words = child.stdout.split()
  return words[-1] if child.returncode == 0 and words else 'busy'


def _has_plugin() -> bool:
  """Returns whether JAX has a plugin for an accelerator."""
  if importlib.util.find_spec('libtpu') or importlib.metadata.entry_points(group='jax_plugins'):
    return True
  package = importlib.util.find_spec('jax_plugins')
  return bool(package and any(pkgutil.iter_modules(package.submodule_search_locations)))


def share_of_gpu(jobs: int, environ: dict[str, str]) -> dict[str, str]:
  """Returns the environment of each of `jobs` runs that share GPUs.

  JAX takes three quarters of a GPU's memory at its start, which leaves too little for a second run.
  Each run takes an equal part of nine tenths instead, unless the user has set the fraction.
  """
  fractions = ('XLA_CLIENT_MEM_FRACTION', 'XLA_PYTHON_CLIENT_MEM_FRACTION')
  off = environ.get('XLA_PYTHON_CLIENT_PREALLOCATE', '').lower() in ('false', '0')
  if jobs == 1 or off or any(name in environ for name in fractions):
    return environ
  part = math.floor(900 / jobs) / 1000
  return {**environ, fractions[0]: f'{part:.3f}'}
