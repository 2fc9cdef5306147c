# SPDX-License-Identifier: Apache-2.0
"""Where a model may be looked into, and changed, while it is traced: `deres_jax.inspect`.

The stack and the connectors hand what they are about to use to the probe of the moment and go on
with what it returns. `Probe` itself, which is there in training, returns what it is given, so that
the program is the same as without it; others are set by `using`, as `kernels.library.using` says
what a program is made of.

Shapes: B rows, T tokens, D width, N sources.
"""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

Array = jax.Array


class Probe:
  """Sees nothing and changes nothing.

  Sites 0 .. S - 1 are the reads of the sub-layers and S is the head's.
  """

  def start(self, x_BTD: Array, mask_BT: Array | None, names: tuple[str, ...]) -> Array:
    """The tokens before the first sub-layer, which of them are there, and the sub-layers' names."""
    del mask_BT, names
    return x_BTD

  def read(self, u_BTD: Array, site: int) -> Array:
    """What the sub-layer (or the head) at `site` reads, before the norm."""
    del site
    return u_BTD

  def branch(self, y_BTD: Array, site: int) -> Array:
    """What the sub-layer at `site` gives, before it is written."""
    del site
    return y_BTD

  def paths(self, x_BTD: Array, r_BTD: Array, site: int):
    """The identity path and the recall path, before a gate mixes them."""

  def weights(
    self,
    a: Array,
    site: int,
    sources: tuple[str, ...],
    kind: str = 'recall',
    axis: int = -1,
    simplex: bool = False,
  ) -> Array:
    """Weights over named sources along `axis`, static or [B, T, ...].

    Args:
      kind: recall (of earlier outputs), pre and res (of streams: for the sub-layer, for the next
        streams), pre_res (both in one: pre is column 0 of the last axis) or post (what a stream
        takes of the branch; its sources are the streams that it is written to).
      simplex: whether a softmax made them, so that they sum to 1.
    """
    del site, sources, kind, axis, simplex
    return a

  def gate(self, g: Array, site: int) -> Array:
    """A gate, static [D or 1] or [B, T, D]: its share of the first of two paths."""
    del site
    return g


_now = contextvars.ContextVar('probe', default=Probe())  # noqa: B039, it has no state


def now() -> Probe:
  """The probe of what is traced now."""
  return _now.get()


@contextlib.contextmanager
def using(probe: Probe) -> Iterator[None]:
  """What is traced inside is shown to `probe`."""
  before = _now.set(probe)
  try:
    yield
  finally:
    _now.reset(before)
