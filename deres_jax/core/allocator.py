# SPDX-License-Identifier: Apache-2.0
"""The malloc of a run: jemalloc where it is installed.

XLA:CPU takes its temporary buffer from malloc at every call. glibc gives large blocks back to the
kernel, so each step pays for their pages anew; jemalloc keeps them, those above 8 MB too
(oversize_threshold). A process can only be started with another malloc (LD_PRELOAD), so a run
starts itself once more, in place. DERES_JAX_ALLOCATOR says what it takes:

  auto      jemalloc on Linux, if it is installed
  jemalloc  it must be
  system    what the process has anyway

A malloc that LD_PRELOAD names already stays, and so does a MALLOC_CONF.
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
_KEEP = 'oversize_threshold:0,dirty_decay_ms:-1,muzzy_decay_ms:-1'  # all pages are kept
_ALL_ARENAS = 4096  # MALLCTL_ARENAS_ALL of jemalloc.h
_KNOWN = re.compile(r'\blib(jemalloc|tcmalloc|mimalloc)[^/\s:]*\.so\b')


def find() -> str | None:
  """Path of jemalloc's library; None where there is none, and on other systems than Linux."""
  if sys.platform != 'linux':
    return None
  system = f'/usr/lib/{platform.machine()}-linux-gnu', '/usr/lib64', '/usr/lib', '/usr/local/lib'
  for folder in (f'{sys.prefix}/lib', *system):
    if (file := pathlib.Path(folder, _LIBRARY)).is_file():
      return str(file)
  return None


def name() -> str:
  """Which malloc this process has: glibc, jemalloc, tcmalloc or mimalloc; system: not known."""
  maps = pathlib.Path('/proc/self/maps')
  found = _KNOWN.search(maps.read_text()) if maps.exists() else None
  return found[1] if found else platform.libc_ver()[0] or 'system'


def give_back():
  """Returns to the kernel the pages that jemalloc keeps and nothing uses; others do so anyway.

  For now and then, such as after a save: kept pages are split and never joined, and would grow by
  some 60 KiB a save for ever. It takes 11 ms for 256 MiB; steps get anew what they need of them.
  """
  process = ctypes.CDLL(None)
  if hasattr(process, 'mallctl'):
    process.mallctl(f'arena.{_ALL_ARENAS}.purge'.encode(), None, None, None, ctypes.c_size_t(0))


def environment(environ: Mapping[str, str]) -> dict[str, str]:
  """Returns the environment to start a process with; `environ` if that needs no change.

  Raises: UserError.
  """
  asked = environ.get(VARIABLE) or 'auto'
  if asked not in _CHOICES:
    raise UserError(f'{VARIABLE}={asked}: expected one of {", ".join(_CHOICES)}')
  preloaded = environ.get('LD_PRELOAD', '')
  if asked == 'system' or _KNOWN.search(preloaded):
    return dict(environ)
  library = find()
  if library is None and asked == 'jemalloc':
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
    VARIABLE: 'system',  # whatever becomes of LD_PRELOAD: no third start
  }


def preload():
  """Starts this process anew if it should have another malloc: the same pid, with nothing done yet.

  A user's mistake ends it with a line and exit code 2.
  """
  try:
    environ = environment(os.environ)
  except UserError as e:
    cli.fail(e)
  if environ != dict(os.environ):
    os.execve(sys.executable, cli.this_command(), environ)
