# SPDX-License-Identifier: Apache-2.0
"""UniMixer and UniMixing-Lite (arXiv 2604.00590): learned doubly stochastic mixing.

The tokens side by side are cut into N blocks of size K. A local K x K matrix a block mixes inside
blocks, one global N x N matrix mixes blocks; RankMixer's head mixing is the case of K = D / T,
local matrices I and a permutation as global one.

Shapes: B examples, T tokens, D width, N = T D / K blocks, K block size, L bases, R rank.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from deres_jax.config.fields import Config
from deres_jax.core.errors import UserError
from deres_jax.models import inputs, layers
from deres_jax.models.connectors.multi_stream import sinkhorn
from deres_jax.models.stack import SubLayer


def unimix(x_BTD: Array, local_NKK: Array, global_NN: Array) -> Array:
  """Mixes inside blocks, h_i = x_i W_i, then across them, o_n = sum_i W_ni h_i. [B, T, D]."""
  N, K = local_NKK.shape[:2]
  x_NBK = x_BTD.reshape(-1, N, K).swapaxes(0, 1)
  h_NBK = jnp.einsum('nbk,nkj->nbj', x_NBK, local_NKK)
  o_BNK = jnp.einsum('mn,nbk->bmk', global_NN, h_NBK)
  return o_BNK.reshape(x_BTD.shape)


def temperature(start: float, end: float, progress: Array | float) -> Array | float:
  """Returns tau, linear from `start` at the first step to `end` at the last."""
  return start + (end - start) * progress


class UniMixing(nn.Module):
  """UniMixer's token mixing. [B, T, D] -> [B, T, D].

    W = Sinkhorn((V + V^T) / (2 tau)): doubly stochastic, sharper as tau falls
    full: V free;  lite: V_i = sum_l w_il Z_l over L shared bases, V_global = A B of rank R

  The paper gives no initial values: logits V start with deviation 1 (our reading), so that at
  tau = 1 mixing is soft but not flat. Weights are formed once a batch, in float32.
  """

  block: int
  bases: int  # 0: full
  rank: int
  iterations: int
  tau_start: float
  tau_end: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x_BTD: Array, ctx: inputs.Context) -> Array:
    N, K = x_BTD.shape[1] * x_BTD.shape[2] // self.block, self.block
    normal = nn.initializers.normal
    if self.bases:
      w_NL = self.param('local_weights', normal(self.bases**-0.5), (N, self.bases))
      z_LKK = self.param('local_bases', normal(1.0), (self.bases, K, K))
      a_NR = self.param('global_left', normal(self.rank**-0.25), (N, self.rank))
      b_RN = self.param('global_right', normal(self.rank**-0.25), (self.rank, N))
      local, across = jnp.einsum('nl,lkj->nkj', w_NL, z_LKK), a_NR @ b_RN
    else:
      local = self.param('local_logits', normal(1.0), (N, K, K))
      across = self.param('global_logits', normal(1.0), (N, N))
    tau = temperature(self.tau_start, self.tau_end, ctx.progress)

    def stochastic(v: Array) -> Array:
      return sinkhorn((v + v.swapaxes(-1, -2)) / (2 * tau), self.iterations).astype(self.dtype)

    return unimix(x_BTD.astype(self.dtype), stochastic(local), stochastic(across))


class UniMixerBlock(nn.Module):
  """O = RMS(u + UniMixing(u)), then a SwiGLU a token: one composite sub-layer.

  The paper wraps a whole block in SiameseNorm: connector siamese.
  """

  tokens: int
  ratio: int
  mixing: dict
  dtype: jnp.dtype
  out_scale: float

  @nn.compact
  def __call__(self, x_BTD: Array, ctx: inputs.Context) -> Array:
    y = UniMixing(dtype=self.dtype, name='mixing', **self.mixing)(x_BTD, ctx)
    norm = layers.SiteNorms(1, x_BTD.shape[-1], 'rms', self.dtype, name='norm')
    o = norm(x_BTD.astype(jnp.float32) + y.astype(jnp.float32), 0)
    swiglu = layers.SwiGLU(self.tokens, self.ratio, self.dtype, self.out_scale, name='swiglu')
    return swiglu(o)


def unimixer(c: Config, fields: int, events: int, dtype: jnp.dtype) -> tuple[SubLayer, ...]:
  """Returns UniMixer's sub-layers, one a layer."""
  return _sublayers(c, fields, 0, dtype)


def unimixing_lite(c: Config, fields: int, events: int, dtype: jnp.dtype) -> tuple[SubLayer, ...]:
  """Returns UniMixing-Lite's sub-layers, one a layer."""
  return _sublayers(c, fields, c.mixer.unimixer_bases, dtype)


def _sublayers(c: Config, fields: int, bases: int, dtype: jnp.dtype) -> tuple[SubLayer, ...]:
  m, x = c.model, c.mixer
  if fields * m.dim % x.unimixer_block:
    raise UserError(
      f'config mixer.unimixer_block={x.unimixer_block} does not divide the '
      f'{fields} x {m.dim} = {fields * m.dim} numbers of all tokens'
    )
  mixing = dict(
    block=x.unimixer_block,
    bases=bases,
    rank=x.unimixer_rank,
    iterations=x.unimixer_iterations,
    tau_start=x.unimixer_tau_start,
    tau_end=x.unimixer_tau_end,
  )
  sizes = dict(tokens=fields, ratio=m.ffn_ratio, mixing=mixing, dtype=dtype, out_scale=1 / m.depth)
  return tuple(SubLayer(f'block_{l}', UniMixerBlock, sizes) for l in range(m.depth))
