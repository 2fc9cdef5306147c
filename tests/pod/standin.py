# SPDX-License-Identifier: Apache-2.0
"""Stands in for deres_jax.main in tests of processes: starts like it, then runs one scenario.

python standin.py SCENARIO [--coordinator=HOST:PORT --processes=N --process=I] [--start=S]
"""

import argparse
import atexit
import os
import signal
import sys
import time

import numpy as np

from deres_jax.core.errors import Retry, UserError
from deres_jax.pod import launchers, processes, supervisor


def meet():
  processes.gather(np.int32(0))
  print(f'process 0: {processes.is_process_0()}')


def linger():
  """Does its work and then hangs, like a destructor of the runtime."""
  atexit.register(time.sleep, 600)
  meet()


def tell():
  """Checks that values and errors arrive at all processes."""
  me = 0 if processes.is_process_0() else 1
  long = processes.on_process_0(lambda: {'i': me, 'text': 'ä' * 70_000, 'nan': float('nan')})
  assert (long['i'], len(long['text'])) == (0, 70_000) and long['nan'] != long['nan']
  assert processes.on_process_0(lambda: None) is None
  x = np.array([[2**53 + 1, me]], np.int64)
  assert processes.gather(x).tolist() == [[[2**53 + 1, 0]], [[2**53 + 1, 1]]]
  y = processes.gather(np.float64(1 / 3 + me))
  assert y.dtype == np.float64 and y.tolist() == [1 / 3, 1 + 1 / 3]
  assert processes.gather(np.array(bool(me))).tolist() == [False, True]
  assert processes.gather(np.zeros((0, 3))).shape == (2, 0, 3)
  for kind, text in ((UserError, 'no such folder'), (Retry, 'taken away'), (KeyError, 'k')):
    expected = kind if kind is not KeyError or not me else RuntimeError
    try:
      processes.on_process_0(lambda kind=kind, text=text: _raise(kind(text)))
    except expected as e:
      assert text in str(e)
    else:
      raise AssertionError(kind)
  try:  # not JSON-able: a fault on all processes, no hang
    processes.on_process_0(lambda: {1, 2})
  except (TypeError, RuntimeError) as e:
    assert 'set' in str(e)
  print('told')


def _raise(e):
  raise e


def mistake():
  processes.on_process_0(lambda: _raise(UserError('the folder is of another run')))


def fault():
  if processes.is_process_0():
    raise ValueError('a fault of ours')
  loop()


def loop():
  """Runs collectives forever, like a training loop."""
  processes.gather(np.int32(1))  # connected: from now on a collective notices a lost process
  print(f'pid {os.getpid()}', flush=True)
  while True:
    processes.gather(np.int32(1))
    time.sleep(0.02)


def preempted():
  with processes.Stop() as stop:
    print('ready', flush=True)
    while not stop.requested:
      time.sleep(0.05)
    signal.raise_signal(signal.SIGTERM)  # a second one has no effect
  raise Retry('SIGTERM: saved step 7')


def stall():
  dog = processes.Watchdog(1.0)
  for _ in range(6):  # longer than a second in all
    time.sleep(0.3)
    dog.beat()
  print('ready', flush=True)
  time.sleep(60)


def closed():
  dog = processes.Watchdog(0.5)
  dog.close()
  off = processes.Watchdog(0)
  time.sleep(1)
  off.close()


def asleep():
  print(f'pid {os.getpid()}', flush=True)
  time.sleep(60)


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('scenario')
  parser.add_argument('--coordinator')
  for name in ('processes', 'process'):
    parser.add_argument(f'--{name}', type=int)
  parser.add_argument('--start', type=int, default=30)
  a = parser.parse_args()
  scenarios = (meet, linger, tell, mistake, fault, loop, preempted, stall, closed, asleep)
  by_name = {f.__name__: f for f in scenarios} | {'abort': os.abort, 'exit3': lambda: sys.exit(3)}

  def work():
    launch = launchers.resolve('auto', a.coordinator, a.processes, a.process, {})
    if launch is not None:
      processes.start(launch, a.start, 5)
    by_name[a.scenario]()

  supervisor.run(work)


if __name__ == '__main__':
  main()
