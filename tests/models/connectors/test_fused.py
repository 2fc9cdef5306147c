# SPDX-License-Identifier: Apache-2.0
"""Models that call the CPU's kernels compute what the plain ones compute."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import normal, randomised
from driving import ALONE
from marks import slow

from deres_jax import config, models
from deres_jax.config import fields
from deres_jax.kernels import library
from deres_jax.models.connectors.deres import DeRes
from deres_jax.models.connectors.fused_deres import FusedDeRes
from deres_jax.models.inputs import Context
from deres_jax.models.stack import Shape

# A library that cannot be built fails the tests; only a machine without a compiler skips them.
pytestmark = pytest.mark.skipif(
  'there is no C++ compiler' in (library.missing() or ''), reason=f'{library.missing()}'
)

B, F, D = 6, 5, 16
ROWS = np.float32(normal(B, F, D))


def build(backbone='onetrans', connector='deres', more=''):
  overrides = (
    f'model.backbone={backbone},model.connector={connector},model.dim={D},model.embed_dim={D},'
    f'model.heads=2,model.depth=2,model.ffn_ratio=2,deres.block_layers=1,deres.key_rank=3,'
    f'deres.gate_rank=2,{more}'
  )
  return models.build(config.resolve(config.base(overrides)), models.Layout(F), -1.0)


def traced(module, kernels):
  """Value and gradients of a sum over the logits, not yet compiled, and random parameters."""
  params = randomised(module, ROWS, Context())

  def total(params, rows):
    with library.using(kernels):
      return jnp.sum(jnp.sin(module.apply({'params': params}, rows, Context())))

  return jax.jit(jax.value_and_grad(total, argnums=(0, 1))).trace(params, ROWS), params


def assert_fused(module, *targets):
  (kernel, params), (plain, _) = traced(module, True), traced(module, False)
  assert 'ffi_call' not in str(plain.jaxpr)
  for target in targets:
    assert f'deres_{target}_forward' in str(kernel.jaxpr)
    assert f'deres_{target}_backward' in str(kernel.jaxpr)
  value, grads = kernel.lower().compile()(params, ROWS)
  want, want_grads = plain.lower().compile()(params, ROWS)
  np.testing.assert_allclose(value, want, rtol=1e-4)
  for (path, g), w in zip(
    jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(want_grads), strict=True
  ):
    name = jax.tree_util.keystr(path)
    np.testing.assert_allclose(g, w, rtol=0, atol=5e-4 * np.abs(w).max() + 1e-7, err_msg=name)


@pytest.mark.parametrize(
  'connector', ['prenorm', slow('siamese'), slow('hc'), 'attnres', 'deres', slow('deres_s')]
)
def test_connectors(connector):
  reads = () if connector == 'hc' else ('read',)  # its streams are not [B, T, D]
  assert_fused(build(connector=connector), 'attend', 'dense', 'feed', *reads)


@pytest.mark.parametrize(
  ('backbone', 'targets'),
  [
    ('transformer', ('attend', 'dense', 'feed', 'read')),
    ('rankmixer', ('dense', 'read')),
    slow('hstu', ('dense', 'read')),
  ],
)
def test_backbones(backbone, targets):
  more = 'model.tokenizer=slice,model.tokens=4' if backbone == 'rankmixer' else ''
  assert_fused(build(backbone, more=more), *targets)


# Values that another switch has to allow.
NEEDS = {'rms': ',deres.silu_center=1.2784645', 'attn': ',deres.silu_center=1.2784645'}
# One for each way of the code; the others run among the slow tests.
QUICK = (
  'gate_form=additive', 'gate=lowrank_dynamic', 'query=static_per_token', 'include_partial=True',
  'sites=layer',
)  # fmt: skip


def switches():
  """Every value of every switch but the default, alone."""
  default = dataclasses.asdict(fields.DeRes())
  for name, values in ALONE.items():
    for value in values:
      if value != default[name] and name != 'block_layers':
        case = f'{name}={value}'
        yield case if case in QUICK else slow(case)


@pytest.mark.parametrize('case', list(switches()))
def test_switches_of_deres(case):
  more = f'deres.{case}{NEEDS.get(case.partition("=")[2], "")},deres.query_init=0.1'
  assert_fused(build(more=more), 'attend', 'dense', 'feed')


def test_without_kernels_the_program_is_that_of_deres():
  x = jnp.ones((B, F, D))
  shape = Shape(sites=4, per_layer=2, tokens=F, dim=D)

  def program(kind):
    module = kind(shape, 'rms', jnp.float32, block=2)

    def run(m, x):
      return m.finish(m.write(m.start(x), m.read(m.start(x), 0)[0], 0))

    variables = nn.init(run, module)(jax.random.key(0), x)
    return str(jax.make_jaxpr(nn.apply(run, module))(variables, x))

  assert program(FusedDeRes) == program(DeRes)


def test_bfloat16_and_odd_widths_take_the_plain_form():
  assert 'ffi_call' not in str(traced(build(more='model.dtype=bfloat16'), True)[0].jaxpr)
  odd = str(traced(build(more='model.dim=20'), True)[0].jaxpr)
  assert 'deres_feed' not in odd
  assert 'deres_read' not in odd
