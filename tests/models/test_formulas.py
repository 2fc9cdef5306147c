# SPDX-License-Identifier: Apache-2.0
"""FLOPs counted from the jaxpr against closed formulas, for every sub-layer and connector.

Forward, a multiply-add is 2. Backbones: matrix products alone, of a row and a layer. Connectors:
everything of order D, of a token and the whole stack; a read over n sources is 4 n D (scores and
weighted sum), a norm 4 D. Shapes: T tokens, D width, L layers, S sites.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from deres_jax import config, models
from deres_jax.costs import flops
from deres_jax.models import backbones
from deres_jax.models.inputs import Context
from deres_jax.models.stack import Shape

ROWS = 64  # traced: what is computed once a batch is shared out
TOLERANCE = 0.03

# Backbones, at the sizes of docs/models.md's table but wider.

T, D, RATIO, HEADS = 16, 128, 4, 4
RANK = 64  # HiFormer
UNITS, WUKONG_RANK, MADE = 512, 24, T // 2  # Wukong
BLOCK = 8
BLOCKS = T * D // BLOCK  # UniMixer

ATTENTION = 8 * T * D**2 + 4 * T**2 * D
FFN = 4 * RATIO * T * D**2
SWIGLU = 6 * RATIO * T * D**2
UNIMIX = 2 * T * D * BLOCK + 2 * BLOCKS**2 * BLOCK

LAYERS = {
  'transformer': ATTENTION + FFN,
  'onetrans': ATTENTION + FFN,
  'hstu': 10 * T * D**2 + 4 * T**2 * D,
  'autoint': 6 * T * D**2 + 4 * T**2 * D,
  'autoint_plus': 6 * T * D**2 + 4 * T**2 * D,
  'hiformer': 12 * T * D * RANK + 2 * T * D**2 + 4 * T**2 * D + FFN,
  'wukong': 4 * T * WUKONG_RANK * D
  + 2 * (T * WUKONG_RANK * UNITS + UNITS * MADE * D)
  + 2 * (T - MADE) * T * D,
  'rankmixer': FFN,
  'tokenmixer_large': 2 * SWIGLU,
  'unimixer': UNIMIX + SWIGLU,
  'unimixing_lite': UNIMIX + SWIGLU,
}


def test_every_backbone_has_a_formula():
  assert LAYERS.keys() == backbones.TOKEN_BACKBONES.keys()


@pytest.mark.parametrize('name', LAYERS)
def test_a_layer_of_a_backbone(name):
  settings = f'model.backbone={name},model.depth=2,model.dim={D},model.heads={HEADS}'
  settings += f',model.ffn_ratio={RATIO},mixer.hiformer_rank={RANK},mixer.unimixer_block={BLOCK}'
  settings += f',mixer.wukong_units={UNITS},mixer.wukong_rank={WUKONG_RANK}'
  c = config.resolve(config.base(settings))
  backbone = backbones.TOKEN_BACKBONES[name](c, T, 0, jnp.float32)
  x = jax.ShapeDtypeStruct((ROWS, T, D), jnp.float32)
  total = 0
  for sub in backbone.sublayers[: backbone.per_layer]:
    module = sub.module(**sub.sizes)
    variables = jax.eval_shape(module.init, jax.random.key(0), x, Context())
    counted = flops.count(lambda v, x, m=module: m.apply(v, x, Context()), variables, x)
    assert not counted.unknown and not counted.unbounded
    total += counted.total / ROWS
  assert total == pytest.approx(LAYERS[name], rel=TOLERANCE)


# Connectors, wide enough that what does not grow with D is small.

WIDTH, DEPTH, PER_LAYER, BLOCK_LAYERS, N = 256, 8, 2, 2, 4
S = DEPTH * PER_LAYER
B = BLOCK_LAYERS * PER_LAYER  # sub-layers a block


def reads(open_block: bool) -> int:
  """Sources of all reads: the tokens, complete blocks and, if it counts, the open one."""
  return sum(1 + s // B + (open_block and s % B > 0) for s in range(S + 1))


def formulas(d: int) -> dict[str, float]:
  norms = (S + 1) * 4 * d
  pre = norms + S * d
  blocks = S // B
  partial = (S - blocks) * d  # adding up the open block
  recall = pre + partial
  silu = recall + 4 * d * reads(False) + 2 * d * (blocks + 1)
  # The open block is a source too and is normed for each of its reads.
  softmax = recall + 4 * d * reads(True) + 2 * d * (S + 1)
  gate = 3 * d * (S + 1)
  streams = norms + N * d + S * (2 * N * d + 2 * N * d + 2 * N**2 * d)  # read, write, mix
  mhc = streams + S * 3 * N * d + S * 2 * N * d * 2 * N  # norm of all streams, two of the maps
  details = 2 * blocks
  haares = (
    norms
    + 4 * d * reads(True)
    + 2 * d * (1 + blocks + S - blocks)  # sums are normed once, the open block at every read
    + sum(s % B for s in range(S + 1)) * d  # adding up the open block
    + blocks * (2 * B + 2) * d  # a complete one, and its size
    + details * (1.5 * B + 2 + 1 + 2) * d  # signed sum, size, matching, norm
    + 2 * d * sum(2 * (S + 1 - n * B) for n in range(1, blocks + 1))  # scores of details ...
    + 2 * d * sum(2 * (s // B) for s in range(S + 1))  # ... and their weighted sums
  )
  return {
    'prenorm': pre,
    'postnorm': S * 5 * d,
    'projected': S * (2 * d**2 + 2 * d),
    'siamese': (S + 1) * 5 * d + S * 6 * d,
    'interval': pre + (DEPTH // 2 - 1) * d,
    'scalar': pre + S * 2 * d,
    'vector': pre + S * 2 * d,
    'matrix': pre + S * 2 * d**2,
    'rezero': 4 * d + S * 2 * d,
    'layerscale': pre + S * d,
    'highway': norms + S * (2 * d**2 + 8 * d),
    'denseformer': pre + sum(2 * (l + 2) for l in range(DEPTH)) * d,
    'hc': streams + S * (7 * N * d + 2 * N * d * (N + 1) + 2 * N * d),
    # Sinkhorn does not grow with D, but is twenty turns of some six operations a number, twice.
    'mhc': mhc + S * (2 * N * d * N**2 + 20 * 12 * N**2),
    'mhc_lite': mhc + S * math.factorial(N) * (2 * N * d + 2 * N**2),
    'attnres': softmax,
    'attnres_full': norms + S * d + 4 * d * sum(s + 1 for s in range(S + 1)) + 2 * d * (S + 1),
    'attnres_pointwise': softmax,
    'haares': haares,
    'deres': silu + gate,
    'deres_s': softmax + gate,
  }


@pytest.mark.parametrize('name', models.CONNECTORS)
def test_a_connector(name):
  """Under branches that cost nothing."""
  c = config.resolve(
    config.base(f'deres.block_layers={BLOCK_LAYERS},attnres.block_layers={BLOCK_LAYERS}')
  )
  shape = Shape(sites=S, per_layer=PER_LAYER, tokens=T, dim=WIDTH)
  module = models.CONNECTORS[name](c, shape, jnp.float32)
  x = jax.ShapeDtypeStruct((ROWS, T, WIDTH), jnp.float32)

  def run(m, x):
    h = m.start(x)
    for site in range(S):
      u, h = m.read(h, site)
      h = m.write(h, u, site)
    return m.finish(h)

  variables = jax.eval_shape(nn.init(run, module), jax.random.key(0), x)
  counted = flops.count(nn.apply(run, module), variables, x)
  assert not counted.unknown and not counted.unbounded
  assert counted.total / ROWS / T == pytest.approx(formulas(WIDTH)[name], rel=TOLERANCE)


def test_deres_costs_no_more_than_planned():
  """Extra over pre-norm a token with N blocks: 4 d a source read, 4 d a gate, 3 d a key's norm."""
  n = S // B
  sizes = formulas(WIDTH)
  extra = sizes['deres'] - sizes['prenorm']
  closed = WIDTH * (4 * (DEPTH + 1) * (n + 1) + 4 * (2 * DEPTH + 1) + 3 * (n + 1))
  assert 0.95 * closed < extra <= closed
