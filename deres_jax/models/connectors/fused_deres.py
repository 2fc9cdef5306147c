# SPDX-License-Identifier: Apache-2.0
"""DeRes through the kernels for CPUs: same parameters, same results but for rounding."""

import jax
import jax.numpy as jnp
from jax import Array

from deres_jax.kernels import library, ops
from deres_jax.models.connectors.blocks import Recall
from deres_jax.models.connectors.deres import DeRes


class FusedDeRes(DeRes):
  """DeRes with (2) and (3) in one kernel, and (4), (5) and the norm in another.

  Calls the kernels where they are on (`library.using`) and take the arrays and switches. Elsewhere
  it is `DeRes`.

  >>> from deres_jax.models.stack import Shape
  >>> shape = Shape(sites=2, per_layer=2, tokens=3, dim=16)
  >>> u_BTD = [
  ...   kind(shape, 'rms', jnp.float32, block=2).init_with_output(
  ...     jax.random.key(0), jnp.ones((1, 3, 16)), method=lambda m, x: m.finish(m.start(x)))[0]
  ...   for kind in (DeRes, FusedDeRes)
  ... ]
  >>> bool(jnp.all(u_BTD[0] == u_BTD[1]))
  True
  """

  def start(self, x_BTD: Array) -> Recall:
    h = super().start(x_BTD)
    c = self.switches
    # The open block is then x - opened: a branch has one reader less, whose gradient would have to
    # be added at every site.
    differs = library.on() and c.identity_kind == 'identity' and c.mix_site == 'read'
    return h._replace(opened=h.x) if differs else h

  def write(self, h: Recall, y_BTD: Array, site: int) -> Recall:
    if h.opened is None:
      return super().write(h, y_BTD, site)
    h = h._replace(x=h.x + y_BTD.astype(jnp.float32))
    return self._close(h, site + 1) if (site + 1) % self.block == 0 else h

  def _close(self, h: Recall, site: int) -> Recall:
    h = super()._close(h, site)
    return h if h.opened is None else h._replace(opened=h.x)

  def _total(self, h: Recall) -> Array:
    return h.partial if h.opened is None else h.x - h.opened

  def _normed(self, h: Recall, site: int) -> Array:
    factors = self._factors(site) if self.norms.fuses(h.x, *h.sources) else None
    if factors is None:
      return super()._normed(h, site)
    reader = self.reads.index(site)
    if self._weighs_alone() and not self.switches.include_partial:
      sources, weights = h.sources, tuple(ahead[0] for ahead in h.scores)
      columns = (self._column(reader),) * len(sources)
    else:
      sources, a_BTN = self._weights(h, site, reader)
      weights, columns = (a_BTN,), tuple(range(len(sources)))
    return self.norms.of_mix(site, h.x, sources, weights, columns, *factors)

  def _factors(self, site: int) -> tuple[Array, Array] | None:
    """Vectors gx and gr [D] of u = gx x + gr r; None if u is not of this form."""
    c = self.switches
    if c.path == 'identity' or site not in self.reads or c.silu_norm == 'rms':
      return None
    one = jnp.ones(self.shape.dim)
    if c.path == 'attn':
      return 0 * one, one
    if c.gate_form == 'additive':
      return one, one
    if c.gate not in ('vector', 'scalar'):
      return None
    g = jax.nn.sigmoid(self.beta[self.reads.index(site)]) * one
    return (g, 1 - g) if c.gate_form == 'convex' else (one, 2 * g)

  def _ahead(self, b: Array, tokens: int, reader: int, sizes: tuple[int, ...]) -> tuple[Array, ...]:
    c, silu = self.switches, self._weighs_alone()
    static = c.query == 'static' and c.compress != 'lowrank_key' and b.shape[1] == tokens
    if not (static and self.norms.fuses(b) and (c.score_fn == 'silu' or not silu)):
      return super()._ahead(b, tokens, reader, sizes)
    center = c.silu_center if silu else 0.0
    return ops.score(c.score_scale, center, silu, sizes, b, self.queries[reader:])
