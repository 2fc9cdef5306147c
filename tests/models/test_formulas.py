# SPDX-License-Identifier: Apache-2.0
"""FLOPs counted from the jaxpr against the formula of every registered model.

Forward, a multiply-add is 2. Backbones: matrix products alone, for an example and a layer.
Connectors: everything of order D, for a token and the whole stack.
"""

import flax.linen as nn
import formulas
import jax
import jax.numpy as jnp
import pytest

from deres_jax import config, models
from deres_jax.costs import flops
from deres_jax.models.classic import CLASSICS
from deres_jax.models.inputs import Context
from deres_jax.models.stack import Shape

EXAMPLES = 64  # traced: what is computed once a batch is shared out
T, WIDTH, DEPTH, PER_LAYER, BLOCK_LAYERS = 16, 256, 8, 2, 2
S, B = DEPTH * PER_LAYER, BLOCK_LAYERS * PER_LAYER


def assert_stated(name, row, counted, formula):
  """Within 3 %: what does not grow with the width is left out."""
  assert not counted.unknown and not counted.unbounded
  assert counted.total == pytest.approx(EXAMPLES * formula, rel=0.03), (
    f'{name}: flops={row.flops!r} of its row gives {formula}, the program has '
    f'{counted.total / EXAMPLES}: state the formula of the program'
  )


@pytest.mark.parametrize('name', models.TOKEN_BACKBONES)
def test_a_layer_of_a_backbone(name):
  c = config.resolve(config.base(f'model.backbone={name},model.depth=2,model.dim=128'))
  row = models.TOKEN_BACKBONES[name]
  x = jax.ShapeDtypeStruct((EXAMPLES, T, c.model.dim), jnp.float32)
  modules = [sub.module(**sub.sizes) for sub in row.sublayers(c, T, 0, jnp.float32)]

  def layer(variables, x):
    return [
      m.apply(v, x, Context()) for m, v in zip(modules[: row.per_layer], variables, strict=True)
    ]

  variables = [
    jax.eval_shape(m.init, jax.random.key(0), x, Context()) for m in modules[: row.per_layer]
  ]
  counted = flops.count(layer, variables, x)
  assert_stated(name, row, counted, formulas.of_backbone(row.flops, c, T))


def wide(name):
  """A connector so wide that what does not grow with D is small."""
  c = config.resolve(
    config.base(f'deres.block_layers={BLOCK_LAYERS},attnres.block_layers={BLOCK_LAYERS}')
  )
  return c, Shape(sites=S, per_layer=PER_LAYER, tokens=T, dim=WIDTH)


def stated(name):
  return formulas.of_connector(models.CONNECTORS[name].flops, *wide(name), B)


@pytest.mark.parametrize('name', models.CONNECTORS)
def test_a_connector(name):
  """Under branches that cost nothing."""
  module = models.CONNECTORS[name].make(*wide(name), jnp.float32)
  x = jax.ShapeDtypeStruct((EXAMPLES, T, WIDTH), jnp.float32)

  def run(m, x):
    h = m.start(x)
    for site in range(S):
      u, h = m.read(h, site)
      h = m.write(h, u, site)
    return m.finish(h)

  variables = jax.eval_shape(nn.init(run, module), jax.random.key(0), x)
  counted = flops.count(nn.apply(run, module), variables, x)
  assert_stated(name, models.CONNECTORS[name], counted, T * stated(name))


def test_deres_costs_no_more_than_planned():
  """Extra over pre-norm a token with n blocks: 4 D a source read, 4 D a gate, 3 D a key's norm."""
  n = S // B
  extra = stated('deres') - stated('prenorm')
  closed = WIDTH * (4 * (DEPTH + 1) * (n + 1) + 4 * (2 * DEPTH + 1) + 3 * (n + 1))
  assert 0.95 * closed < extra <= closed


@pytest.mark.parametrize('name', CLASSICS)
def test_a_classic_model(name):
  width = 1 if name == 'lr' else 16
  c = config.resolve(config.base(f'model.backbone={name},model.embed_dim={width}'))
  layout = models.Layout(30, 20, 3, targets=(0, 1)) if name == 'din' else models.Layout(39)
  module = models.build(c, layout, 0.0)
  embeddings = jax.ShapeDtypeStruct(
    (EXAMPLES, layout.slots, models.embedding_width(c.model)[0]), jnp.float32
  )
  variables = jax.eval_shape(module.init, jax.random.key(0), embeddings, Context())
  counted = flops.count(lambda v, x: module.apply(v, x, Context()), variables, embeddings)
  row = CLASSICS[name]
  assert_stated(name, row, counted, formulas.of_classic(row.flops, c, layout))
