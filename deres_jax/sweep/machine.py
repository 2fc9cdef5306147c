# SPDX-License-Identifier: Apache-2.0
"""What the machine gives to runs at once: cores, memory, and whether there is an accelerator.

Limits of a container (cgroup v1 and v2) count where they are below what the machine has.
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
  """Cores for each of `jobs` runs: equal shares, so that their speeds compare.

  One job has all cores. None where a process cannot choose its cores (macOS).
  """
  if jobs == 1 or not hasattr(os, 'sched_getaffinity'):
    return [None] * jobs
  mine = sorted(os.sched_getaffinity(0))
  share = len(mine) // jobs
  if not share:
    raise UserError(f'--jobs={jobs}: this process has {len(mine)} cores, one job needs one')
  return [set(mine[i * share : (i + 1) * share]) for i in range(jobs)]


def core_count() -> int:
  """Whole cores that this process may use: by affinity and by a container's quota."""
  has_affinity = hasattr(os, 'sched_getaffinity')
  mine = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
  for folder in _groups('cpu'):
    mine = min(mine, *_quota(folder), mine)
  return max(1, mine)


def memory() -> int:
  """Bytes of main memory that this process and its children may use."""
  least = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
  for folder in _groups('memory'):
    for name in ('memory.max', 'memory.limit_in_bytes'):
      least = min(least, *_numbers(folder / name), least)
  return least


def _quota(folder: pathlib.Path) -> list[int]:
  """Whole cores that a control group grants, if it limits them."""
  v2 = _numbers(folder / 'cpu.max')
  v1 = [*_numbers(folder / 'cpu.cfs_quota_us'), *_numbers(folder / 'cpu.cfs_period_us')]
  return [math.floor(pair[0] / pair[1]) for pair in (v2, v1) if len(pair) == 2 and pair[0] > 0]


def _numbers(file: pathlib.Path) -> list[int]:
  """The whole numbers of a control group's file; none where there is no limit or no file."""
  try:
    return [int(word) for word in file.read_text().split() if word.lstrip('-').isdecimal()]
  except OSError:
    return []


def _groups(controller: str) -> Iterable[pathlib.Path]:
  """Folders of this process's control group and of those above it."""
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
      # In a container the path may be the host's: what is mounted is then the group itself.
      inside = base / path.lstrip('/')
      out += [inside, *(p for p in inside.parents if p.is_relative_to(base))]
  return out


def platform() -> str:
  """'cpu', 'gpu' or 'tpu': where runs will compute. 'busy' if it cannot be asked now.

  Without a plugin for an accelerator it is the CPU. Otherwise JAX is asked in a process of its own,
  so that this one never holds a device; a TPU that another process holds does not answer.
  """
  wanted = os.environ.get('JAX_PLATFORMS', '').split(',')[0]
  if wanted == 'cpu' or (not wanted and not _has_plugin()):
    return 'cpu'
  environ = {**os.environ, 'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'}
  asked = subprocess.run(
    [sys.executable, '-c', _ASK], env=environ, capture_output=True, text=True, check=False
  )
  said = asked.stdout.split()
  return said[-1] if asked.returncode == 0 and said else 'busy'


def _has_plugin() -> bool:
  """Whether JAX would find more than its CPU."""
  if importlib.util.find_spec('libtpu') or importlib.metadata.entry_points(group='jax_plugins'):
    return True
  package = importlib.util.find_spec('jax_plugins')
  return bool(package and any(pkgutil.iter_modules(package.submodule_search_locations)))


def share_of_gpu(jobs: int, environ: dict[str, str]) -> dict[str, str]:
  """The environment of one of `jobs` runs that share GPUs.

  JAX takes three quarters of a GPU's memory at its start, so a second run would find too little.
  Each takes an equal part of nine tenths instead, unless the user's own settings say otherwise.
  """
  own = ('XLA_CLIENT_MEM_FRACTION', 'XLA_PYTHON_CLIENT_MEM_FRACTION')
  off = environ.get('XLA_PYTHON_CLIENT_PREALLOCATE', '').lower() in ('false', '0')
  if jobs == 1 or off or any(name in environ for name in own):
    return environ
  # Rounded down: the parts must fit.
  part = math.floor(900 / jobs) / 1000
  return {**environ, own[0]: f'{part:.3f}'}
