# SPDX-License-Identifier: Apache-2.0
"""The CPU's kernels: what they compute, that they are called, and how one does without them.

Shapes: B rows, T tokens, H heads, K head width, D width, M hidden width or sources.
"""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deres_jax.embeddings.optimizers import SparseOptimizer
from deres_jax.kernels import library, ops
from deres_jax.models import layers
from deres_jax.models.inputs import Context

# A library that cannot be built fails the tests; only a machine without a compiler skips them.
pytestmark = pytest.mark.skipif(
  'there is no C++ compiler' in (library.missing() or ''), reason=f'{library.missing()}'
)


def normal(*shape, seed=0):
  return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def assert_same(kernel, plain, args, dy, rtol=2e-5):
  """Both give the same values and gradients, up to rounding of the largest one."""
  (y, back), (want, back_of) = jax.vjp(kernel, *args), jax.vjp(plain, *args)
  pairs = [(y, want), *zip(jax.tree.leaves(back(dy)), jax.tree.leaves(back_of(dy)), strict=True)]
  for got, right in pairs:
    assert got.shape == right.shape
    if right.size:
      np.testing.assert_allclose(got, right, rtol=0, atol=rtol * np.abs(right).max())


@pytest.mark.parametrize(
  ('B', 'T', 'H', 'K', 'causal', 'masked'),
  [
    (3, 39, 4, 16, False, False),
    (2, 1, 1, 16, False, False),
    (2, 7, 2, 4, True, False),
    (2, 33, 3, 20, False, True),
    (4, 50, 2, 32, True, True),  # the first queries may see nothing
    (1, ops.MOST_TOKENS, 1, 16, False, False),
  ],
)
def test_attention_is_the_plain_form(B, T, H, K, causal, masked):
  qkv, dy = normal(B, T, 3 * H * K), normal(B, T, H * K, seed=1)
  there = jnp.asarray(np.random.default_rng(2).random((B, T)) < 0.6) if masked else None
  scale = 2 * K**-0.5

  def plain(qkv):
    q, k, v = layers.split_heads(qkv, 3, H)
    see = layers.visible(T, T, causal, Context(mask_BT=there))
    return layers.join_heads(layers.attend(q, k, v, see, scale))

  assert_same(lambda x: ops.attend(x, there, H, scale, causal), plain, (qkv,), dy)


def test_attention_is_its_equation():
  B, T, H, K = 2, 5, 2, 3
  qkv = normal(B, T, 3 * H * K)
  got = ops.attend(jnp.asarray(qkv), None, H, 0.7, False)
  for b in range(B):
    for h in range(H):
      q, k, v = (qkv[b, :, (p * H + h) * K : (p * H + h + 1) * K].astype(float) for p in range(3))
      for t in range(T):
        weights = [np.exp(0.7 * q[t] @ k[u]) for u in range(T)]
        want = sum(w * v[u] for u, w in enumerate(weights)) / sum(weights)
        np.testing.assert_allclose(got[b, t, h * K : (h + 1) * K], want, rtol=1e-5)


MAPS = [(3, 5, 1, 32, 64), (70, 3, 3, 16, 48), (40, 39, 1, 64, 16), (50, 16, 16, 64, 256)]


@pytest.mark.parametrize(('B', 'T', 'G', 'D', 'M'), MAPS)
def test_maps_of_tokens_are_their_equation(B, T, G, D, M):
  """Groups, blocks and pieces that do not come out even; values in float64."""
  x, w1, w2 = normal(B, T, D), normal(G, D, M) / 8, normal(G, M, D) / 8
  h = np.stack([x[:, t].astype(float) @ w1[t % G] for t in range(T)], 1)
  np.testing.assert_allclose(ops.dense(x, w1), h, rtol=0, atol=1e-5 * np.abs(h).max())
  gelu = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
  y = np.stack([gelu[:, t] @ w2[t % G] for t in range(T)], 1)
  np.testing.assert_allclose(ops.feed(x, w1, w2), y, rtol=0, atol=1e-5 * np.abs(y).max())


@pytest.mark.parametrize(('B', 'T', 'G', 'D', 'M'), MAPS)
def test_maps_of_tokens_have_the_plain_gradients(B, T, G, D, M):
  x, w1, w2 = normal(B, T, D), normal(G, D, M) / 8, normal(G, M, D) / 8

  def dense(x, w):
    w = jnp.broadcast_to(w, (T, *w.shape[1:]))
    return jnp.einsum('btd,tdo->bto', x, w, precision='highest')

  assert_same(ops.dense, dense, (x, w1), normal(B, T, M, seed=1))
  plain = lambda x, w1, w2: dense(jax.nn.gelu(dense(x, w1)), w2)  # noqa: E731
  assert_same(ops.feed, plain, (x, w1, w2), normal(B, T, D, seed=1))


@pytest.mark.parametrize('normed', [True, False])
@pytest.mark.parametrize(('M', 'D', 'T'), [(0, 16, 3), (1, 64, 70), (5, 128, 33)])
def test_the_read_is_its_equation(M, D, T, normed):
  x, sources = normal(2, T, D), tuple(normal(2, T, D, seed=i + 1) for i in range(M))
  a, gx, gr, scale = normal(2, T, M), normal(D), normal(D, seed=1), normal(D, seed=2)

  def plain(x, sources, a, gx, gr, scale):
    r = sum((a[..., i : i + 1] * b for i, b in enumerate(sources)), jnp.zeros_like(x))
    u = gx * x + gr * r
    return layers.rms(u) * scale if normed else u

  def kernel(x, sources, a, gx, gr, scale):
    columns = tuple(range(M))
    return ops.read(x, sources, (a,) if M else (), columns, gx, gr, scale if normed else None)

  if normed and M:  # a plain loop over tokens
    got = kernel(x, sources, a, gx, gr, scale)
    for b, t in np.ndindex(2, T):
      r = sum(a[b, t, i].astype(float) * sources[i][b, t] for i in range(M))
      u = gx * x[b, t] + gr * r
      want = u / np.sqrt(np.mean(u**2) + 1e-6) * scale
      np.testing.assert_allclose(got[b, t], want, rtol=1e-4, atol=1e-5)
  assert_same(kernel, plain, (x, sources, a, gx, gr, scale), normal(2, T, D, seed=9))


def test_the_read_takes_weights_out_of_wider_arrays():
  x, sources = normal(2, 5, 16), tuple(normal(2, 5, 16, seed=i) for i in (1, 2))
  weights, columns = (normal(2, 5, 7), normal(2, 5, 4)), (6, 1)
  vectors = tuple(normal(16, seed=i) for i in (3, 4, 5))

  def kernel(x, sources, weights, *vectors):
    return ops.read(x, sources, weights, columns, *vectors)

  def plain(x, sources, weights, gx, gr, scale):
    a = [w[..., c : c + 1] for w, c in zip(weights, columns, strict=True)]
    return layers.rms(gx * x + gr * (a[0] * sources[0] + a[1] * sources[1])) * scale

  assert_same(kernel, plain, (x, sources, weights, *vectors), normal(2, 5, 16, seed=9))


@pytest.mark.parametrize('silu', [True, False])
@pytest.mark.parametrize(
  ('B', 'T', 'sizes', 'D'), [(3, 7, (1,), 16), (40, 39, (4, 12, 1), 64), (2, 5, (20, 20), 48)]
)
def test_scores_are_their_equation(B, T, sizes, D, silu):
  S = sum(sizes)
  b, w = normal(B, T, D), normal(S, D)

  def kernel(b, w):
    parts = ops.score(0.7, 0.3, silu, sizes, b, w)
    assert [part.shape[2] for part in parts] == list(sizes)
    return jnp.concatenate(parts, axis=2)

  got = kernel(jnp.asarray(b), w)
  for n in np.ndindex(B, T):
    key = b[n].astype(float) / np.sqrt(np.mean(b[n].astype(float) ** 2) + 1e-6)
    z = 0.7 * w @ key + 0.3
    want = z / (1 + np.exp(-z)) if silu else z
    np.testing.assert_allclose(got[n], want, rtol=0, atol=2e-5)

  def plain(b, w):
    z = 0.7 * jnp.einsum('btd,sd->bts', layers.rms(b), w, precision='highest') + 0.3
    return jax.nn.silu(z) if silu else z

  assert_same(kernel, plain, (b, w), normal(B, T, S, seed=1))


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_what_is_not_finite_stays_so(bad):
  """A kernel that drops a NaN would hide a broken run."""
  x, w = normal(2, 5, 16), normal(1, 16, 48)
  x[1, 2, 3] = bad
  qkv = np.tile(x, 3)
  for y in (
    ops.attend(qkv, None, 2, 1.0, False)[1],
    ops.dense(x, w)[1, 2],
    ops.feed(x, w, normal(1, 48, 16))[1, 2],
    ops.norm(x, np.ones(16, np.float32))[1, 2],
  ):
    assert not np.isfinite(y).all()
  # A key alone: no query of its row may come out as if it were not there.
  qkv = normal(1, 5, 48)
  qkv[0, 2, 16 + 3] = np.nan
  assert np.isnan(ops.attend(qkv, None, 1, 1.0, False)).all()


@pytest.mark.parametrize('E', [1, 16, 17, 64])
def test_rows_are_taken_and_summed_as_they_are_indexed(E):
  rows, g = normal(9, E), normal(50, 7, E)
  # -1 is the last row, as for the padding of a batch; 9 and -10 are no rows.
  at = np.random.default_rng(0).integers(-1, 7, (50, 7)).astype(np.int32)
  np.testing.assert_array_equal(ops.take(rows, at), rows[at])
  beyond = at.copy()
  beyond[0, :2] = 9, -10
  assert np.isnan(ops.take(rows, beyond)[0, :2]).all()
  assert (ops.take(rows, beyond, fill=0)[0, :2] == 0).all()
  np.testing.assert_array_equal(ops.take(rows, beyond)[1:], rows[at][1:])
  want = np.zeros((9, E), np.float32)
  for i in np.ndindex(*at.shape):
    want[at[i]] += g[i]
  np.testing.assert_array_equal(ops.sum_by_row(g, at, 9), want)
  want[at[0, 0]] = want[at[0, 1]] = 0  # summed again without the two
  for i in np.ndindex(*at.shape):
    if i not in ((0, 0), (0, 1)) and at[i] % 9 in (at[0, 0] % 9, at[0, 1] % 9):
      want[at[i]] += g[i]
  np.testing.assert_array_equal(ops.sum_by_row(g, beyond, 9), want)


@pytest.mark.parametrize('kind', ['rowwise_adagrad', 'lazy_adam'])
@pytest.mark.parametrize('E', [1, 17, 64])
def test_table_rows_move_as_their_optimizer_says(E, kind):
  """The named rows, and no other; ids beyond the table are padding. NaN stays in its row."""
  optimizer = SparseOptimizer(kind, eps=1e-3, l2=0.1, b1=0.9, b2=0.99)
  w, U = normal(2100, E), 1500
  at = np.random.default_rng(0).permutation(2100)[:U].astype(np.int32)
  at.sort()
  at[-3:] = 2100 + np.arange(3)
  g, step = normal(U, E, seed=1), jnp.int32(4)
  g[5, 0] = np.nan
  slots = jax.tree.map(lambda x: np.abs(normal(*x.shape, seed=2)), optimizer.init(w))
  got = jax.jit(optimizer.update_inplace)(w, slots, at, g, 0.1, step)
  real = at[:-3]
  named = jax.tree.map(lambda x: x[real], (w, slots))
  moved = optimizer.update(*named, g[:-3], 0.1, step)
  want = jax.tree.map(lambda x, y: x.at[real].set(y), jax.tree.map(jnp.asarray, (w, slots)), moved)
  for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
  assert np.isnan(got[0]).sum() == (E if kind == 'rowwise_adagrad' else 1)


_BITS = """
import hashlib, jax, numpy as np
from deres_jax.kernels import library, ops
assert library.missing() is None
g = np.random.default_rng(0)
n = lambda *s: g.normal(size=s).astype(np.float32)
out = []
for f, args in (
  (lambda x: ops.attend(x, None, 2, 0.5, False), (n(9, 20, 96),)),
  (ops.dense, (n(60, 20, 32), n(1, 32, 48))),
  (ops.feed, (n(60, 20, 32), n(20, 32, 48), n(20, 48, 32))),
  (
    lambda x, *rest: ops.read(x, (x,), (rest[0],), (1,), *rest[1:]),
    (n(60, 20, 32), n(60, 20, 3), n(32), n(32), n(32)),
  ),
  (lambda b, w: ops.score(0.5, 0.0, True, (5,), b, w)[0], (n(60, 20, 32), n(5, 32))),
):
  y, back = jax.vjp(f, *args)
  out += jax.tree.leaves((y, back(y)))
out.append(ops.sum_by_row(n(500, 64), g.integers(0, 20, 500).astype(np.int32), 20))
print(hashlib.sha256(b''.join(np.asarray(x).tobytes() for x in out)).hexdigest())
"""


@pytest.mark.skipif(not hasattr(os, 'sched_setaffinity'), reason='cores cannot be chosen here')
def test_results_do_not_depend_on_the_number_of_cores():
  def bits(cores):
    limit = f'import os; os.sched_setaffinity(0, {cores})\n'
    done = subprocess.run(
      [sys.executable, '-c', limit + _BITS], capture_output=True, text=True, check=True
    )
    return done.stdout

  cores = os.sched_getaffinity(0)
  assert bits({min(cores)}) == bits(cores)


def test_without_a_compiler_one_is_told(monkeypatch, tmp_path):
  monkeypatch.setenv('CXX', 'no-such-compiler')
  assert 'no C++ compiler' in library.missing.__wrapped__()
  broken = tmp_path / 'kernels.cc'
  broken.write_text('this is not C++')
  monkeypatch.setenv('CXX', 'c++')
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  monkeypatch.setattr(library, '_SOURCE', broken)
  assert 'failed' in library.missing.__wrapped__()
  assert not list(tmp_path.rglob('*.so'))


def test_the_library_is_made_once(monkeypatch, tmp_path):
  """A file in the cache is taken as it is; another processor has another file."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  monkeypatch.setattr(library, '_FLAGS', ('-O0', *library._FLAGS[1:]))  # made quickly, never run
  made = library._built('c++')
  before = made.stat()
  assert library._built('c++') == made
  assert made.stat().st_mtime_ns == before.st_mtime_ns
  monkeypatch.setattr(library, '_processor', lambda: 'another')
  assert library._fingerprint('c++') != made.stem
