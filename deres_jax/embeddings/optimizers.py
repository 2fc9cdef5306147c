# SPDX-License-Identifier: Apache-2.0
"""Sparse optimizers: they read and write only the table rows that a batch names.

Shapes: U unique rows of a batch, N rows of a table, E embedding width.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from deres_jax.kernels import ops

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class SparseOptimizer:
  """Row-wise Adagrad or lazy Adam. Rows without a gradient keep their bits.

  With g the gradient of row w plus l2 * w:

  rowwise_adagrad (Duchi et al. 2011; one accumulator a row as in FBGEMM):
    s <- s + mean_E(g^2);  w <- w - lr g / (sqrt(s) + eps)
    It equals the dense optimizer, because a row with g = 0 does not move.
  lazy_adam (Kingma & Ba 2015, on the rows of the batch; t counts all steps from 1):
    m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2
    w <- w - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)
    It is not dense Adam: the moments of other rows do not decay.

  State may be stored as bfloat16. It is computed in float32 and rounded stochastically; rounded to
  the nearest, v * 0.999 would stay v for ever. The arrays hold the bits as uint16, because XLA
  widens a whole bfloat16 array to scatter into it on CPUs.

  Attributes:
    kind: rowwise_adagrad or lazy_adam.
    l2: added once a step, to the gradients of the batch's rows.
    dtype: of the stored state, float32 or bfloat16.
    seed: of the stochastic rounding.

  Example:
    >>> adagrad = SparseOptimizer('rowwise_adagrad', eps=0.0, l2=0.0, b1=0.9, b2=0.999)
    >>> w = jnp.zeros((1, 2))
    >>> w, state = adagrad.update(w, adagrad.init(w), jnp.array([[3.0, 4.0]]), 1.0, jnp.int32(0))
    >>> state['sum'].tolist()  # mean(9, 16)
    [12.5]
  """

  kind: str
  eps: float
  l2: float
  b1: float
  b2: float
  dtype: str = 'float32'
  seed: int = 0

  def init(self, table: Array) -> dict[str, Array]:
    """Returns the state of a table [N, E] before the first step: zeros."""
    stored = jnp.uint16 if self.dtype == 'bfloat16' else self.dtype
    if self.kind == 'rowwise_adagrad':
      return {'sum': jnp.zeros(table.shape[:1], stored)}
    return {'m': jnp.zeros(table.shape, stored), 'v': jnp.zeros(table.shape, stored)}

  def update(
    self, w_UE: Array, state_U: dict[str, Array], g_UE: Array, lr: Array, step: Array
  ) -> tuple[Array, dict[str, Array]]:
    """Returns the new rows and their new state, float32.

    Args:
      w_UE: different rows of a table; state_U: as stored.
      step: number of steps done, from 0.
    """
    g = g_UE + self.l2 * w_UE
    if self.dtype == 'bfloat16':
      state_U = jax.tree.map(from_bits, state_U)
    if self.kind == 'rowwise_adagrad':
      s_U = state_U['sum'] + jnp.mean(g * g, axis=-1)
      return w_UE - lr * g / (jnp.sqrt(s_U) + self.eps)[:, None], {'sum': s_U}
    correction_m, correction_v = self._bias_correction(step)
    m = self.b1 * state_U['m'] + (1 - self.b1) * g
    v = self.b2 * state_U['v'] + (1 - self.b2) * g * g
    return w_UE - lr * (m / correction_m) / (jnp.sqrt(v / correction_v) + self.eps), {
      'm': m,
      'v': v,
    }

  def _bias_correction(self, step: Array) -> tuple[Array, Array]:
    """Adam's bias corrections, 1 - b1^t and 1 - b2^t."""
    t = step.astype(jnp.float32) + 1
    return 1 - self.b1**t, 1 - self.b2**t

  @property
  def has_kernel(self) -> bool:
    return self.dtype == 'float32'

  def update_inplace(
    self, table: Array, state: dict[str, Array], ids_U: Array, g_UE: Array, lr: Array, step: Array
  ) -> tuple[Array, dict[str, Array]]:
    """Applies `update` to the rows `ids_U` of a table and its state, by a CPU kernel."""
    if self.kind == 'rowwise_adagrad':
      w, s = ops.rowwise_adagrad(table, state['sum'], ids_U, g_UE, lr, eps=self.eps, l2=self.l2)
      return w, {'sum': s}
    rates = jnp.stack([jnp.asarray(lr, jnp.float32), *self._bias_correction(step)])
    constants = dict(b1=self.b1, b2=self.b2, eps=self.eps, l2=self.l2)
    w, m, v = ops.lazy_adam((table, state['m'], state['v']), ids_U, g_UE, rates, **constants)
    return w, {'m': m, 'v': v}

  def salt(self, step: Array, array: int) -> Array:
    """Returns a number that differs between steps, arrays of the state and seeds."""
    of_array = np.uint32((self.seed * 0x27D4EB2F + array) % 2**32)  # seeds spread over all bits
    return (step * 2).astype(jnp.uint32) + of_array


def round_stochastically(x: Array, row_N: Array, salt: Array) -> Array:
  """Rounds float32 to bfloat16, up or down with probabilities that keep the mean.

  Stochastic rounding (Gupta et al. 2015, arXiv 1502.02551): x between neighbours a < b becomes b
  with probability (x - a) / (b - a). The draw is a hash of row, column and `salt`, the same on
  every mesh. Numbers that are not finite are rounded to the nearest.

  Args:
    x: [N] or [N, E].

  Returns:
    The bits as uint16, of the shape of x; `from_bits` reads them.

  Example:
    >>> x = jnp.full(10_000, 1 + 1 / 1024)  # one eighth of the way to the next bfloat16
    >>> rounded = from_bits(round_stochastically(x, jnp.arange(10_000), jnp.int32(0)))
    >>> bool(abs((rounded > 1).mean() - 1 / 8) < 0.01)
    True
  """
  hashed = row_N.astype(jnp.uint32) * jnp.uint32(0x9E3779B1) + salt.astype(jnp.uint32)
  hashed = hashed.reshape(-1, *[1] * (x.ndim - 1))
  if x.ndim > 1:
    hashed = hashed + jnp.arange(x.shape[1], dtype=jnp.uint32) * jnp.uint32(0x85EBCA77)
  # The finalizer of MurmurHash3: every input bit reaches every output bit.
  hashed = (hashed ^ (hashed >> 16)) * jnp.uint32(0x85EBCA6B)
  hashed = (hashed ^ (hashed >> 13)) * jnp.uint32(0xC2B2AE35)
  hashed = hashed ^ (hashed >> 16)
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + (hashed >> 16)
  high = (bits >> 16).astype(jnp.uint16)
  nearest = jax.lax.bitcast_convert_type(x.astype(jnp.bfloat16), jnp.uint16)
  return jnp.where(jnp.isfinite(x), high, nearest)


def from_bits(x: Array) -> Array:
  """Returns the float32 values of bfloat16 numbers given as uint16 bits.

  Example:
    >>> from_bits(jnp.array([0x3F80, 0x4000], jnp.uint16)).tolist()
    [1.0, 2.0]
  """
  return jax.lax.bitcast_convert_type(x, jnp.bfloat16).astype(jnp.float32)
