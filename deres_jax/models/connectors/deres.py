# SPDX-License-Identifier: Apache-2.0
"""Connectors: what stands between one sub-layer and the next.

A connector owns the skip and the placement of norms and knows nothing of what it wraps:

  start(x_BTD) -> h                    the state before the first sub-layer
  read(h, site) -> (u_BTD, h)          the input of sub-layer `site`, normed where it should be
  write(h, y_BTD, site) -> h           takes the sub-layer's branch
  finish(h) -> x_BTD                   what the head sees, normed

Sites 0 .. sites-1 are sub-layers and site `sites` is the head's read. `read` returns the state
too, because some connectors put aside there what `write` needs. Streams, block summaries, scores
and gates are float32 whatever the sub-layers compute in.
"""

from collections import Counter
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from deres_jax.kernels import library, ops
from deres_jax.models import layers, probe
from deres_jax.models.stack import Shape

Array = jax.Array


_POINTWISE = {
  'silu': jax.nn.silu,
  'sigmoid': jax.nn.sigmoid,
  'tanh': jnp.tanh,
  'relu': jax.nn.relu,
  'silu_clipped': lambda z: jax.nn.relu(jax.nn.silu(z)),  # negative weights zeroed
}


def _names(blocks: int, opened: bool) -> tuple[str, ...]:
  """Names of sources: b_0, the completed blocks counted from 1, and the open one."""
  names = ('embedding', *(f'block {i}' for i in range(1, blocks)))
  return (*names, 'open block') if opened else names


class Recall(NamedTuple):
  """State of a block connector.

  Attributes:
    x: identity stream [B, T, D]; with the defaults sum(sources) + sum(branches) == x at every site.
    sources: b_0 (the embedding) and the completed block summaries, each [B, T, D], or [B, 1, D]
      where blocks are compressed over tokens.
    scores: of each source, for every read to come: a static query scores a source once for all its
      readers, in one product. An array [B, T, reads] for each block of reads, the open one first.
      Weights where they follow from one score.
    branches: those in the open block, each [B, T, D], or their sum alone; not kept where there is
    opened: the stream where the open block begins, from which the sum follows too. With kernels:
      a branch then has one reader less, whose gradient would have to be added at every site.
  """

  x: Array
  sources: tuple[Array, ...]
  scores: tuple[tuple[Array, ...], ...]
  branches: tuple[Array, ...] = ()
  opened: Array | None = None

  @property
  def partial(self) -> Array | None:
    """Sum of the branches in the open block [B, T, D], or None where there is none."""
    if self.opened is not None:
      return self.x - self.opened
    return sum(self.branches[1:], self.branches[0]) if self.branches else None


class DeRes(nn.Module):
  """Dual-path residual (arXiv 2606.07980): identity stream and block recall under a vector gate.

    k_i = b_i / RMS(b_i)                 one key a completed block, shared by all its readers
    z_i = kappa <w_s, k_i>
    a_i = SiLU(z_i + tau)                Pointwise AttnRes (DeRes-P); softmax over i is DeRes-S
    r   = sum_i a_i b_i
    u_s = g_s * x + (1 - g_s) * r        g_s = sigmoid(beta_s), one a hidden dimension
    x  <- x + F_s(Norm_s(u_s))

  The paper leaves block compression, the reads a layer, the gate's input and the initial values
  open; each is a switch here. With w = 0, SiLU(0) = 0 makes r = 0 and u = g x, which the norm maps
  to Norm(x) for any gate that is constant over dimensions: the network starts exactly as PreNorm.
  path='attn', score_fn='softmax' and include_partial=True is Block AttnRes (arXiv 2603.15031
  eq. for h_l with b_n^{i-1} as last source), whose zero start is PreNorm too.

  Attributes other than shape, norm and dtype are the switches of `config.DeRes`;
  `block` is sub-layers a block.
  """

  shape: Shape
  norm: str
  dtype: jnp.dtype
  block: int
  mix_site: str = 'read'
  sites: str = 'sublayer'
  compress: str = 'sum'
  key_rank: int = 16
  include_partial: bool = False
  query: str = 'static'
  score_fn: str = 'silu'
  score_scale: float = 1.0
  silu_norm: str = 'none'
  silu_center: float = 0.0
  query_init: float = 0.0
  gate: str = 'vector'
  gate_form: str = 'convex'
  gate_rank: int = 0
  beta_init: float = 0.0
  readout_mix: bool = True
  path: str = 'dual'
  identity_kind: str = 'identity'

  def setup(self):
    S, D = self.shape.sites, self.shape.dim
    self.norms = layers.SiteNorms(S + 1, D, self.norm, self.dtype)
    self.reads = self._reads()
    self.blocks = tuple(self._block_of(site) for site in self.reads)
    if self.path != 'identity' and self.reads:
      self._setup_queries()
      if self.path == 'dual':
        self._setup_gates()
    eye = nn.initializers.ones
    if self.identity_kind == 'scalar':
      self.keep = self.param('keep', eye, (S, 1))
    elif self.identity_kind == 'vector':
      self.keep = self.param('keep', eye, (S, D))
    elif self.identity_kind == 'matrix':
      self.keep = self.param('keep', lambda key, shape: jnp.tile(jnp.eye(D), (S, 1, 1)), (S, D, D))

  def _reads(self) -> tuple[int, ...]:
    """The sites that mix: all, or the first of each layer; and the head's."""
    step = 1 if self.sites == 'sublayer' else self.shape.per_layer
    head = (self.shape.sites,) if self.readout_mix or self.path == 'attn' else ()
    return (*range(0, self.shape.sites, step), *head)

  def _block_of(self, site: int) -> int:
    """Number of blocks that are closed before the read at `site`."""
    return -(-site // self.block) if site == self.shape.sites else site // self.block

  def _column(self, reader: int) -> int:
    """Place of a read among those of its block."""
    return reader - self.blocks.index(self.blocks[reader])

  def _rank(self) -> int:
    return self.gate_rank or max(1, self.shape.dim // 16)

  def _setup_queries(self):
    D, n = self.shape.dim, len(self.reads)
    width = self.key_rank if self.compress == 'lowrank_key' else D
    lead = {'static_per_token': (n, self.shape.tokens), 'shared': (1,)}.get(self.query, (n,))
    self.queries = self.param('query', nn.initializers.normal(self.query_init), (*lead, width))
    if self.query == 'lowrank_dynamic':
      down = nn.initializers.variance_scaling(1.0, 'fan_in', 'normal', batch_axis=(0,))
      self.query_down = self.param('query_down', down, (n, D, self._rank()))
      self.query_up = self.param('query_up', nn.initializers.zeros, (n, self._rank(), width))

  def _setup_gates(self):
    D, n = self.shape.dim, len(self.reads)
    if self.gate_form == 'additive':
      return
    width = 1 if self.gate == 'scalar' else D
    self.beta = self.param('gate', nn.initializers.constant(self.beta_init), (n, width))
    if self.gate == 'lowrank_dynamic':
      down = nn.initializers.variance_scaling(1.0, 'fan_in', 'normal', batch_axis=(0,))
      self.gate_down = self.param('gate_down', down, (n, D, self._rank()))
      self.gate_up = self.param('gate_up', nn.initializers.zeros, (n, self._rank(), D))
    elif self.gate == 'dense':
      self.gate_map = self.param('gate_map', nn.initializers.zeros, (n, D, D))

  # The contract.

  def start(self, x_BTD: Array) -> Recall:
    x = x_BTD.astype(jnp.float32)
    differs = library.on() and self.identity_kind == 'identity' and self.mix_site == 'read'
    return self._append(Recall(x, (), (), (), x if differs else None), x, reader=0)

  def read(self, h: Recall, site: int) -> tuple[Array, Recall]:
    if self.mix_site == 'stream':
      h = h._replace(x=self._mix(h, site))
      return self.norms(probe.now().read(h.x, site), site), h
    return self._read(h, site), h

  def write(self, h: Recall, y_BTD: Array, site: int) -> Recall:
    y = y_BTD.astype(jnp.float32)
    x = self._identity(h.x, site) + y
    if h.opened is not None:
      h = h._replace(x=x)
      return self._close(h, site + 1) if (site + 1) % self.block == 0 else h
    if self.include_partial and h.branches:  # read at every site: summed as it grows
      h, y = h._replace(branches=()), h.partial + y
    h = h._replace(x=x, branches=(*h.branches, y))
    return self._close(h, site + 1) if (site + 1) % self.block == 0 else h

  def finish(self, h: Recall) -> Array:
    site = self.shape.sites
    if site % self.block:
      h = self._close(h, site)
    return self._read(h, site)

  def _read(self, h: Recall, site: int) -> Array:
    """The norm of what `_mix` gives, as one kernel where there is one."""
    factors = self._factors(site) if self.norms.fuses(h.x, *h.sources) else None
    if factors is None:
      return self.norms(probe.now().read(self._mix(h, site), site), site)
    reader = self.reads.index(site)
    if self._early() and not self.include_partial:
      columns = (self._column(reader),) * len(h.sources)
      weights = tuple(ahead[0] for ahead in h.scores)
      return self.norms.of_mix(site, h.x, h.sources, weights, columns, *factors)
    sources, a_BTN = self._weights(h, site, reader)
    columns = tuple(range(len(sources)))
    return self.norms.of_mix(site, h.x, sources, (a_BTN,), columns, *factors)

  # The two paths.

  def _identity(self, x: Array, site: int) -> Array:
    if self.identity_kind == 'identity':
      return x
    if self.identity_kind == 'matrix':
      return x @ self.keep[site]
    return x * self.keep[site]

  def _mix(self, h: Recall, site: int) -> Array:
    if self.path == 'identity' or site not in self.reads:
      return h.x
    reader = self.reads.index(site)
    r = self._recall(h, site, reader)
    if self.path == 'attn':
      return r
    probe.now().paths(h.x, r, site)
    if self.gate_form == 'additive':
      return h.x + r
    g = probe.now().gate(self._gate(h.x, reader), site)
    if self.gate_form == 'additive_gated':
      return h.x + 2 * g * r
    return r + g * (h.x - r)

  def _factors(self, site: int) -> tuple[Array, Array] | None:
    """gx and gr [D] of u = gx x + gr r, or None where u is not of this form."""
    if self.path == 'identity' or site not in self.reads or self.silu_norm == 'rms':
      return None
    one = jnp.ones(self.shape.dim)
    if self.path == 'attn':
      return 0 * one, one
    if self.gate_form == 'additive':
      return one, one
    if self.gate not in ('vector', 'scalar'):
      return None
    g = jax.nn.sigmoid(self.beta[self.reads.index(site)]) * one
    return (g, 1 - g) if self.gate_form == 'convex' else (one, 2 * g)

  def _gate(self, x: Array, reader: int) -> Array:
    z = self.beta[reader]
    if self.gate == 'lowrank_dynamic':
      z = z + layers.rms(x) @ self.gate_down[reader] @ self.gate_up[reader]
    elif self.gate == 'dense':
      z = z + layers.rms(x) @ self.gate_map[reader]
    return jax.nn.sigmoid(z)

  def _weights(self, h: Recall, site: int, reader: int) -> tuple[tuple[Array, ...], Array]:
    """Sources b_i at `site`, which is read number `reader`, and their weights a [B, T, sources]."""
    sources, scores = h.sources, [ahead[0][..., self._column(reader)] for ahead in h.scores]
    if self.include_partial and site % self.block and site < self.shape.sites:
      summary = self._summary(h, site, closed=False)
      sources = (*sources, summary)
      scores.append(self._score(summary, h.x.shape[1], reader, reader + 1)[..., 0])
    if self.query == 'lowrank_dynamic':
      q_BTR = layers.rms(h.x) @ self.query_down[reader] @ self.query_up[reader]
      scores = [
        z + self.score_scale * jnp.sum(q_BTR * self._key(b), axis=-1)
        for z, b in zip(scores, sources, strict=True)
      ]
    z_BTN = jnp.stack(scores, axis=-1)
    a_BTN = z_BTN if self._early() else self._weigh(z_BTN)
    names = _names(len(h.sources), len(sources) > len(h.sources))
    simplex = self.score_fn == 'softmax'
    return sources, probe.now().weights(a_BTN, site, names, simplex=simplex)

  def _recall(self, h: Recall, site: int, reader: int) -> Array:
    """r = sum_i a_i b_i. [B, T, D]."""
    sources, a_BTN = self._weights(h, site, reader)
    # A sum of fused terms: stacking the sources would copy all of them at every read.
    r = sum(a_BTN[..., i : i + 1] * b for i, b in enumerate(sources))
    if self.silu_norm == 'rms':
      # Both are 0 at a token that is not there.
      x2, r2 = (jnp.mean(y**2, axis=-1, keepdims=True) for y in (h.x, r))
      r = r * jax.lax.stop_gradient(jnp.sqrt(x2 / jnp.maximum(r2, 1e-30)))
    return r

  def _early(self) -> bool:
    """Whether a source's weight follows from its score alone, so that `Recall` holds weights."""
    alone = self.score_fn in _POINTWISE and self.silu_norm != 'n_src'
    return alone and self.query != 'lowrank_dynamic'

  def _weigh(self, z_BTN: Array) -> Array:
    if self.score_fn == 'softmax':
      return jax.nn.softmax(z_BTN, axis=-1)
    if self.score_fn == 'softmax1':  # a null source at score 0: weights may sum to less than one
      m = jnp.maximum(jnp.max(z_BTN, axis=-1, keepdims=True), 0.0)
      e = jnp.exp(z_BTN - m)
      return e / (jnp.exp(-m) + jnp.sum(e, axis=-1, keepdims=True))
    a_BTN = _POINTWISE[self.score_fn](z_BTN + self.silu_center)
    return a_BTN / z_BTN.shape[-1] if self.silu_norm == 'n_src' else a_BTN

  # Blocks.

  def _close(self, h: Recall, site: int) -> Recall:
    """The open block becomes a source for all reads from `site` on."""
    reader = sum(r < site for r in self.reads)
    b = self._summary(h, site, closed=True)
    opened = None if h.opened is None else h.x
    ahead = tuple(ahead[1:] for ahead in h.scores)
    return self._append(h._replace(branches=(), opened=opened, scores=ahead), b, reader)

  def _summary(self, h: Recall, site: int, closed: bool) -> Array:
    """What the open block, of which `site` - 1 is the last sub-layer, is compressed to."""
    if self.compress == 'last':
      return h.x
    total = h.partial
    if self.compress == 'mean':
      return total / ((site - 1) % self.block + 1)
    if self.compress == 'token_mean' and closed:
      return jnp.mean(total, axis=1, keepdims=True)
    return total

  def _append(self, h: Recall, b: Array, reader: int) -> Recall:
    if self.path == 'identity' or reader == len(self.reads):
      return h
    sizes = tuple(Counter(self.blocks[reader:]).values())
    if self._scores_in_kernel(b, h.x.shape[1]):
      silu = self._early()
      center = self.silu_center if silu else 0.0
      ahead = ops.score(self.score_scale, center, silu, sizes, b, self.queries[reader:])
    else:
      scores = self._score(b, h.x.shape[1], reader, len(self.reads))
      # Cut once: the gradient is one concatenation, not a sum of padded ones.
      ahead = tuple(jax.lax.split(scores, sizes, axis=2))
    return h._replace(sources=(*h.sources, b), scores=(*h.scores, ahead))

  def _scores_in_kernel(self, b: Array, tokens: int) -> bool:
    """Whether `ops.score` gives what `_score` does."""
    plain = self.query == 'static' and self.compress != 'lowrank_key' and b.shape[1] == tokens
    return plain and self.norms.fuses(b) and (self.score_fn == 'silu' or not self._early())

  def _score(self, b: Array, tokens: int, first: int, last: int) -> Array:
    """kappa <w_s, k> of source b for reads first .. last-1, or weights. [B, T, last - first].

    The inverse RMS multiplies the product instead of the source, so no key is ever stored.
    """
    inverse = jax.lax.rsqrt(jnp.mean(b * b, axis=-1, keepdims=True) + 1e-6)
    if self.compress == 'lowrank_key':
      b = b[..., : self.key_rank]
    w = self.queries[:1] if self.query == 'shared' else self.queries[first:last]
    form = 'btd,nd->btn'
    if self.query == 'static_per_token':
      form = 'btd,ntd->btn'
      w = w[:, self.shape.tokens - tokens :]  # a pyramid drops the first tokens
      b = jnp.broadcast_to(b, (b.shape[0], tokens, b.shape[2]))
    z = jnp.einsum(form, b, w, preferred_element_type=jnp.float32) * (self.score_scale * inverse)
    # A shared query has one score for all reads, a token-mean source one for all tokens.
    z = jnp.broadcast_to(z, (z.shape[0], tokens, last - first))
    return self._weigh(z) if self._early() else z

  def _key(self, b: Array) -> Array:
    k = layers.rms(b)
    return k[..., : self.key_rank] if self.compress == 'lowrank_key' else k
