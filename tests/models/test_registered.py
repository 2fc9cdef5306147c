# SPDX-License-Identifier: Apache-2.0
"""Every registered connector and backbone is the equation of its paper, written as a loop."""

import jax
import numpy as np
import pytest
import registered
from arrays import F32, PLAIN, assert_close, double, normal, randomised
from driving import B, D, T, assert_same_run, embedding, loop, make_branches, run

from deres_jax import config
from deres_jax.models import CONNECTORS, TOKEN_BACKBONES
from deres_jax.models.stack import Shape

# Few Sinkhorn iterations leave columns off 1, so that the order of rows and columns shows.
SMALL = (
  'model.depth=1,model.heads=2,model.ffn_ratio=2,mlp.units=6,mixer.hiformer_rank=3,'
  'mixer.wukong_rank=3,mixer.wukong_units=6,mixer.wukong_layers=2,mixer.unimixer_block=2,'
  'mixer.unimixer_bases=3,mixer.unimixer_rank=2,mixer.unimixer_iterations=3,'
  'mixer.unimixer_tau_end=0.525,hyper.streams=3,hyper.sinkhorn_iterations=3,'
  f'residual.interval_layers=1,model.dim={D}'
)
LAYERS, PER_LAYER = 5, 2  # blocks of 2 layers leave a short last one


def resolve(overrides):
  return config.resolve(config.base(f'{SMALL},{overrides}'))


@pytest.mark.parametrize('norm', ['rms', 'layer'])
@pytest.mark.parametrize('name', CONNECTORS)
def test_a_connector_is_its_reference(name, norm):
  c = resolve(f'model.norm={norm},model.connector={name}')
  shape = Shape(LAYERS * PER_LAYER, PER_LAYER, T, D)
  module, branches = CONNECTORS[name].make(c, shape, F32), make_branches(shape.sites)

  def all_parameters(m, x):  # some norms are made in the last write
    return loop(m, x, branches)[1]

  like = jax.eval_shape(
    lambda: module.init(jax.random.key(0), np.ones((B, T, D), F32), method=all_parameters)
  )['params']
  rng = np.random.default_rng(2)
  params = jax.tree.map(lambda p: np.float32(0.5 + 0.5 * rng.normal(size=p.shape)), like)
  reference = registered.find(f'connector_{name}')
  want = reference(double(params), c, PER_LAYER, embedding(), branches)
  assert_same_run(run(module, params, branches), want)


@pytest.mark.parametrize('name', TOKEN_BACKBONES)
def test_the_sublayers_of_a_backbone_are_its_reference(name):
  c, x_BTD = resolve(f'model.backbone={name}'), np.float32(normal(B, T, D))
  row = TOKEN_BACKBONES[name]
  loops = registered.find(f'backbone_{name}')(c)
  for sub, reference in zip(row.sublayers(c, T, 0, F32), loops, strict=True):
    module = sub.module(**sub.sizes)
    params = randomised(module, x_BTD, PLAIN)
    got_BTD = jax.jit(module.apply)({'params': params}, x_BTD, PLAIN)
    assert got_BTD.dtype == F32
    assert_close(got_BTD, reference(double(params), np.float64(x_BTD)))


@pytest.mark.parametrize('kind', ['connector', 'backbone'])
def test_what_has_no_reference_says_what_to_add(kind):
  with pytest.raises(pytest.fail.Exception, match=f'function {kind}_missing in a file of tests'):
    registered.find(f'{kind}_missing')
