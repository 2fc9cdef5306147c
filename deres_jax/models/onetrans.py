# SPDX-License-Identifier: Apache-2.0
"""OneTrans (arXiv 2510.26104 v3) over non-sequence tokens.

Each layer is mixed attention, then a mixed feed-forward; every non-sequence token has its own
q, k, v and feed-forward matrices and all share the output map. Parameters without biases:
L (T (3 + 2r) D^2 + D^2). The paper does not say whether the output map is per token, which
non-linearity it takes or how it is pooled: shared, GELU and mean are our reading.
"""

import jax.numpy as jnp

from deres_jax.models import layers
from deres_jax.models.stack import SubLayer


def sublayers(
  depth: int, tokens: int, heads: int, ratio: int, causal: bool, dtype: jnp.dtype
) -> tuple[SubLayer, ...]:
  """The 2 * depth sub-layers. Maps into the stream start smaller by 1 / (2 * depth) in variance."""
  scale = 1 / (2 * depth)
  attention = dict(
    tokens=tokens, heads=heads, per_token=True, causal=causal, dtype=dtype, out_scale=scale
  )
  ffn = dict(tokens=tokens, ratio=ratio, per_token=True, dtype=dtype, out_scale=scale)
  out = []
  for layer in range(depth):
    out.append(SubLayer(f'attention_{layer}', layers.Attention, attention))
    out.append(SubLayer(f'ffn_{layer}', layers.FeedForward, ffn))
  return tuple(out)
