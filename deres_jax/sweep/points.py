# SPDX-License-Identifier: Apache-2.0
"""The points of a sweep with their configs: resolved, checked, named and numbered."""

import dataclasses
import re
from collections.abc import Iterable
from typing import Any

from deres_jax import config as config_lib
from deres_jax.config import diff
from deres_jax.config import fields as fields_lib
from deres_jax.config.overrides import Overrides, as_text
from deres_jax.core.errors import UserError
from deres_jax.core.run_files import SweepPoint


@dataclasses.dataclass(frozen=True)
class Point:
  """A run of the sweep, resolved."""

  number: int  # in the sweep, from 1
  id: str  # config_hash
  name: str
  overrides: Overrides  # set by the sweep and the command line, without operational fields
  config: fields_lib.Config

  def listed(self) -> SweepPoint:
    """Returns the entry in sweep.json."""
    return SweepPoint(self.id, self.name, self.config.seed, self.overrides)


def resolve(
  raw: dict[str, Any], sweep: Iterable[Overrides], given: set[str], default_name: str
) -> list[Point]:
  """Resolves and checks every point of a sweep before anything runs.

  Args:
    raw: the config as nested dicts, with the command line's overrides.
    given: dotted names that the command line set; a sweep must not vary them.
    default_name: the name of a point that sets nothing but the seed.

  Raises:
    UserError: the first mistake in a point, or two points that are one run.
  """
  points, by_id = [], {}
  for number, item in enumerate(sweep, 1):
    if not isinstance(item, dict) or not all(isinstance(k, str) for k in item):
      raise UserError(f'sweep() point {number} is {item!r}: expected a dict of config fields')
    varied = {k: v for k, v in item.items() if k != 'name'}
    both = sorted(varied.keys() & given)
    if both:
      raise UserError(
        f'the command line sets {", ".join(both)}, which the sweep varies: '
        'drop the override or the field of the sweep'
      )
    try:
      config = config_lib.resolve(_with(raw, varied))
    except UserError as e:
      raise UserError(f'sweep() point {number} ({as_text(varied)}): {e}') from e
    fields, identity = diff.flat(config), config_lib.identity(config)
    name = item.get('name', as_text({k: fields[k] for k in varied if k != 'seed'}) or default_name)
    if not isinstance(name, str) or not name or not name.isprintable():
      raise UserError(f'sweep() point {number} has the name {name!r}: expected one line of text')
    overrides = {k: identity[k] for k in [*sorted(given), *varied] if k in identity}
    point = Point(number, config_lib.config_hash(config), name, overrides, config)
    other = by_id.setdefault(point.id, point)
    if other is not point:
      raise UserError(
        f'sweep() points {other.number} ({other.name}; {as_text(other.overrides)}) and {number} '
        f'({name}; {as_text(overrides)}) are one run: drop one, or vary a field that changes '
        'what is computed (data.path and the like do not)'
      )
    points.append(point)
  if not points:
    raise UserError('sweep() returned no points: return at least one dict of config fields')
  return points


def _with(raw: dict[str, Any], overrides: Overrides) -> dict[str, Any]:
  """Returns a copy of `raw` with fields set by dotted name; unknown ones are left to resolve()."""
  out = {k: dict(v) if isinstance(v, dict) else v for k, v in raw.items()}
  for name, value in overrides.items():
    *path, leaf = name.split('.')
    node = out
    for key in path:
      node = node.setdefault(key, {})
      if not isinstance(node, dict):
        raise UserError(f'unknown config field {name!r}: {key!r} is a value')
    node[leaf] = value
  return out


def with_solved(points: list[Point], solved: list[Overrides]) -> list[Point]:
  """Returns the points with more fields set, which become part of their overrides and ids."""
  out = []
  for point, fields in zip(points, solved, strict=True):
    config = config_lib.resolve(_with(config_lib.as_dict(point.config), fields))
    overrides = {**point.overrides, **fields}
    id_ = config_lib.config_hash(config)
    out.append(dataclasses.replace(point, id=id_, overrides=overrides, config=config))
  return out


def shard(points: list[Point], text: str) -> list[Point]:
  """Returns the points whose index % n is i, for 'i/n'."""
  match = re.fullmatch(r'(\d+)/(\d+)', text)
  i, n = map(int, match.groups()) if match else (0, 0)
  if i >= n:
    raise UserError(f'--shard={text}: expected i/n with 0 <= i < n, such as 0/4')
  return points[i::n]
