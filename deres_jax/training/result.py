# SPDX-License-Identifier: Apache-2.0
"""The content of result.json, with an audit of how the run was made.

The audit keeps only environment variables that are named here, and JAX's own options: no secrets.
"""

import os
import pathlib
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from typing import Any

import jax

from deres_jax import config as config_lib
from deres_jax import models
from deres_jax.core import allocator, terminal
from deres_jax.data.schema import Schema
from deres_jax.training.checkpoints.store import Clock
from deres_jax.training.plan import counts
from deres_jax.training.run import Run

_PACKAGES = ('deres_jax', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')
_AUDITED = (
  *_PACKAGES,
  *('scipy', 'grain', 'tensorflow-datasets', 'array-record', 'ml-collections', 'chex', 'etils'),
)
# They change programs, devices, memory or the order of sums.
_VARIABLES = (
  *('XLA_FLAGS', 'LIBTPU_INIT_ARGS', 'XLA_CLIENT_MEM_FRACTION', 'XLA_PYTHON_CLIENT_MEM_FRACTION'),
  *('XLA_PYTHON_CLIENT_PREALLOCATE', 'XLA_PYTHON_CLIENT_ALLOCATOR', 'CUDA_VISIBLE_DEVICES'),
  *('TPU_VISIBLE_DEVICES', 'DERES_JAX_ALLOCATOR', 'LD_PRELOAD', 'MALLOC_CONF', 'OMP_NUM_THREADS'),
)
_GIT_SECONDS = 10  # longest time for a git command


def content(
  run: Run, clock: Clock, figures: dict[str, float], workdir: pathlib.Path
) -> dict[str, Any]:
  """Returns the content of result.json, except how the checkpoint was chosen.

  Takes the whole run, because result.json describes all of it; `figures` are of the test split.
  """
  c, schema, spec = run.config, run.schema, run.spec
  plan = counts.make(c, spec)
  device = spec.mesh.devices.flat[0]
  return {
    'audit': audit(schema),
    'config_hash': config_lib.config_hash(c),
    'seed': c.seed,
    'backbone': c.model.backbone,
    'connector': models.connector_name(c.model),
    'depth': c.model.depth,
    'dim': c.model.dim,
    **figures,
    'params_dense': plan.params_dense,
    'params_embedding': plan.params_embedding,
    'flops_forward_per_row': plan.flops_forward_per_row,
    'flops_connector_extra': plan.flops_connector_extra,
    'train_flops': plan.flops_train_per_row * clock.rows_seen,
    'rows_seen': clock.rows_seen,
    'rows_per_second': clock.rows_seen / clock.wall_seconds,
    'steps': run.steps,
    'steps_skipped': clock.skipped,
    'rollbacks': clock.rollbacks,
    'wall_seconds': clock.wall_seconds,
    'device': {
      'platform': device.platform,
      'kind': device.device_kind,
      'count': spec.mesh.size,
      'processes': jax.process_count(),
    },
    'allocator': allocator.name(),
    'kernels': spec.kernels,
    'versions': _versions(_PACKAGES),
    'dataset': schema.dataset,
    'data_content': schema.content,
    'planted': schema.planted,
    'test_logits': str((workdir / 'test_logits.npy').absolute()),
  }


def line(content: dict[str, Any], file: pathlib.Path) -> str:
  """Describes a finished run in one line, from its result.json, perhaps of an earlier version."""
  device = content['device']
  return (
    f'test auc {_figure(content["auc"])} (se {_figure(content["auc_se"])})  '
    f'logloss {content["logloss"]:.5f}  {content["rows_per_second"]:,.0f} rows/s  '
    f'{content["steps"]:,} steps in {terminal.duration(content["wall_seconds"])} '
    f'on {device["count"]} x {device["kind"]}  malloc of {content.get("allocator", "unknown")}  '
    f'{file}'
  )


def _figure(value: float | None) -> str:
  return 'none' if value is None else f'{value:.5f}'


def audit(schema: Schema) -> dict[str, Any]:
  """Returns by which command, code, packages and machine, and on which data, the run was made."""
  splits = schema.splits
  return {
    'command': shlex.join(sys.argv),
    'git': git(pathlib.Path(__file__)),
    'versions': _versions(_AUDITED),
    'host': {
      'name': platform.node(),
      'system': f'{sys.platform} {platform.release()}',
      'machine': platform.machine(),
      'processor': _processor(),
      'cores': os.cpu_count(),
    },
    'environment': environment(os.environ),
    'data': {
      name: {
        'rows': splits[name].rows,
        'clicks': splits[name].clicks,
        'content_sha256': schema.content[name],
      }
      for name in splits
    },
  }


def _versions(packages: tuple[str, ...]) -> dict[str, str]:
  versions = {name: metadata.version(name) for name in packages}
  return {'python': platform.python_version(), **versions}


def environment(environ: Any) -> dict[str, str]:
  """Selects the environment variables named above and the options of JAX."""
  jax_options = {name.upper() for name in jax.config.values if name.startswith('jax_')}
  return {k: v for k, v in sorted(environ.items()) if k in _VARIABLES or k in jax_options}


def _processor() -> str:
  """Returns the processor's name from Linux, else from Python."""
  info = pathlib.Path('/proc/cpuinfo')
  if info.is_file():
    for line in info.read_text(errors='replace').splitlines():
      key, _, value = line.partition(':')
      if key.strip() == 'model name':
        return value.strip()
  return platform.processor()


def git(file: pathlib.Path) -> dict[str, Any] | None:
  """Returns the git revision of a source file, and whether its repository has changes.

  None without git, and for a file that is not tracked: a package installed in a folder of another
  repository has nothing to do with that one.
  """
  if _git(file, 'ls-files', '--error-unmatch', file.name) is None:
    return None
  revision = _git(file, 'rev-parse', 'HEAD')
  changed = _git(file, 'status', '--porcelain', '--untracked-files=no')
  if revision is None or changed is None:
    return None
  return {'revision': revision, 'dirty': bool(changed)}


def _git(file: pathlib.Path, *args: str) -> str | None:
  # A repository can name programs for git to run, and the environment can name another repository.
  command = ['git', '-c', 'core.fsmonitor=false', '-c', 'core.hooksPath=/dev/null', *args]
  environ = {k: v for k, v in os.environ.items() if not k.startswith('GIT_')}
  environ |= {'GIT_OPTIONAL_LOCKS': '0'}
  try:
    done = subprocess.run(
      command,
      cwd=file.parent,
      env=environ,
      stdin=subprocess.DEVNULL,
      capture_output=True,
      text=True,
      errors='replace',
      timeout=_GIT_SECONDS,
      check=False,
    )
  except (OSError, subprocess.TimeoutExpired):
    return None
  return done.stdout.strip() if done.returncode == 0 else None
