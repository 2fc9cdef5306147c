# SPDX-License-Identifier: Apache-2.0
"""Mean, variance and scatter of a model's activations, token by token, added up over batches.

E[x^2] - E[x]^2 would lose a small variance to rounding, so parts are merged as in Chan, Golub &
LeVeque 1983, on the host in float64.

Shapes: B rows, T tokens, D width.
"""

import functools
import math
from collections.abc import Iterable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


class TokenStats(NamedTuple):
  """Statistics of values [B, T, ...] over rows, for each token position.

  Attributes:
    count: [T] number of values.
    mean: [T, ...]; 0 where the count is 0.
    squares: [T, ...] sum of squared deviations from the mean.
    negative: [T, ...] number of values below 0.
  """

  count: Array | np.ndarray
  mean: Array | np.ndarray
  squares: Array | np.ndarray
  negative: Array | np.ndarray

  def std(self) -> np.ndarray:
    """Returns the standard deviation of the values."""
    return np.sqrt(self.squares / np.maximum(_like(self.count, self.mean), 1))

  def share_negative(self) -> np.ndarray:
    """Returns the share of values below 0."""
    return self.negative / np.maximum(_like(self.count, self.mean), 1)

  def merge(self, other: 'TokenStats') -> 'TokenStats':
    """Returns the statistics of both sets of values."""
    n = np.maximum(self.count + other.count, 1)
    gap = other.mean - self.mean
    return TokenStats(
      self.count + other.count,
      self.mean + _like(other.count / n, gap) * gap,
      self.squares + other.squares + _like(self.count * other.count / n, gap) * gap**2,
      self.negative + other.negative,
    )


class Scatter(NamedTuple):
  """Scatter matrix of vectors [B, T, D] over all tokens: products of deviations from the mean."""

  count: Array | np.ndarray
  mean: Array | np.ndarray  # [D]
  products: Array | np.ndarray  # [D, D]

  def merge(self, other: 'Scatter') -> 'Scatter':
    """Returns the scatter of both sets of vectors."""
    n = max(float(self.count + other.count), 1.0)
    gap = other.mean - self.mean
    return Scatter(
      self.count + other.count,
      self.mean + other.count / n * gap,
      self.products + other.products + self.count * other.count / n * np.outer(gap, gap),
    )


Stats = TypeVar('Stats', TokenStats, Scatter)


def _like(count_T, x):
  return np.reshape(count_T, (*np.shape(count_T), *(1,) * (np.ndim(x) - np.ndim(count_T))))


def token_stats(a: Array, mask_BT: Array) -> TokenStats:
  """Computes the statistics of a [B, T, ...], float32, over tokens whose mask is 1 and not 0."""
  w = mask_BT.reshape(*mask_BT.shape, *(1,) * (a.ndim - 2))
  count = jnp.sum(mask_BT, axis=0)
  n = jnp.maximum(count, 1).reshape(-1, *(1,) * (a.ndim - 2))
  mean = jnp.sum(w * a, axis=0) / n
  squares = jnp.sum(w * (a - mean) ** 2, axis=0)
  return TokenStats(count, mean, squares, jnp.sum(w * (a < 0), axis=0))


def static_stats(a: Array) -> TokenStats:
  """Returns the statistics of one value [...] shared by all tokens of all rows."""
  return TokenStats(jnp.ones(1), a[None], jnp.zeros_like(a)[None], (a < 0).astype(a.dtype)[None])


def scatter(x_BTD: Array, mask_BT: Array) -> Scatter:
  """Computes the scatter matrix over tokens whose mask is 1 and not 0."""
  w = mask_BT[..., None]
  n = jnp.sum(mask_BT)
  mean = jnp.sum(w * x_BTD, axis=(0, 1)) / jnp.maximum(n, 1)
  x = w * (x_BTD - mean)
  return Scatter(n, mean, jnp.einsum('btd,bte->de', x, x))


# On the host.


def merged(parts: Iterable[Stats]) -> Stats:
  """Merges statistics of different rows (at the same token positions), in float64."""
  float64 = (type(part)(*(np.asarray(x, np.float64) for x in part)) for part in parts)
  return functools.reduce(lambda total, part: total.merge(part), float64)


def over_tokens(stats: TokenStats, positions: np.ndarray | None = None) -> TokenStats:
  """Pools the tokens at `positions` (None: all) into one position."""
  positions = np.arange(len(stats.count)) if positions is None else positions
  return merged(TokenStats(*(x[t : t + 1] for x in stats)) for t in positions)


def effective_rank(s: Scatter) -> float | None:
  """Returns exp(entropy of the normalised singular values), 1 to D (Roy & Vetterli 2007).

  The matrix holds a row for each token of each row of data, less the mean of all. None where all
  tokens are equal.
  """
  sigma = np.sqrt(np.clip(np.linalg.eigvalsh(s.products), 0, None))
  total = sigma.sum()
  if not total > 0:
    return None
  p = sigma[sigma > 0] / total
  return math.exp(-float((p * np.log(p)).sum()))
