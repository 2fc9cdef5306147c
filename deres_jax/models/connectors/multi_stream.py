# SPDX-License-Identifier: Apache-2.0
"""Connectors with many streams, or with weights over all earlier layers.

Shapes: B examples, T tokens, D width, N streams, M = N * D.
"""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from deres_jax.models import layers, probe
from deres_jax.models.connectors.prenorm import PreNorm


class DenseFormer(PreNorm):
  """Depth-weighted average (arXiv 2402.02622): x <- sum_{j <= l} a_lj X_j after layer l.

  X_0 are the tokens and X_j is the stream after the sub-layers of layer j, before its average.
  a_ll starts at 1 and the others at 0, which is PreNorm exactly.

  >>> from deres_jax.models.stack import Shape
  >>> layer = lambda m, x: m.finish(m.write(m.start(x), x, site=0))
  >>> connector = DenseFormer(Shape(sites=1, per_layer=1, tokens=1, dim=2), 'none', jnp.float32)
  >>> params = {'weights_0': jnp.float32([0.5, 1.0])}  # of the tokens, of layer 1
  >>> connector.apply({'params': params}, jnp.ones((1, 1, 2)), method=layer)
  Array([[[2.5, 2.5]]], dtype=float32)
  """

  def setup(self):
    super().setup()
    self.weights = [
      self.param(f'weights_{l}', lambda key, n: jnp.zeros(n).at[-1].set(1.0), l + 2)
      for l in range(self.shape.sites // self.shape.per_layer)
    ]

  def start(self, x_BTD: Array) -> tuple[Array, tuple[Array, ...]]:
    x = super().start(x_BTD)
    return x, (x,)

  def read(self, h, site: int):
    return super().read(h[0], site)[0], h

  def write(self, h, y_BTD: Array, site: int):
    x, history = h
    x = super().write(x, y_BTD, site)
    if (site + 1) % self.shape.per_layer == 0:
      history = (*history, x)
      names = ('embedding', *(f'layer {l}' for l in range(1, len(history))))
      a = self.weights[site // self.shape.per_layer]
      a = probe.now().weights(a, site + 1, names)
      x = sum(a[j] * v for j, v in enumerate(history))
    return x, history


def _normalise(_, z_NN: Array) -> Array:
  """Runs one Sinkhorn iteration in the log domain on [N, N, ...]: columns first, rows last."""
  z_NN = z_NN - jax.nn.logsumexp(z_NN, axis=0, keepdims=True)
  return z_NN - jax.nn.logsumexp(z_NN, axis=1, keepdims=True)


def sinkhorn(logits: Array, iterations: int) -> Array:
  """Returns exp(logits) scaled to row and column sums of 1 (Sinkhorn & Knopp 1967).

  Normalises columns first and rows last, so row sums are exact and column sums converge. Works in
  the log domain, where a row far below the others does not underflow to 0 / 0.

  Args:
    logits: [..., N, N].

  Returns:
    [..., N, N], float32.

  >>> m_NN = sinkhorn(jnp.log(jnp.float32([[1, 2], [3, 4]])), iterations=20)
  >>> m_NN.sum(axis=0).round(5), m_NN.sum(axis=1).round(5)
  (Array([1., 1.], dtype=float32), Array([1., 1.], dtype=float32))
  """
  # The small axes lead, so that SIMD runs over matrices: 4 times as fast on CPU.
  z = jnp.moveaxis(logits.astype(jnp.float32), (-2, -1), (0, 1))
  # Not unrolled: twenty copies a site would dominate a model's compilation.
  z = jax.lax.fori_loop(0, iterations, _normalise, z)
  return jnp.moveaxis(jnp.exp(z), (0, 1), (-2, -1))


class _Streams(PreNorm):
  """N copies of the tokens, a weighted write, a summed readout.

  `read` of a subclass returns (mixed streams, the streams' write weights) as its state.
  """

  streams: int

  def start(self, x_BTD: Array):
    x = super().start(x_BTD)
    return jnp.repeat(x[:, :, None], self.streams, axis=2), None

  def write(self, h, y_BTD: Array, site: int):
    h_BTND, post_BTN = h
    return h_BTND + post_BTN[..., None] * y_BTD.astype(jnp.float32)[:, :, None], None

  def finish(self, h) -> Array:
    return super().read(jnp.sum(h[0], axis=2), self.shape.sites)[0]

  def _probed(self, a: Array, site: int, kind: str, axis: int = -1) -> Array:
    """Weights over the streams, as the probe returns them."""
    names = tuple(f'stream {n}' for n in range(1, self.streams + 1))
    return probe.now().weights(a, site, names, kind, axis)


class HyperConnections(_Streams):
  """N streams with dynamic read, write and mixing maps (arXiv 2409.19606, eq. 1-5).

    Hn = LayerNorm(H), each stream            H [N, D]
    A  = A_static + s_a tanh(Hn W_a)          [N, N + 1], of each token
    b  = b_static + s_b tanh(Hn w_b)          [N], of each token
    (u, H') = A^T H;  H <- H' + b (outer) F(Norm(u));  the head reads the sum of the streams

  Starts as N copies of the PreNorm stream.

  >>> from deres_jax.models.stack import Shape
  >>> layer = lambda m, x: m.finish(m.write(m.read(m.start(x), 0)[1], x, site=0))
  >>> connector = HyperConnections(Shape(1, 1, 1, dim=2), 'none', jnp.float32, streams=2)
  >>> connector.init_with_output(jax.random.key(0), jnp.ones((1, 1, 2)), method=layer)[0]
  Array([[[4., 4.]]], dtype=float32)
  """

  def setup(self):
    S, D, N = self.shape.sites, self.shape.dim, self.streams
    super().setup()
    self.stream_norms = layers.SiteNorms(S, D, 'layer', jnp.float32)
    mix = np.stack([np.column_stack([np.eye(N)[k % N], np.eye(N)]) for k in range(S)])
    self.mix_static = self.param('mix_static', lambda key: jnp.asarray(mix, jnp.float32))
    self.post_static = self.param('post_static', nn.initializers.ones, (S, N))
    self.mix_map = self.param('mix_map', nn.initializers.zeros, (S, D, N + 1))
    self.post_map = self.param('post_map', nn.initializers.zeros, (S, D))
    self.mix_scale = self.param('mix_scale', nn.initializers.constant(0.01), (S,))
    self.post_scale = self.param('post_scale', nn.initializers.constant(0.01), (S,))

  def read(self, h, site: int):
    h_BTND, _ = h
    n_BTND = self.stream_norms(h_BTND, site)
    a = self.mix_static[site] + self.mix_scale[site] * jnp.tanh(n_BTND @ self.mix_map[site])
    post = self.post_static[site] + self.post_scale[site] * jnp.tanh(n_BTND @ self.post_map[site])
    a, post = self._probed(a, site, 'pre_res', axis=-2), self._probed(post, site, 'post')
    mixed = jnp.einsum('btnk,btnd->btkd', a, h_BTND)
    return super().read(mixed[:, :, 0], site)[0], (mixed[:, :, 1:], post)


class ManifoldHyper(_Streams):
  """N streams mixed by doubly stochastic maps: mHC (arXiv 2512.24880).

    x'   = RMSNorm(vec(H))                           [M], H [N, D]
    pre  = sigmoid(a_pre x' P_pre + b_pre)           [N]
    post = 2 sigmoid(a_post x' P_post + b_post)      [N]
    R    = Sinkhorn(a_res mat(x' P_res) + b_res)     [N, N]
    H   <- R H + post (outer) F(Norm(pre H));  the head reads the sum of the streams

  With `lite` R is a softmax over all N! permutation matrices: exactly doubly stochastic, without
  iterations (arXiv 2601.05732). Biases start at the paper's static values (appendix A.6, as a
  public port cites it): pre picks stream k mod N at site k, post is 1, R is nearly the identity.
  Scales a start at 0.01.

  >>> from deres_jax.models.stack import Shape
  >>> layer = lambda m, x: m.finish(m.write(m.read(m.start(x), 0)[1], x, site=0))
  >>> connector = ManifoldHyper(Shape(1, 1, 1, dim=2), 'none', jnp.float32, 2, 20, lite=True)
  >>> output = connector.init_with_output(jax.random.key(0), jnp.ones((1, 1, 2)), method=layer)[0]
  >>> output.round(2)  # the sum of 2 streams, each written to once
  Array([[[4., 4.]]], dtype=float32)
  """

  iterations: int
  lite: bool

  def setup(self):
    S, D, N = self.shape.sites, self.shape.dim, self.streams
    super().setup()
    self.permutations = np.stack([np.eye(N)[list(p)] for p in itertools.permutations(range(N))])
    width = len(self.permutations) if self.lite else N * N
    down = nn.initializers.normal(0.02)
    self.pre_map = self.param('pre_map', down, (S, N * D, N))
    self.post_map = self.param('post_map', down, (S, N * D, N))
    self.res_map = self.param('res_map', down, (S, N * D, width))
    home = np.stack([np.where(np.arange(N) == k % N, 3.0, -3.0) for k in range(S)])
    self.pre_bias = self.param('pre_bias', lambda key: jnp.asarray(home, jnp.float32))
    self.post_bias = self.param('post_bias', nn.initializers.zeros, (S, N))
    if self.lite:  # the identity is the first permutation
      near = np.where(np.arange(width) == 0, 6.0, 0.0)
    else:
      near = (6 * np.eye(N) - 3).reshape(-1)
    self.res_bias = self.param('res_bias', lambda key: jnp.tile(jnp.float32(near), (S, 1)))
    self.map_scale = self.param('map_scale', nn.initializers.constant(0.01), (S, 3))

  def read(self, h, site: int):
    h_BTND, _ = h
    B, T, N, D = h_BTND.shape
    flat_BTM = layers.rms(h_BTND.reshape(B, T, N * D))
    scale = self.map_scale[site]
    pre = jax.nn.sigmoid(scale[0] * (flat_BTM @ self.pre_map[site]) + self.pre_bias[site])
    post = 2 * jax.nn.sigmoid(scale[1] * (flat_BTM @ self.post_map[site]) + self.post_bias[site])
    res = scale[2] * (flat_BTM @ self.res_map[site]) + self.res_bias[site]
    pre, post = self._probed(pre, site, 'pre'), self._probed(post, site, 'post')
    u_BTD = jnp.einsum('btn,btnd->btd', pre, h_BTND)
    mixed = jnp.einsum('btmn,btnd->btmd', self._probed(self._mixing(res), site, 'res'), h_BTND)
    return super().read(u_BTD, site)[0], (mixed, post)

  def _mixing(self, z: Array) -> Array:
    """Maps logits [B, T, N^2 or N!] to doubly stochastic matrices [B, T, N, N]."""
    if self.lite:
      weights = jax.nn.softmax(z, axis=-1)
      return jnp.einsum('btp,pmn->btmn', weights, jnp.asarray(self.permutations, jnp.float32))
    return sinkhorn(z.reshape(*z.shape[:2], self.streams, self.streams), self.iterations)
