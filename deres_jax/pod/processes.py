# SPDX-License-Identifier: Apache-2.0
"""A run of several processes: how they meet, what they tell each other, how they end.

A process is started once on every host (or once a GPU) with the same command. One process is the
common case: then nothing here touches a device or the network, and every call is the plain thing.
"""

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from deres_jax.core.errors import Retry, UserError
from deres_jax.pod.launchers import BY_HAND, SAYS, Place

# JAX's own time-out aborts the process with a stack trace: ours comes first.
_MARGIN_SECONDS = 60

# Wording of the runtime (Gloo, NCCL, the coordination service, gRPC) for a process that is gone.
_LOST = (
  'gloo', 'connection closed', 'connection reset', 'connection refused', 'socket closed',
  'broken pipe', 'coordination service', 'coordinationservice', 'heartbeat', 'unavailable:',
  'deadline_exceeded', 'barrier timed out', 'remote process exited', 'ncclremoteerror',
)  # fmt: skip


# The start: all processes meet, or one line says why not.


def start(place: Place | str, start_seconds: int, heartbeat_seconds: int):
  """Joins all processes; returns when all are there and know each other's devices.

  A process that is late but inside the time simply joins. Must come before any use of a device.

  Args:
    place: where this process stands, or the launcher that knows.
    start_seconds: after so long without all processes: one line and exit code 75.
    heartbeat_seconds: silence after which a process counts as dead.
  Raises: UserError, Retry.
  """
  by_hand = isinstance(place, Place)
  arguments = {'initialization_timeout': start_seconds + _MARGIN_SECONDS}
  if by_hand:
    host = place.coordinator.rpartition(':')[0]
    loopback = host in ('localhost', '127.0.0.1', '[::1]')
    arguments |= {
      'coordinator_address': place.coordinator,
      'num_processes': place.processes,
      'process_id': place.process,
      'cluster_detection_method': 'deactivate',
      'coordinator_bind_address': place.coordinator if loopback else None,
    }
    if place.process == 0:
      _check_port(place.coordinator)
  # It would take SIGTERM away from `Stop`.
  jax.config.update('jax_enable_preemption_service', False)
  timer = threading.Timer(start_seconds, _give_up, [place, start_seconds])
  timer.daemon = True
  timer.start()
  try:
    jax.distributed.initialize(
      **arguments,
      heartbeat_timeout_seconds=heartbeat_seconds,
      # Processes wait at the end for each other too: the leader may be writing yet.
      shutdown_timeout_seconds=max(300, start_seconds),
    )
    devices = jax.devices()  # the processes tell each other their devices: the second half
  except Exception as e:
    if any(isinstance(x, jax.errors.JaxRuntimeError | OSError) for x in _chain(e)):
      raise Retry(
        f'{_meeting(place)} did not come together ({_first_line(e)}): '
        'another one may have ended first, and says why'
      ) from e
    if by_hand:
      raise
    raise UserError(
      f'{place} was detected, but JAX cannot join its processes: {_first_line(e)}: {BY_HAND}'
    ) from e
  finally:
    timer.cancel()
  counts = np.bincount([d.process_index for d in devices], minlength=jax.process_count())
  if len(set(counts.tolist())) > 1:
    raise UserError(
      f'the processes have {counts.tolist()} devices: give each the same number of them'
    )


def _check_port(coordinator: str):
  """Two coordinators can share a port on Linux, and would mix up two runs: we look first."""
  port = int(coordinator.rpartition(':')[2])
  try:
    socket.create_server(('', port)).close()
  except OSError as e:
    raise UserError(
      f'--coordinator={coordinator}: port {port} of this host cannot be opened '
      f'({os.strerror(e.errno)}): '
      'another program or another run has it; choose another port in all processes'
    ) from e


def _meeting(place: Place | str) -> str:
  if isinstance(place, Place):
    return (
      f'the {place.processes} processes at coordinator {place.coordinator} '
      f'(this is process {place.process})'
    )
  said = ', '.join(f'{k}={os.environ[k]}' for k in SAYS[place] if k in os.environ)
  return f'the processes of {place}{f" ({said})" if said else ""}'


def _give_up(place: Place | str, seconds: int):
  _end(
    f'{_meeting(place)} were not all there within {seconds} s: check that every process was '
    'started and is alive, that its host reaches that address and port (firewall, name), and that '
    'all were given the same numbers; to wait longer: --config.mesh.start_seconds'
  )


def _end(line: str) -> NoReturn:
  """Ends the process from any thread: a hanging main thread would never see an exception."""
  print(f'stopped: {line}', file=sys.stderr, flush=True)
  sys.stdout.flush()
  os._exit(75)


# During the run: what the processes tell each other.


def _several() -> bool:
  return jax.distributed.is_initialized() and jax.process_count() > 1


def leave_together() -> bool:
  """Waits until all processes have done their work, and ends what connects them; false for one."""
  several = _several()
  if several:
    jax.distributed.shutdown()
  return several


def is_leader() -> bool:
  """Whether this is process 0, which writes and prints; true for a run of one process."""
  return not _several() or jax.process_index() == 0


def leader(fn: Callable[[], Any]) -> Any:
  """Runs `fn` on process 0; what it returns or raises is returned or raised by all processes.

  All must call it, at the same point. The result must be JSON-able; with several processes all
  get what JSON makes of it (tuples become lists). A UserError or Retry arrives as itself, any
  other exception as a RuntimeError that quotes it.
  """
  if not _several():
    return fn()
  text, error = '', None
  if jax.process_index() == 0:
    try:
      text = json.dumps(['value', fn()])
    except UserError as e:
      text, error = json.dumps(['mistake', str(e)]), e
    except Retry as e:
      text, error = json.dumps(['retry', str(e)]), e
    except Exception as e:
      text, error = json.dumps(['fault', f'process 0: {type(e).__name__}: {e}']), e
  kind, value = json.loads(_broadcast(text))
  if error is not None:
    raise error
  if kind != 'value':
    raise {'mistake': UserError, 'retry': Retry, 'fault': RuntimeError}[kind](value)
  return value


def _broadcast(text: str) -> str:
  """Process 0's text, on all. Lengths are powers of two, so that few programs are compiled."""
  data = np.frombuffer(text.encode(), np.uint8)
  length = int(multihost_utils.broadcast_one_to_all(np.int32(data.size)))
  padded = np.zeros(max(1024, 1 << (length - 1).bit_length()), np.uint8)
  if jax.process_index() == 0:
    padded[:length] = data
  return np.asarray(multihost_utils.broadcast_one_to_all(padded))[:length].tobytes().decode()


def barrier(name: str):
  """Returns when all processes have come here; nothing for a run of one."""
  if _several():
    multihost_utils.sync_global_devices(name)


def gather(x: np.ndarray) -> np.ndarray:
  """Arrays of one shape and type, one a process, as [processes, ...] on every process, exact."""
  x = np.asarray(x)
  if not _several():
    return x[None]
  # As bytes: on its way through a device a 64-bit number would be cut to 32.
  data = np.frombuffer(np.ascontiguousarray(x).tobytes(), np.uint8)
  rows = np.ascontiguousarray(multihost_utils.process_allgather(data))
  return rows.view(x.dtype).reshape(jax.process_count(), *x.shape)


# The end: another process is gone, nothing moves any more, or the machine is taken away.


def _chain(e: BaseException):
  while e is not None:
    yield e
    e = e.__cause__ or e.__context__


def _first_line(e: BaseException) -> str:
  return (str(e).strip() or type(e).__name__).splitlines()[0][:200]


def lost(e: BaseException) -> str | None:
  """What the runtime says of another process that is gone; None if `e` is about anything else."""
  for x in _chain(e):
    text = ' '.join(str(x).split()).replace('Error dispatching computation: ', '')
    # Orbax tells the runtime's error at one of its barriers in a TimeoutError of its own.
    runtime = isinstance(x, jax.errors.JaxRuntimeError | TimeoutError)
    if runtime and any(w in text.lower() for w in _LOST):
      return text[:200]
  return None


class Watchdog:
  """Ends the process with code 75 if nothing moves: a lost peer can leave a collective hanging."""

  def __init__(self, seconds: float):
    """seconds: longest time between two beats; 0: never ends anything."""
    self._seconds, self._last = seconds, time.monotonic()
    self._closed = threading.Event()
    if seconds:
      threading.Thread(target=self._watch, name='watchdog', daemon=True).start()

  def beat(self):
    """Something moved."""
    self._last = time.monotonic()

  def close(self):
    """Stops watching."""
    self._closed.set()

  def _watch(self):
    while True:
      left = self._last + self._seconds - time.monotonic()
      if left <= 0:
        break
      if self._closed.wait(left):
        return
    _end(
      f'nothing happened for {self._seconds:g} s: another process is gone or hangs; '
      'the same command goes on from the last checkpoint'
    )


class Stop:
  """While entered, SIGTERM (a preemption) only sets `asked`: the run ends where it suits it.

  Outside the main thread it does nothing, as Python allows no handlers there.
  """

  def __init__(self):
    self.asked, self._old = False, None

  def _ask(self, number, frame):
    self.asked = True

  def __enter__(self) -> 'Stop':
    if threading.current_thread() is threading.main_thread():
      self._old = signal.signal(signal.SIGTERM, self._ask)
    return self

  def __exit__(self, *exception):
    if self._old is not None:
      signal.signal(signal.SIGTERM, self._old)
      self._old = None
