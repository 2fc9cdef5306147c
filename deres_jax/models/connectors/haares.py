# SPDX-License-Identifier: Apache-2.0
"""HAARES (arXiv 2606.06564, first called WAV): block attention residuals in several resolutions."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from deres_jax.models import probe
from deres_jax.models.connectors.prenorm import PreNorm


class Source(NamedTuple):
  """A value [B, T, D] and its scores for all reads to come [B, T, reads to come]."""

  value: Array
  scores: Array


class Sources(NamedTuple):
  """State of `Haares`.

  Attributes:
    sums: b_0 (the tokens) and the sum of each completed block.
    details: details of all completed blocks.
    branches: branches of the open block so far, each [B, T, D].
  """

  sums: tuple[Source, ...]
  details: tuple[Source, ...]
  branches: tuple[Array, ...]


class Haares(PreNorm):
  """Softmax attention over the sums of blocks and zero-sum details of completed blocks.

    phase = sum of a block's branches at first sites of layers - sum of all others (attention - FFN)
    split = sum of the first half of a block's branches - sum of the second
    d     = detail * sg(RMS(sum) / RMS(detail))                                     [B, T, D]
    u_s   = sum_i softmax_i(<w_s, v_i / RMS(v_i)> + c_s [v_i is a detail]) v_i      [B, T, D]

  c starts at `detail_init` below 0 and w at 0, so a read starts close to Block AttnRes's mean. The
  open block is a source through its sum, as in AttnRes. Backbones with one sub-layer a layer have
  no phase; a block whose halves are its phases (one layer of two) has no split. Learned c, one a
  site for both kinds, and -2 are our reading.

  >>> from deres_jax.models.stack import Shape
  >>> two = lambda m, x: m.finish(m.write(m.write(m.start(x), 3 * x, site=0), -x, site=1))
  >>> connector = Haares(Shape(2, 1, 1, dim=2), 'none', jnp.float32, block=2, detail_init=-100.0)
  >>> connector.init_with_output(jax.random.key(0), jnp.ones((1, 1, 2)), method=two)[0]
  Array([[[1.5, 1.5]]], dtype=float32)
  """

  block: int
  detail_init: float

  def setup(self):
    super().setup()
    S, D = self.shape.sites, self.shape.dim
    self.queries = self.param('query', nn.initializers.zeros, (S + 1, D))
    # Reads before the first block is complete see no detail.
    if self.block <= S:
      start = nn.initializers.constant(self.detail_init)
      self.detail = self.param('detail', start, (S + 1 - self.block,))

  def start(self, x_BTD: Array) -> Sources:
    return Sources((self._source(x_BTD.astype(jnp.float32), 0),), (), ())

  def read(self, h: Sources, site: int) -> tuple[Array, Sources]:
    return super().read(self._mix(h, site), site)[0], h

  def write(self, h: Sources, y_BTD: Array, site: int) -> Sources:
    h = h._replace(branches=(*h.branches, y_BTD.astype(jnp.float32)))
    if (site + 1) % self.block:
      return h
    details = [self._source(d, site + 1) for d in self._details(h.branches)]
    total = self._source(sum(h.branches), site + 1)
    return Sources((*h.sums, total), (*h.details, *details), ())

  def _scores(self, v: Array, first: int, last: int) -> Array:
    """Returns <w_s, v / RMS(v)> for reads first .. last - 1, [B, T, last - first]."""
    inverse = jax.lax.rsqrt(jnp.mean(v * v, axis=-1, keepdims=True) + 1e-6)
    return v @ self.queries[first:last].T * inverse

  def _source(self, v: Array, first: int) -> Source:
    return Source(v, self._scores(v, first, self.shape.sites + 1))

  def _details(self, branches: tuple[Array, ...]) -> list[Array]:
    """Returns phase and split of a completed block."""
    per_layer = self.shape.per_layer
    # Blocks are whole layers, so the first sub-layer of a block is the first of a layer.
    phase = [i % per_layer == 0 for i in range(self.block)]
    split = [i < self.block // 2 for i in range(self.block)]
    patterns = [phase, split] if per_layer > 1 and phase != split else [split]
    size = _size(sum(branches))
    out = []
    for plus in patterns:
      d = sum(y if p else -y for y, p in zip(branches, plus, strict=True))
      out.append(d * jax.lax.stop_gradient(size / _size(d)))
    return out

  def _names(self, h: Sources) -> tuple[str, ...]:
    """Names the sources for a probe."""
    kinds = ('phase', 'split') if self.shape.per_layer > 1 else ('split',)
    kinds = kinds[: len(h.details) // max(1, len(h.sums) - 1)]
    details = (f'{kinds[i % len(kinds)]} {i // len(kinds) + 1}' for i in range(len(h.details)))
    sums = (f'block {i}' for i in range(1, len(h.sums)))
    return ('embedding', *sums, *details, *(('open block',) if h.branches else ()))

  def _mix(self, h: Sources, site: int) -> Array:
    sources = (*h.sums, *h.details)
    values = [s.value for s in sources]
    logits = [s.scores[..., site - (self.shape.sites + 1)] for s in sources]
    if h.details:
      first = len(h.sums)
      logits[first:] = [z + self.detail[site - self.block] for z in logits[first:]]
    if h.branches:
      values.append(sum(h.branches))
      logits.append(self._scores(values[-1], site, site + 1)[..., 0])
    a_BTN = jax.nn.softmax(jnp.stack(logits, axis=-1), axis=-1)
    a_BTN = probe.now().weights(a_BTN, site, self._names(h), simplex=True)
    return sum(a_BTN[..., i : i + 1] * v for i, v in enumerate(values))


def _size(x: Array) -> Array:
  """Computes the RMS along the last axis, kept away from 0."""
  return jnp.sqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)
