# SPDX-License-Identifier: Apache-2.0
"""Kernels for CPUs: compiled once by the machine's own C++ compiler, registered with XLA.

Without a compiler, and on other platforms, the plain JAX forms run: same results but for rounding.
`using` says, while a step is traced, which of them it is made of.
"""

import contextlib
import contextvars
import ctypes
import functools
import hashlib
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import jax
import jaxlib

_SOURCE = pathlib.Path(__file__).with_name('kernels.cc')
# Without traps and errno loops become vectors; a multiply-add is one instruction.
_FLAGS = (
  *('-O3', '-march=native', '-std=c++17', '-ffp-contract=fast'),
  *('-fno-math-errno', '-fno-trapping-math', '-shared', '-fPIC'),
)
_BOTH_WAYS = 'attend', 'dense', 'feed', 'score', 'read'
_TARGETS = (
  *(f'{op}_{way}' for op in _BOTH_WAYS for way in ('forward', 'backward')),
  *('rows_take', 'rows_sum', 'rows_adagrad', 'rows_adam'),
)

_on = contextvars.ContextVar('kernels', default=False)


@contextlib.contextmanager
def using(kernels: bool) -> Iterator[None]:
  """What is traced inside calls the kernels, or does not."""
  before = _on.set(kernels)
  try:
    yield
  finally:
    _on.reset(before)


def on() -> bool:
  """Whether what is traced now may call the kernels."""
  return _on.get()


@functools.cache
def missing() -> str | None:
  """Builds and registers the kernels where they are not yet; says why they cannot be used."""
  compiler = shutil.which(os.environ.get('CXX', 'c++'))
  if compiler is None:
    return 'there is no C++ compiler (c++, or what CXX names)'
  try:
    library = ctypes.CDLL(str(_built(compiler)))
  except subprocess.CalledProcessError as e:
    return f'{compiler} failed: {e.stderr.strip().splitlines()[0] if e.stderr else e}'
  except OSError as e:
    return str(e)
  for name in _TARGETS:
    jax.ffi.register_ffi_target(
      f'deres_{name}', jax.ffi.pycapsule(getattr(library, name)), platform='cpu'
    )
  return None


def _built(compiler: str) -> pathlib.Path:
  """The shared library for this machine, from the cache or from the compiler."""
  home = pathlib.Path(os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache')
  path = home / 'deres_jax' / 'kernels' / f'{_fingerprint(compiler)}.so'
  if not path.exists():
    path.parent.mkdir(parents=True, exist_ok=True)
    # Processes may build at once: each its own file, moved into place whole.
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
      made = pathlib.Path(folder) / 'kernels.so'
      command = [compiler, *_FLAGS, f'-I{jax.ffi.include_dir()}', str(_SOURCE), '-o', str(made)]
      subprocess.run(command, check=True, capture_output=True, text=True)
      made.replace(path)
  return path


def _fingerprint(compiler: str) -> str:
  """Changes with all that the library depends on; a home folder may be shared by machines."""
  parts = (_SOURCE.read_text(), *_FLAGS, compiler, jaxlib.__version__, sys.platform, _processor())
  return hashlib.sha256('\0'.join(parts).encode()).hexdigest()[:16]


def _processor() -> str:
  """What -march=native depends on."""
  try:
    lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
  except OSError:
    return platform.processor() or platform.machine()
  found = {line.partition(':')[0].strip(): line for line in reversed(lines)}
  return ''.join(found.get(key, '') for key in ('model name', 'flags', 'Features'))
