# SPDX-License-Identifier: Apache-2.0
"""OneTrans (arXiv 2510.26104 v3) and the plain pre-norm Transformer, its shared-weight case.

Each layer is mixed attention, then a mixed feed-forward. Event tokens (S) share q, k, v and
feed-forward matrices, each field token (NS) has its own, and all share the output map.

With events a pyramid may shorten the sequence with depth: in each layer only the last events (and
all field tokens) are queries and stay. The paper does not say whether the output map is shared,
which non-linearity it uses or how tokens are pooled: shared, GELU and the mean of the field tokens
are our reading.
"""

import jax.numpy as jnp

from deres_jax.config.fields import Config
from deres_jax.models import layers
from deres_jax.models.stack import SubLayer


def pyramid(depth: int, events: int, last: int) -> list[int]:
  """Returns the events that stay after each layer, falling linearly to `last`; -1 keeps all."""
  if last < 0:
    return [events] * depth
  return [events + round((last - events) * (l + 1) / depth) for l in range(depth)]


def onetrans(c: Config, fields: int, events: int, dtype: jnp.dtype) -> tuple[SubLayer, ...]:
  """Returns OneTrans's sub-layers, two a layer."""
  return _sublayers(c, fields, fields, events, dtype)


def transformer(c: Config, fields: int, events: int, dtype: jnp.dtype) -> tuple[SubLayer, ...]:
  """Returns the Transformer's sub-layers, two a layer."""
  return _sublayers(c, 0, fields, events, dtype)


def _sublayers(
  c: Config, per_token: int, fields: int, events: int, dtype: jnp.dtype
) -> tuple[SubLayer, ...]:
  """Returns sub-layers whose output maps start scaled by 1 / sqrt(2 depth)."""
  m, scale = c.model, 1 / (2 * c.model.depth)
  attention = dict(
    per_token=per_token, heads=m.heads, causal=m.causal, dtype=dtype, out_scale=scale
  )
  ffn = dict(per_token=per_token, ratio=m.ffn_ratio, dtype=dtype, out_scale=scale)
  out = []
  for layer, stay in enumerate(pyramid(m.depth, events, m.pyramid_events)):
    queries = dict(attention, queries=stay + fields)
    out.append(SubLayer(f'attention_{layer}', layers.Attention, queries, stay + fields))
    out.append(SubLayer(f'ffn_{layer}', layers.FeedForward, ffn))
  return tuple(out)
