# SPDX-License-Identifier: Apache-2.0
"""Supervises a distributed worker: turns JAX's SIGABRT into one line and an exit code.

JAX's runtime aborts a process (SIGABRT, a stack trace) when another process or the coordinator is
gone, and Python cannot catch that. So the command starts itself again as a child that does the
work. The parent touches no device; it forwards signals and reports how the child ended.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping

from deres_jax.core import cli
from deres_jax.pod import processes

_PARENT = 'DERES_JAX_GUARD'  # in the child's environment: process id of its parent
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def run(work: Callable[[], None]):
  """Starts a child and exits as it did; in the child, does `work`.

  A child whose `work` fails exits at once: a regular exit of the runtime waits for all processes.
  One that is done waits for the others, then exits at once too: destructors of the C++ runtime
  have hung after all work was done.
  """
  if not _is_child():
    sys.exit(_supervise())
  try:
    work()
    if processes.shutdown():
      raise SystemExit(0)
  except BaseException as e:
    _exit(e)


def spawn(
  command: list[str], environ: Mapping[str, str], output: int | None = None
) -> subprocess.Popen:
  """Starts `command` as a worker that ends when this process does.

  Args:
    output: target of its stdout and stderr, as in `subprocess`.
  """
  environ = {**environ, _PARENT: str(os.getpid())}
  # The runtime's messages at the end say less than our line. Importing JAX sets 1 as the default.
  if environ.get('TF_CPP_MIN_LOG_LEVEL', '1') == '1':
    environ['TF_CPP_MIN_LOG_LEVEL'] = '3'
  return subprocess.Popen(
    command,
    env=environ,
    stdout=output,
    stderr=output,
    process_group=0,  # so that Ctrl-C reaches it once, through its parent
    text=True,
    errors='replace',
  )


@contextlib.contextmanager
def forwarding(children: list[subprocess.Popen]) -> Iterator[list[int]]:
  """Forwards SIGTERM and Ctrl-C to `children`, and yields the list of forwarded signals.

  A second Ctrl-C kills them: a child that hangs in a collective does not see the first.
  """
  signals: list[int] = []

  def forward(number, frame):
    signals.append(number)
    for child in children:
      child.send_signal(signal.SIGKILL if signals.count(signal.SIGINT) > 1 else number)

  old = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
  try:
    yield signals
  finally:
    for number, handler in old.items():
      signal.signal(number, handler)


def verdict(status: int, signals: Iterable[int] = ()) -> tuple[int, str | None]:
  """Returns the exit code and the message for a child's end.

  Args:
    status: `Popen.returncode`: its exit code, or -N for signal N.
    signals: signals that were forwarded to it.
  """
  if status >= 0:
    return status, None
  if status == -signal.SIGABRT:
    return cli.AGAIN, (
      'stopped: the runtime aborted (SIGABRT), as it does when another process or the '
      'coordinator is gone; the same command goes on from the last checkpoint'
    )
  if signal.SIGINT in signals and status in (-signal.SIGINT, -signal.SIGKILL):
    return cli.INTERRUPTED, 'interrupted: the same command goes on from the last checkpoint'
  if status == -signal.SIGTERM and signal.SIGTERM in signals:
    return cli.AGAIN, 'stopped: on request (SIGTERM), before the run could save; run it again'
  if status == -signal.SIGKILL:
    return 128 + signal.SIGKILL, (
      'killed: from outside (SIGKILL), often because this host ran out of memory; '
      'the same command goes on from the last checkpoint'
    )
  return 128 - status, f'killed: by signal {-status} ({signal.Signals(-status).name})'


def _is_child() -> bool:
  """Returns whether this process is the child; if so, makes it die with its parent."""
  parent = os.environ.pop(_PARENT, None)
  if parent is None:
    return False
  if sys.platform == 'linux':
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):  # it died before the call
      os._exit(cli.AGAIN)
  return True


def _supervise() -> int:
  child = spawn(cli.this_command(), os.environ)
  with forwarding([child]) as signals:
    code, message = verdict(child.wait(), signals)
  if message:
    print(message, file=sys.stderr)
  return code


def _exit(e: BaseException):
  """Ends the child at once, with the exit code of `e`."""
  if isinstance(e, SystemExit):
    code = e.code if isinstance(e.code, int) else cli.FAULT if e.code else 0
  else:
    code = cli.code_of(e)
  if code is None and (lost := processes.lost_process(e)):
    print(
      f'stopped: another process of the run is gone ({lost}); '
      'the same command goes on from the last checkpoint',
      file=sys.stderr,
    )
    code = cli.AGAIN
  if code is None:
    traceback.print_exception(e)
    code = cli.FAULT
  for stream in (sys.stdout, sys.stderr):
    stream.flush()
  os._exit(code)
