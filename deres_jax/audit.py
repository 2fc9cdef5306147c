# SPDX-License-Identifier: Apache-2.0
"""What a run was made by and on, for whoever has to repeat or to trust it: `audit` in result.json.

Of the environment only variables that are named here, and JAX's own options, are kept: no secrets.
"""

import os
import pathlib
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from typing import Any

import jax

from deres_jax.schema import Schema

_PACKAGES = (
  *('deres_jax', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy', 'scipy'),
  *('grain', 'tensorflow-datasets', 'array-record', 'ml-collections', 'chex', 'etils'),
)
# What changes programs, devices, memory or the order of sums.
_VARIABLES = (
  *('XLA_FLAGS', 'LIBTPU_INIT_ARGS', 'XLA_CLIENT_MEM_FRACTION', 'XLA_PYTHON_CLIENT_MEM_FRACTION'),
  *('XLA_PYTHON_CLIENT_PREALLOCATE', 'XLA_PYTHON_CLIENT_ALLOCATOR', 'CUDA_VISIBLE_DEVICES'),
  *('TPU_VISIBLE_DEVICES', 'DERES_JAX_ALLOCATOR', 'LD_PRELOAD', 'MALLOC_CONF', 'OMP_NUM_THREADS'),
)
_GIT_SECONDS = 10


def make(schema: Schema) -> dict[str, Any]:
  """All of it, as JSON holds it."""
  splits = schema.splits
  return {
    'command': shlex.join(sys.argv),
    'git': git(pathlib.Path(__file__)),
    'versions': {'python': platform.python_version(), **_versions()},
    'host': {
      'name': platform.node(),
      'system': f'{sys.platform} {platform.release()}',
      'machine': platform.machine(),
      'processor': _processor(),
      'cores': os.cpu_count(),
    },
    'environment': environment(os.environ),
    'data': {
      name: {
        'rows': splits[name].rows,
        'clicks': splits[name].clicks,
        'content_sha256': schema.content[name],
      }
      for name in splits
    },
  }


def _versions() -> dict[str, str]:
  return {name: metadata.version(name) for name in _PACKAGES}


def environment(environ: Any) -> dict[str, str]:
  """Of environment variables those that are named above, and options of JAX."""
  jax_options = {name.upper() for name in jax.config.values if name.startswith('jax_')}
  return {k: v for k, v in sorted(environ.items()) if k in _VARIABLES or k in jax_options}


def _processor() -> str:
  """The processor's name as Linux has it, else as Python has it."""
  info = pathlib.Path('/proc/cpuinfo')
  if info.is_file():
    for line in info.read_text(errors='replace').splitlines():
      key, _, value = line.partition(':')
      if key.strip() == 'model name':
        return value.strip()
  return platform.processor()


def git(file: pathlib.Path) -> dict[str, Any] | None:
  """Revision of the repository that a source file is tracked in, and whether it was changed.

  None without git, and where the file is not tracked: a package that is installed in a folder of
  somebody else's repository has nothing to do with that one.
  """
  if _git(file, 'ls-files', '--error-unmatch', file.name) is None:
    return None
  revision = _git(file, 'rev-parse', 'HEAD')
  changed = _git(file, 'status', '--porcelain', '--untracked-files=no')
  if revision is None or changed is None:
    return None
  return {'revision': revision, 'dirty': bool(changed)}


def _git(file: pathlib.Path, *args: str) -> str | None:
  # A repository may name programs to be run by git, and the environment another repository.
  command = ['git', '-c', 'core.fsmonitor=false', '-c', 'core.hooksPath=/dev/null', *args]
  environ = {k: v for k, v in os.environ.items() if not k.startswith('GIT_')}
  environ |= {'GIT_OPTIONAL_LOCKS': '0'}
  try:
    done = subprocess.run(
      command,
      cwd=file.parent,
      env=environ,
      stdin=subprocess.DEVNULL,
      capture_output=True,
      text=True,
      errors='replace',
      timeout=_GIT_SECONDS,
      check=False,
    )
  except (OSError, subprocess.TimeoutExpired):
    return None
  return done.stdout.strip() if done.returncode == 0 else None
