# SPDX-License-Identifier: Apache-2.0
"""The depth loop: sub-layers under a connector.

A backbone is a list of named sub-layers that return their branch only; a connector owns the skip
and the norms. The connector's state grows with depth, so the loop is unrolled when traced.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from deres_jax.models import inputs, layers, probe


@dataclasses.dataclass(frozen=True)
class Shape:
  """Shape of the stack that a connector connects.

  Attributes:
    sites: number of sub-layers; site `sites` is the head's read.
    per_layer: sub-layers a layer (attention and feed-forward: 2).
    tokens: T at the first site; a backbone may drop leading tokens with depth.
    dim: D.
  """

  sites: int
  per_layer: int
  tokens: int
  dim: int


@dataclasses.dataclass(frozen=True)
class SubLayer:
  """A named sub-layer of a backbone: `module(**sizes)` maps [B, T, D] to its branch.

  The branch is [B, T, D], or [B, tokens, D] if `tokens` is set: only the last tokens stay.
  """

  name: str
  module: type[nn.Module]
  sizes: dict
  tokens: int | None = None


def keep_last(state: Any, before: int, after: int) -> Any:
  """Cuts a connector's state to its last tokens; all arrays are [B, T, ...] or [B, 1, ...]."""

  def cut(x: Array) -> Array:
    return x[:, before - after :] if x.shape[1] == before else x

  return jax.tree.map(cut, state)


def _masked(x_BTD: Array, ctx: inputs.Context) -> Array:
  return x_BTD if ctx.mask_BT is None else jnp.where(ctx.mask_BT[..., None], x_BTD, 0)


class Stack(nn.Module):
  """Runs tokens [B, T, D] through all sub-layers under the connector.

  A padded token is zero at the start and in every branch, so it does not enter sums or means over
  tokens. Returns the connector's last read, and what the first sub-layer of each later layer read
  (for auxiliary losses).
  """

  sublayers: tuple[SubLayer, ...]
  connector: nn.Module
  per_layer: int
  dropout: float
  remat: bool

  @nn.compact
  def __call__(self, x_BTD: Array, ctx: inputs.Context) -> tuple[Array, tuple[Array, ...]]:
    names = tuple(sub.name for sub in self.sublayers)
    x_BTD = probe.now().start(_masked(x_BTD, ctx), ctx.mask_BT, names)
    h, between = self.connector.start(x_BTD), []
    for site, sub in enumerate(self.sublayers):
      kind = nn.remat(sub.module) if self.remat else sub.module
      u_BTD, h = self.connector.read(h, site)
      if site and site % self.per_layer == 0:
        between.append(u_BTD)
      y_BTD = kind(**sub.sizes, name=sub.name)(u_BTD, ctx)
      y_BTD = layers.dropout(y_BTD, self.dropout, ctx, salt=site)
      if sub.tokens is not None and sub.tokens < u_BTD.shape[1]:
        h = keep_last(h, u_BTD.shape[1], sub.tokens)
        if ctx.mask_BT is not None:
          ctx = ctx.with_mask(ctx.mask_BT[:, -sub.tokens :])
      y_BTD = probe.now().branch(_masked(y_BTD, ctx), site)
      h = self.connector.write(h, y_BTD, site)
    return self.connector.finish(h), tuple(between)
