# SPDX-License-Identifier: Apache-2.0
"""DeRes (arXiv 2606.07980) and, by its switches, Attention Residuals (arXiv 2603.15031)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from deres_jax.models import layers, probe
from deres_jax.models.connectors.blocks import BlockConnector, Recall

_POINTWISE = {
  'silu': jax.nn.silu,
  'sigmoid': jax.nn.sigmoid,
  'tanh': jnp.tanh,
  'relu': jax.nn.relu,
  'silu_clipped': lambda z: jax.nn.relu(jax.nn.silu(z)),  # negative weights zeroed
}


class DeRes(BlockConnector):
  """Dual-path residual: identity stream and block recall under a vector gate (arXiv 2606.07980).

    (1)  b_n = sum of F_s(Norm_s(u_s)) over the sites s of block n, b_0 = x_0        [B, T, D]
    (2)  z_i = kappa <w_s, b_i / RMS(b_i)>                                           [B, T]
    (3)  a_i = SiLU(z_i + tau): Pointwise AttnRes, DeRes-P;  softmax over i: DeRes-S [B, T]
    (4)  r   = sum_i a_i b_i over the completed blocks                               [B, T, D]
    (5)  u_s = g_s x + (1 - g_s) r,  g_s = sigmoid(beta_s)                           [B, T, D], [D]
    (6)  x  <- x + F_s(Norm_s(u_s))

  The numbers are ours. The paper leaves open how (1) compresses, the reads a layer, the input of
  the gate and the initial values: each is a switch of `config.DeRes`. With w = 0, SiLU(0) = 0 makes
  r = 0 and u = g x, and Norm(g x) = Norm(x) for a gate that is constant over dimensions: the
  network starts exactly as PreNorm. path='attn', score_fn='softmax' and include_partial=True is
  Block AttnRes (arXiv 2603.15031: h_l with b_n^{i-1} as last source), whose start is PreNorm too.

  >>> from deres_jax.models.stack import Shape
  >>> connector = DeRes(Shape(sites=2, per_layer=2, tokens=3, dim=4), 'rms', jnp.float32, block=2)
  >>> forward = lambda m, x_BTD: m.finish(m.write(m.start(x_BTD), x_BTD, site=0))
  >>> x_BTD = jnp.ones((1, 3, 4))
  >>> u_BTD, variables = nn.init_with_output(forward, connector)(jax.random.key(0), x_BTD)
  >>> u_BTD.shape, jax.tree.map(jnp.shape, variables['params'])
  ((1, 3, 4), {'gate': (3, 4), 'norms': {'scale': (3, 4)}, 'query': (3, 4)})
  """

  def setup(self):
    super().setup()
    c, S, D, n = self.switches, self.shape.sites, self.shape.dim, len(self.reads)
    if c.path != 'identity' and n:
      self._setup_queries(D, n)
      if c.path == 'dual' and c.gate_form != 'additive':
        self._setup_gates(D, n)
    if c.identity_kind == 'matrix':
      self.keep = self.param('keep', layers.tiled_eye, (S, D, D))
    elif c.identity_kind != 'identity':
      width = 1 if c.identity_kind == 'scalar' else D
      self.keep = self.param('keep', nn.initializers.ones, (S, width))

  def _setup_queries(self, D: int, n: int):
    """Makes w of (2), one for each of n reads."""
    c = self.switches
    width = c.key_rank if c.compress == 'lowrank_key' else D
    lead = {'static_per_token': (n, self.shape.tokens), 'shared': (1,)}.get(c.query, (n,))
    self.queries = self.param('query', nn.initializers.normal(c.query_init), (*lead, width))
    if c.query == 'lowrank_dynamic':
      self.query_down, self.query_up = self._low_rank('query', n, D, width)

  def _setup_gates(self, D: int, n: int):
    """Makes beta of (5), one for each of n reads."""
    c = self.switches
    width = 1 if c.gate == 'scalar' else D
    self.beta = self.param('gate', nn.initializers.constant(c.beta_init), (n, width))
    if c.gate == 'lowrank_dynamic':
      self.gate_down, self.gate_up = self._low_rank('gate', n, D, D)
    elif c.gate == 'dense':
      self.gate_map = self.param('gate_map', nn.initializers.zeros, (n, D, D))

  def _low_rank(self, name: str, n: int, D: int, width: int) -> tuple[Array, Array]:
    """Factors of n maps [D, width] that start at zero."""
    rank = self.switches.gate_rank or max(1, D // 16)
    down = nn.initializers.variance_scaling(1.0, 'fan_in', 'normal', batch_axis=(0,))
    zeros = nn.initializers.zeros
    return (
      self.param(f'{name}_down', down, (n, D, rank)),
      self.param(f'{name}_up', zeros, (n, rank, width)),
    )

  def read(self, h: Recall, site: int) -> tuple[Array, Recall]:
    if self.switches.mix_site == 'read':
      return self._normed(h, site), h
    u = self._mix(h, site)
    return super().read(u, site)[0], h._replace(x=u)

  def _normed(self, h: Recall, site: int) -> Array:
    """Computes Norm_s(u_s)."""
    return super().read(self._mix(h, site), site)[0]

  def _skip(self, x: Array, site: int) -> Array:
    """Returns x of (6); an ablation multiplies it by learned factors."""
    if self.switches.identity_kind == 'identity':
      return x
    keep = self.keep[site]
    return x @ keep if self.switches.identity_kind == 'matrix' else x * keep

  def _mix(self, h: Recall, site: int) -> Array:
    """Returns u_s of (5), [B, T, D]."""
    c = self.switches
    if c.path == 'identity' or site not in self.reads:
      return h.x
    reader = self.reads.index(site)
    r = self._recall(h, site, reader)
    if c.path == 'attn':
      return r
    probe.now().paths(h.x, r, site)
    if c.gate_form == 'additive':
      return h.x + r
    beta = self.beta[reader]
    if c.gate == 'lowrank_dynamic':
      beta = beta + layers.rms(h.x) @ self.gate_down[reader] @ self.gate_up[reader]
    elif c.gate == 'dense':
      beta = beta + layers.rms(h.x) @ self.gate_map[reader]
    g = probe.now().gate(jax.nn.sigmoid(beta), site)
    return h.x + 2 * g * r if c.gate_form == 'additive_gated' else r + g * (h.x - r)

  def _recall(self, h: Recall, site: int, reader: int) -> Array:
    """Returns r of (4), [B, T, D]."""
    sources, a_BTN = self._weights(h, site, reader)
    # A sum of fused terms: stacking the sources would copy all of them at every read.
    r = sum(a_BTN[..., i : i + 1] * b for i, b in enumerate(sources))
    if self.switches.silu_norm == 'rms':
      x2, r2 = (jnp.mean(y**2, axis=-1, keepdims=True) for y in (h.x, r))  # 0 at a padded token
      r = r * jax.lax.stop_gradient(jnp.sqrt(x2 / jnp.maximum(r2, 1e-30)))
    return r

  def _weights(self, h: Recall, site: int, reader: int) -> tuple[tuple[Array, ...], Array]:
    """Sources b_i of read number `reader`, at `site`, and their a_i [B, T, sources]."""
    c, sources = self.switches, h.sources
    scores = [ahead[0][..., self._column(reader)] for ahead in h.scores]
    names = ('embedding', *(f'block {i}' for i in range(1, len(sources))))
    if c.include_partial and site % self.block and site < self.shape.sites:
      b = self._summary(h, site, closed=False)
      scores.append(self._score(b, h.x.shape[1], reader, reader + 1)[..., 0])
      sources, names = (*sources, b), (*names, 'open block')
    if c.query == 'lowrank_dynamic':
      q_BTR = layers.rms(h.x) @ self.query_down[reader] @ self.query_up[reader]
      keys = [layers.rms(b)[..., : q_BTR.shape[-1]] for b in sources]
      dynamic = [c.score_scale * jnp.sum(q_BTR * k, axis=-1) for k in keys]
      scores = [z + more for z, more in zip(scores, dynamic, strict=True)]
    z_BTN = jnp.stack(scores, axis=-1)
    a_BTN = z_BTN if self._weighs_alone() else self._weigh(z_BTN)
    return sources, probe.now().weights(a_BTN, site, names, simplex=c.score_fn == 'softmax')

  def _weighs_alone(self) -> bool:
    """Returns whether a_i depends on the static z_i alone, so that `Recall.scores` can hold a_i."""
    c = self.switches
    return c.score_fn in _POINTWISE and c.silu_norm != 'n_src' and c.query != 'lowrank_dynamic'

  def _weigh(self, z_BTN: Array) -> Array:
    """Returns a of (3)."""
    c = self.switches
    if c.score_fn == 'softmax':
      return jax.nn.softmax(z_BTN, axis=-1)
    if c.score_fn == 'softmax1':  # a null source at score 0: weights may sum to less than one
      m = jnp.maximum(jnp.max(z_BTN, axis=-1, keepdims=True), 0.0)
      e = jnp.exp(z_BTN - m)
      return e / (jnp.exp(-m) + jnp.sum(e, axis=-1, keepdims=True))
    a_BTN = _POINTWISE[c.score_fn](z_BTN + c.silu_center)
    return a_BTN / z_BTN.shape[-1] if c.silu_norm == 'n_src' else a_BTN

  def _score(self, b: Array, tokens: int, first: int, last: int) -> Array:
    """Returns z of (2), or a of (3), of source b for reads first .. last-1, [B, T, last - first].

    The inverse RMS multiplies the product instead of the source, so no key is stored.
    """
    c = self.switches
    inverse = jax.lax.rsqrt(jnp.mean(b * b, axis=-1, keepdims=True) + 1e-6)
    w, form = self.queries[:1] if c.query == 'shared' else self.queries[first:last], 'btd,nd->btn'
    b = b[..., : w.shape[-1]]
    if c.query == 'static_per_token':
      w, form = w[:, self.shape.tokens - tokens :], 'btd,ntd->btn'  # a pyramid keeps the last ones
      b = jnp.broadcast_to(b, (b.shape[0], tokens, b.shape[2]))
    z = jnp.einsum(form, b, w, preferred_element_type=jnp.float32) * (c.score_scale * inverse)
    # A shared query has one score for all reads, a token-mean source one for all tokens.
    z = jnp.broadcast_to(z, (z.shape[0], tokens, last - first))
    return self._weigh(z) if self._weighs_alone() else z

  def _ahead(self, b: Array, tokens: int, reader: int, sizes: tuple[int, ...]) -> tuple[Array, ...]:
    """Scores b once for all later reads; returns an array for each block of `sizes` reads."""
    scores = self._score(b, tokens, reader, len(self.reads))
    # Split once: the gradient is one concatenation, not a sum of padded arrays.
    return tuple(jax.lax.split(scores, sizes, axis=2))
