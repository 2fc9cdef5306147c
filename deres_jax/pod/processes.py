# SPDX-License-Identifier: Apache-2.0
"""A run of several processes: how they meet, communicate and end.

Every host (or every GPU) starts one process with the same command. With a single process nothing
here touches a device or the network, and every function does the obvious local thing.
"""

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from deres_jax.core.errors import Retry, UserError
from deres_jax.pod.launchers import BY_HAND, VARIABLES, ProcessSpec

# JAX aborts the process with a stack trace at its own time-out: ours must come first.
_MARGIN_SECONDS = 60

# Words by which the runtime (Gloo, NCCL, the coordination service, gRPC) reports a lost process.
_LOST = (
  'gloo', 'connection closed', 'connection reset', 'connection refused', 'socket closed',
  'broken pipe', 'coordination service', 'coordinationservice', 'heartbeat', 'unavailable:',
  'deadline_exceeded', 'barrier timed out', 'remote process exited', 'ncclremoteerror',
)  # fmt: skip


# The start.


def start(launch: ProcessSpec | str, start_seconds: int, heartbeat_seconds: int):
  """Joins all processes; returns when all are there and know each other's devices.

  Must come before any use of a device.

  Args:
    launch: this process, or the launcher that JAX asks for it.
    start_seconds: time for all processes to join, late ones included; then exit code 75.
    heartbeat_seconds: silence after which a process counts as dead.
  Raises: UserError, Retry.
  """
  by_hand = isinstance(launch, ProcessSpec)
  arguments = _arguments(launch) if by_hand else {}
  # JAX's own preemption service would take SIGTERM away from `Stop`.
  jax.config.update('jax_enable_preemption_service', False)
  timer = threading.Timer(start_seconds, _give_up, [launch, start_seconds])
  timer.daemon = True
  timer.start()
  try:
    jax.distributed.initialize(
      **arguments,
      initialization_timeout=start_seconds + _MARGIN_SECONDS,
      heartbeat_timeout_seconds=heartbeat_seconds,
      # At the end the others wait for process 0, which may still be writing.
      shutdown_timeout_seconds=max(300, start_seconds),
    )
    devices = jax.devices()  # the second half of the meeting: processes exchange their devices
  except Exception as e:
    if any(isinstance(x, jax.errors.JaxRuntimeError | OSError) for x in _chain(e)):
      raise Retry(
        f'{_describe(launch)} did not come together ({_first_line(e)}): '
        'another one may have ended first, and says why'
      ) from e
    if by_hand:
      raise
    raise UserError(
      f'{launch} was detected, but JAX cannot join its processes: {_first_line(e)}: {BY_HAND}'
    ) from e
  finally:
    timer.cancel()
  counts = np.bincount([d.process_index for d in devices], minlength=jax.process_count())
  if len(set(counts.tolist())) > 1:
    raise UserError(
      f'the processes have {counts.tolist()} devices: give each the same number of them'
    )


def _arguments(spec: ProcessSpec) -> dict[str, Any]:
  """Returns the arguments of jax.distributed.initialize, once the coordinator's port is free.

  On Linux two coordinators can share a port, which would mix up two runs.
  """
  host, _, port = spec.coordinator.rpartition(':')
  if spec.process == 0:
    try:
      socket.create_server(('', int(port))).close()
    except OSError as e:
      raise UserError(
        f'--coordinator={spec.coordinator}: port {port} of this host cannot be opened '
        f'({os.strerror(e.errno)}): another program or run uses it; choose another port in all '
        'processes'
      ) from e
  loopback = host in ('localhost', '127.0.0.1', '[::1]')
  return {
    'coordinator_address': spec.coordinator,
    'num_processes': spec.processes,
    'process_id': spec.process,
    'cluster_detection_method': 'deactivate',
    'coordinator_bind_address': spec.coordinator if loopback else None,
  }


def _describe(launch: ProcessSpec | str) -> str:
  if isinstance(launch, ProcessSpec):
    return (
      f'the {launch.processes} processes at coordinator {launch.coordinator} '
      f'(this is process {launch.process})'
    )
  variables = ', '.join(f'{k}={os.environ[k]}' for k in VARIABLES[launch] if k in os.environ)
  return f'the processes of {launch}{f" ({variables})" if variables else ""}'


def _give_up(launch: ProcessSpec | str, seconds: int):
  _exit_retry(
    f'{_describe(launch)} were not all there within {seconds} s: check that every process was '
    'started and is alive, that its host reaches that address and port (firewall, name), and that '
    'all were given the same numbers; to wait longer: --config.mesh.start_seconds'
  )


def _exit_retry(message: str) -> NoReturn:
  """Ends the process from any thread: a hanging main thread would never see an exception."""
  print(f'stopped: {message}', file=sys.stderr, flush=True)
  sys.stdout.flush()
  os._exit(75)


# During the run.


def _is_distributed() -> bool:
  return jax.distributed.is_initialized() and jax.process_count() > 1


def shutdown() -> bool:
  """Waits until all processes are done and disconnects them; returns false for a single one."""
  distributed = _is_distributed()
  if distributed:
    jax.distributed.shutdown()
  return distributed


def is_process_0() -> bool:
  """Returns whether this process writes and prints."""
  return not _is_distributed() or jax.process_index() == 0


def on_process_0(fn: Callable[[], Any]) -> Any:
  """Runs `fn` on process 0; all processes return its result or raise its error.

  All must call it, at the same point. The result must be JSON-able; with several processes all
  get what JSON makes of it (tuples become lists). A UserError or Retry keeps its type, any other
  exception becomes a RuntimeError that quotes it.
  """
  if not _is_distributed():
    return fn()
  text, error = '', None
  if jax.process_index() == 0:
    try:
      text = json.dumps(['', fn()])
    except UserError as e:
      text, error = json.dumps(['UserError', str(e)]), e
    except Retry as e:
      text, error = json.dumps(['Retry', str(e)]), e
    except Exception as e:
      text, error = json.dumps(['fault', f'process 0: {type(e).__name__}: {e}']), e
  kind, value = json.loads(_broadcast(text))
  if error is not None:
    raise error
  if kind:
    raise {'UserError': UserError, 'Retry': Retry}.get(kind, RuntimeError)(value)
  return value


def _broadcast(text: str) -> str:
  """Sends process 0's text to all, padded to a power of two so that few programs are compiled."""
  data = np.frombuffer(text.encode(), np.uint8)
  length = int(multihost_utils.broadcast_one_to_all(np.int32(data.size)))
  padded = np.zeros(max(1024, 1 << (length - 1).bit_length()), np.uint8)
  if jax.process_index() == 0:
    padded[:length] = data
  return np.asarray(multihost_utils.broadcast_one_to_all(padded))[:length].tobytes().decode()


def gather(x: np.ndarray) -> np.ndarray:
  """Stacks the processes' arrays of one shape and dtype as [processes, ...], exactly."""
  x = np.asarray(x)
  if not _is_distributed():
    return x[None]
  # As bytes, since JAX would truncate 64-bit numbers to 32 bits.
  data = np.frombuffer(np.ascontiguousarray(x).tobytes(), np.uint8)
  rows = np.ascontiguousarray(multihost_utils.process_allgather(data))
  return rows.view(x.dtype).reshape(jax.process_count(), *x.shape)


# The end: another process is lost, nothing progresses, or the machine is preempted.


def _chain(e: BaseException) -> Iterator[BaseException]:
  while e is not None:
    yield e
    e = e.__cause__ or e.__context__


def _first_line(e: BaseException) -> str:
  return (str(e).strip() or type(e).__name__).splitlines()[0][:200]


def lost_process(e: BaseException) -> str | None:
  """Returns the runtime's message about a lost process, or None if `e` has another cause."""
  for x in _chain(e):
    text = ' '.join(str(x).split()).replace('Error dispatching computation: ', '')
    # Orbax quotes an error of the runtime at one of its barriers in a TimeoutError.
    runtime = isinstance(x, jax.errors.JaxRuntimeError | TimeoutError)
    if runtime and any(word in text.lower() for word in _LOST):
      return text[:200]
  return None


class Watchdog:
  """Ends a stalled process with code 75: a lost process can leave a collective hanging."""

  def __init__(self, seconds: float):
    """Sets the longest time between two beats; 0 turns it off."""
    self._seconds, self._last = seconds, time.monotonic()
    self._closed = threading.Event()
    if seconds:
      threading.Thread(target=self._watch, name='watchdog', daemon=True).start()

  def beat(self):
    """Reports progress."""
    self._last = time.monotonic()

  def close(self):
    """Stops watching."""
    self._closed.set()

  def _watch(self):
    while (left := self._last + self._seconds - time.monotonic()) > 0:
      if self._closed.wait(left):
        return
    _exit_retry(
      f'nothing happened for {self._seconds:g} s: another process is gone or hangs; '
      'the same command goes on from the last checkpoint'
    )


class Stop:
  """While entered, SIGTERM (a preemption) only sets `requested`; the run ends when it is ready.

  Has no effect outside the main thread, where Python allows no handlers.
  """

  def __init__(self):
    self.requested, self._old = False, None

  def _request(self, number, frame):
    self.requested = True

  def __enter__(self) -> 'Stop':
    if threading.current_thread() is threading.main_thread():
      self._old = signal.signal(signal.SIGTERM, self._request)
    return self

  def __exit__(self, *exception):
    if self._old is not None:
      signal.signal(signal.SIGTERM, self._old)
      self._old = None
