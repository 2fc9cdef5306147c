# SPDX-License-Identifier: Apache-2.0
"""Shared by tests: sweep folders that are written here, with known effects and exponents."""

import json

import numpy as np

from deres_jax import config
from deres_jax.core import files

DEPTHS, DIMS, ALPHA = (2, 4, 8, 12, 16), (64, 128), 0.8
TRUTH = {'OneTrans': ('prenorm', 0.071, 0.046), 'DeRes': ('deres', 0.118, 0.043)}


# result.json of a finished run.
RESULT = {
  'config_hash': '0',
  'seed': 0,
  'backbone': 'onetrans',
  'connector': 'deres',
  'depth': 2,
  'dim': 64,
  'auc': 0.7,
  'auc_se': 0.003,
  'auc_validation': 0.7,
  'logloss': 0.45,
  'calibration': 1.0,
  'rows': 1500,
  'params_dense': 1000,
  'params_embedding': 5000,
  'flops_forward_per_row': 2.5e6,
  'flops_connector_extra': 0.03,
  'train_flops': 1e12,
  'rows_per_second': 1000.0,
  'steps': 20,
  'wall_seconds': 9.0,
  'dataset': 'toy',
  'data_content': {'test': 'abc'},
  'planted': {},
  'device': {'kind': 'cpu', 'count': 1},
  'versions': {'jax': '1.2'},
  'test_logits': '/elsewhere/test_logits.npy',
}


def forward(depth, dim, connector):
  """FLOPs a row; a connector costs a little more."""
  return 24.0 * depth * dim**2 * 40 * (1.0 if connector == 'prenorm' else 1.03)


def result(run, auc, rng):
  """The config of a run, and result.json as it would write it."""
  c = config.base('data.path=/data/x4 train')
  c.update_from_flattened_dict({k: v for k, v in run.items() if k != 'name'})
  frozen = config.resolve(c)
  flops = forward(frozen.model.depth, frozen.model.dim, frozen.model.connector)
  base = forward(frozen.model.depth, frozen.model.dim, 'prenorm')
  return frozen, {
    **RESULT,
    'config_hash': config.config_hash(frozen),
    'seed': frozen.seed,
    'backbone': frozen.model.backbone,
    'connector': frozen.model.connector,
    'depth': frozen.model.depth,
    'dim': frozen.model.dim,
    'auc': auc,
    'auc_validation': auc + 1e-4 * rng.standard_normal(),
    'params_dense': 1000 * frozen.model.depth,
    'flops_forward_per_row': flops,
    'flops_connector_extra': flops / base - 1,
    'train_flops': 3e6 * flops,
  }


def points(noise=1e-4, seeds=3, truth=TRUTH, depths=DEPTHS, dims=DIMS):
  """Config fields and AUC of every run."""
  rng = np.random.default_rng(3)
  for name, (connector, gamma, gap) in truth.items():
    for depth in depths:
      for dim in dims:
        c = forward(depth, dim, connector) / forward(2, 64, 'prenorm')
        for seed in range(seeds):
          fields = {'name': name, 'model.connector': connector}
          fields |= {'model.depth': depth, 'model.dim': dim, 'seed': seed}
          yield fields, ALPHA - gap * c**-gamma + noise * rng.standard_normal()


def folder(path, some, unfinished=0, **more):
  """A sweep folder of points; the last `unfinished` have no result."""
  rng, listed = np.random.default_rng(2), []
  some = list(some)
  for i, (fields, auc) in enumerate(some):
    frozen, content = result(fields, auc, rng)
    id = content['config_hash']
    overrides = {k: v for k, v in fields.items() if k != 'name'}
    name = fields.get('name', ', '.join(f'{k}={v}' for k, v in overrides.items() if k != 'seed'))
    listed.append({'id': id, 'name': name, 'seed': fields['seed'], 'overrides': overrides})
    workdir = path / 'runs' / id
    workdir.mkdir(parents=True)
    stored = {'config': config.as_dict(frozen), 'identity': config.identity(frozen)}
    stored |= {'data_content': (content | more)['data_content']}
    (workdir / 'config.json').write_text(json.dumps(stored))
    if i < len(some) - unfinished:
      (workdir / 'result.json').write_text(json.dumps(content | more))
  files.write_json(path / 'sweep.json', listed)
  return str(path)
