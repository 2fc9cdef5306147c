# SPDX-License-Identifier: Apache-2.0
"""Interaction models outside the token factory; they share tables, loop and metrics.

All take table rows [B, S, E] and give logits [B]; behaviour sequences, if any, reach them as the
mean of each event attribute (DIN: as a weighted sum). Where a model has a linear part, the last
column of a row is its weight in it: E = model.embed_dim + 1.

Shapes: B rows, F fields, E row width (without the linear weight), X = F * E, U hidden units.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from deres_jax.models import heads, inputs, layers, tokenizer

Array = jax.Array

_xavier = nn.initializers.xavier_uniform()


class Classic(nn.Module):
  """What all of them know: the data's layout and the settings that they share."""

  layout: inputs.Layout
  prior_logit: float
  embed_dropout: float
  mlp: dict  # units, depth, dropout of the hidden layers
  dtype: jnp.dtype

  def fields(self, rows_BSE: Array, ctx: inputs.Context) -> Array:
    """Rows of all fields, with the embeddings' noise. [B, F, E]."""
    rows_BSE = layers.dropout(rows_BSE, self.embed_dropout, ctx, layers.EMBED_SALT)
    return tokenizer.pooled(rows_BSE, self.layout, ctx)

  def hidden(self, x_BX: Array, ctx: inputs.Context, name: str, salt: int = 2**17) -> Array:
    """The hidden layers. [B, X] -> [B, U]."""
    return layers.Mlp(**self.mlp, salt=salt, dtype=self.dtype, name=name)(x_BX, ctx)

  def logit(self, *parts_BI: Array) -> Array:
    """One linear map of all parts side by side, from the prior log odds. [B]."""
    return heads.logit(self, jnp.concatenate(parts_BI, axis=-1), self.prior_logit)


def _flat(x: Array) -> Array:
  return x.reshape(x.shape[0], -1)


def _split_linear(rows_BFE: Array) -> tuple[Array, Array]:
  """Vectors [B, F, E - 1] and the sum of linear weights [B], float32."""
  return rows_BFE[..., :-1], jnp.sum(rows_BFE[..., -1], axis=1, dtype=jnp.float32)


def factorization(v_BFE: Array) -> Array:
  """sum_{i<j} <v_i, v_j> in linear time (Rendle 2010): half of (square of sum - sum of squares)."""
  v = v_BFE.astype(jnp.float32)
  return 0.5 * jnp.sum(jnp.sum(v, axis=1) ** 2 - jnp.sum(v * v, axis=1), axis=-1)


class LogisticRegression(Classic):
  """sum_f w[id_f] + b: the table is one column wide."""

  @nn.compact
  def __call__(self, rows_BSE: Array, ctx: inputs.Context) -> Array:
    rows_BF1 = self.fields(rows_BSE, ctx)
    bias = self.param('bias', nn.initializers.constant(self.prior_logit), ())
    return jnp.sum(rows_BF1, axis=(1, 2), dtype=jnp.float32) + bias


class FactorizationMachine(Classic):
  """LR + sum_{i<j} <v_i, v_j> (Rendle 2010)."""

  @nn.compact
  def __call__(self, rows_BSE: Array, ctx: inputs.Context) -> Array:
    v_BFE, linear_B = _split_linear(self.fields(rows_BSE, ctx))
    bias = self.param('bias', nn.initializers.constant(self.prior_logit), ())
    return linear_B + factorization(v_BFE) + bias


class Dnn(Classic):
  """Hidden layers over all rows side by side."""

  @nn.compact
  def __call__(self, rows_BSE: Array, ctx: inputs.Context) -> Array:
    return self.logit(self.hidden(_flat(self.fields(rows_BSE, ctx)), ctx, 'mlp'))


class DeepFM(Classic):
  """FM + hidden layers over the same vectors (arXiv 1703.04247)."""

  @nn.compact
  def __call__(self, rows_BSE: Array, ctx: inputs.Context) -> Array:
    v_BFE, linear_B = _split_linear(self.fields(rows_BSE, ctx))
    deep_B = self.logit(self.hidden(_flat(v_BFE), ctx, 'mlp'))
    return linear_B + factorization(v_BFE) + deep_B


class DCNv2(Classic):
  """Cross layers beside hidden layers: DCN-V2, parallel (arXiv 2008.13535).

  x_{l+1} = x_0 * (W_l x_l + b_l) + x_l, W_l [X, X] or of low rank U V^T;  logit of [x_L ; MLP(x_0)]
  """

  depth: int
  rank: int  # 0: full

  @nn.compact
  def __call__(self, rows_BSE: Array, ctx: inputs.Context) -> Array:
    x0 = _flat(self.fields(rows_BSE, ctx)).astype(self.dtype)
    x, X = x0, x0.shape[-1]
    for l in range(self.depth):
      y = x
      if self.rank:
        down = self.param(f'cross_{l}_down', _xavier, (X, self.rank))
        y = y @ down.astype(self.dtype)
      y = nn.Dense(X, dtype=self.dtype, kernel_init=_xavier, name=f'cross_{l}')(y)
      x = x0 * y + x
    return self.logit(x, self.hidden(x0, ctx, 'mlp').astype(x.dtype))


class XDeepFM(Classic):
  """LR + compressed interaction network + hidden layers (arXiv 1803.05170).

  X^k_h = sum_ij W^k_hij (X^{k-1}_i * X^0_j), [B, maps, E];  every layer is summed over E
  """

  depth: int
  maps: int

  @nn.compact
  def __call__(self, rows_BSE: Array, ctx: inputs.Context) -> Array:
    v_BFE, linear_B = _split_linear(self.fields(rows_BSE, ctx))
    x0 = v_BFE.astype(self.dtype)
    F = x0.shape[1]
    x, pooled = x0, []
    for l in range(self.depth):
      init = nn.initializers.variance_scaling(1.0, 'fan_avg', 'uniform', in_axis=(1, 2), out_axis=0)
      w_HIF = self.param(f'cin_{l}', init, (self.maps, x.shape[1], F)).astype(self.dtype)
      x = jnp.einsum('hij,bije->bhe', w_HIF, x[:, :, None] * x0[:, None])
      pooled.append(jnp.sum(x, axis=-1))
    return linear_B + self.logit(*pooled, self.hidden(_flat(v_BFE), ctx, 'mlp'))


class Dlrm(Classic):
  """Hidden layers over all pairwise dot products (arXiv 1906.00091).

  Numbers are fields of buckets here as all others are, so there is no bottom network.
  """

  @nn.compact
  def __call__(self, rows_BSE: Array, ctx: inputs.Context) -> Array:
    v_BFE = self.fields(rows_BSE, ctx).astype(self.dtype)
    dots_BFF = jnp.einsum('bie,bje->bij', v_BFE, v_BFE)
    i, j = jnp.triu_indices(v_BFE.shape[1], k=1)
    return self.logit(self.hidden(dots_BFF[:, i, j], ctx, 'mlp'))


class MaskNet(Classic):
  """Instance-guided masks on normed embeddings, blocks in parallel (arXiv 2102.07619).

    mask = W_2 ReLU(W_1 x_0);  block = ReLU(LN(W (mask * LN(x_0))));  logit of MLP([blocks])

  LN of the embeddings is a field's own; W_1 is `ratio` times as wide as x_0.
  """

  blocks: int
  ratio: float
  units: int

  @nn.compact
  def __call__(self, rows_BSE: Array, ctx: inputs.Context) -> Array:
    rows_BFE = self.fields(rows_BSE, ctx)
    _, F, E = rows_BFE.shape
    x0 = _flat(rows_BFE).astype(self.dtype)

    def dense(width, name):
      return nn.Dense(width, dtype=self.dtype, kernel_init=_xavier, name=name)

    norms = layers.SiteNorms(F, E, 'layer', self.dtype, name='field_norms')
    normed = _flat(norms(rows_BFE, slice(None)))
    norms = layers.SiteNorms(self.blocks, self.units, 'layer', self.dtype, name='block_norms')
    out = []
    for i in range(self.blocks):
      wide = jax.nn.relu(dense(max(1, round(self.ratio * F * E)), f'mask_{i}_in')(x0))
      mask = dense(F * E, f'mask_{i}_out')(wide)
      out.append(jax.nn.relu(norms(dense(self.units, f'block_{i}')(mask * normed), i)))
    return self.logit(self.hidden(jnp.concatenate(out, axis=-1), ctx, 'mlp'))


class FinalMLP(Classic):
  """Two streams of hidden layers, fused by a bilinear form a head (arXiv 2304.00902).

    o_i = MLP_i(2 sigmoid(gate_i) * x_0);  z = sum_k o_1k^T W_k o_2k + w_1^T o_1 + w_2^T o_2 + b

  gate_i = MLP of a learned context, with `gate_units` hidden units; 0: no gates, which the public
  benchmark chose on Criteo. The second stream has `second_depth` layers.
  """

  second_depth: int
  heads: int
  gate_units: int

  @nn.compact
  def __call__(self, rows_BSE: Array, ctx: inputs.Context) -> Array:
    x0 = _flat(self.fields(rows_BSE, ctx))
    a, b = self._gated(x0, 'first'), self._gated(x0, 'second')
    o1 = self.hidden(a, ctx, 'first')
    second = {**self.mlp, 'depth': self.second_depth}
    o2 = layers.Mlp(**second, salt=2**18, dtype=self.dtype, name='second')(b, ctx)
    B, U = o1.shape
    K = U // self.heads
    init = nn.initializers.variance_scaling(1.0, 'fan_avg', 'uniform', batch_axis=(0,))
    w_HKK = self.param('fusion', init, (self.heads, K, K)).astype(self.dtype)
    left = jnp.einsum('bhk,hkj->bhj', o1.reshape(B, self.heads, K), w_HKK)
    bilinear_B = jnp.sum(left * o2.reshape(B, self.heads, K), axis=(1, 2), dtype=jnp.float32)
    return bilinear_B + self.logit(o1, o2)

  def _gated(self, x0: Array, name: str) -> Array:
    if not self.gate_units:
      return x0
    context = self.param(f'{name}_context', nn.initializers.normal(1.0), (1, self.gate_units))
    wide = nn.Dense(self.gate_units, dtype=self.dtype, name=f'{name}_gate_in')(context)
    z = nn.Dense(x0.shape[-1], dtype=self.dtype, name=f'{name}_gate_out')(jax.nn.relu(wide))
    return 2 * jax.nn.sigmoid(z) * x0


class Din(Classic):
  """Hidden layers over the fields and a history weighed by the candidate (arXiv 1706.06978).

    a_j = MLP([q, k_j, q - k_j, q * k_j]), not normalised;  history = sum_j a_j [attributes of j]

  q is the candidate's rows (layout.targets), k_j the same attributes of event j. The attention has
  one hidden layer with a sigmoid, as the authors' code has where it does not use Dice.
  """

  attention_units: int

  @nn.compact
  def __call__(self, rows_BSE: Array, ctx: inputs.Context) -> Array:
    layout = self.layout
    rows_BSE = layers.dropout(rows_BSE, self.embed_dropout, ctx, layers.EMBED_SALT)
    fields_BFE = tokenizer.fields_of(rows_BSE, layout)
    events_BLGE = tokenizer.events_of(rows_BSE, layout)
    B, L = events_BLGE.shape[:2]
    k_BLQ = events_BLGE[:, :, : len(layout.targets)].reshape(B, L, -1)
    q_BQ = _flat(jnp.stack([fields_BFE[:, f] for f in layout.targets], axis=1))
    q_BLQ = jnp.broadcast_to(q_BQ[:, None], k_BLQ.shape)
    z = jnp.concatenate([q_BLQ, k_BLQ, q_BLQ - k_BLQ, q_BLQ * k_BLQ], axis=-1)
    wide = nn.Dense(self.attention_units, dtype=self.dtype, name='attention_in')(z)
    a_BL1 = nn.Dense(1, dtype=self.dtype, name='attention_out')(jax.nn.sigmoid(wide))
    there_BL = tokenizer.there(rows_BSE, layout, ctx)
    a_BL1 = jnp.where(there_BL[..., None], a_BL1, 0)
    history = jnp.sum(a_BL1 * events_BLGE.reshape(B, L, -1), axis=1)
    x = jnp.concatenate([_flat(fields_BFE), history], axis=-1)
    return self.logit(self.hidden(x, ctx, 'mlp'))
