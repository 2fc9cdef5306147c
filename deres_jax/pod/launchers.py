# SPDX-License-Identifier: Apache-2.0
"""Finds out, from flags and the environment, which run of several processes this one belongs to.

Touches neither the network nor a device.
"""

import dataclasses
import importlib.util
import os
from collections.abc import Mapping

from deres_jax.core.errors import UserError

# Environment variables by which each launcher describes the run; quoted when processes do not meet.
VARIABLES = {
  'mpi': ('OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_RANK'),
  'slurm': ('SLURM_NTASKS', 'SLURM_PROCID', 'SLURM_STEP_NODELIST'),
  'gke-tpu': ('TPU_WORKER_HOSTNAMES', 'TPU_WORKER_ID', 'MEGASCALE_COORDINATOR_ADDRESS'),
  'tpu-vm': (),
  'kubernetes': ('JOB_COMPLETION_INDEX',),
}
BY_HAND = 'give --coordinator=HOST:PORT --processes=N --process=I, or --distributed=off'


@dataclasses.dataclass(frozen=True)
class ProcessSpec:
  """One process of a run, as given by flags."""

  coordinator: str  # HOST:PORT, on the host of process 0
  processes: int
  process: int  # 0 .. processes - 1


def resolve(
  mode: str,
  coordinator: str | None,
  processes: int | None,
  process: int | None,
  environ: Mapping[str, str],
) -> ProcessSpec | str | None:
  """Returns the process that the flags describe, a launcher's name, or None for a single process.

  Args:
    mode: auto (use a launcher if there is one) | on (there must be one) | off.
    coordinator, processes, process: all three or none.
  Raises: UserError.
  """
  given = {'--coordinator': coordinator, '--processes': processes, '--process': process}
  missing = [name for name, value in given.items() if value is None]
  if not missing:
    if mode == 'off':
      raise UserError('--distributed=off beside --coordinator: remove one of them')
    host, _, port = coordinator.rpartition(':')
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
      raise UserError(f'--coordinator={coordinator}: expected HOST:PORT, such as 10.0.0.1:8476')
    if processes < 1:
      raise UserError(f'--processes={processes}: expected at least 1')
    if not 0 <= process < processes:
      raise UserError(f'--process={process}: expected 0 to {processes - 1} (--processes - 1)')
    return ProcessSpec(coordinator, processes, process)
  if len(missing) < len(given):
    raise UserError(f'{" and ".join(missing)} missing: give all of {", ".join(given)}, or none')
  if mode == 'off':
    return None
  launcher = detect(environ)
  if launcher is None and mode == 'on':
    raise UserError(f'--distributed=on, but no launcher started this process: {BY_HAND}')
  return launcher


def detect(environ: Mapping[str, str]) -> str | None:
  """Returns the launcher that started this process as one of several, or None.

  Checks environment variables and device files in the order of `jax.distributed.initialize()`, and
  returns only launchers that JAX can join.

  Raises: UserError where this is one of several processes but JAX could not join them.
  """
  if int(environ.get('OMPI_COMM_WORLD_SIZE', 1)) > 1:
    if 'OMPI_MCA_orte_hnp_uri' not in environ:
      raise UserError(
        f'{environ["OMPI_COMM_WORLD_SIZE"]} Open MPI processes, but Open MPI 5 and later do not '
        'say where the first one is: give --coordinator=HOST:PORT '
        '--processes=$OMPI_COMM_WORLD_SIZE --process=$OMPI_COMM_WORLD_RANK'
      )
    return 'mpi'
  # The batch script itself has no SLURM_STEP_NODELIST: only srun starts one of several processes.
  slurm = ('JOB_ID', 'STEP_NODELIST', 'NTASKS', 'PROCID', 'LOCALID')
  if all(f'SLURM_{name}' in environ for name in slurm):
    tasks = environ.get('SLURM_STEP_NUM_TASKS', environ['SLURM_NTASKS'])
    return 'slurm' if int(tasks) > 1 else None
  tpu = _detect_tpu(environ)
  if tpu is not None:
    return tpu
  indexed = 'KUBERNETES_SERVICE_HOST' in environ and 'JOB_COMPLETION_INDEX' in environ
  return 'kubernetes' if indexed and _installed('kubernetes') else None


def _detect_tpu(environ: Mapping[str, str]) -> str | None:
  if environ.get('JAX_PLATFORMS') and 'tpu' not in environ['JAX_PLATFORMS']:
    return None  # a TPU machine whose user asks for its CPUs
  libtpu = _installed('libtpu') or os.path.isfile(environ.get('TPU_LIBRARY_PATH', ''))
  hosts = environ.get('TPU_PROCESS_ADDRESSES', environ.get('TPU_WORKER_HOSTNAMES'))
  if hosts is not None:
    if ',' not in hosts and 'MEGASCALE_COORDINATOR_ADDRESS' not in environ:
      return None
    if not libtpu:
      raise UserError(
        f'one of several TPU hosts ({hosts}), but libtpu is not installed: '
        "pip install -e '.[tpu]', or --distributed=off"
      )
    return 'gke-tpu'
  # JAX sets TPU_SKIP_MDS_QUERY where it finds no chips, and then queries no metadata server.
  chips = any(os.path.exists(f) for f in ('/dev/accel0', '/dev/vfio/0'))
  return 'tpu-vm' if libtpu and chips and 'TPU_SKIP_MDS_QUERY' not in environ else None


def _installed(module: str) -> bool:
  return importlib.util.find_spec(module) is not None
