# SPDX-License-Identifier: Apache-2.0
"""The kernels as JAX functions with gradients. float32, on CPUs only.

Plain forms define them: `layers.attend` for `attend`, `layers.TokenDense` for `dense`,
`layers.FeedForward` for `feed`, and `DeRes` for `score` and `read`. Callers first check
`library.on()` and `fits` or `maps`.

Shapes: B examples, T tokens, H heads, K head width, D width, M sources.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

_LANES = 16  # floats in a kernel's vector: D is a multiple
MOST_TOKENS = 256  # with more, attention's scores do not fit the cache


def fits(*arrays: Array) -> bool:
  """Returns whether `read` takes these arrays: float32 [B, T, D] of one shape, D % 16 == 0."""
  first = arrays[0].shape
  return (
    len(first) == 3
    and first[-1] % _LANES == 0
    and all(x.shape == first and x.dtype == jnp.float32 for x in arrays)
  )


def maps(x: Array, w: Array) -> bool:
  """Returns whether `dense` takes x [B, T, D] with w [..., D, O]."""
  return fits(x) and w.shape[-1] % _LANES == 0


def _like(x: Array) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(x.shape, x.dtype)


# Attention.


def attend(qkv_BTM: Array, mask_BT: Array | None, heads: int, scale: float, causal: bool) -> Array:
  """Returns softmax(scale q k^T) v. [B, T, 3 H K] -> [B, T, H K].

  The last axis of `qkv_BTM` is q [H, K], then k, then v. mask_BT is False at padded keys.
  """
  masked = mask_BT is not None
  if not masked:
    mask_BT = jnp.ones((1, 1), bool)
  return _attend(heads, scale, causal, masked, qkv_BTM, mask_BT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _attend(heads: int, scale: float, causal: bool, masked: bool, qkv: Array, mask: Array):
  B, T, M = qkv.shape
  out = jax.ShapeDtypeStruct((B, T, M // 3), qkv.dtype)
  call = jax.ffi.ffi_call('deres_attend_forward', out)
  return call(qkv, mask, **_attributes(heads, scale, causal, masked))


def _attributes(heads: int, scale: float, causal: bool, masked: bool) -> dict:
  return dict(heads=np.int64(heads), scale=np.float32(scale), causal=causal, masked=masked)


def _attend_forward(heads, scale, causal, masked, qkv, mask):
  return _attend(heads, scale, causal, masked, qkv, mask), (qkv, mask)


def _attend_backward(heads, scale, causal, masked, residuals, dy):
  qkv, mask = residuals
  call = jax.ffi.ffi_call('deres_attend_backward', _like(qkv))
  return call(qkv, mask, dy, **_attributes(heads, scale, causal, masked)), None


_attend.defvjp(_attend_forward, _attend_backward)


# Maps of tokens.

_SHARE, _PIECE = 512, 64  # SHARE and PIECE of kernels.cc


def _pieces(x: Array, w: Array) -> int:
  """Returns the number of pieces of the tokens of x [B, T, D]; w [T or 1, D, O]."""
  return x.shape[1] if len(w) > 1 else -(-x.shape[0] * x.shape[1] // _SHARE)


def _parts(x: Array, w: Array) -> jax.ShapeDtypeStruct:
  """Returns the shape of w's gradients, one for each piece."""
  return jax.ShapeDtypeStruct((_pieces(x, w), *w.shape[1:]), w.dtype)


def _total(parts: Array, w: Array) -> Array:
  return parts if len(w) > 1 else jnp.sum(parts, axis=0, keepdims=True)


@jax.custom_vjp
def dense(x: Array, w: Array) -> Array:
  """Returns x W. [B, T, D], [G, D, O] -> [B, T, O]; G = T: a matrix a token, 1: one for all."""
  out = jax.ShapeDtypeStruct((*x.shape[:2], w.shape[-1]), x.dtype)
  return jax.ffi.ffi_call('deres_dense_forward', out)(x, w)


def _dense_backward(residuals, dy):
  x, w = residuals
  dx, parts = jax.ffi.ffi_call('deres_dense_backward', (_like(x), _parts(x, w)))(x, w, dy)
  return dx, _total(parts, w)


dense.defvjp(lambda x, w: (dense(x, w), (x, w)), _dense_backward)


@jax.custom_vjp
def feed(x: Array, w1: Array, w2: Array) -> Array:
  """Returns GELU(x W1) W2 without storing the hidden layer. W1 [G, D, M], W2 [G, M, O]."""
  out = jax.ShapeDtypeStruct((*x.shape[:2], w2.shape[-1]), x.dtype)
  return jax.ffi.ffi_call('deres_feed_forward', out)(x, w1, w2)


def _feed_backward(residuals, dy):
  x, w1, w2 = residuals
  out = (_like(x), _parts(x, w1), _parts(x, w2))
  dx, parts1, parts2 = jax.ffi.ffi_call('deres_feed_backward', out)(x, w1, w2, dy)
  return dx, _total(parts1, w1), _total(parts2, w2)


feed.defvjp(lambda x, w1, w2: (feed(x, w1, w2), (x, w1, w2)), _feed_backward)


# The read of a connector.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def score(
  times: float, center: float, silu: bool, sizes: tuple[int, ...], b: Array, w: Array
) -> tuple[Array, ...]:
  """Returns z = times <w_s, b / RMS(b)> + center for S queries, or SiLU(z).

  Args:
    sizes: sizes of the parts of S.
    b: source [B, T, D].
    w: queries [S, D].

  Returns:
    An array [B, T, size] for each part.
  """
  outs = [jax.ShapeDtypeStruct((*b.shape[:2], size), b.dtype) for size in sizes]
  call = jax.ffi.ffi_call('deres_score_forward', outs)
  return tuple(call(b, w, **_score_attributes(times, center, silu)))


def _score_attributes(times: float, center: float, silu: bool) -> dict:
  return dict(times=np.float32(times), center=np.float32(center), silu=silu)


def _score_forward(times, center, silu, sizes, b, w):
  return score(times, center, silu, sizes, b, w), (b, w)


def _score_backward(times, center, silu, sizes, residuals, dz):
  del sizes
  b, w = residuals
  call = jax.ffi.ffi_call('deres_score_backward', (_like(b), _parts(b, w[None])))
  db, parts = call(b, w, *dz, **_score_attributes(times, center, silu))
  return db, jnp.sum(parts, axis=0)


score.defvjp(_score_forward, _score_backward)


def read(
  x: Array,
  sources: tuple[Array, ...],
  weights: tuple[Array, ...],
  columns: tuple[int, ...],
  gx: Array,
  gr: Array,
  scale: Array | None,
) -> Array:
  """Returns u = gx x + gr sum_i a_i b_i or, with a scale, u / RMS(u) * scale. [B, T, D].

  Args:
    x: stream [B, T, D].
    sources: M arrays b_i [B, T, D].
    weights: M arrays [B, T, any], or one for all sources; a_i is column `columns[i]` of its array.
    gx, gr, scale: vectors [D].
  """
  norm = scale is not None
  return _read(norm, columns, x, sources, weights, gx, gr, scale if norm else jnp.ones_like(gx))


def norm(x: Array, scale: Array) -> Array:
  """Returns x / RMS(x) * scale. [B, T, D]."""
  one = jnp.ones(x.shape[-1])
  return read(x, (), (), (), one, 0 * one, scale)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _read(norm: bool, columns: tuple[int, ...], x, sources, weights, gx, gr, scale):
  call = jax.ffi.ffi_call('deres_read_forward', _like(x))
  return call(x, gx, gr, scale, *weights, *sources, **_read_attributes(norm, columns))


def _read_attributes(norm: bool, columns: tuple[int, ...]) -> dict:
  return dict(norm=norm, columns=np.array(columns, np.int64))


def _read_forward(norm, columns, *inputs):
  return _read(norm, columns, *inputs), inputs


def _read_backward(norm, columns, inputs, dy):
  x, sources, weights, gx, gr, scale = inputs
  D = x.shape[-1]
  out = (
    _like(x),
    jax.ShapeDtypeStruct((*x.shape[:-1], len(sources)), x.dtype),
    jax.ShapeDtypeStruct((-(-x.size // D // _PIECE), 3, D), x.dtype),
  )
  call = jax.ffi.ffi_call('deres_read_backward', out)
  du, da, sums = call(x, gx, gr, scale, dy, *weights, *sources, **_read_attributes(norm, columns))
  dgx, dgr, dscale = jnp.sum(sums, axis=0)
  # Not in the kernel: XLA adds the gradients of all reads of an array in one pass.
  dr = gr * du
  used = [weights[i if len(weights) > 1 else 0][..., c : c + 1] for i, c in enumerate(columns)]
  db = tuple(a * dr for a in used)
  if len(weights) == 1 and columns == tuple(range(weights[0].shape[-1])):
    dweights = (da,)
  else:
    dweights = tuple(
      _at_column(da[..., i : i + 1], c, w)
      for i, (c, w) in enumerate(zip(columns, weights, strict=True))
    )
  return gx * du, db, dweights, dgx, dgr, dscale


def _at_column(da: Array, column: int, w: Array) -> Array:
  """Pads da [B, T, 1] with zeros to the shape of w [B, T, any]."""
  return jnp.pad(da, ((0, 0), (0, 0), (column, w.shape[-1] - column - 1)))


_read.defvjp(_read_forward, _read_backward)


# Rows of a table.


def take(rows_UE: Array, at: Array, fill: float = np.nan) -> Array:
  """Returns rows[at], and `fill` for indices out of range. [..., E]."""
  out = jax.ShapeDtypeStruct((*at.shape, rows_UE.shape[1]), rows_UE.dtype)
  return jax.ffi.ffi_call('deres_rows_take', out)(rows_UE, at, fill=np.float32(fill))


def sum_by_row(g: Array, at: Array, rows: int) -> Array:
  """Sums g [..., E] by row in the order of g: the transpose of `take`. [rows, E]."""
  out = jax.ShapeDtypeStruct((rows, g.shape[-1]), g.dtype)
  return jax.ffi.ffi_call('deres_rows_sum', out)(g, at)


def rowwise_adagrad(
  w: Array, s: Array, at: Array, g: Array, lr: Array, *, eps: float, l2: float
) -> tuple[Array, Array]:
  """Updates the unique rows `at` [U] of w [N, E] and s [N] like `SparseOptimizer`.

  In place where XLA finds that nothing else reads the old ones. g: [U, E].
  """
  call = jax.ffi.ffi_call('deres_rows_adagrad', (_like(w), _like(s)), input_output_aliases=_same(2))
  return call(w, s, at, g, jnp.float32(lr), eps=np.float32(eps), l2=np.float32(l2))


def lazy_adam(
  tables: tuple[Array, Array, Array],
  at: Array,
  g: Array,
  rates: Array,
  *,
  b1: float,
  b2: float,
  eps: float,
  l2: float,
) -> tuple[Array, Array, Array]:
  """Updates w, m and v [N, E] as `rowwise_adagrad` does; rates: lr, 1 - b1^t, 1 - b2^t."""
  like = tuple(map(_like, tables))
  call = jax.ffi.ffi_call('deres_rows_adam', like, input_output_aliases=_same(3))
  betas = dict(b1=np.float64(b1), b2=np.float64(b2))
  return call(*tables, at, g, rates, **betas, eps=np.float32(eps), l2=np.float32(l2))


def _same(n: int) -> dict[int, int]:
  """Aliases the first n results to the first n arguments."""
  return {i: i for i in range(n)}
