# SPDX-License-Identifier: Apache-2.0
"""Connectors with one or two streams: where the norm stands and what multiplies the skip.

For the contract (start, read, write, finish) see `deres_jax.models.connectors.deres`. x is the
stream, y the branch of a sub-layer. Streams are float32 whatever the sub-layers compute in."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from deres_jax.models import layers, probe
from deres_jax.models.connectors.prenorm import PreNorm
from deres_jax.models.stack import Shape

Array = jax.Array


def _tiled_eye(key, shape):
  del key
  return jnp.broadcast_to(jnp.eye(shape[-1]), shape)


class PostNorm(nn.Module):
  """x <- Norm(x + y); a sub-layer reads the stream as it is (Vaswani et al. 2017)."""

  shape: Shape
  norm: str
  dtype: jnp.dtype

  def setup(self):
    self.norms = layers.SiteNorms(self.shape.sites, self.shape.dim, self.norm, jnp.float32)

  def start(self, x_BTD: Array) -> Array:
    return x_BTD.astype(jnp.float32)

  def read(self, h: Array, site: int) -> tuple[Array, Array]:
    return probe.now().read(h, site).astype(self.dtype), h

  def write(self, h: Array, y_BTD: Array, site: int) -> Array:
    return self.norms(h + y_BTD.astype(jnp.float32), site)

  def finish(self, h: Array) -> Array:
    return self.read(h, self.shape.sites)[0]


class Projected(nn.Module):
  """x <- ReLU(x W + y), no norm: AutoInt's skip (arXiv 1810.11921). W is [D, D] a site.

  W starts with Xavier's variance, as the paper's residual map does.
  """

  shape: Shape
  dtype: jnp.dtype

  def setup(self):
    S, D = self.shape.sites, self.shape.dim
    init = nn.initializers.variance_scaling(1.0, 'fan_avg', 'uniform', batch_axis=(0,))
    self.kernel = self.param('kernel', init, (S, D, D))

  def start(self, x_BTD: Array) -> Array:
    return x_BTD.astype(jnp.float32)

  def read(self, h: Array, site: int) -> tuple[Array, Array]:
    return probe.now().read(h, site).astype(self.dtype), h

  def write(self, h: Array, y_BTD: Array, site: int) -> Array:
    w = self.kernel[site].astype(self.dtype)
    return jax.nn.relu((h.astype(self.dtype) @ w).astype(jnp.float32) + y_BTD.astype(jnp.float32))

  def finish(self, h: Array) -> Array:
    return self.read(h, self.shape.sites)[0]


class Siamese(nn.Module):
  """SiameseNorm: a post-norm and a pre-norm stream side by side (Li et al. 2026).

  u = X + Norm(Y);  X <- Norm(X + y);  Y <- Y + y;  the head reads X + Norm(Y). Both start at the
  tokens. Applied at every sub-layer; UniMixer wraps whole blocks, which is a backbone of one
  composite sub-layer a block.
  """

  shape: Shape
  norm: str
  dtype: jnp.dtype

  def setup(self):
    S, D = self.shape.sites, self.shape.dim
    self.norms = layers.SiteNorms(S + 1, D, self.norm, jnp.float32)
    self.post_norms = layers.SiteNorms(S, D, self.norm, jnp.float32)

  def start(self, x_BTD: Array) -> tuple[Array, Array]:
    x = x_BTD.astype(jnp.float32)
    return x, x

  def read(self, h: tuple[Array, Array], site: int):
    post, pre = h
    u = probe.now().read(post + self.norms(pre, site), site)
    return u.astype(self.dtype), h

  def write(self, h: tuple[Array, Array], y_BTD: Array, site: int) -> tuple[Array, Array]:
    post, pre = h
    y = y_BTD.astype(jnp.float32)
    return self.post_norms(post + y, site), pre + y

  def finish(self, h: tuple[Array, Array]) -> Array:
    return self.read(h, self.shape.sites)[0]


class Interval(nn.Module):
  """Pre-norm with a second skip across every `every` layers (TokenMixer-Large, 2602.06563).

  X^{(l + s)} += X^{(l)} for l = 0, s, 2s, ..., but not where l + s is the last layer.
  """

  shape: Shape
  norm: str
  dtype: jnp.dtype
  every: int

  def setup(self):
    self.norms = layers.SiteNorms(self.shape.sites + 1, self.shape.dim, self.norm, self.dtype)

  def start(self, x_BTD: Array) -> tuple[Array, Array]:
    x = x_BTD.astype(jnp.float32)
    return x, x

  def read(self, h: tuple[Array, Array], site: int):
    return self.norms(probe.now().read(h[0], site), site), h

  def write(self, h: tuple[Array, Array], y_BTD: Array, site: int) -> tuple[Array, Array]:
    x, kept = h
    x = x + y_BTD.astype(jnp.float32)
    done = site + 1
    if done % (self.every * self.shape.per_layer) == 0 and done < self.shape.sites:
      x = x + kept
      kept = x
    return x, kept

  def finish(self, h: tuple[Array, Array]) -> Array:
    return self.read(h, self.shape.sites)[0]


class Learnable(PreNorm):
  """x <- keep * x + scale * y under pre-norm, with learned factors: the ablation's residuals.

  kind scalar: keep and scale are one number a site; vector: one a dimension; matrix: keep is
  [D, D] (row form x W) and scale is 1. All start at the identity, so all start as PreNorm. The
  matrix is what DeRes's ablation calls a learnable residual: products of matrices of norm below
  1 decay with depth.
  """

  kind: str

  def setup(self):
    S, D = self.shape.sites, self.shape.dim
    super().setup()
    if self.kind == 'matrix':
      self.keep = self.param('keep', _tiled_eye, (S, D, D))
      return
    width = 1 if self.kind == 'scalar' else D
    self.keep = self.param('keep', nn.initializers.ones, (S, width))
    self.scale = self.param('scale', nn.initializers.ones, (S, width))

  def write(self, h: Array, y_BTD: Array, site: int) -> Array:
    y = y_BTD.astype(jnp.float32)
    if self.kind == 'matrix':
      return h @ self.keep[site] + y
    return self.keep[site] * h + self.scale[site] * y


class Scaled(PreNorm):
  """x <- x + a * y with a learned factor that starts small.

  rezero: one number a site, starts at 0, no norm before the sub-layer (Bachlechner et al. 2020,
    arXiv 2003.04887). layerscale: one number a dimension, starts at `init`, pre-norm (Touvron et
    al. 2021, arXiv 2103.17239: 0.1 up to 18 layers).
  """

  kind: str
  init: float

  def setup(self):
    S, D = self.shape.sites, self.shape.dim
    self.norms = layers.SiteNorms(1 if self.kind == 'rezero' else S + 1, D, self.norm, self.dtype)
    width = 1 if self.kind == 'rezero' else D
    start = 0.0 if self.kind == 'rezero' else self.init
    self.scale = self.param('scale', nn.initializers.constant(start), (S, width))

  def read(self, h: Array, site: int) -> tuple[Array, Array]:
    u = probe.now().read(h, site)
    return (u.astype(self.dtype) if self.kind == 'rezero' else self.norms(u, site)), h

  def write(self, h: Array, y_BTD: Array, site: int) -> Array:
    return h + self.scale[site] * y_BTD.astype(jnp.float32)

  def finish(self, h: Array) -> Array:
    u = probe.now().read(h, self.shape.sites)
    return self.norms(u, 0 if self.kind == 'rezero' else self.shape.sites)


class Highway(PreNorm):
  """x <- (1 - g) * x + g * y under pre-norm, g = sigmoid(x / RMS(x) W + b) (arXiv 1505.00387).

  W starts at zero and b at `bias` below 0, so the skip carries most at the start.
  """

  bias: float

  def setup(self):
    S, D = self.shape.sites, self.shape.dim
    super().setup()
    self.gate_map = self.param('gate_map', nn.initializers.zeros, (S, D, D))
    self.beta = self.param('gate', nn.initializers.constant(self.bias), (S, D))

  def write(self, h: Array, y_BTD: Array, site: int) -> Array:
    g = jax.nn.sigmoid(layers.rms(h) @ self.gate_map[site] + self.beta[site])
    g = probe.now().gate(g, site)
    return h + g * (y_BTD.astype(jnp.float32) - h)
