# SPDX-License-Identifier: Apache-2.0
"""OneTrans (arXiv 2510.26104 v3) and the plain pre-norm Transformer, its shared-weight case.

Each layer is mixed attention, then a mixed feed-forward. Event tokens (S) share q, k, v and
feed-forward matrices, every field token (NS) has its own, and all share the output map.
Parameters of L layers without biases, F field tokens, s = 1 if there are events else 0:
L ((F + s) (3 + 2r) D^2 + D^2). The plain Transformer has 2r + 4 matrices a layer.

With events a pyramid may shorten the list with depth: at each layer only the last events (and all
field tokens) ask and stay. The paper does not say whether the output map is a token's own, which
non-linearity it takes or how it is pooled: shared, GELU and the field tokens are our reading.
"""

import jax.numpy as jnp

from deres_jax.models import layers
from deres_jax.models.stack import SubLayer


def pyramid(depth: int, events: int, last: int) -> list[int]:
  """Events that stay after each layer, falling linearly to `last`; all of them where last is -1."""
  if last < 0:
    return [events] * depth
  return [events + round((last - events) * (l + 1) / depth) for l in range(depth)]


def sublayers(
  depth: int,
  own: int,
  fields: int,
  events: list[int],
  heads: int,
  ratio: int,
  causal: bool,
  dtype: jnp.dtype,
) -> tuple[SubLayer, ...]:
  """The 2 * depth sub-layers. Maps into the stream start smaller by 1 / (2 * depth) in variance.

  Args:
    own: trailing tokens with weights of their own: `fields` for OneTrans, 0 for the Transformer.
    fields: field tokens; events: event tokens that stay after each layer.
  """
  scale = 1 / (2 * depth)
  attention = dict(own=own, heads=heads, causal=causal, dtype=dtype, out_scale=scale)
  ffn = dict(own=own, ratio=ratio, dtype=dtype, out_scale=scale)
  out = []
  for layer in range(depth):
    stay = events[layer] + fields
    queries = dict(attention, queries=stay)
    out.append(SubLayer(f'attention_{layer}', layers.Attention, queries, stay))
    out.append(SubLayer(f'ffn_{layer}', layers.FeedForward, ffn))
  return tuple(out)
