# SPDX-License-Identifier: Apache-2.0
"""Helpers for the `sweep()` of an experiment file, which returns a list of points.

It imports config, core and costs, and starts `deres_jax.main` as processes; it never trains itself.
The command is `__main__`.
"""

import random
from collections.abc import Iterable

from deres_jax.config.overrides import Overrides
from deres_jax.core.errors import UserError


def param(name: str, values: Iterable) -> list[Overrides]:
  """Returns a point for every value of one field."""
  return [{name: value} for value in values]


def chain(*sweeps: Iterable[Overrides]) -> list[Overrides]:
  """Returns the points of all lists, one list after the other."""
  return [point for sweep in sweeps for point in sweep]


def product(*sweeps: Iterable[Overrides]) -> list[Overrides]:
  """Returns every combination. The last list varies fastest; names are joined by a space."""
  out = [{}]
  for sweep in map(list, sweeps):
    out = [_join(a, b) for a in out for b in sweep]
  return out


def zipped(*sweeps: Iterable[Overrides]) -> list[Overrides]:
  """Joins the first points of all lists, the second ones, ...; the lists have one length."""
  lists = [list(sweep) for sweep in sweeps]
  lengths = [len(x) for x in lists]
  if len(set(lengths)) > 1:
    raise UserError(f'zipped() got lists of {lengths} points: give lists of one length')
  return [product(*([point] for point in points))[0] for points in zip(*lists, strict=True)]


def subsample(points: Iterable[Overrides], n: int, seed: int) -> list[Overrides]:
  """Draws `n` of the points at random, in their order.

  The same points, `n` and `seed` give the same draw on every machine.
  """
  points = list(points)
  if not 1 <= n <= len(points):
    raise UserError(f'subsample() of {len(points)} points got n={n}: take 1 to {len(points)}')
  chosen = random.Random(seed).sample(range(len(points)), n)
  return [points[i] for i in sorted(chosen)]


def _join(a: Overrides, b: Overrides) -> Overrides:
  both = sorted((a.keys() & b.keys()) - {'name'})
  if both:
    raise UserError(f'a sweep sets {", ".join(both)} in two factors: keep it in one of them')
  names = [x['name'] for x in (a, b) if 'name' in x]
  return {**a, **b, **({'name': ' '.join(names)} if names else {})}
