# SPDX-License-Identifier: Apache-2.0
"""A compilation cache that a crash tore breaks no start: JAX compiles anew and says so."""

import os
import subprocess
import sys

SCRIPT = """
import jax, jax.numpy as jnp
print(float(jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((8, 8))).sum()))
"""


def test_a_cut_file_is_compiled_anew(tmp_path):
  environ = os.environ | {
    'JAX_COMPILATION_CACHE_DIR': str(tmp_path),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
  }
  ends = []
  for _ in range(2):
    command = [sys.executable, '-c', SCRIPT]
    ends.append(subprocess.run(command, env=environ, capture_output=True, text=True, check=True))
    for file in tmp_path.glob('jit_*-cache'):
      os.truncate(file, file.stat().st_size // 2)
  assert ends[0].stdout == ends[1].stdout
  assert 'Error reading' not in ends[0].stderr and 'Error reading' in ends[1].stderr
