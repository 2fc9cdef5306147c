# SPDX-License-Identifier: Apache-2.0
"""Interaction models that are no stack of tokens; they share tables, training and metrics.

All map embeddings [B, S, E] to logits [B]. Behaviour sequences, if any, reach them as the mean of
each event attribute (DIN: as a weighted sum). In a model with a linear part the last column of an
embedding is its linear weight: E = model.embed_dim + 1.

Shapes: B examples, F fields, E width of an embedding (without the linear weight), X = F * E,
U hidden units.
"""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from deres_jax.config.fields import Config
from deres_jax.core.errors import UserError
from deres_jax.models import heads, inputs, layers, tokenizer
from deres_jax.models.facts import Facts

_xavier = nn.initializers.xavier_uniform()


class Classic(nn.Module):
  """Settings and parts that all classic models share."""

  layout: inputs.Layout
  prior_logit: float
  embed_dropout: float
  mlp: dict  # units, depth, dropout of the hidden layers
  dtype: jnp.dtype

  def fields(self, e_BSE: Array, ctx: inputs.Context) -> Array:
    """Returns the embeddings of all fields after dropout. [B, F, E]."""
    e_BSE = layers.dropout(e_BSE, self.embed_dropout, ctx, layers.EMBED_SALT)
    return tokenizer.pooled(e_BSE, self.layout, ctx)

  def hidden(self, x_BX: Array, ctx: inputs.Context, name: str, salt: int = 2**17) -> Array:
    """Applies the hidden layers. [B, X] -> [B, U]."""
    return layers.Mlp(**self.mlp, salt=salt, dtype=self.dtype, name=name)(x_BX, ctx)

  def logit(self, *parts_BI: Array) -> Array:
    """Maps the concatenated parts to logits [B], which start at the prior log odds."""
    return heads.logit(self, jnp.concatenate(parts_BI, axis=-1), self.prior_logit)


def _flat(x: Array) -> Array:
  return x.reshape(x.shape[0], -1)


def _split_linear(e_BFE: Array) -> tuple[Array, Array]:
  """Splits off the linear weights: vectors [B, F, E - 1] and the weights' sum [B], float32."""
  return e_BFE[..., :-1], jnp.sum(e_BFE[..., -1], axis=1, dtype=jnp.float32)


def factorization(v_BFE: Array) -> Array:
  """Returns sum_{i<j} <v_i, v_j> = (|sum_i v_i|^2 - sum_i |v_i|^2) / 2 (Rendle 2010, lemma 3.1)."""
  v = v_BFE.astype(jnp.float32)
  return 0.5 * jnp.sum(jnp.sum(v, axis=1) ** 2 - jnp.sum(v * v, axis=1), axis=-1)


class LogisticRegression(Classic):
  """Logistic regression, sum_f w[id_f] + b; the table has one column."""

  @nn.compact
  def __call__(self, e_BSE: Array, ctx: inputs.Context) -> Array:
    e_BF1 = self.fields(e_BSE, ctx)
    bias = self.param('bias', nn.initializers.constant(self.prior_logit), ())
    return jnp.sum(e_BF1, axis=(1, 2), dtype=jnp.float32) + bias


class FactorizationMachine(Classic):
  """Factorization machine, LR + sum_{i<j} <v_i, v_j> (Rendle 2010)."""

  @nn.compact
  def __call__(self, e_BSE: Array, ctx: inputs.Context) -> Array:
    v_BFE, linear_B = _split_linear(self.fields(e_BSE, ctx))
    bias = self.param('bias', nn.initializers.constant(self.prior_logit), ())
    return linear_B + factorization(v_BFE) + bias


class Dnn(Classic):
  """Hidden layers over the concatenated embeddings."""

  @nn.compact
  def __call__(self, e_BSE: Array, ctx: inputs.Context) -> Array:
    return self.logit(self.hidden(_flat(self.fields(e_BSE, ctx)), ctx, 'mlp'))


class DeepFM(Classic):
  """FM + hidden layers over the same vectors (arXiv 1703.04247)."""

  @nn.compact
  def __call__(self, e_BSE: Array, ctx: inputs.Context) -> Array:
    v_BFE, linear_B = _split_linear(self.fields(e_BSE, ctx))
    deep_B = self.logit(self.hidden(_flat(v_BFE), ctx, 'mlp'))
    return linear_B + factorization(v_BFE) + deep_B


class DCNv2(Classic):
  """Cross layers beside hidden layers: DCN-V2, parallel (arXiv 2008.13535).

  x_{l+1} = x_0 * (W_l x_l + b_l) + x_l, W_l [X, X] or of low rank U V^T;  logit of [x_L ; MLP(x_0)]
  """

  depth: int
  rank: int  # 0: full

  @nn.compact
  def __call__(self, e_BSE: Array, ctx: inputs.Context) -> Array:
    x0 = _flat(self.fields(e_BSE, ctx)).astype(self.dtype)
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
  def __call__(self, e_BSE: Array, ctx: inputs.Context) -> Array:
    v_BFE, linear_B = _split_linear(self.fields(e_BSE, ctx))
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

  Numeric fields are bucketed like all others here, so there is no bottom network.
  """

  @nn.compact
  def __call__(self, e_BSE: Array, ctx: inputs.Context) -> Array:
    v_BFE = self.fields(e_BSE, ctx).astype(self.dtype)
    dots_BFF = jnp.einsum('bie,bje->bij', v_BFE, v_BFE)
    i, j = jnp.triu_indices(v_BFE.shape[1], k=1)
    return self.logit(self.hidden(dots_BFF[:, i, j], ctx, 'mlp'))


class MaskNet(Classic):
  """Instance-guided masks on normed embeddings, in parallel blocks (arXiv 2102.07619).

    mask = W_2 ReLU(W_1 x_0);  block = ReLU(LN(W (mask * LN(x_0))));  logit of MLP([blocks])

  Each field has its own LN of embeddings; W_1 is `ratio` times as wide as x_0.
  """

  blocks: int
  ratio: float
  units: int

  @nn.compact
  def __call__(self, e_BSE: Array, ctx: inputs.Context) -> Array:
    e_BFE = self.fields(e_BSE, ctx)
    _, F, E = e_BFE.shape
    x0 = _flat(e_BFE).astype(self.dtype)

    def dense(width, name):
      return nn.Dense(width, dtype=self.dtype, kernel_init=_xavier, name=name)

    norms = layers.SiteNorms(F, E, 'layer', self.dtype, name='field_norms')
    normed = _flat(norms(e_BFE, slice(None)))
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

  gate_i is an MLP of a learned context with `gate_units` hidden units; 0 means no gates, as the
  public benchmark chose on Criteo. The second stream has `second_depth` layers.
  """

  second_depth: int
  heads: int
  gate_units: int

  @nn.compact
  def __call__(self, e_BSE: Array, ctx: inputs.Context) -> Array:
    x0 = _flat(self.fields(e_BSE, ctx))
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
  """Hidden layers over the fields and a history weighted by the candidate (arXiv 1706.06978).

    a_j = MLP([q, k_j, q - k_j, q * k_j]), not normalised;  history = sum_j a_j [attributes of j]

  q holds the candidate's embeddings (layout.targets), k_j the same attributes of event j. The
  attention has one hidden layer with a sigmoid, as the authors' code without Dice.
  """

  attention_units: int

  @nn.compact
  def __call__(self, e_BSE: Array, ctx: inputs.Context) -> Array:
    layout = self.layout
    e_BSE = layers.dropout(e_BSE, self.embed_dropout, ctx, layers.EMBED_SALT)
    fields_BFE = tokenizer.fields_of(e_BSE, layout)
    events_BLGE = tokenizer.events_of(e_BSE, layout)
    B, L = events_BLGE.shape[:2]
    k_BLQ = events_BLGE[:, :, : len(layout.targets)].reshape(B, L, -1)
    q_BQ = _flat(jnp.stack([fields_BFE[:, f] for f in layout.targets], axis=1))
    q_BLQ = jnp.broadcast_to(q_BQ[:, None], k_BLQ.shape)
    z = jnp.concatenate([q_BLQ, k_BLQ, q_BLQ - k_BLQ, q_BLQ * k_BLQ], axis=-1)
    wide = nn.Dense(self.attention_units, dtype=self.dtype, name='attention_in')(z)
    a_BL1 = nn.Dense(1, dtype=self.dtype, name='attention_out')(jax.nn.sigmoid(wide))
    mask_BL = tokenizer.event_mask(e_BSE, layout, ctx)
    a_BL1 = jnp.where(mask_BL[..., None], a_BL1, 0)
    history = jnp.sum(a_BL1 * events_BLGE.reshape(B, L, -1), axis=1)
    x = jnp.concatenate([_flat(fields_BFE), history], axis=-1)
    return self.logit(self.hidden(x, ctx, 'mlp'))


@dataclasses.dataclass(frozen=True)
class Row(Facts):
  """A row of CLASSICS.

  Attributes:
    kind: the model's class.
    sizes: its own arguments, of a config.
    linear: whether an embedding ends in a linear weight.
    flat: whether the largest array is a vector an example: no events, no products of fields.
  """

  kind: type[Classic]
  sizes: Callable[[Config], dict] = lambda c: {}
  linear: bool = False
  flat: bool = True


# fmt: off
CLASSICS = {
  'lr': Row('', 'Σ w + b', '', '1', 'F', LogisticRegression),
  'fm': Row('Rendle 2010', 'LR + Σ_{i<j} ⟨v_i, v_j⟩', '', '1', '3 * X + F',
    FactorizationMachine, linear=True),
  'dnn': Row('', 'MLP(x₀), x₀ all embeddings side by side', '',
    'mlp(X) + U + 1', '2 * (mlp(X) + U)', Dnn),
  'deepfm': Row('1703.04247', 'FM + MLP(x₀)', '',
    'mlp(X) + U + 1', '2 * (mlp(X) + U) + 3 * X', DeepFM, linear=True),
  'dcnv2': Row('2008.13535', '[x_L ; MLP(x₀)], x_{l+1} = x₀ · (W_l x_l + b_l) + x_l',
    'parallel form; no mixture of low-rank experts',
    'cross_layers * ((2 * X * cross_rank or X**2) + X) + mlp(X) + X + U + 1',
    'cross_layers * ((4 * X * cross_rank or 2 * X**2) + 3 * X) + 2 * (mlp(X) + X + U)',
    DCNv2, lambda c: dict(depth=c.classic.cross_layers, rank=c.classic.cross_rank)),
  'xdeepfm': Row('1803.05170', 'LR + CIN + MLP(x₀)',
    'no direct connections halved, no activation in the CIN',
    'cin_maps * F**2 + (cin_layers - 1) * cin_maps**2 * F + mlp(X) + cin_layers * cin_maps + U + 1',
    '(2 * cin_maps + 1) * (F + (cin_layers - 1) * cin_maps) * X + 2 * (mlp(X) + U)'
    ' + cin_layers * cin_maps * E',
    XDeepFM, lambda c: dict(depth=c.classic.cin_layers, maps=c.classic.cin_maps),
    linear=True, flat=False),
  'dlrm': Row('1906.00091', 'MLP of all pairwise dots',
    'strict triangle; no bottom network: numeric fields are bucketed',
    'mlp(F * (F - 1) // 2) + U + 1', '2 * F * X + 2 * (mlp(F * (F - 1) // 2) + U)', Dlrm),
  'masknet': Row('2102.07619', 'MLP of parallel blocks ReLU(LN(W(mask · LN(x₀))))',
    'parallel form; 2 blocks of 256, ratio 0.5',
    '2 * X + mask_blocks * (2 * W * X + W + X + (X + 3) * mask_units)'
    ' + mlp(mask_blocks * mask_units) + U + 1',
    '8 * X + mask_blocks * (4 * W * X + 2 * W + 2 * X + (2 * X + 11) * mask_units)'
    ' + 2 * (mlp(mask_blocks * mask_units) + U)',
    MaskNet, lambda c: dict(
      blocks=c.classic.mask_blocks, ratio=c.classic.mask_ratio, units=c.classic.mask_units)),
  'finalmlp': Row('2304.00902', 'Σ_k o₁ₖᵀ W_k o₂ₖ + w₁ᵀo₁ + w₂ᵀo₂ + b',
    'gates off by default, as the public benchmark chose on Criteo; their context is learned',
    '2 * bool(G) * (G**2 + 2 * G + G * X + X) + mlp(X) + mlp(X, fusion_second_layers)'
    ' + U**2 // fusion_heads + 2 * U + 1',
    '2 * bool(G) * (2 * G**2 + 2 * G * X) + 2 * (mlp(X) + mlp(X, fusion_second_layers))'
    ' + 2 * U**2 // fusion_heads + 6 * U',
    FinalMLP, lambda c: dict(
      second_depth=c.classic.fusion_second_layers, heads=c.classic.fusion_heads,
      gate_units=c.classic.fusion_gate_units)),
  'din': Row('1706.06978', 'MLP(fields, Σ_j a_j event_j), a_j = MLP([q, k, q − k, q · k])',
    'weights not normalised; sigmoid hidden layer of 64, no Dice',
    '4 * Q * din_units + 2 * din_units + 1 + mlp(X) + U + 1',
    'L * (8 * Q * din_units + 2 * Q + 4 * din_units + 2 * A * E) + 2 * (mlp(X) + U)',
    Din, lambda c: dict(attention_units=c.classic.din_units), flat=False),
}
# fmt: on


def build(c: Config, layout: inputs.Layout, prior_logit: float) -> Classic:
  """Returns the classic model of a config.

  Raises:
    UserError: sizes or data that the model cannot have.
  """
  name = c.model.backbone
  if name == 'lr' and c.model.embed_dim != 1:
    raise UserError(
      f'backbone lr has one weight an id: set model.embed_dim=1 (it is {c.model.embed_dim})'
    )
  if name == 'din' and not layout.events:
    raise UserError(
      'backbone din reads behaviour sequences and this data has none: choose dnn, of which it is '
      'the extension, or prepare data with sequences'
    )
  if name == 'din' and not layout.targets:
    raise UserError(
      'backbone din weighs events by the candidate, and no field of this data says of the '
      'candidate what an event says: choose dnn, or prepare the data with such fields'
    )
  if name == 'finalmlp' and c.mlp.units % c.classic.fusion_heads:
    raise UserError(
      f'config mlp.units={c.mlp.units} is not divisible by '
      f'classic.fusion_heads={c.classic.fusion_heads}'
    )
  row = CLASSICS[name]
  return row.kind(
    layout=layout,
    prior_logit=prior_logit,
    embed_dropout=c.model.embed_dropout,
    mlp=dict(units=c.mlp.units, depth=c.mlp.layers, dropout=c.mlp.dropout),
    dtype=jnp.dtype(c.model.dtype),
    **row.sizes(c),
  )
