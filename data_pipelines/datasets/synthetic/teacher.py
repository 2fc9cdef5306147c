# SPDX-License-Identifier: Apache-2.0
"""The planted teacher: a logit whose variance divides among interaction orders by construction.

Fields are independent; value v of a field has probability ~ (v + 1)^-a (Zipf).

* Every field f has a main factor m_f, and every planted pair P = {a, b} has K latent factors:
    z_P = K^-1/2 sum_k u_{a,P,k}[v_a] u_{b,P,k}[v_b].
  Under the field's own distribution each factor has mean 0 and variance 1, and the K factors of
  a field in a pair are orthogonal. So m_f and z_P have mean 0 and variance 1 exactly.
* Higher orders are compositions, so that a deeper model can build them out of lower ones:
  order 3 is z_P m_f with f outside P, order 4 is z_P z_Q with P and Q disjoint.
* Planted sets of one order are distinct field sets. Then two terms differ in at least one field
  whose factor has mean 0, so all terms are uncorrelated, and
    logit = bias + sum_o std sqrt(share_o / n_o) sum over the n_o sets of order o of its term
  has standard deviation std, and order o has exactly share_o of the variance. Terms of order 2 to 4
  are uncorrelated with every function of one field, so the best additive predictor of the logit is
  bias + its order-1 part.

Products of unbounded factors have heavy tails (a product of four normals has kurtosis 81), and
a few rows would have most of the variance. So we draw raw factors with absolute values in [0.5, 1]
and keep, of several draws, the one whose largest value is smallest.

A logit of standard deviation 0 needs no factors, and we make none: fields may then have tens of
millions of values.
"""

import dataclasses
import itertools

import numpy as np

from data_pipelines.core.random import uniforms
from data_pipelines.datasets.synthetic.options import ORDERS, SyntheticOptions
from deres_jax.core.errors import UserError

FACTOR_TRIES = 16
QUADRATURE_ROWS = 1 << 19  # rows over which the click rate is averaged to find the bias

# Streams of the teacher's seed. Pairs and fields follow from the bases by their index.
_STREAM_QUADRATURE, _STREAM_SETS = 0, 1
_STREAM_MAIN, _STREAM_PAIR = 1 << 20, 1 << 24


@dataclasses.dataclass(frozen=True)
class Teacher:
  """Tables and planted sets.

  Attributes:
    cdf_F: by field, float64 [values], cumulative probabilities of the values.
    main_F: by field, float64 [values]; empty if the logit is constant.
    mains: fields with a main effect.
    pairs: planted pairs (a, b) of fields.
    factors_P: by pair, the factors of a and b, float64 [values, rank] each; empty like main_F.
    triples: (pair index, field).
    quads: (pair index, pair index).
    scale_O: by order, what the sum over its terms is multiplied by.
    bias: the logit's mean.
  """

  cdf_F: tuple[np.ndarray, ...]
  main_F: tuple[np.ndarray, ...]
  mains: tuple[int, ...]
  pairs: tuple[tuple[int, int], ...]
  factors_P: tuple[tuple[np.ndarray, np.ndarray], ...]
  triples: tuple[tuple[int, int], ...]
  quads: tuple[tuple[int, int], ...]
  scale_O: tuple[float, ...]
  bias: float

  def values(self, uniform_NF: np.ndarray) -> np.ndarray:
    """Returns the field values of uniform draws, by inverse distribution: int32 [rows, fields]."""
    values_NF = np.empty(uniform_NF.shape, np.int32)
    for f, cdf in enumerate(self.cdf_F):
      values_NF[:, f] = np.searchsorted(cdf, uniform_NF[:, f], side='right')
    return values_NF

  def parts(self, values_NF: np.ndarray) -> np.ndarray:
    """Returns the logit's parts by order, without the bias: float64 [rows, 4]."""
    if not any(self.scale_O):
      return np.zeros((len(values_NF), len(ORDERS)))
    pair_NP = np.empty((len(values_NF), len(self.pairs)))
    for p, ((a, b), (u, w)) in enumerate(zip(self.pairs, self.factors_P, strict=True)):
      product_NK = u[values_NF[:, a]] * w[values_NF[:, b]]
      pair_NP[:, p] = product_NK.sum(axis=1) / np.sqrt(u.shape[1])
    parts_NO = np.zeros((len(values_NF), len(ORDERS)))
    for f in self.mains:
      parts_NO[:, 0] += self.main_F[f][values_NF[:, f]]
    parts_NO[:, 1] = pair_NP.sum(axis=1)
    for p, f in self.triples:
      parts_NO[:, 2] += pair_NP[:, p] * self.main_F[f][values_NF[:, f]]
    for p, q in self.quads:
      parts_NO[:, 3] += pair_NP[:, p] * pair_NP[:, q]
    return parts_NO * np.array(self.scale_O)

  def field_sets(self) -> dict[str, list[list[int]]]:
    """Returns the planted field sets by order.

    A set of order 3 is a planted pair and a field, one of order 4 two planted pairs.
    """
    pairs = [list(pair) for pair in self.pairs]
    return {
      '1': [[f] for f in self.mains],
      '2': pairs,
      '3': [[*pairs[p], f] for p, f in self.triples],
      '4': [[*pairs[p], *pairs[q]] for p, q in self.quads],
    }


def zipf_probabilities(values: int, exponent: float) -> np.ndarray:
  """Returns the probability of each value, falling: float64 [values]."""
  weights = np.arange(1, values + 1, dtype=np.float64)
  weights **= -exponent
  weights /= weights.sum()
  return weights


def standardised_factors(probability_V: np.ndarray, rank: int, seed: int, stream: int):
  """Returns factors of mean 0, variance 1, uncorrelated under probability_V: [values, rank]."""
  values = len(probability_V)
  draws = uniforms(seed, stream, 0, FACTOR_TRIES * rank, 2 * values)
  size, sign = 0.5 + 0.5 * draws[:, :values], np.where(draws[:, values:] < 0.5, -1.0, 1.0)
  raw_TVK = (size * sign).reshape(FACTOR_TRIES, rank, values).transpose(0, 2, 1)
  root_V = np.sqrt(probability_V)
  best, best_size = None, np.inf
  for raw_VK in raw_TVK:
    # Makes the other columns orthogonal to the first, a constant, under the probabilities.
    columns = np.concatenate((np.ones((values, 1)), raw_VK), axis=1) * root_V[:, None]
    orthogonal, triangle = np.linalg.qr(columns)
    if np.abs(np.diag(triangle)).min() < 1e-6:
      continue  # this draw depends linearly on fewer columns
    factors = orthogonal[:, 1:] / root_V[:, None]
    size = np.abs(factors).max()
    if size < best_size:
      best, best_size = factors, size
  if best is None:
    raise UserError(
      f'--rank={rank}: no {rank} independent factors over a field of {values} values; '
      'raise --cardinality_min or lower --rank'
    )
  return best


def plant_sets(options: SyntheticOptions):
  """Chooses the planted sets: main fields, pairs, triples (pair, field), quads (pair, pair).

  Raises:
    UserError: the fields have too few sets.
  """
  seed = options.teacher_seed
  mains = tuple(sorted(_shuffled(list(range(options.fields)), seed, 0)[: options.sets[0]]))
  candidates = _shuffled(list(itertools.combinations(range(options.fields), 2)), seed, 1)
  pairs = tuple(_balanced(candidates, options.sets[1], options.fields))
  numbers = range(len(pairs))
  triples = _distinct(
    _shuffled([(p, f) for p in numbers for f in range(options.fields)], seed, 2),
    lambda p, f: {*pairs[p], f},
    options.sets[2],
    order=3,
  )
  quads = _distinct(
    _shuffled(list(itertools.combinations(numbers, 2)), seed, 3),
    lambda p, q: {*pairs[p], *pairs[q]},
    options.sets[3],
    order=4,
  )
  return mains, pairs, triples, quads


def _shuffled(items: list, seed: int, kind: int) -> list:
  if not items:
    return items
  order = np.argsort(uniforms(seed, _STREAM_SETS, kind, 1, len(items))[0], kind='stable')
  return [items[i] for i in order]


def _balanced(candidates: list[tuple[int, int]], count: int, fields: int):
  """Yields `count` pairs, each time the first one whose fields are least used."""
  if count > len(candidates):
    raise UserError(
      f'--sets: {count} pairs asked for, but {fields} fields have only {len(candidates)}'
    )
  pairs_C2, used_F = np.array(candidates).reshape(-1, 2), np.zeros(fields, np.int64)
  free_C = np.ones(len(candidates), bool)
  for _ in range(count):
    load_C = used_F[pairs_C2].sum(axis=1)
    chosen = int(np.argmin(np.where(free_C, load_C, np.iinfo(np.int64).max)))
    free_C[chosen] = False
    used_F[pairs_C2[chosen]] += 1
    yield candidates[chosen]


def _distinct(candidates: list[tuple[int, int]], union, count: int, order: int):
  """Returns the first `count` compositions of `order` fields with different field sets."""
  used, chosen = set(), []
  for candidate in candidates:
    if len(chosen) == count:
      break
    fields = frozenset(union(*candidate))
    if len(fields) == order and fields not in used:
      used.add(fields)
      chosen.append(candidate)
  if len(chosen) < count:
    raise UserError(
      f'--sets: {count} sets of order {order} asked for, but only {len(chosen)} can be '
      'composed of the planted pairs; plant more pairs (the second number) or fewer of these'
    )
  return tuple(chosen)


def make_teacher(options: SyntheticOptions) -> Teacher:
  """Plants the teacher of these options; neither data seed nor number of rows matters."""
  seed = options.teacher_seed
  cardinalities = options.cardinalities()
  mains, pairs, triples, quads = plant_sets(options)
  scale_O = tuple(
    options.logit_std * (share / count) ** 0.5 if count else 0.0
    for share, count in zip(options.order_shares, options.sets, strict=True)
  )
  weighed = range(options.fields if any(scale_O) else 0)

  def factors(f: int, rank: int, stream: int) -> np.ndarray:
    probability_V = zipf_probabilities(cardinalities[f], options.zipf)
    return standardised_factors(probability_V, rank, seed, stream)

  cdf_F = tuple(np.cumsum(zipf_probabilities(v, options.zipf)) for v in cardinalities)
  for cdf in cdf_F:
    cdf[-1] = 1.0  # against rounding: a draw must never fall behind the last value
  teacher = Teacher(
    cdf_F=cdf_F,
    main_F=tuple(factors(f, 1, _STREAM_MAIN + f)[:, 0] for f in weighed),
    mains=mains,
    pairs=pairs,
    factors_P=tuple(
      (
        factors(a, options.rank, _STREAM_PAIR + 2 * p),
        factors(b, options.rank, _STREAM_PAIR + 2 * p + 1),
      )
      for p, (a, b) in enumerate(pairs)
      if weighed
    ),
    triples=triples,
    quads=quads,
    scale_O=scale_O,
    bias=0.0,
  )
  return dataclasses.replace(teacher, bias=_solve_bias(teacher, options))


def _solve_bias(teacher: Teacher, options: SyntheticOptions) -> float:
  """Returns the bias with E[sigmoid(logit)] = click_rate over a fixed sample of field values."""
  chunk, logits = 1 << 16, []
  for start in range(0, QUADRATURE_ROWS, chunk):
    draws = uniforms(options.teacher_seed, _STREAM_QUADRATURE, start, chunk, options.fields)
    logits.append(teacher.parts(teacher.values(draws)).sum(axis=1))
  return solve_bias(np.concatenate(logits), options.click_rate, bisections=60)


def solve_bias(logit_N: np.ndarray, click_rate: float, bisections: int) -> float:
  """Returns the bias with mean sigmoid(logit + bias) = click_rate, by bisection."""
  low, high = -100.0, 100.0
  for _ in range(bisections):
    bias = (low + high) / 2
    if sigmoid(logit_N + bias).mean() < click_rate:
      low = bias
    else:
      high = bias
  return (low + high) / 2


def sigmoid(logit: np.ndarray) -> np.ndarray:
  """Returns 1 / (1 + exp(-logit)), without overflow."""
  return 0.5 * (1 + np.tanh(0.5 * logit))
