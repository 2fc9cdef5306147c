# SPDX-License-Identifier: Apache-2.0
"""Hooks that let `deres_jax.inspect` read and change a model's values while it is traced.

The stack and the connectors pass values to the current probe and continue with what it returns.
The default `Probe` returns its argument, so training compiles the same program as without it;
`using` sets another one.

Shapes: B examples, T tokens, D width, N sources.
"""

import contextlib
import contextvars
from collections.abc import Iterator

from jax import Array


class Probe:
  """Changes nothing. Sites 0 .. S - 1 are the reads of the sub-layers and S is the head's."""

  def start(self, x_BTD: Array, mask_BT: Array | None, names: tuple[str, ...]) -> Array:
    """Takes the tokens before the first sub-layer, their mask and the sub-layers' names."""
    return x_BTD

  def read(self, u_BTD: Array, site: int) -> Array:
    """Takes the input of the sub-layer (or the head) at `site`, before the norm."""
    return u_BTD

  def branch(self, y_BTD: Array, site: int) -> Array:
    """Takes the branch of the sub-layer at `site`, before it is written."""
    return y_BTD

  def paths(self, x_BTD: Array, r_BTD: Array, site: int):
    """Takes the identity path and the recall path, before a gate mixes them."""

  def weights(
    self,
    a: Array,
    site: int,
    sources: tuple[str, ...],
    kind: str = 'recall',
    axis: int = -1,
    simplex: bool = False,
  ) -> Array:
    """Takes weights over named sources along `axis`, static or [B, T, ...].

    Args:
      kind: recall (of earlier outputs), pre and res (of streams: for the sub-layer, for the next
        streams), pre_res (both in one: pre is column 0 of the last axis) or post (of the branch:
        the sources are the streams that it is written to).
      simplex: whether the weights come from a softmax, so that they sum to 1.
    """
    return a

  def gate(self, g: Array, site: int) -> Array:
    """Takes a gate, static [D or 1] or [B, T, D]: the share of the first of two paths."""
    return g


_now = contextvars.ContextVar('probe', default=Probe())  # noqa: B039, it has no state


def now() -> Probe:
  """Returns the current probe."""
  return _now.get()


@contextlib.contextmanager
def using(probe: Probe) -> Iterator[None]:
  """Sets the probe of what is traced inside."""
  before = _now.set(probe)
  try:
    yield
  finally:
    _now.reset(before)
