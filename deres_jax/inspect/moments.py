# SPDX-License-Identifier: Apache-2.0
"""Means and spreads of what a model shows, by place of the token, added up over batches.

Sums of squares less the square of the mean would lose a small spread to rounding; parts are merged
as Chan, Golub & LeVeque 1983 merge them, on the host in float64.

Shapes: B rows, T tokens, D width.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


class Moments(NamedTuple):
  """Of values [B, T, ...] over rows, for each place of a token.

  Attributes:
    count: [T] values.
    mean: [T, ...]; 0 where there are none.
    spread: [T, ...] sum of squared deviations from the mean.
    negative: [T, ...] number of values below 0.
  """

  count: Array | np.ndarray
  mean: Array | np.ndarray
  spread: Array | np.ndarray
  negative: Array | np.ndarray

  def deviation(self) -> np.ndarray:
    """Standard deviation of the values that are there."""
    return np.sqrt(self.spread / np.maximum(_like(self.count, self.mean), 1))

  def share_negative(self) -> np.ndarray:
    """Of the values that were seen."""
    return self.negative / np.maximum(_like(self.count, self.mean), 1)


class Scatter(NamedTuple):
  """Of vectors [B, T, D] over all tokens: how many, their mean [D], centred products [D, D]."""

  count: Array | np.ndarray
  mean: Array | np.ndarray
  products: Array | np.ndarray


def _like(count_T, x):
  return np.reshape(count_T, (*np.shape(count_T), *(1,) * (np.ndim(x) - np.ndim(count_T))))


def of(a: Array, there_BT: Array) -> Moments:
  """Moments of a [B, T, ...] float32, of tokens where `there_BT` is 1 and not 0."""
  w = there_BT.reshape(*there_BT.shape, *(1,) * (a.ndim - 2))
  count = jnp.sum(there_BT, axis=0)
  n = jnp.maximum(count, 1).reshape(-1, *(1,) * (a.ndim - 2))
  mean = jnp.sum(w * a, axis=0) / n
  spread = jnp.sum(w * (a - mean) ** 2, axis=0)
  return Moments(count, mean, spread, jnp.sum(w * (a < 0), axis=0))


def of_static(a: Array) -> Moments:
  """Of one value [...] for all tokens of all rows: it has no spread."""
  return Moments(jnp.ones(1), a[None], jnp.zeros_like(a)[None], (a < 0).astype(a.dtype)[None])


def scatter(x_BTD: Array, there_BT: Array) -> Scatter:
  """Of the tokens that are there."""
  w = there_BT[..., None]
  n = jnp.sum(there_BT)
  mean = jnp.sum(w * x_BTD, axis=(0, 1)) / jnp.maximum(n, 1)
  x = w * (x_BTD - mean)
  return Scatter(n, mean, jnp.einsum('btd,bte->de', x, x))


# On the host.


def merged(parts: Iterable[Moments]) -> Moments:
  """Moments of all values of `parts`, whose tokens' places are the same."""
  total = None
  for part in parts:
    count, mean, spread, negative = (np.asarray(x, np.float64) for x in part)
    if total is None:
      total = Moments(count, mean, spread, negative)
      continue
    n = np.maximum(total.count + count, 1)
    gap = mean - total.mean
    share = _like(count / n, gap)
    both = _like(total.count * count / n, gap)
    total = Moments(
      total.count + count,
      total.mean + share * gap,
      total.spread + spread + both * gap**2,
      total.negative + negative,
    )
  return total


def over_tokens(m: Moments, places: np.ndarray | None = None) -> Moments:
  """As of one place: the tokens at `places` (None: all) together. [1, ...]."""
  places = np.arange(len(m.count)) if places is None else places
  return merged(Moments(*(x[t : t + 1] for x in m)) for t in places)


def merged_scatter(parts: Iterable[Scatter]) -> Scatter:
  """Scatter of all vectors of `parts`."""
  total = None
  for part in parts:
    count, mean, products = (np.asarray(x, np.float64) for x in part)
    if total is None:
      total = Scatter(count, mean, products)
      continue
    n = max(float(total.count + count), 1.0)
    gap = mean - total.mean
    total = Scatter(
      total.count + count,
      total.mean + count / n * gap,
      total.products + products + total.count * count / n * np.outer(gap, gap),
    )
  return total


def effective_rank(s: Scatter) -> float | None:
  """exp of the entropy of the singular values over their sum (Roy & Vetterli 2007), 1 to D.

  The matrix has a row for each token of each row of data, less the mean of all. None where all
  tokens are equal.
  """
  sigma = np.sqrt(np.clip(np.linalg.eigvalsh(s.products), 0, None))
  total = sigma.sum()
  if not total > 0:
    return None
  p = sigma[sigma > 0] / total
  return math.exp(-float((p * np.log(p)).sum()))
