# SPDX-License-Identifier: Apache-2.0
"""Which run of several processes this one belongs to: what flags and the environment say.

Neither the network nor a device is touched.
"""

import dataclasses
import importlib.util
import os
from collections.abc import Mapping

from deres_jax.core.errors import UserError

# What each launcher says about the run: quoted where the processes do not meet.
SAYS = {
  'mpi': ('OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_RANK'),
  'slurm': ('SLURM_NTASKS', 'SLURM_PROCID', 'SLURM_STEP_NODELIST'),
  'gke-tpu': ('TPU_WORKER_HOSTNAMES', 'TPU_WORKER_ID', 'MEGASCALE_COORDINATOR_ADDRESS'),
  'tpu-vm': (),
  'kubernetes': ('JOB_COMPLETION_INDEX',),
}
BY_HAND = 'give --coordinator=HOST:PORT --processes=N --process=I, or --distributed=off'


@dataclasses.dataclass(frozen=True)
class Place:
  """One process of a run, by hand."""

  coordinator: str  # HOST:PORT, on the host of process 0
  processes: int
  process: int  # 0 .. processes - 1


def where(
  mode: str,
  coordinator: str | None,
  processes: int | None,
  process: int | None,
  environ: Mapping[str, str],
) -> Place | str | None:
  """What the flags and the environment say: a place, a launcher's name, or None for one process.

  Args:
    mode: auto (a launcher if one is detected) | on (it must be) | off.
    coordinator, processes, process: by hand, all three or none.
  Raises: UserError.
  """
  given = {'--coordinator': coordinator, '--processes': processes, '--process': process}
  missing = [name for name, value in given.items() if value is None]
  if not missing:
    if mode == 'off':
      raise UserError('--distributed=off beside --coordinator: take one of them away')
    host, _, port = coordinator.rpartition(':')
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
      raise UserError(f'--coordinator={coordinator}: expected HOST:PORT, such as 10.0.0.1:8476')
    if processes < 1:
      raise UserError(f'--processes={processes}: expected at least 1')
    if not 0 <= process < processes:
      raise UserError(f'--process={process}: expected 0 to {processes - 1} (--processes - 1)')
    return Place(coordinator, processes, process)
  if len(missing) < len(given):
    raise UserError(f'{" and ".join(missing)} missing: give all of {", ".join(given)}, or none')
  if mode == 'off':
    return None
  launcher = detect(environ)
  if launcher is None and mode == 'on':
    raise UserError(f'--distributed=on, but no launcher of several processes is here: {BY_HAND}')
  return launcher


def detect(environ: Mapping[str, str]) -> str | None:
  """Name of the launcher that started this process as one of several, None without one.

  Looks at the environment and for device files only, in the order in which
  `jax.distributed.initialize()` does, and names only what that call can resolve.

  Raises: UserError where this is one of several processes but JAX could not join them.
  """
  if int(environ.get('OMPI_COMM_WORLD_SIZE', 1)) > 1:
    if 'OMPI_MCA_orte_hnp_uri' not in environ:
      raise UserError(
        f'{environ["OMPI_COMM_WORLD_SIZE"]} Open MPI processes, but from version 5 on it does not '
        'say where the first one is: give --coordinator=HOST:PORT '
        '--processes=$OMPI_COMM_WORLD_SIZE --process=$OMPI_COMM_WORLD_RANK'
      )
    return 'mpi'
  # The batch script itself has no SLURM_STEP_NODELIST: only what srun starts is one of several.
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
    return None  # a TPU machine that was told to work on its CPUs
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
  # JAX sets TPU_SKIP_MDS_QUERY where it finds no chips; then it asks no metadata server either.
  chips = any(os.path.exists(f) for f in ('/dev/accel0', '/dev/vfio/0'))
  return 'tpu-vm' if libtpu and chips and 'TPU_SKIP_MDS_QUERY' not in environ else None


def _installed(module: str) -> bool:
  return importlib.util.find_spec(module) is not None
