# SPDX-License-Identifier: Apache-2.0
"""Connectors with one or two streams: where the norm stands and what multiplies the skip.

x is the stream and y the branch of a sub-layer, both [B, T, D]. Factors are float32 and learned,
one a site.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from deres_jax.models import layers, probe
from deres_jax.models.connectors.prenorm import PreNorm


class PostNorm(PreNorm):
  """Post-norm: x <- Norm(x + y); sub-layers read x itself (Vaswani et al. 2017, arXiv 1706.03762).

  >>> from deres_jax.models.stack import Shape
  >>> layer = lambda m, x: m.finish(m.write(m.start(x), x, site=0))
  >>> connector = PostNorm(Shape(sites=1, per_layer=1, tokens=1, dim=2), 'rms', jnp.float32)
  >>> connector.init_with_output(jax.random.key(0), jnp.ones((1, 1, 2)), method=layer)[0].round(3)
  Array([[[1., 1.]]], dtype=float32)
  """

  def setup(self):
    self.norms = layers.SiteNorms(self.shape.sites, self.shape.dim, self.norm, jnp.float32)

  def read(self, h: Array, site: int) -> tuple[Array, Array]:
    return probe.now().read(h, site).astype(self.dtype), h

  def write(self, h: Array, y_BTD: Array, site: int) -> Array:
    return self.norms(super().write(h, y_BTD, site), site)


class Projected(PostNorm):
  """AutoInt's skip, without a norm: x <- ReLU(x W + y), W [D, D] a site (arXiv 1810.11921).

  W starts with Xavier's variance, as the paper's residual map does.

  >>> from deres_jax.models.stack import Shape
  >>> layer = lambda m, x: m.finish(m.write(m.start(x), x, site=0))
  >>> connector = Projected(Shape(sites=1, per_layer=1, tokens=1, dim=2), 'none', jnp.float32)
  >>> params = {'kernel': -jnp.eye(2)[None]}
  >>> connector.apply({'params': params}, jnp.ones((1, 1, 2)), method=layer)
  Array([[[0., 0.]]], dtype=float32)
  """

  def setup(self):
    S, D = self.shape.sites, self.shape.dim
    init = nn.initializers.variance_scaling(1.0, 'fan_avg', 'uniform', batch_axis=(0,))
    self.kernel = self.param('kernel', init, (S, D, D))

  def write(self, h: Array, y_BTD: Array, site: int) -> Array:
    w = self.kernel[site].astype(self.dtype)
    return jax.nn.relu((h.astype(self.dtype) @ w).astype(jnp.float32) + y_BTD.astype(jnp.float32))


class Siamese(PreNorm):
  """SiameseNorm: a post-norm stream X and a pre-norm stream Y side by side (Li et al. 2026).

    u = X + Norm(Y);  X <- Norm(X + y);  Y <- Y + y;  the head reads X + Norm(Y)

  Both start at the tokens. Here each sub-layer is wrapped; UniMixer wraps whole blocks, which are
  the sub-layers of its backbone.

  >>> from deres_jax.models.stack import Shape
  >>> layer = lambda m, x: m.finish(m.write(m.start(x), x, site=0))
  >>> connector = Siamese(Shape(sites=1, per_layer=1, tokens=1, dim=2), 'none', jnp.float32)
  >>> connector.apply({}, jnp.ones((1, 1, 2)), method=layer)
  Array([[[4., 4.]]], dtype=float32)
  """

  def setup(self):
    S, D = self.shape.sites, self.shape.dim
    self.norms = layers.SiteNorms(S + 1, D, self.norm, jnp.float32)
    self.post_norms = layers.SiteNorms(S, D, self.norm, jnp.float32)

  def start(self, x_BTD: Array) -> tuple[Array, Array]:
    x = super().start(x_BTD)
    return x, x

  def read(self, h: tuple[Array, Array], site: int):
    post, pre = h
    u = probe.now().read(post + self.norms(pre, site), site)
    return u.astype(self.dtype), h

  def write(self, h: tuple[Array, Array], y_BTD: Array, site: int) -> tuple[Array, Array]:
    post, pre = h
    y = y_BTD.astype(jnp.float32)
    return self.post_norms(post + y, site), pre + y


class Interval(PreNorm):
  """Pre-norm with a second skip over every `every` layers (TokenMixer-Large, arXiv 2602.06563).

    x^(l + s) <- x^(l + s) + x^(l) for l = 0, s, 2 s, ..., s = every, unless l + s is the last layer

  >>> from deres_jax.models.stack import Shape
  >>> layers_2 = lambda m, x: m.finish(m.write(m.write(m.start(x), x, site=0), x, site=1))
  >>> connector = Interval(Shape(2, per_layer=1, tokens=1, dim=2), 'none', jnp.float32, every=1)
  >>> connector.apply({}, jnp.ones((1, 1, 2)), method=layers_2)
  Array([[[4., 4.]]], dtype=float32)
  """

  every: int

  def start(self, x_BTD: Array) -> tuple[Array, Array]:
    x = super().start(x_BTD)
    return x, x

  def read(self, h: tuple[Array, Array], site: int):
    return super().read(h[0], site)[0], h

  def write(self, h: tuple[Array, Array], y_BTD: Array, site: int) -> tuple[Array, Array]:
    x, earlier = h
    x, done = super().write(x, y_BTD, site), site + 1
    if done % (self.every * self.shape.per_layer) == 0 and done < self.shape.sites:
      x = x + earlier
      earlier = x
    return x, earlier


class Learnable(PreNorm):
  """Learnable residual: x <- lambda x + mu y under pre-norm, with learned factors that start at 1.

  kind scalar: numbers; vector: vectors [D]; matrix: x <- x W + y, W [D, D] starts at I. The matrix
  is the learnable residual of DeRes's ablation (arXiv 2606.07980): products of matrices of norm
  below 1 decay with depth. All start as PreNorm.

  >>> from deres_jax.models.stack import Shape
  >>> layer = lambda m, x: m.finish(m.write(m.start(x), x, site=0))
  >>> connector = Learnable(Shape(1, 1, tokens=1, dim=2), 'none', jnp.float32, kind='vector')
  >>> params = {'keep': jnp.float32([[2, 1]]), 'scale': jnp.float32([[1, 5]])}
  >>> connector.apply({'params': params}, jnp.ones((1, 1, 2)), method=layer)
  Array([[[3., 6.]]], dtype=float32)
  """

  kind: str

  def setup(self):
    S, D = self.shape.sites, self.shape.dim
    super().setup()
    if self.kind == 'matrix':
      self.keep = self.param('keep', layers.tiled_eye, (S, D, D))
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
  """Scaled branch: x <- x + a y with a learned factor a that starts small.

  kind rezero: a number that starts at 0; sub-layers read x without a norm (Bachlechner et al. 2020,
    arXiv 2003.04887). layerscale: a vector [D] that starts at `initial`,
    pre-norm (Touvron et
    al. 2021, arXiv 2103.17239: 0.1 up to 18 layers).

  >>> from deres_jax.models.stack import Shape
  >>> layer = lambda m, x: m.finish(m.write(m.start(x), x, site=0))
  >>> connector = Scaled(Shape(1, 1, 1, dim=2), 'none', jnp.float32, kind='layerscale', initial=0.5)
  >>> connector.init_with_output(jax.random.key(0), jnp.ones((1, 1, 2)), method=layer)[0]
  Array([[[1.5, 1.5]]], dtype=float32)
  """

  kind: str
  initial: float

  def setup(self):
    S, D, rezero = self.shape.sites, self.shape.dim, self.kind == 'rezero'
    self.norms = layers.SiteNorms(1 if rezero else S + 1, D, self.norm, self.dtype)
    start = nn.initializers.constant(0.0 if rezero else self.initial)
    self.scale = self.param('scale', start, (S, 1 if rezero else D))

  def read(self, h: Array, site: int) -> tuple[Array, Array]:
    u = probe.now().read(h, site)
    return (u.astype(self.dtype) if self.kind == 'rezero' else self.norms(u, site)), h

  def write(self, h: Array, y_BTD: Array, site: int) -> Array:
    return h + self.scale[site] * y_BTD.astype(jnp.float32)

  def finish(self, h: Array) -> Array:
    u = probe.now().read(h, self.shape.sites)
    return self.norms(u, 0 if self.kind == 'rezero' else self.shape.sites)


class Highway(PreNorm):
  """Gated skip under pre-norm: x <- (1 - g) x + g y (arXiv 1505.00387, eq. 3).

  g = sigmoid(x / RMS(x) W + b). W [D, D] starts at 0 and b [D] at `bias` below 0, so at first the
  skip carries most.

  >>> from deres_jax.models.stack import Shape
  >>> layer = lambda m, x: m.finish(m.write(m.start(x), 5 * x, site=0))
  >>> connector = Highway(Shape(1, 1, tokens=1, dim=2), 'none', jnp.float32, bias=0.0)
  >>> connector.init_with_output(jax.random.key(0), jnp.ones((1, 1, 2)), method=layer)[0]
  Array([[[3., 3.]]], dtype=float32)
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
