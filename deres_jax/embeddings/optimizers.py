# SPDX-License-Identifier: Apache-2.0
"""How table rows move: the optimizers that touch the rows of a batch alone.

Shapes: N rows, E row width.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from deres_jax.kernels import ops

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class RowOptimizer:
  """How touched rows move. All other rows stay as they are, bit for bit.

  rowwise_adagrad: s += mean_E(g^2); w -= lr g / (sqrt(s) + eps). One float of state a row; exactly
    the dense optimizer, since a row with g = 0 does not move (Duchi et al. 2011; row-wise as in
    FBGEMM).
  lazy_adam: Adam (Kingma & Ba 2015) on the touched rows with the global step's bias correction.
    NOT dense Adam: moments of untouched rows do not decay.

  Slots may be bfloat16. They are computed in float32 and rounded up or down at random, by their
  distance: to the nearest, v * 0.999 would be v for ever. The arrays hold their bits (uint16): XLA
  widens a whole bfloat16 array to scatter into it on CPUs.
  """

  kind: str
  eps: float
  l2: float  # g += l2 * w for each touched row, once a step
  b1: float
  b2: float
  dtype: str = 'float32'  # of slots
  seed: int = 0  # of their rounding

  def salt(self, step: Array, slot: int) -> Array:
    """Tells one rounding of a row from all others."""
    mine = np.uint32((self.seed * 0x27D4EB2F + slot) % 2**32)  # seeds spread over all bits
    return (step * 2).astype(jnp.uint32) + mine

  def init(self, rows: Array) -> dict[str, Array]:
    """Slots of zeros for a table's rows [N, E]."""
    kept = jnp.uint16 if self.dtype == 'bfloat16' else self.dtype
    if self.kind == 'rowwise_adagrad':
      return {'sum': jnp.zeros(rows.shape[:1], kept)}
    return {'m': jnp.zeros(rows.shape, kept), 'v': jnp.zeros(rows.shape, kept)}

  def apply(
    self, w_NE: Array, slots_N: dict[str, Array], g_NE: Array, lr: Array, step: Array
  ) -> tuple[Array, dict[str, Array]]:
    """New rows and slots of N different rows, float32; `step` counts from 0."""
    g = g_NE + self.l2 * w_NE
    if self.dtype == 'bfloat16':
      slots_N = jax.tree.map(from_bits, slots_N)
    if self.kind == 'rowwise_adagrad':
      s_N = slots_N['sum'] + jnp.mean(g * g, axis=-1)
      return w_NE - lr * g / (jnp.sqrt(s_N) + self.eps)[:, None], {'sum': s_N}
    still_m, still_v = self._still(step)
    m = self.b1 * slots_N['m'] + (1 - self.b1) * g
    v = self.b2 * slots_N['v'] + (1 - self.b2) * g * g
    unbiased = jnp.sqrt(v / still_v) + self.eps
    return w_NE - lr * (m / still_m) / unbiased, {'m': m, 'v': v}

  def _still(self, step: Array) -> tuple[Array, Array]:
    """The share of Adam's moments that is not yet their first zeros'."""
    t = step.astype(jnp.float32) + 1
    return 1 - self.b1**t, 1 - self.b2**t

  @property
  def has_kernel(self) -> bool:
    return self.dtype == 'float32'

  def move(
    self, w: Array, slots: dict[str, Array], at_U: Array, g_UE: Array, lr: Array, step: Array
  ) -> tuple[Array, dict[str, Array]]:
    """A table and its slots with the rows `at` moved as by `apply`, by a kernel."""
    if self.kind == 'rowwise_adagrad':
      w, s = ops.rowwise_adagrad(w, slots['sum'], at_U, g_UE, lr, eps=self.eps, l2=self.l2)
      return w, {'sum': s}
    rates = jnp.stack([jnp.asarray(lr, jnp.float32), *self._still(step)])
    constants = dict(b1=self.b1, b2=self.b2, eps=self.eps, l2=self.l2)
    w, m, v = ops.lazy_adam((w, slots['m'], slots['v']), at_U, g_UE, rates, **constants)
    return w, {'m': m, 'v': v}


def round_at_random(x: Array, row_N: Array, salt: Array) -> Array:
  """Bits of a bfloat16, uint16, of float32 [N, ...]: up or down so that the mean is x.

  The draw is a hash of the row, the column and `salt`: the same on every mesh.
  """
  at = row_N.astype(jnp.uint32) * jnp.uint32(0x9E3779B1) + salt.astype(jnp.uint32)
  at = at.reshape(-1, *[1] * (x.ndim - 1))
  if x.ndim > 1:
    at = at + jnp.arange(x.shape[1], dtype=jnp.uint32) * jnp.uint32(0x85EBCA77)
  # The finalizer of MurmurHash3: every bit of `at` reaches every bit.
  at = (at ^ (at >> 16)) * jnp.uint32(0x85EBCA6B)
  at = (at ^ (at >> 13)) * jnp.uint32(0xC2B2AE35)
  at = at ^ (at >> 16)
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + (at >> 16)
  high = (bits >> 16).astype(jnp.uint16)
  nearest = jax.lax.bitcast_convert_type(x.astype(jnp.bfloat16), jnp.uint16)
  return jnp.where(jnp.isfinite(x), high, nearest)


def from_bits(x: Array) -> Array:
  """float32 of the bits of bfloat16 numbers."""
  return jax.lax.bitcast_convert_type(x, jnp.bfloat16).astype(jnp.float32)
