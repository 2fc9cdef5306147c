# SPDX-License-Identifier: Apache-2.0
"""Compiles the CPU kernels with the machine's C++ compiler and registers them with XLA.

Without a compiler, and on other platforms, the plain JAX forms run: same results up to rounding.
`using` chooses between the two while a program is traced.
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
# Without traps and errno the compiler vectorises loops; a multiply-add is one instruction.
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
  """Sets whether what is traced inside calls the kernels."""
  before = _on.set(kernels)
  try:
    yield
  finally:
    _on.reset(before)


def on() -> bool:
  """Returns whether what is traced now may call the kernels."""
  return _on.get()


@functools.cache
def missing() -> str | None:
  """Builds and registers the kernels; returns why they cannot be used, or None."""
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
  """Returns the path of this machine's shared library; compiles it unless it is cached."""
  home = pathlib.Path(os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache')
  path = home / 'deres_jax' / 'kernels' / f'{_fingerprint(compiler)}.so'
  if not path.exists():
    path.parent.mkdir(parents=True, exist_ok=True)
    # Several processes may build at once: each moves its complete file into place.
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
      built = pathlib.Path(folder) / 'kernels.so'
      command = [compiler, *_FLAGS, f'-I{jax.ffi.include_dir()}', str(_SOURCE), '-o', str(built)]
      subprocess.run(command, check=True, capture_output=True, text=True)
      built.replace(path)
  return path


def _fingerprint(compiler: str) -> str:
  """Hashes all that the library depends on: machines may share a home folder."""
  parts = (_SOURCE.read_text(), *_FLAGS, compiler, jaxlib.__version__, sys.platform, _processor())
  return hashlib.sha256('\0'.join(parts).encode()).hexdigest()[:16]


def _processor() -> str:
  """Describes the processor, on which -march=native depends."""
  try:
    lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
  except OSError:
    return platform.processor() or platform.machine()
  by_key = {line.partition(':')[0].strip(): line for line in reversed(lines)}
  return ''.join(by_key.get(key, '') for key in ('model name', 'flags', 'Features'))
