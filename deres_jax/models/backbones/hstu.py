# SPDX-License-Identifier: Apache-2.0
"""HSTU (arXiv 2402.17152): pointwise SiLU attention with a gate, and no feed-forward.

Published for behaviour sequences; on field tokens it is our adaptation.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from deres_jax.config.fields import Config
from deres_jax.models import inputs, layers
from deres_jax.models.stack import SubLayer


class HstuLayer(nn.Module):
  """HSTU's layer without its skip. [B, T, D] -> [B, T, D].

    [u, v, q, k] = SiLU(x W);  A = SiLU(q k^T + bias) / T;  y = (LN(A v) * u) W_o + b_o

  No 1 / sqrt(K) and no softmax, as in the authors' code; a masked key has weight 0. The bias is a
  learned T x T table (theirs depends on relative positions and times). LN has no gain. The
  authors' norm before W has no gain either; here it is the connector's.
  """

  heads: int
  causal: bool
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x_BTD: Array, ctx: inputs.Context) -> Array:
    T, D = x_BTD.shape[1:]
    dense = nn.Dense(
      4 * D,
      use_bias=False,
      dtype=self.dtype,
      kernel_init=nn.initializers.normal(0.02),
      name='uvqk',
    )
    u_BTD, v, q, k = jnp.split(jax.nn.silu(dense(x_BTD)), 4, axis=-1)
    (v,), (q,), (k,) = (layers.split_heads(x, 1, self.heads) for x in (v, q, k))
    bias_TT = self.param('bias', nn.initializers.normal(0.02), (T, T))
    z = jnp.einsum('bhqk,bhtk->bhqt', q, k, preferred_element_type=jnp.float32) + bias_TT
    a = jax.nn.silu(z) / T
    see = layers.visible(T, T, self.causal, ctx)
    if see is not None:
      a = jnp.where(see, a, 0)
    y = layers.join_heads(jnp.einsum('bhqt,bhtk->bhqk', a.astype(self.dtype), v))
    y = y.astype(jnp.float32)
    y = layers.rms(y - jnp.mean(y, axis=-1, keepdims=True)) * u_BTD
    return nn.Dense(D, dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform(), name='out')(
      y
    )


def hstu(c: Config, fields: int, events: int, dtype: jnp.dtype) -> tuple[SubLayer, ...]:
  """Returns one sub-layer a layer. The authors' norm is LayerNorm before it."""
  sizes = dict(heads=c.model.heads, causal=c.model.causal, dtype=dtype)
  return tuple(SubLayer(f'hstu_{l}', HstuLayer, sizes) for l in range(c.model.depth))
