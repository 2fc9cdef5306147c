# SPDX-License-Identifier: Apache-2.0
"""Runs a command and measures it: seconds, processor seconds, and memory of all its processes."""

import contextlib
import dataclasses
import pathlib
import re
import resource
import subprocess
import time

_POLL_SECONDS = 0.2


@dataclasses.dataclass(frozen=True)
class Measured:
  """seconds: of the clock. cpu_seconds: of all processes. peak_mib: resident."""

  seconds: float
  cpu_seconds: float
  peak_mib: float


def _proc(pid: int, name: str) -> str:
  return pathlib.Path(f'/proc/{pid}/{name}').read_text()


def _descendants(pid: int) -> list[int]:
  found = [pid]
  for task in pathlib.Path(f'/proc/{pid}/task').glob('*/children'):
    for child in task.read_text().split():
      found += _descendants(int(child))
  return found


def _memory(pid: int) -> int:
  """Bytes resident of a process and its children; pages that they share count once for each.

  (Proportional sizes would need a walk through all pages, which slows down what is measured.)
  """
  pages = (int(_proc(one, 'statm').split()[1]) for one in _descendants(pid))
  return sum(pages) * resource.getpagesize()


def measure(command: list[str]) -> Measured:
  """Runs a command to its end. Raises CalledProcessError if it fails. Linux only (/proc)."""
  before, began, peak = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic(), 0
  with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
    while process.poll() is None:
      with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
        peak = max(peak, _memory(process.pid))
      time.sleep(_POLL_SECONDS)
    seconds = time.monotonic() - began
  if process.returncode:
    raise subprocess.CalledProcessError(process.returncode, command)
  after = resource.getrusage(resource.RUSAGE_CHILDREN)
  cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
  return Measured(seconds, cpu, peak / 2**20)


def free_memory() -> int:
  """Bytes of memory that a process can have."""
  found = re.search(r'MemAvailable: *(\d+) kB', pathlib.Path('/proc/meminfo').read_text())
  return int(found[1]) * 1024
