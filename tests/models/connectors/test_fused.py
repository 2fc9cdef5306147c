# SPDX-License-Identifier: Apache-2.0
"""Models that call the CPU's kernels compute what the plain ones compute."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import normal
from marks import slow

from deres_jax import config, models
from deres_jax.kernels import library
from deres_jax.models.inputs import Context

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
  params = module.init(jax.random.key(0), ROWS, Context())['params']
  leaves, tree = jax.tree.flatten(params)
  noise = [0.3 * normal(*p.shape, seed=i) for i, p in enumerate(leaves)]
  params = jax.tree.unflatten(tree, [p + np.float32(x) for p, x in zip(leaves, noise, strict=True)])

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


@pytest.mark.parametrize(
  'switches',
  [
    'gate_form=additive',
    slow('gate_form=additive_gated'),
    slow('gate=scalar'),
    'gate=lowrank_dynamic',
    'query=static_per_token',
    slow('query=lowrank_dynamic'),
    slow('compress=token_mean'),
    slow('compress=lowrank_key'),
    'include_partial=True',
    'sites=layer',
    slow('readout_mix=False'),
    slow('mix_site=stream'),
    slow('path=attn,deres.silu_center=1.2784645'),
    slow('path=identity'),
    slow('silu_norm=rms,deres.silu_center=1.2784645'),
  ],
)
def test_switches_of_deres(switches):
  assert_fused(build(more=f'deres.{switches}'), 'attend', 'dense', 'feed')


def test_bfloat16_and_odd_widths_take_the_plain_form():
  assert 'ffi_call' not in str(traced(build(more='model.dtype=bfloat16'), True)[0].jaxpr)
  odd = str(traced(build(more='model.dim=20'), True)[0].jaxpr)
  assert 'deres_feed' not in odd
  assert 'deres_read' not in odd
