# SPDX-License-Identifier: Apache-2.0
"""Runs a command and measures it: seconds, processor seconds, and memory of all its processes."""

import contextlib
import dataclasses
import pathlib
import resource
import subprocess
import time

_POLL_SECONDS = 0.1


@dataclasses.dataclass(frozen=True)
class Measured:
  """seconds: of the clock. cpu_seconds: of all processes. peak_mib: proportional set size."""

  seconds: float
  cpu_seconds: float
  peak_mib: float


def _descendants(pid: int) -> list[int]:
  found = [pid]
  for task in pathlib.Path(f'/proc/{pid}/task').glob('*/children'):
    for child in task.read_text().split():
      found += _descendants(int(child))
  return found


def _memory_kib(pid: int) -> int:
  """Proportional set size of a process and its children: shared pages count once."""
  total = 0
  for one in _descendants(pid):
    for line in pathlib.Path(f'/proc/{one}/smaps_rollup').read_text().splitlines():
      if line.startswith('Pss:'):
        total += int(line.split()[1])
  return total


def measure(command: list[str]) -> Measured:
  """Runs a command to its end. Raises CalledProcessError if it fails. Linux only (/proc)."""
  before, began, peak = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic(), 0
  with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
    while process.poll() is None:
      with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
        peak = max(peak, _memory_kib(process.pid))
      time.sleep(_POLL_SECONDS)
    seconds = time.monotonic() - began
  if process.returncode:
    raise subprocess.CalledProcessError(process.returncode, command)
  after = resource.getrusage(resource.RUSAGE_CHILDREN)
  cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
  return Measured(seconds, cpu, peak / 1024)
