# SPDX-License-Identifier: Apache-2.0
"""Predicted costs of the runs of a sweep, and the time that is left.

Another process (`deres_jax.sweep.forecast`) predicts them with JAX on the CPU: this one stays light
and holds no accelerator.
"""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from deres_jax import config as config_lib
from deres_jax.config import fields as fields_lib
from deres_jax.config.overrides import Overrides, as_text
from deres_jax.core.errors import UserError
from deres_jax.core.run_files import Cost
from deres_jax.sweep import folder
from deres_jax.sweep.points import Point, with_solved


def predict(out: pathlib.Path, points: list[Point]) -> dict[str, Cost]:
  """Predicts costs by id and adds them to costs.json, from which known ones are taken.

  A point whose model cannot be built has none: its own run will say why.
  """
  known = folder.costs(out)
  unknown = [p for p in points if p.id not in known]
  if unknown:
    answers = zip(unknown, _ask({'configs': _configs(unknown), 'budget': None}), strict=True)
    known |= {p.id: Cost(**a['cost']) for p, a in answers if not a['error']}
    folder.record_costs(out, known)
  return {p.id: known[p.id] for p in points if p.id in known}


def differ(points: list[Point]) -> bool:
  """Returns whether points may differ in cost: they differ in more than seed and rates."""
  return len({without_rates(p.config) for p in points}) > 1


def without_rates(c: fields_lib.Config) -> fields_lib.Config:
  """Returns a config without what costs nothing: the seed, and `optim` but for the table state."""
  optim = fields_lib.Optim(table=c.optim.table, table_slots=c.optim.table_slots)
  return dataclasses.replace(c, seed=0, optim=optim)


_SOLVED = {'steps': ('train.steps', 'train.epochs'), 'width': ('model.dim',)}


def with_budget(points: list[Point], budget: float, solve: str) -> list[Point]:
  """Sets the steps or the width of points so that each trains for `budget` FLOPs.

  Raises:
    UserError: a point sets the field itself, or nothing comes near the budget.
  """
  fields = _SOLVED[solve]
  for p in points:
    for field in fields:
      if field in p.overrides:
        raise UserError(
          f'point {p.number} ({p.name}) sets {field}={p.overrides[field]}, which '
          f'--flops_budget={budget:g} solves (--solve={solve}): drop one of them'
        )
  request = {'configs': _configs(points), 'budget': budget, 'solve': solve}
  solved: list[Overrides] = []
  for p, answer in zip(points, _ask(request), strict=True):
    if answer['error']:
      raise UserError(f'point {p.number} ({p.name}; {as_text(p.overrides)}): {answer["error"]}')
    solved.append(answer['solved'])
  return with_solved(points, solved)


def _configs(points: list[Point]) -> list[dict[str, Any]]:
  return [config_lib.as_dict(p.config) for p in points]


def _ask(request: dict[str, Any]) -> list[dict[str, Any]]:
  """Returns an answer for each config: {cost, solved, error}."""
  child = subprocess.run(
    [sys.executable, '-m', 'deres_jax.sweep.forecast'],
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
    input=json.dumps(request),
    capture_output=True,
    text=True,
    check=False,
  )
  if child.returncode:
    raise RuntimeError(
      f'python -m deres_jax.sweep.forecast: exit {child.returncode}\n{child.stderr}'
    )
  return json.loads(child.stdout.splitlines()[-1])


@dataclasses.dataclass(frozen=True)
class Underway:
  """A running run."""

  cost: float
  part: float  # of its steps that is done
  seconds: float  # since its start


def seconds_left(
  done: Sequence[tuple[float, float]],
  underway: Sequence[Underway],
  todo: Sequence[float],
  jobs: int,
) -> float | None:
  """Estimates the seconds that a sweep will still take; None before anything is done.

  A unit of cost takes as long as on average in the finished and running runs. The rest is spread
  evenly over the jobs, but takes at least as long as its longest run.

  Args:
    done: cost and seconds of finished runs.
    todo: costs of runs that have not started.
  """
  work = sum(cost for cost, _ in done) + sum(r.cost * r.part for r in underway)
  if not work:
    return None
  pace = (sum(t for _, t in done) + sum(r.seconds for r in underway if r.part)) / work
  left = [max(0.0, r.cost * (1 - r.part)) * pace for r in underway if r.part]
  left += [max(0.0, r.cost * pace - r.seconds) for r in underway if not r.part]
  left += [cost * pace for cost in todo]
  return max(sum(left) / jobs, max(left, default=0.0))


def weights(points: list[Point], costs: dict[str, Cost]) -> dict[str, float]:
  """Returns training FLOPs by id; the mean of the others for an unknown one, 1 if all are."""
  known = [c.train_flops for c in costs.values()]
  mean = sum(known) / len(known) if known else 1.0
  return {p.id: costs[p.id].train_flops if p.id in costs else mean for p in points}
