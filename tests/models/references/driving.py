# SPDX-License-Identifier: Apache-2.0
"""Drives a connector and its reference over the same branches.

Shapes: B rows, T tokens, D width.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import reference
from arrays import assert_close, double

from deres_jax import config, models
from deres_jax.models.stack import Shape

B, T, D = 3, 4, 8
DEPTH, PER_LAYER = 5, 2  # blocks of 2 and of 3 layers leave a short last one
TAU = 1.2784645  # SiLU(TAU) = 1
# Sizes that the defaults take from a larger width, and no zero start: relu is refused with it.
SMALL = {'key_rank': 3, 'gate_rank': 2, 'query_init': 0.1}

ALONE = {
  'mix_site': ['read', 'stream'],
  'sites': ['sublayer', 'layer'],
  'block_layers': [1, 2, 3, 5],
  'compress': ['sum', 'mean', 'last', 'token_mean', 'lowrank_key'],
  'include_partial': [False, True],
  'query': ['static', 'static_per_token', 'lowrank_dynamic', 'shared'],
  'score_fn': ['silu', 'softmax', 'softmax1', 'sigmoid', 'tanh', 'relu', 'silu_clipped'],
  'score_scale': [0.5],
  'silu_norm': ['none', 'n_src', 'rms'],
  'silu_center': [0.0, TAU],
  'gate': ['vector', 'scalar', 'lowrank_dynamic', 'dense'],
  'gate_form': ['convex', 'additive', 'additive_gated'],
  'readout_mix': [True, False],
  'path': ['dual', 'identity', 'attn'],
  'identity_kind': ['identity', 'scalar', 'vector', 'matrix'],
}


def resolve(switches=(), **model):
  """The config of a dict of switches; `model` are fields of config.model."""
  c = config.base()
  c.model.update({'dim': D, 'heads': 2, **model})
  c.deres.update(dict(switches))
  return config.resolve(c)


def connector(c, name='deres', depth=DEPTH, per_layer=PER_LAYER, dtype=jnp.float32):
  shape = Shape(sites=depth * per_layer, per_layer=per_layer, tokens=T, dim=D)
  return models.CONNECTORS[name].make(c, shape, dtype)


def embedding(seed=0):
  """x_0 as the tokenizer leaves it: the RMS of every token is 1."""
  x_BTD = np.random.default_rng(seed).normal(size=(B, T, D))
  return x_BTD / np.sqrt(np.mean(x_BTD**2, axis=-1, keepdims=True))


def make_branches(sites, mixes=True, seed=1):
  """Sub-layers tanh(M u W) for NumPy or JAX; without `mixes`, M = 1 and tokens stay apart."""
  rng = np.random.default_rng(seed)
  branches = []
  for _ in range(sites):
    m_TT = np.eye(T) + (rng.normal(size=(T, T)) * 0.3 if mixes else 0)
    w_DD = rng.normal(size=(D, D)) * 0.6
    branches.append(lambda u, xp=np, m_TT=m_TT, w_DD=w_DD: xp.tanh(m_TT @ (u @ w_DD)))
  return branches


def loop(module, x_BTD, branches):
  """What models.stack does, with all inputs and states kept."""
  h, inputs, states = module.start(x_BTD), [], []
  for site, branch in enumerate(branches):
    u_BTD, h = module.read(h, site)
    inputs.append(u_BTD)
    states.append(h)
    h = module.write(h, branch(u_BTD, jnp).astype(u_BTD.dtype), site)
  return inputs, module.finish(h), [*states, h]


def initial(module):
  """Parameters as a run starts with them: one read makes them all."""
  make = nn.init(lambda m, x: m.read(m.start(x), 0)[0], module)
  return make(jax.random.key(0), jnp.zeros((B, T, D)))['params']


def randomised(module, seed=2):
  """Every parameter off its start, since zeros and ones hide mistakes."""
  rng = np.random.default_rng(seed)

  def draw(path, like):
    start = float(path[-1].key in ('scale', 'keep'))
    if path[-1].key == 'keep' and like.ndim == 3:
      start = np.eye(D)
    return np.float32(start + 0.3 * rng.normal(size=like.shape))

  return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(lambda: initial(module)))


def run(module, params, branches, x_BTD=None):
  x_BTD = embedding() if x_BTD is None else x_BTD
  forward = nn.apply(lambda m, x: loop(m, x, branches), module)
  return forward({'params': params}, jnp.asarray(x_BTD, jnp.float32))


def assert_same_run(got, want):
  for got_BTD, want_BTD in zip([*got[0], got[1]], [*want[0], want[1]], strict=True):
    assert_close(got_BTD, want_BTD)


def check_deres(switches, norm='rms', per_layer=PER_LAYER):
  c = resolve({**SMALL, **switches}, norm=norm)
  branches = make_branches(DEPTH * per_layer)
  module = connector(c, per_layer=per_layer)
  params = randomised(module)
  want = reference.deres(
    double(params), dataclasses.asdict(c.deres), norm, per_layer, embedding(), branches
  )
  assert_same_run(run(module, params, branches), want)


def in_words(value):
  """The id of a parametrised case: its switches."""
  if isinstance(value, dict):
    return ','.join(f'{name}={word}' for name, word in value.items()) or 'default'
  return str(value)
