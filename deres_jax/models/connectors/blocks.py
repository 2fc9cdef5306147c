# SPDX-License-Identifier: Apache-2.0
"""Blocks of sub-layers whose summaries later sub-layers can read: the state of `DeRes`."""

from collections import Counter
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from deres_jax.config import fields
from deres_jax.models.connectors.prenorm import PreNorm


class Recall(NamedTuple):
  """State: the stream, and what a read recalls. By default x == sum(sources) + partial.

  Attributes:
    x: identity stream [B, T, D].
    sources: b_0 (the embedding) and the summaries of completed blocks, each [B, T, D], or
      [B, 1, D] where they are means over tokens.
    scores: scores of each source for all later reads, an array [B, T, reads] for each block of
      reads, the open block first. Weights if a weight depends on its own score alone.
    partial: sum of the branches in the open block [B, T, D]; None if the block is empty.
    opened: `x` where the open block began: `FusedDeRes` keeps it instead of `partial`.
  """

  x: Array
  sources: tuple[Array, ...] = ()
  scores: tuple[tuple[Array, ...], ...] = ()
  partial: Array | None = None
  opened: Array | None = None


class BlockConnector(PreNorm):
  """Sums branches by block; a subclass scores the sums (`_ahead`) and reads them (`_normed`).

    b_n = sum of y_s over the sites s of block n;   x <- x + y_s

  Attributes:
    block: sub-layers a block.
    switches: of the config; `block` replaces its `block_layers`.

  >>> import jax
  >>> from deres_jax.models.connectors.deres import DeRes
  >>> from deres_jax.models.stack import Shape
  >>> connector = DeRes(Shape(3, 1, tokens=1, dim=2), 'none', jnp.float32, block=2)
  >>> three = lambda m, x: m.write(m.write(m.write(m.start(x), x, 0), 2 * x, 1), 4 * x, 2)
  >>> h, _ = connector.init_with_output(jax.random.key(0), jnp.ones((1, 1, 1)), method=three)
  >>> [float(b[0, 0, 0]) for b in h.sources], float(h.partial[0, 0, 0]), float(h.x[0, 0, 0])
  ([1.0, 3.0], 4.0, 8.0)
  """

  block: int
  switches: fields.DeRes = fields.DeRes()

  def setup(self):
    super().setup()
    S, switches = self.shape.sites, self.switches
    # Sites that recall: all, or the first of each layer; and the head's.
    step = 1 if switches.sites == 'sublayer' else self.shape.per_layer
    head = (S,) if switches.readout_mix or switches.path == 'attn' else ()
    self.reads = (*range(0, S, step), *head)
    # Completed blocks at each read; the head's read completes the last one.
    self.blocks = tuple(-(-s // self.block) if s == S else s // self.block for s in self.reads)

  def start(self, x_BTD: Array) -> Recall:
    x = super().start(x_BTD)
    return self._add_source(Recall(x), x, reader=0)

  def write(self, h: Recall, y_BTD: Array, site: int) -> Recall:
    y = y_BTD.astype(jnp.float32)
    partial = y if h.partial is None else h.partial + y
    h = h._replace(x=self._skip(h.x, site) + y, partial=partial)
    return self._close(h, site + 1) if (site + 1) % self.block == 0 else h

  def finish(self, h: Recall) -> Array:
    S = self.shape.sites
    return self._normed(self._close(h, S) if S % self.block else h, S)

  def _close(self, h: Recall, site: int) -> Recall:
    """Makes the open block a source of all reads from `site` on."""
    b = self._summary(h, site, closed=True)
    h = h._replace(partial=None, scores=tuple(ahead[1:] for ahead in h.scores))
    return self._add_source(h, b, reader=sum(r < site for r in self.reads))

  def _summary(self, h: Recall, site: int, closed: bool) -> Array:
    """Returns the summary b of the open block, whose last sub-layer is `site` - 1."""
    compress = self.switches.compress
    if compress == 'last':
      return h.x
    total = self._total(h)
    if compress == 'mean':
      return total / ((site - 1) % self.block + 1)
    return jnp.mean(total, axis=1, keepdims=True) if compress == 'token_mean' and closed else total

  def _total(self, h: Recall) -> Array:
    return h.partial

  def _add_source(self, h: Recall, b: Array, reader: int) -> Recall:
    """Appends b, with its scores for the reads `reader` and later."""
    if self.switches.path == 'identity' or reader == len(self.reads):
      return h
    sizes = tuple(Counter(self.blocks[reader:]).values())
    ahead = self._ahead(b, h.x.shape[1], reader, sizes)
    return h._replace(sources=(*h.sources, b), scores=(*h.scores, ahead))

  def _column(self, reader: int) -> int:
    """Returns the index of a read among those of its block."""
    return reader - self.blocks.index(self.blocks[reader])
