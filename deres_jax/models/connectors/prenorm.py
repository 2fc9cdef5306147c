# SPDX-License-Identifier: Apache-2.0
"""Pre-norm residuals, and what other connectors inherit from them."""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from deres_jax.models import layers, probe
from deres_jax.models.stack import Shape


class PreNorm(nn.Module):
  """Identity residual: u = Norm(x), x <- x + y (Xiong et al. 2020, arXiv 2002.04745).

  Shapes: x, u, y [B, T, D]; a norm for each site.

  >>> from deres_jax.models.stack import Shape
  >>> connector = PreNorm(Shape(sites=1, per_layer=1, tokens=1, dim=2), 'none', jnp.float32)
  >>> connector.apply({}, jnp.ones((1, 1, 2)), method=lambda m, x: m.finish(m.write(x, 2 * x, 0)))
  Array([[[3., 3.]]], dtype=float32)
  """

  shape: Shape
  norm: str
  dtype: jnp.dtype

  def setup(self):
    self.norms = layers.SiteNorms(self.shape.sites + 1, self.shape.dim, self.norm, self.dtype)

  def start(self, x_BTD: Array):
    return x_BTD.astype(jnp.float32)

  def read(self, h, site: int):
    return self.norms(probe.now().read(h, site), site), h

  def write(self, h, y_BTD: Array, site: int):
    return h + y_BTD.astype(jnp.float32)

  def finish(self, h) -> Array:
    return self.read(h, self.shape.sites)[0]
