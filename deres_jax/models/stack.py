# SPDX-License-Identifier: Apache-2.0
"""The depth loop: sub-layers under a connector.

A backbone is a list of named sub-layers that return their branch only; a connector owns the skip
and the norms. History grows with depth, so this is a Python loop, unrolled when traced.
"""

import dataclasses

import flax.linen as nn
import jax

from deres_jax.models import layers


@dataclasses.dataclass(frozen=True)
class Shape:
  """What a connector is told of the stack that it connects.

  Attributes:
    sites: number of sub-layers; site `sites` is the read of the head.
    per_layer: sub-layers a layer (attention and feed-forward: 2).
    tokens: T.
    dim: D.
  """

  sites: int
  per_layer: int
  tokens: int
  dim: int


@dataclasses.dataclass(frozen=True)
class SubLayer:
  """A named step of a backbone: `module(**sizes)` maps [B, T, D] to its branch [B, T, D]."""

  name: str
  module: type[nn.Module]
  sizes: dict


class Stack(nn.Module):
  """Runs [B, T, D] through all sub-layers and the connector's finish."""

  sublayers: tuple[SubLayer, ...]
  connector: nn.Module
  dropout: float
  remat: bool

  @nn.compact
  def __call__(self, x_BTD: jax.Array, ctx: layers.Context) -> jax.Array:
    h = self.connector.start(x_BTD)
    for site, sub in enumerate(self.sublayers):
      kind = nn.remat(sub.module) if self.remat else sub.module
      u_BTD, h = self.connector.read(h, site)
      y_BTD = kind(**sub.sizes, name=sub.name)(u_BTD, ctx)
      y_BTD = layers.dropout(y_BTD, self.dropout, ctx, salt=site)
      h = self.connector.write(h, y_BTD, site)
    return self.connector.finish(h)
