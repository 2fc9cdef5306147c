# SPDX-License-Identifier: Apache-2.0
"""The depth loop: sub-layers under a connector.

A backbone is a list of named sub-layers that return their branch only; a connector owns the skip
and the norms. History grows with depth, so this is a Python loop, unrolled when traced.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from deres_jax.models import inputs, layers, probe


@dataclasses.dataclass(frozen=True)
class Shape:
  """What a connector is told of the stack that it connects.

  Attributes:
    sites: number of sub-layers; site `sites` is the read of the head.
    per_layer: sub-layers a layer (attention and feed-forward: 2).
    tokens: T at the start; a backbone may drop tokens with depth, the first ones first.
    dim: D.
  """

  sites: int
  per_layer: int
  tokens: int
  dim: int


@dataclasses.dataclass(frozen=True)
class SubLayer:
  """A named step of a backbone: `module(**sizes)` maps [B, T, D] to its branch.

  The branch is [B, T, D], or [B, tokens, D] where `tokens` is set: only the last ones go on.
  """

  name: str
  module: type[nn.Module]
  sizes: dict
  tokens: int | None = None


def keep_last(state: Any, before: int, after: int) -> Any:
  """A connector's state for the last tokens only: all its arrays are [B, T, ...] (or T = 1)."""

  def cut(x: jax.Array) -> jax.Array:
    return x[:, before - after :] if x.shape[1] == before else x

  return jax.tree.map(cut, state)


def _present(x_BTD: jax.Array, ctx: inputs.Context) -> jax.Array:
  return x_BTD if ctx.mask_BT is None else jnp.where(ctx.mask_BT[..., None], x_BTD, 0)


class Stack(nn.Module):
  """Runs [B, T, D] through all sub-layers and the connector's finish.

  A token that is not there is zero at the start and in every branch, so that no sum or mean over
  tokens takes it in. Returns the connector's last read, and what the first sub-layer of each later
  layer read (for auxiliary losses).
  """

  sublayers: tuple[SubLayer, ...]
  connector: nn.Module
  per_layer: int
  dropout: float
  remat: bool

  @nn.compact
  def __call__(
    self, x_BTD: jax.Array, ctx: inputs.Context
  ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    names = tuple(sub.name for sub in self.sublayers)
    x_BTD = probe.now().start(_present(x_BTD, ctx), ctx.mask_BT, names)
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
      y_BTD = probe.now().branch(_present(y_BTD, ctx), site)
      h = self.connector.write(h, y_BTD, site)
    return self.connector.finish(h), tuple(between)
