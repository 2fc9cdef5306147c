# SPDX-License-Identifier: Apache-2.0
"""Runs commands in forks of one process, which has imported what they share.

`calls()` starts that process: it reads [module, arguments, most bytes of a file or null] from each
line of standard input and answers each with [exit code, stdout, stderr]. `call` takes a command
line; its process stays for the whole session.
"""

import atexit
import contextlib
import functools
import io
import json
import os
import pathlib
import resource
import runpy
import subprocess
import sys
import tempfile
import traceback

# None of these touches a device, so forks are safe, and none defines flags.
import deres_jax.claims.contrasts
import deres_jax.claims.exponents
import deres_jax.compare.rerun
import deres_jax.scaling.analysis
import deres_jax.training.checkpoints.restore
import deres_jax.training.loop  # noqa: F401

REPO = pathlib.Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def calls():
  """Yields (module, arguments, most_bytes=None) -> (exit code, stdout, stderr)."""
  environ = {'JAX_PLATFORMS': 'cpu', 'DERES_JAX_ALLOCATOR': 'system', 'COLUMNS': '80'}
  with subprocess.Popen(
    [sys.executable, __file__],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    env={**os.environ, **environ, 'PYTHONPATH': f'{REPO}'},
    text=True,
    cwd=REPO,
  ) as driver:
    driver.stdout.readline()

    def call(module, arguments, most_bytes=None):
      print(json.dumps([module, arguments, most_bytes]), file=driver.stdin, flush=True)
      return json.loads(driver.stdout.readline())

    yield call
    driver.stdin.close()


@functools.cache
def _session():
  stack = contextlib.ExitStack()
  atexit.register(stack.close)
  return stack.enter_context(calls())


def call(command: list) -> subprocess.CompletedProcess:
  """Runs [sys.executable, '-m', MODULE, *flags] in a fork."""
  python, option, module, *arguments = map(str, command)
  assert (python, option) == (sys.executable, '-m')
  return subprocess.CompletedProcess(command, *_session()(module, arguments))


def run(module: str, arguments: list[str], most_bytes: int | None, answer) -> None:
  out, err, code = io.StringIO(), io.StringIO(), 0
  sys.argv, sys.stdout, sys.stderr = [module, *arguments], out, err
  if most_bytes is not None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, resource.RLIM_INFINITY))
  try:
    runpy.run_module(module, run_name='__main__', alter_sys=True)
  except SystemExit as e:
    code = e.code or 0
  except BaseException:
    traceback.print_exc()
    code = 1
  if most_bytes is not None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
  json.dump([code, out.getvalue(), err.getvalue()], answer)
  answer.flush()


def main():
  print('ready', flush=True)
  for line in sys.stdin:
    with tempfile.TemporaryFile('w+') as answer:
      child = os.fork()
      if not child:
        run(*json.loads(line), answer)
        os._exit(0)
      os.waitpid(child, 0)
      answer.seek(0)
      print(answer.read(), flush=True)


if __name__ == '__main__':
  main()
