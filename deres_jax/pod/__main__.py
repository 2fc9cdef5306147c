# SPDX-License-Identifier: Apache-2.0
"""A pod of several processes on this machine, each with CPU devices of its own.

  python -m deres_jax.pod --processes=2 --devices=4 -- --config=FILE --workdir=DIR ...

The arguments after `--` are the command line of `deres_jax.main`. The processes are real ones and
meet as hosts do; only the network between them is this machine's. Every line they print begins with
the number of the process. For rehearsing a multi-host run, and for testing it.
"""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from typing import TextIO

from absl import app, flags

from deres_jax.core import cli
from deres_jax.core.errors import UserError
from deres_jax.pod import supervisor


def run(command: list[str], processes: int, devices: int, grace: float) -> int:
  """Runs `command` once per process, with --coordinator, --processes and --process.

  Args:
    devices: CPU devices of each process.
    grace: seconds that the others have to end by themselves once one has failed.
  Returns: the exit code of the pod, as `worst` chooses it.
  """
  with socket.create_server(('127.0.0.1', 0)) as server:
    address = f'127.0.0.1:{server.getsockname()[1]}'  # a free port
  environ = {
    **os.environ,
    'JAX_PLATFORMS': 'cpu',
    'JAX_NUM_CPU_DEVICES': str(devices),
    'PYTHONUNBUFFERED': '1',
  }
  children: list[subprocess.Popen] = []
  threads = []
  with supervisor.forwarding(children) as signals:
    try:
      for i in range(processes):
        numbers = [f'--coordinator={address}', f'--processes={processes}', f'--process={i}']
        child = supervisor.spawn([*command, *numbers], environ, subprocess.PIPE)
        children.append(child)
        for pair in ((child.stdout, sys.stdout), (child.stderr, sys.stderr)):
          threads.append(threading.Thread(target=_copy, args=(*pair, f'[{i}] '), daemon=True))
          threads[-1].start()
      killed = _wait(children, grace)
      for thread in threads:
        thread.join()
    finally:
      for child in children:
        child.kill()  # has no effect on those that have ended
  codes = []
  for i, child in enumerate(children):
    code, message = supervisor.verdict(child.returncode, signals)
    if i in killed:
      code = cli.AGAIN
      message = f'killed: still running {grace:g} s after another process had ended'
    if message:
      print(f'[{i}] {message}', file=sys.stderr)
    codes.append(code)
  return worst(codes)


def worst(codes: list[int]) -> int:
  """Returns the exit code that explains why a pod ended: a mistake, a fault, or run it again.

  When a process fails by a mistake or a fault, the others end too, with 75.
  """
  for code in (cli.MISTAKE, cli.FAULT, cli.AGAIN):
    if code in codes:
      return code
  return max(codes)


def _copy(source: TextIO, to: TextIO, prefix: str):
  """Prints a child's lines with a prefix."""
  for line in source:
    if line.startswith('[Gloo] Rank'):  # the CPU's collectives greet each new group of devices
      continue
    with contextlib.suppress(BrokenPipeError):  # the run goes on though nobody reads any more
      to.write(prefix + line.rstrip('\n') + '\n')
      to.flush()


def _wait(children: list[subprocess.Popen], grace: float) -> set[int]:
  """Waits for all, and kills those that outlive the grace; returns their numbers."""
  deadline, killed = None, set()
  while any(child.poll() is None for child in children):
    if deadline is None and any(child.poll() for child in children):
      deadline = time.monotonic() + grace
    if deadline is not None and time.monotonic() > deadline:
      killed |= {i for i, child in enumerate(children) if child.poll() is None}
      for i in killed:
        children[i].kill()
    time.sleep(0.05)
  return killed


def main(argv: list[str]):
  """Starts the processes and exits with the pod's code."""
  values = flags.FLAGS
  if not argv[1:]:
    raise UserError('no command: give the flags of deres_jax.main after --, -- --config=FILE ...')
  command = [sys.executable, '-m', 'deres_jax.main', *argv[1:]]
  sys.exit(run(command, values.processes, values.devices, values.grace))


if __name__ == '__main__':
  flags.DEFINE_integer('processes', 2, 'Number of processes.', lower_bound=1)
  flags.DEFINE_integer('devices', 1, 'CPU devices a process.', lower_bound=1)
  flags.DEFINE_float(
    'grace', 130.0, 'Seconds for the others to end once one has failed: over mesh.heartbeat_seconds'
  )
  app.run(cli.guarded(main), flags_parser=cli.parse)
