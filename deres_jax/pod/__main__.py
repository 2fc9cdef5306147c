# SPDX-License-Identifier: Apache-2.0
"""A pod of several processes on this machine, each with CPU devices of its own.

  python -m deres_jax.pod --processes=2 --devices=4 -- --config=FILE --workdir=DIR ...

What stands after `--` is the command line of `deres_jax.main`. The processes are real ones and meet
as hosts do; only the network between them is this machine's. Every line they print begins with
the number of the process. To rehearse a multi-host run, and to test it.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import TextIO

from absl import app, flags

from deres_jax.core import cli
from deres_jax.core.errors import UserError
from deres_jax.pod import supervisor


def run(command: list[str], processes: int, devices: int, grace: float) -> int:
  """Runs `command` once a process, with --coordinator, --processes, --process; returns a code.

  Args:
    devices: CPU devices a process.
    grace: seconds that the others have to end by themselves once one has failed.
  Returns: 0 if all ended with 0, else the code that says most: a mistake, a fault, run it again.
  """
  address = f'127.0.0.1:{_free_port()}'
  environ = {
    **os.environ,
    'JAX_PLATFORMS': 'cpu',
    'JAX_NUM_CPU_DEVICES': str(devices),
    'PYTHONUNBUFFERED': '1',
  }
  signals, children = [], []

  def forward(number, frame):
    signals.append(number)
    for child in children:
      child.send_signal(signal.SIGKILL if signals.count(signal.SIGINT) > 1 else number)

  old = {n: signal.signal(n, forward) for n in (signal.SIGTERM, signal.SIGINT)}
  try:
    for i in range(processes):
      children.append(_start([*command, f'--coordinator={address}'], environ, processes, i))
    threads = [thread for i, child in enumerate(children) for thread in _pass_on(child, f'[{i}] ')]
    killed = _wait(children, grace)
    for thread in threads:
      thread.join()
  finally:
    for child in children:
      child.kill()  # nothing where it has ended
    for number, handler in old.items():
      signal.signal(number, handler)
  codes = []
  for i, child in enumerate(children):
    code, line = supervisor.verdict(child.returncode, signals)
    if i in killed:
      code, line = cli.AGAIN, f'killed: still there {grace:g} s after another process had ended'
    if line:
      print(f'[{i}] {line}', file=sys.stderr)
    codes.append(code)
  return worst(codes)


def worst(codes: list[int]) -> int:
  """The code that says most about why a pod ended.

  A process that meets a mistake or a fault takes the others with it, and they say 75.
  """
  for code in (cli.MISTAKE, cli.FAULT, cli.AGAIN):
    if code in codes:
      return code
  return max(codes)


def _start(command, environ: Mapping[str, str], processes: int, i: int) -> subprocess.Popen:
  numbers = [f'--processes={processes}', f'--process={i}']
  return supervisor.spawn([*command, *numbers], environ, subprocess.PIPE)


def _pass_on(child: subprocess.Popen, prefix: str) -> list[threading.Thread]:
  """Prints what `child` prints, line by line."""

  def copy(source: TextIO, to: TextIO):
    for line in source:
      if line.startswith('[Gloo] Rank'):  # the CPU's collectives greet each new group of devices
        continue
      with contextlib.suppress(BrokenPipeError):  # nobody reads any more: the run goes on
        to.write(prefix + line.rstrip('\n') + '\n')
        to.flush()

  threads = [
    threading.Thread(target=copy, args=pair, daemon=True)
    for pair in ((child.stdout, sys.stdout), (child.stderr, sys.stderr))
  ]
  for thread in threads:
    thread.start()
  return threads


def _wait(children: list[subprocess.Popen], grace: float) -> set[int]:
  """Waits for all; numbers of those that had to be killed."""
  until, killed = None, set()
  while any(child.poll() is None for child in children):
    if until is None and any(child.poll() for child in children):
      until = time.monotonic() + grace
    if until is not None and time.monotonic() > until:
      killed |= {i for i, child in enumerate(children) if child.poll() is None}
      for i in killed:
        children[i].kill()
    time.sleep(0.05)
  return killed


def _free_port() -> int:
  with socket.create_server(('127.0.0.1', 0)) as server:
    return server.getsockname()[1]


def main(argv: list[str]):
  """The command: starts the processes and ends as the worst of them did."""
  values = flags.FLAGS
  if not argv[1:]:
    raise UserError('no command: give the flags of deres_jax.main after --, -- --config=FILE ...')
  command = [sys.executable, '-m', 'deres_jax.main', *argv[1:]]
  sys.exit(run(command, values.processes, values.devices, values.grace))


def _define_flags():
  flags.DEFINE_integer('processes', 2, 'Number of processes.', lower_bound=1)
  flags.DEFINE_integer('devices', 1, 'CPU devices a process.', lower_bound=1)
  flags.DEFINE_float(
    'grace', 130.0, 'Seconds for the others to end once one has failed: over mesh.heartbeat_seconds'
  )


if __name__ == '__main__':
  _define_flags()
  app.run(cli.guarded(main), flags_parser=cli.parse)
