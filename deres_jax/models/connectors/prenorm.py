# SPDX-License-Identifier: Apache-2.0
"""Adds branches to the identity stream: pre-norm residuals."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from deres_jax.models import layers, probe
from deres_jax.models.stack import Shape


class PreNorm(nn.Module):
  """Identity residual: u = Norm(x), x <- x + y (Xiong et al. 2020)."""

  shape: Shape
  norm: str
  dtype: jnp.dtype

  def setup(self):
    self.norms = layers.SiteNorms(self.shape.sites + 1, self.shape.dim, self.norm, self.dtype)

  def start(self, x_BTD: jax.Array) -> jax.Array:
    return x_BTD.astype(jnp.float32)

  def read(self, h: jax.Array, site: int) -> tuple[jax.Array, jax.Array]:
    return self.norms(probe.now().read(h, site), site), h

  def write(self, h: jax.Array, y_BTD: jax.Array, site: int) -> jax.Array:
    del site
    return h + y_BTD.astype(jnp.float32)

  def finish(self, h: jax.Array) -> jax.Array:
    return self.read(h, self.shape.sites)[0]
