# SPDX-License-Identifier: Apache-2.0
"""Trains, evaluates or plans one run.

  python -m deres_jax.main --config=criteo_8l --workdir=DIR --config.data.path=DATA

After an interruption the same command resumes. --config is Python code and is executed. On several
hosts start the same command on each: docs/pods.md. DERES_JAX_ALLOCATOR=system keeps it from
restarting itself with jemalloc: `deres_jax.core.allocator`.
"""

import dataclasses
import gc
import json
import os
import pathlib

from deres_jax.core import allocator, cli, files

if __name__ == '__main__':
  allocator.preload()  # before the imports that take long
  gc.disable()  # collecting during the imports is a sixth of their time and frees nothing

import jax
from absl import app, flags
from ml_collections import config_flags

from deres_jax import config as config_lib
from deres_jax.config import fields
from deres_jax.core.errors import UserError
from deres_jax.costs import machines
from deres_jax.pod import launchers, processes, supervisor
from deres_jax.training import loop, result
from deres_jax.training import run as run_lib
from deres_jax.training.plan import counts, on_mesh

CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'Experiment by name or path; NAME:depth=16,seed=2 or --config.a.b=v sets fields.'
)
WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run: checkpoints, metrics, result.')
MODE = flags.DEFINE_enum(
  'mode', 'train', ['train', 'eval', 'plan'], 'train (and resume) | eval | plan (no training)'
)
PROFILE = flags.DEFINE_string(
  'profile', None, 'START:STEPS: profile these steps into WORKDIR/profile, such as 20:5.'
)

DISTRIBUTED = flags.DEFINE_enum(
  'distributed',
  'auto',
  ['auto', 'on', 'off'],
  'One of several processes: auto (if a launcher says so) | on (it must) | off.',
)
COORDINATOR = flags.DEFINE_string(
  'coordinator', None, 'HOST:PORT of process 0, where no launcher says it.'
)
PROCESSES = flags.DEFINE_integer('processes', None, 'Number of processes, beside --coordinator.')
PROCESS = flags.DEFINE_integer('process', None, 'This process, from 0, beside --coordinator.')


def main(argv: list[str]):
  """Checks the flags, then plans, trains or evaluates."""
  cli.no_arguments(argv)
  if CONFIG.value is None:
    raise UserError('no --config: give an experiment by name or path, such as --config=criteo_8l')
  c = config_lib.resolve(CONFIG.value)
  if PROFILE.value is not None:
    c = dataclasses.replace(c, train=dataclasses.replace(c.train, profile=PROFILE.value))
  launch = launchers.resolve(
    DISTRIBUTED.value, COORDINATOR.value, PROCESSES.value, PROCESS.value, os.environ
  )
  if MODE.value == 'plan':
    _plan(c)
    return
  if c.mesh.topology:
    raise UserError(
      f'config mesh.topology={c.mesh.topology} is for --mode=plan: a run takes the devices that '
      'are here, mesh.devices says how many'
    )
  if not WORKDIR.value:
    raise UserError('no --workdir: give the folder of the run, --workdir=DIR')
  if '://' in WORKDIR.value:
    raise UserError(
      f'--workdir={WORKDIR.value}: is an address, expected a folder; mount a bucket as one '
      '(Cloud Storage FUSE): docs/pods.md'
    )
  if launch is None:
    files.output_folder(WORKDIR.value, '--workdir')
    _work(c)
  else:
    supervisor.run(lambda: _work(c, launch))


def _plan(c: fields.Config):
  """Prints the plan of a run, from one process, whatever the machine it is for."""
  _compilation_cache(c)
  if not c.mesh.topology:
    print(counts.table(counts.make(c, run_lib.build_run(c).spec)))
    return
  machine = machines.find(c.mesh.topology)
  c = on_mesh.for_machine(c, machine)
  mesh, compiler = machines.mesh(machine)  # before anything asks JAX for a device
  run = run_lib.build_run(c, mesh)
  print(on_mesh.text(on_mesh.make(c, run.spec, run.train[0], machine, compiler)))


def _work(c: fields.Config, launch: launchers.ProcessSpec | str | None = None):
  if launch is not None:  # the processes connect before any of them uses a device
    processes.start(launch, c.mesh.start_seconds, c.mesh.heartbeat_seconds)
  _compilation_cache(c)
  workdir = pathlib.Path(WORKDIR.value)
  if MODE.value == 'eval':
    text = json.dumps(loop.evaluate_best(c, workdir), indent=1)
  else:
    text = result.line(loop.train(c, workdir), workdir / 'result.json')
  if processes.is_process_0():
    print(text)


def _compilation_cache(c: fields.Config):
  """Keeps compiled programs for the next start, unless the user's JAX settings name a cache."""
  if c.train.compilation_cache and not os.environ.get('JAX_COMPILATION_CACHE_DIR'):
    home = pathlib.Path(os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache')
    jax.config.update('jax_compilation_cache_dir', str(home / 'deres_jax' / 'xla'))
    # Small programs too: a start has many, and reading one is faster than compiling it.
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
    jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)


if __name__ == '__main__':
  gc.freeze()
  gc.enable()
  app.run(cli.guarded(main), flags_parser=cli.parse)
