# SPDX-License-Identifier: Apache-2.0
"""Runs of several processes: detection, meeting, communication, and every way to end.

Real processes on 127.0.0.1; `standin.py` does the work that deres_jax.main would do.
"""

import contextlib
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from deres_jax import config
from deres_jax.config import fields
from deres_jax.core.errors import Retry, UserError
from deres_jax.pod import __main__ as pod
from deres_jax.pod import launchers, supervisor
from deres_jax.pod import processes as processes_lib

REPO = pathlib.Path(__file__).resolve().parents[2]
STANDIN = [sys.executable, str(REPO / 'tests' / 'pod' / 'standin.py')]
POD = (
  'import sys; from deres_jax.pod import __main__ as pod;'
  'sys.exit(pod.run(sys.argv[2:], 2, 2, 40.0))'
)
LIMIT = 60  # seconds after which a test counts as hanging; JAX itself would abort later


@pytest.fixture
def processes():
  """Starts commands; none of them outlives the test.

  A distributed command supervises itself with a second process, which imports JAX too. Tests that
  are not about that supervisor take its place, as `deres_jax.pod` does.
  """
  started = []

  def start(command, supervised=False, **more):
    environ = {**os.environ, 'PYTHONPATH': str(REPO), 'JAX_NUM_CPU_DEVICES': '2', **more}
    if supervised:
      process = subprocess.Popen(
        command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
      )
    else:
      process = supervisor.spawn(command, environ, subprocess.PIPE)
    started.append(process)
    return process

  yield start
  for process in started:
    process.kill()  # its child dies with it
    process.communicate(timeout=LIMIT)


# The CPU's collectives print it, at times in pieces.
GREETING = re.compile(r'(\[\d\] )?(\[Gloo\] Rank.*)?')


def end(process):
  """Exit code, stdout and stderr lines."""
  out, err = process.communicate(timeout=LIMIT)
  code, message = supervisor.verdict(process.returncode)
  out = [x for x in out.splitlines() if not GREETING.fullmatch(x)]
  return code, out, [*err.splitlines(), *([message] if message else [])]


def line(process, pattern):
  """Reads stdout until `pattern`."""
  for text in process.stdout:
    if found := re.search(pattern, text):
      return found
  raise AssertionError(f'{pattern}: {process.communicate()[1]}')


def at(address, processes, process):
  return [f'--coordinator={address}', f'--processes={processes}', f'--process={process}']


@pytest.fixture
def address():
  with socket.create_server(('127.0.0.1', 0)) as server:
    return f'127.0.0.1:{server.getsockname()[1]}'


# Detection.

SLURM = {
  'SLURM_JOB_ID': '7', 'SLURM_STEP_NODELIST': 'n[1-2]', 'SLURM_NTASKS': '2', 'SLURM_PROCID': '0',
  'SLURM_LOCALID': '0', 'SLURM_STEP_NUM_TASKS': '2',
}  # fmt: skip
MPI = {'OMPI_COMM_WORLD_SIZE': '2', 'OMPI_MCA_orte_hnp_uri': '4096.0;tcp://127.0.0.1:1'}
GKE = {'TPU_WORKER_HOSTNAMES': 'a,b', 'TPU_SKIP_MDS_QUERY': 'true', 'KUBERNETES_SERVICE_HOST': 'x'}
K8S = {'KUBERNETES_SERVICE_HOST': '10.0.0.1', 'JOB_COMPLETION_INDEX': '0'}


@pytest.mark.parametrize(
  'environ, installed, files, expected',
  [
    ({}, ['libtpu', 'kubernetes'], [], None),
    (SLURM, [], [], 'slurm'),
    (SLURM | {'SLURM_STEP_NUM_TASKS': '1'}, [], [], None),
    (SLURM | {'SLURM_STEP_NUM_TASKS': '1'}, ['kubernetes'], [], None),
    # The batch script, before srun.
    ({k: v for k, v in SLURM.items() if 'STEP' not in k}, [], [], None),
    (MPI, [], [], 'mpi'),
    (MPI | SLURM, [], [], 'mpi'),  # as JAX decides
    (MPI | {'OMPI_COMM_WORLD_SIZE': '1'}, [], [], None),
    (GKE, ['libtpu'], [], 'gke-tpu'),
    (GKE | K8S, ['libtpu', 'kubernetes'], [], 'gke-tpu'),
    (GKE | {'JAX_PLATFORMS': 'cpu'}, ['libtpu'], [], None),
    (GKE | {'JAX_PLATFORMS': 'tpu,cpu'}, ['libtpu'], [], 'gke-tpu'),
    ({'TPU_WORKER_HOSTNAMES': 'localhost'}, ['libtpu'], ['/dev/vfio/0'], None),
    (
      {'TPU_WORKER_HOSTNAMES': 'a', 'MEGASCALE_COORDINATOR_ADDRESS': 'b'},
      ['libtpu'],
      [],
      'gke-tpu',
    ),
    ({'TPU_PROCESS_ADDRESSES': 'a:1,b:1'}, ['libtpu'], [], 'gke-tpu'),
    ({}, ['libtpu'], ['/dev/accel0'], 'tpu-vm'),
    ({}, ['libtpu'], ['/dev/vfio/0'], 'tpu-vm'),
    ({}, [], ['/dev/vfio/0'], None),
    ({'JAX_PLATFORMS': 'cpu'}, ['libtpu'], ['/dev/accel0'], None),
    ({'TPU_SKIP_MDS_QUERY': '1'}, ['libtpu'], ['/dev/accel0'], None),
    (K8S, ['kubernetes'], [], 'kubernetes'),
    (K8S, [], [], None),
    ({'KUBERNETES_SERVICE_HOST': '10.0.0.1'}, ['kubernetes'], [], None),
  ],
)
def test_detection(monkeypatch, environ, installed, files, expected):
  monkeypatch.setattr(launchers, '_installed', lambda name: name in installed)
  monkeypatch.setattr(launchers.os.path, 'exists', lambda path: path in files)
  assert launchers.detect(environ) == expected
  assert launchers.resolve('off', None, None, None, environ) is None
  if expected:
    assert launchers.resolve('on', None, None, None, environ) == expected
  else:
    with pytest.raises(UserError, match='no launcher'):
      launchers.resolve('on', None, None, None, environ)


@pytest.mark.parametrize(
  'environ, text',
  [
    ({'OMPI_COMM_WORLD_SIZE': '2'}, r'Open MPI.*--process=\$OMPI_COMM_WORLD_RANK'),
    ({'TPU_WORKER_HOSTNAMES': 'a,b'}, 'libtpu is not installed'),
  ],
)
def test_a_run_that_jax_cannot_join_is_an_error(monkeypatch, environ, text):
  """Otherwise each process would silently train its own copy."""
  monkeypatch.setattr(launchers, '_installed', lambda name: False)
  with pytest.raises(UserError, match=text):
    launchers.detect(environ)
  assert launchers.resolve('auto', 'a:1', 2, 1, environ) == launchers.ProcessSpec('a:1', 2, 1)


@pytest.mark.parametrize(
  'flags, text',
  [
    (('auto', 'a:1', 2, None), '--process missing'),
    (('auto', None, 2, None), '--coordinator and --process missing'),
    (('off', 'a:1', 2, 0), '--distributed=off beside'),
    (('auto', 'a', 2, 0), 'expected HOST:PORT'),
    (('auto', 'a:b', 2, 0), 'expected HOST:PORT'),
    (('auto', 'a:70000', 2, 0), 'expected HOST:PORT'),
    (('auto', 'a:1', 0, 0), '--processes=0'),
    (('auto', 'a:1', 2, 2), 'expected 0 to 1'),
    (('auto', 'a:1', 2, -1), 'expected 0 to 1'),
  ],
)
def test_wrong_flags(flags, text):
  with pytest.raises(UserError, match=text):
    launchers.resolve(*flags, {})


@pytest.mark.parametrize('field', ['start_seconds=0', 'heartbeat_seconds=4', 'stall_seconds=-1'])
def test_wrong_times(field):
  with pytest.raises(UserError, match='expected at least'):
    config.resolve(config.base(f'mesh.{field}'))


# Meeting.


@pytest.mark.parametrize(
  'error, expected',
  [
    (RuntimeError('the pod has no controller'), UserError),  # Kubernetes, half configured
    (KeyError('SLURM_LOCALID'), UserError),
    (jax.errors.JaxRuntimeError('UNKNOWN: Failed to start RPC server'), Retry),
    (ConnectionError('metadata.google.internal'), Retry),
  ],
)
def test_a_launcher_that_jax_cannot_read(monkeypatch, error, expected):
  def initialize(**arguments):
    raise error

  monkeypatch.setattr(jax.distributed, 'initialize', initialize)
  monkeypatch.setenv('SLURM_NTASKS', '4')
  with pytest.raises(expected, match='slurm'):
    processes_lib.start('slurm', 30, 10)
  with pytest.raises(Retry if expected is Retry else type(error)):  # by hand: a fault of ours
    processes_lib.start(launchers.ProcessSpec('127.0.0.1:1', 2, 1), 30, 10)


def main_command(tmp_path, *more):
  file = REPO / 'experiments' / 'quickstart.py'
  flags = [f'--config={file}', f'--workdir={tmp_path}/w', '--config.mesh.start_seconds=3']
  return [sys.executable, '-m', 'deres_jax.main', *flags, *more]


@pytest.mark.parametrize('process', [0, 1])
def test_a_single_process_of_two_times_out(processes, tmp_path, address, process):
  """Process 0 has no peer, process 1 no coordinator."""
  command = main_command(tmp_path, *at(address, 2, process))
  code, out, err = end(processes(command, supervised=process == 0))
  assert (code, out, len(err)) == (75, [], 1), err
  assert address in err[0] and '2 processes' in err[0] and 'within 3 s' in err[0]


def test_two_processes_of_three_time_out(processes, address):
  pair = [processes([*STANDIN, 'meet', '--start=3', *at(address, 3, i)]) for i in range(2)]
  for process in pair:
    code, out, err = end(process)
    # The one that waited longer may have seen the other give up, and its runtime abort.
    assert (code, out) == (75, []) and err[-1].startswith('stopped: '), err


def test_a_late_process_joins(processes, address):
  first = processes([*STANDIN, 'meet', *at(address, 2, 0)])
  time.sleep(3)
  second = processes([*STANDIN, 'meet', *at(address, 2, 1)])
  assert end(second) == (0, ['process 0: False'], [])
  assert end(first) == (0, ['process 0: True'], [])


def test_a_process_that_restarts_too_soon_ends_the_old_run(processes, address):
  """The others notice only now that it was gone, and all can meet again."""
  pair = [processes([*STANDIN, 'asleep', *at(address, 2, i)]) for i in range(2)]
  pids = [int(line(process, r'pid (\d+)')[1]) for process in pair]
  os.kill(pids[1], signal.SIGKILL)
  end(pair[1])
  again = processes([*STANDIN, 'meet', *at(address, 2, 1)])
  code, _, err = end(pair[0])
  assert code == 75 and err[-1].startswith('stopped: '), err
  first = processes([*STANDIN, 'meet', *at(address, 2, 0)])
  codes = [end(p)[0] for p in (first, again)]
  assert codes in ([0, 0], [75, 75])


def test_a_process_ends_when_its_work_is_done(processes, address):
  pair = [processes([*STANDIN, 'linger', *at(address, 2, i)]) for i in range(2)]
  ends = [end(process) for process in pair]
  assert [(code, out) for code, out, _ in ends] == [(0, [f'process 0: {i == 0}']) for i in range(2)]


def test_a_port_in_use_is_an_error(processes):
  with socket.create_server(('127.0.0.1', 0)) as server:
    address = f'127.0.0.1:{server.getsockname()[1]}'
    code, out, err = end(processes([*STANDIN, 'meet', *at(address, 2, 0)]))
  assert (code, out, len(err)) == (2, [], 1), err
  assert address in err[0] and 'choose another port' in err[0]


def test_mistakes_are_reported_before_waiting_for_other_processes(processes, tmp_path):
  process = processes(main_command(tmp_path, '--processes=2'))
  code, out, err = end(process)
  assert (code, out, len(err)) == (2, [], 1) and '--coordinator and --process' in err[0]


def test_unequal_numbers_of_devices_are_an_error(processes, address):
  pair = [
    processes([*STANDIN, 'meet', *at(address, 2, i)], JAX_NUM_CPU_DEVICES=str(i + 1))
    for i in range(2)
  ]
  for process in pair:
    code, _, err = end(process)
    # The first to notice reports it; the other may only see a lost process.
    said = {2: ['[1, 2] devices'], 75: ['gone', 'another one may have ended first']}[code]
    assert any(x in line for x in said for line in err), err
  assert 2 in [process.returncode for process in pair]


# Communication.


def run_pod(processes, scenario):
  return processes([sys.executable, '-c', POD, '--', *STANDIN, scenario], supervised=True)


def test_all_processes_receive_values_and_errors(processes):
  code, out, err = end(run_pod(processes, 'tell'))
  assert (code, sorted(out)) == (0, ['[0] told', '[1] told']), err


def test_a_mistake_on_process_0_ends_all_with_2(processes):
  code, out, err = end(run_pod(processes, 'mistake'))
  assert (code, out) == (2, [])
  assert [f'[{i}] error: the folder is of another run' for i in range(2)] == sorted(err)


def test_a_single_process_does_the_local_thing():
  assert processes_lib.is_process_0() and processes_lib.on_process_0(lambda: (1, 2)) == (1, 2)
  x = np.array([2**53 + 1])
  assert processes_lib.gather(x).tolist() == [[2**53 + 1]]


# The end.


@pytest.mark.parametrize('victim', [0, 1])
def test_a_process_killed_in_a_collective_ends_the_others_with_75(processes, address, victim):
  pair = [processes([*STANDIN, 'loop', *at(address, 2, i)]) for i in range(2)]
  pids = [int(line(process, r'pid (\d+)')[1]) for process in pair]
  os.kill(pids[victim], signal.SIGKILL)
  code, _, err = end(pair[victim])
  assert (code, len(err)) == (137, 1) and err[0].startswith('killed: from outside (SIGKILL)')
  code, _, err = end(pair[1 - victim])
  assert code == 75 and err[-1].startswith('stopped: '), err
  # Either the error in the collective or the runtime's abort may come first.
  assert 'gone' in err[-1] and 'goes on from the last checkpoint' in err[-1]


@pytest.mark.parametrize(
  'error, expected',
  [
    (jax.errors.JaxRuntimeError('UNKNOWN: Gloo AllReduce failed: Connection closed by peer'), True),
    (jax.errors.JaxRuntimeError('UNAVAILABLE: failed to connect to all addresses'), True),
    (jax.errors.JaxRuntimeError('DEADLINE_EXCEEDED: Barrier timed out. Id: save'), True),
    (TimeoutError('Timeout waiting at barrier "x": INTERNAL: Task 1 heartbeat timeout.'), True),
    (TimeoutError('timed out'), False),
    (jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes'), False),
    (jax.errors.JaxRuntimeError('INTERNAL: an INVALID program'), False),
    (ValueError('gloo: connection closed'), False),
  ],
)
def test_detection_of_a_lost_process(error, expected):
  """A missed loss prevents the restart; a false one would repeat a fault forever."""
  assert bool(processes_lib.lost_process(error)) == expected
  outer = RuntimeError('while saving')
  outer.__cause__ = error
  assert bool(processes_lib.lost_process(outer)) == expected


def test_a_hanging_process_counts_as_dead(processes, address):
  pair = [processes([*STANDIN, 'loop', *at(address, 2, i)], supervised=i == 1) for i in range(2)]
  pids = [int(line(process, r'pid (\d+)')[1]) for process in pair]
  os.kill(pids[1], signal.SIGSTOP)
  code, _, err = end(pair[0])
  assert code == 75 and err[-1].startswith('stopped: '), err
  pair[1].kill()
  assert gone(pids[1])


def gone(pid):
  for _ in range(100):
    with contextlib.suppress(FileNotFoundError):
      if pathlib.Path(f'/proc/{pid}/stat').read_text().split()[2] != 'Z':
        time.sleep(0.05)
        continue
    return True
  return False


def test_a_fault_in_one_process_keeps_its_trace_and_its_code(processes):
  code, _, err = end(run_pod(processes, 'fault'))
  assert code == 1
  assert '[0] ValueError: a fault of ours' in err and '[0] Traceback' in '\n'.join(err)
  assert any(x.startswith('[1] stopped: ') for x in err), err


@pytest.mark.parametrize(
  'scenario, code, text',
  [
    ('abort', 75, 'stopped: the runtime aborted'),
    ('stall', 75, 'stopped: nothing happened for 1 s'),
    ('closed', 0, None),
    ('exit3', 3, None),
  ],
)
def test_how_a_single_process_ends(processes, scenario, code, text):
  got, _, err = end(processes([*STANDIN, scenario], supervised=True))
  err = [x for x in err if x and 'Fatal Python error' not in x]
  assert got == code and (err[-1:] or [''])[0].startswith(text or ''), err


@pytest.mark.parametrize(
  'scenario, ready, number, code, text',
  [
    ('preempted', 'ready', signal.SIGTERM, 75, 'stopped: SIGTERM: saved step 7'),
    ('asleep', 'pid', signal.SIGTERM, 75, 'stopped: on request'),
    ('asleep', 'pid', signal.SIGINT, 130, 'interrupted: '),
  ],
)
def test_signals_reach_the_child(processes, scenario, ready, number, code, text):
  process = processes([*STANDIN, scenario], supervised=True)
  line(process, ready)
  process.send_signal(number)
  got, _, err = end(process)
  assert (got, len(err)) == (code, 1) and err[0].startswith(text)


def test_a_signal_to_a_pod_reaches_all(processes):
  process = run_pod(processes, 'loop')
  for _ in range(2):
    line(process, 'pid')
  process.send_signal(signal.SIGTERM)
  code, _, err = end(process)
  assert code == 75 and any('on request' in x for x in err), err


def test_the_child_dies_with_its_parent(processes):
  process = processes([*STANDIN, 'asleep'], supervised=True)
  pid = int(line(process, r'pid (\d+)')[1])
  process.kill()
  assert gone(pid)


@pytest.mark.parametrize(
  'status, signals, code, word',
  [
    (0, [], 0, None),
    (2, [], 2, None),
    (75, [signal.SIGTERM], 75, None),
    (-6, [], 75, 'SIGABRT'),
    (-9, [], 137, 'memory'),
    (-9, [signal.SIGINT] * 2, 130, 'interrupted'),
    (-11, [], 139, 'SIGSEGV'),
    (-15, [], 143, 'SIGTERM'),
    (-15, [signal.SIGTERM], 75, 'on request'),
  ],
)
def test_verdict(status, signals, code, word):
  got, text = supervisor.verdict(status, signals)
  assert got == code and (text is None) == (word is None) and (word or '') in (text or '')


@pytest.mark.parametrize(
  'codes, code',
  [([0, 0], 0), ([75, 2], 2), ([75, 1], 1), ([137, 75], 75), ([0, 137], 137), ([130, 0], 130)],
)
def test_worst_code_of_a_pod(codes, code):
  assert pod.worst(codes) == code


def test_pod_starts_main(processes):
  command = [sys.executable, '-m', 'deres_jax.pod', '--processes=1', '--devices=1', '--']
  code, out, err = end(processes([*command, '--config=none.py', '--nosuch=1'], supervised=True))
  assert (code, out) == (2, []) and [x[:10] for x in err] == ['[0] error:']


# The page.


@pytest.mark.parametrize('target', ['pod-tpu', 'pod-gke', 'pod-slurm'])
def test_printed_commands_are_shell(target):
  text = subprocess.run(
    ['make', '-s', target], cwd=REPO, capture_output=True, text=True, check=True
  ).stdout
  assert 'deres_jax.main' in text and 'experiments/criteo_8l.py' in text and '```' not in text
  assert 'mpirun' not in text
  subprocess.run(['bash', '-n'], input=text, text=True, check=True)


def test_the_page_states_the_default_times():
  page = (REPO / 'docs' / 'pods.md').read_text()
  times = dict(re.findall(r'\| `mesh\.(\w+_seconds)` \| (\d+) \|', page))
  assert times == {
    name: str(value) for name, value in vars(fields.Mesh()).items() if name.endswith('_seconds')
  }
