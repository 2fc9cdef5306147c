# SPDX-License-Identifier: Apache-2.0
"""The malloc of a run: jemalloc where it is installed.

XLA:CPU allocates its temporary buffer with malloc at every call. glibc returns large blocks to the
kernel, so each step pays for their pages again; jemalloc is set to keep them, also those above 8 MB
(oversize_threshold). A process gets another malloc only at its start (LD_PRELOAD), so a run
replaces itself. DERES_JAX_ALLOCATOR chooses:

  auto      jemalloc on Linux, if it is installed
  jemalloc  jemalloc, or an error
  system    the malloc that the process has

A malloc in LD_PRELOAD and a MALLOC_CONF stay as they are.
"""

import ctypes
import os
import pathlib
import platform
import re
import sys
from collections.abc import Mapping

from deres_jax.core import cli
from deres_jax.core.errors import UserError

VARIABLE = 'DERES_JAX_ALLOCATOR'
_CHOICES = ('auto', 'jemalloc', 'system')
_LIBRARY = 'libjemalloc.so.2'
_KEEP = 'oversize_threshold:0,dirty_decay_ms:-1,muzzy_decay_ms:-1'  # keep all pages
_ALL_ARENAS = 4096  # MALLCTL_ARENAS_ALL of jemalloc.h
_KNOWN = re.compile(r'\blib(jemalloc|tcmalloc|mimalloc)[^/\s:]*\.so\b')


def find() -> str | None:
  """Returns the path of jemalloc's library; None without one, and on other systems than Linux."""
  if sys.platform != 'linux':
    return None
  system = f'/usr/lib/{platform.machine()}-linux-gnu', '/usr/lib64', '/usr/lib', '/usr/local/lib'
  for folder in (f'{sys.prefix}/lib', *system):
    if (file := pathlib.Path(folder, _LIBRARY)).is_file():
      return str(file)
  return None


def name() -> str:
  """Returns the malloc of this process: glibc, jemalloc, tcmalloc, mimalloc, or system."""
  maps = pathlib.Path('/proc/self/maps')
  match = _KNOWN.search(maps.read_text()) if maps.exists() else None
  return match[1] if match else platform.libc_ver()[0] or 'system'


def give_back():
  """Returns unused pages that jemalloc keeps to the kernel; does nothing with another malloc.

  Called after each save: kept pages are split and never joined, and would grow by some 60 KiB a
  save. It takes 11 ms for 256 MiB.
  """
  process = ctypes.CDLL(None)
  if hasattr(process, 'mallctl'):
    process.mallctl(f'arena.{_ALL_ARENAS}.purge'.encode(), None, None, None, ctypes.c_size_t(0))


def environment(environ: Mapping[str, str]) -> dict[str, str]:
  """Returns the environment of a process with the chosen malloc; raises UserError."""
  choice = environ.get(VARIABLE) or 'auto'
  if choice not in _CHOICES:
    raise UserError(f'{VARIABLE}={choice}: expected one of {", ".join(_CHOICES)}')
  preloaded = environ.get('LD_PRELOAD', '')
  if choice == 'system' or _KNOWN.search(preloaded):
    return dict(environ)
  library = find()
  if library is None and choice == 'jemalloc':
    raise UserError(
      f'{VARIABLE}=jemalloc: {_LIBRARY} is not installed: apt install libjemalloc2, '
      f'or {VARIABLE}=auto'
    )
  if library is None:
    return dict(environ)
  return {
    'MALLOC_CONF': _KEEP,
    **environ,
    'LD_PRELOAD': ' '.join([library, *preloaded.split()]),
    VARIABLE: 'system',  # no third start, even if LD_PRELOAD fails
  }


def preload():
  """Replaces this process, under the same pid, if it should have another malloc.

  A wrong choice ends it with one line and exit code 2.
  """
  try:
    environ = environment(os.environ)
  except UserError as e:
    cli.fail(e)
  if environ != dict(os.environ):
    os.execve(sys.executable, cli.this_command(), environ)
