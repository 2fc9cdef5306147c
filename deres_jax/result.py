# SPDX-License-Identifier: Apache-2.0
"""What a finished run says of itself: result.json."""

import pathlib
import platform
from importlib import metadata
from typing import Any

import jax

from deres_jax import allocator, audit, live, models
from deres_jax import config as config_lib
from deres_jax import plan as plan_lib
from deres_jax.checkpoint import Clock
from deres_jax.schema import Schema
from deres_jax.setup import Setup

_PACKAGES = ('deres_jax', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')


def content(
  c: config_lib.Config,
  schema: Schema,
  setup: Setup,
  steps: int,
  clock: Clock,
  figures: dict[str, float],
  workdir: pathlib.Path,
) -> dict[str, Any]:
  """What result.json holds, but for how the checkpoint was chosen."""
  plan = plan_lib.make(c, setup)
  device = setup.mesh.devices.flat[0]
  return {
    'audit': audit.make(schema),
    'config_hash': config_lib.config_hash(c),
    'seed': c.seed,
    'backbone': c.model.backbone,
    'connector': models.connector_of(c),
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
    'steps': steps,
    'steps_skipped': clock.skipped,
    'rollbacks': clock.rollbacks,
    'wall_seconds': clock.wall_seconds,
    'device': {
      'platform': device.platform,
      'kind': device.device_kind,
      'count': setup.mesh.size,
      'processes': jax.process_count(),
    },
    'allocator': allocator.name(),
    'kernels': setup.kernels,
    'versions': {
      'python': platform.python_version(),
      **{name: metadata.version(name) for name in _PACKAGES},
    },
    'dataset': schema.dataset,
    'data_content': schema.content,
    'planted': schema.planted,
    'test_logits': str((workdir / 'test_logits.npy').absolute()),
  }


def line(content: dict[str, Any], file: pathlib.Path) -> str:
  """A finished run in one line, as a command ends with it.

  Args:
    content: of result.json, which may be of an earlier version.
    file: where it is.
  """
  device = content['device']
  return (
    f'test auc {content["auc"]:.5f} (se {content["auc_se"]:.5f})  '
    f'logloss {content["logloss"]:.5f}  {content["rows_per_second"]:,.0f} rows/s  '
    f'{content["steps"]:,} steps in {live.duration(content["wall_seconds"])} '
    f'on {device["count"]} x {device["kind"]}  malloc of {content.get("allocator", "unknown")}  '
    f'{file}'
  )
