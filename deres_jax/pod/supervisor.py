# SPDX-License-Identifier: Apache-2.0
"""A process of a distributed run is watched by a parent, because it may end without a word.

JAX's runtime aborts a process (SIGABRT, a stack trace) when it finds another one or the
coordinator gone; Python cannot catch that. So the command starts itself once more as a child that
does the work; the parent touches no device, passes signals on and says in one line and an exit
code how the child ended.
"""

import ctypes
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping

from deres_jax.core import cli
from deres_jax.pod import processes

_GUARD = 'DERES_JAX_GUARD'  # in the child's environment: process id of its parent
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def run(work: Callable[[], None]):
  """In the parent: starts the child, waits and exits as it did. In the child: does `work`.

  Where `work` fails, the child leaves at once: the runtime's own end waits for all processes. One
  of several that has done its work waits for them, and leaves too: the runtime's last words after
  Python's (destructors of its C++ side) have been seen to hang where all was done.
  """
  if not _guarded():
    sys.exit(_wait())
  try:
    work()
    if processes.leave_together():
      raise SystemExit(0)
  except BaseException as e:
    _leave(e)


def spawn(
  command: list[str], environ: Mapping[str, str], output: int | None = None
) -> subprocess.Popen:
  """Starts `command` as a guarded child of this process: it will do the work and die with us.

  Args:
    output: where its stdout and stderr go, as in `subprocess`.
  """
  environ = {**environ, _GUARD: str(os.getpid())}
  # The runtime's errors on the way out say less than our line (its last words are printed all the
  # same). 1 is what importing JAX sets where the user says nothing.
  if environ.get('TF_CPP_MIN_LOG_LEVEL', '1') == '1':
    environ['TF_CPP_MIN_LOG_LEVEL'] = '3'
  # A group of its own: an interrupt from the terminal must reach it once, through us.
  return subprocess.Popen(
    command,
    env=environ,
    stdout=output,
    stderr=output,
    process_group=0,
    text=True,
    errors='replace',
  )


def verdict(status: int, signals: Iterable[int] = ()) -> tuple[int, str | None]:
  """Exit code and line for a child's end.

  Args:
    status: `Popen.returncode`: its exit code, or -N for signal N.
    signals: those that were passed on to it.
  """
  if status >= 0:
    return status, None
  name = signal.Signals(-status).name
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
      'killed: from outside (SIGKILL), often for want of memory on this host; '
      'the same command goes on from the last checkpoint'
    )
  return 128 - status, f'killed: by signal {-status} ({name})'


def _guarded() -> bool:
  """Whether this process is the child; if so, makes it die with its parent."""
  parent = os.environ.pop(_GUARD, None)
  if parent is None:
    return False
  if sys.platform == 'linux':
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):  # it died before we asked
      os._exit(cli.AGAIN)
  return True


def _wait() -> int:
  signals = []
  child = spawn(cli.this_command(), os.environ)

  def forward(number, frame):
    signals.append(number)
    # A child that hangs in a collective sees no first interrupt.
    child.send_signal(signal.SIGKILL if signals.count(signal.SIGINT) > 1 else number)

  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, forward)
  code, line = verdict(child.wait(), signals)
  if line:
    print(line, file=sys.stderr)
  return code


def _leave(e: BaseException):
  """Ends the child with the code of `e`."""
  if isinstance(e, SystemExit):
    code = e.code if isinstance(e.code, int) else cli.FAULT if e.code else 0
  else:
    code = cli.code_of(e)
  if code is None and (said := processes.lost(e)):
    print(
      f'stopped: another process of the run is gone ({said}); '
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
