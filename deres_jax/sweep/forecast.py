# SPDX-License-Identifier: Apache-2.0
"""Predicts the costs of runs for `deres_jax.sweep`: reads a request as JSON, prints the answers.

  python -m deres_jax.sweep.forecast < REQUEST.json

The request: {"configs": [...], "budget": FLOPs or null, "solve": "steps" or "width"}. An answer
for each config: {"cost": {"train_flops", "steps", "memory"}, "solved": {field: value}, "error"}.
Compiles nothing. Traces configs that differ only in seed, rates or length once.
"""

import dataclasses
import functools
import json
import sys
from typing import Any

import jax
import msgspec
from absl import app

from deres_jax import config as config_lib
from deres_jax.config import fields as fields_lib
from deres_jax.core import cli
from deres_jax.core.errors import UserError
from deres_jax.core.run_files import Cost
from deres_jax.costs import flops, memory
from deres_jax.data import batches as batches_lib
from deres_jax.data.schema import Schema, load_schema
from deres_jax.models.inputs import Context
from deres_jax.pod import mesh as mesh_lib
from deres_jax.sweep import budget as budget_lib
from deres_jax.sweep.costs import without_rates
from deres_jax.training import run, step
from deres_jax.training.plan import counts
from deres_jax.training.step_spec import abstract_embeddings, make_step_spec, micro_batch

# Peak memory of a run's process on CPU is about the sum of
#   Python, JAX and the readers: _BASE_BYTES;
#   _STATES times its state (parameters, tables, optimizers): itself, its gradient, the copy that a
#   checkpoint writes;
#   intermediate values of a training micro-batch and of an evaluation batch with its embeddings;
#   two windows of examples;
#   the compiler: _BYTES_AN_EQUATION for each equation of the programs.
# The constants were fitted to processes that had to compile. Predicted and measured MiB:
# 673 and 609 (depth 1, dim 32), 2289 and 2300 (depth 16, dim 64), 1229 and 1082 (embed_dim 1024),
# 1908 and 1213 (a DNN of 34 million parameters, before its test split).
_BASE_BYTES = 450 * 2**20
_STATES = 2.5
_BYTES_AN_EQUATION = 60 * 2**10


@dataclasses.dataclass(frozen=True)
class _Traced:
  """Costs of a traced model: FLOPs an example in training, bytes by what they grow with."""

  flops_per_row: float
  fixed: int  # whatever the batch
  training_row: float
  evaluation_row: float


class Forecaster:
  """Predicts costs of configs and remembers what it has traced."""

  def __init__(self):
    # FLOPs do not depend on the mesh: one device will do.
    self._mesh = mesh_lib.mesh_of(jax.devices()[:1])
    self._schema = functools.cache(load_schema)
    self._traced: dict[fields_lib.Config, _Traced] = {}
    self._solved: dict[tuple, int] = {}

  def cost(self, c: fields_lib.Config) -> Cost:
    """Predicts the cost of a run; raises UserError, or any error of building the model."""
    schema, traced = self._schema(c.data.path), self._trace(c)
    steps, rows = run.steps_of(c, schema), schema.splits['train'].rows
    examples = batches_lib.examples_until(steps, rows, c.data.batch_size)
    micro = micro_batch(c, self._mesh)
    window = min(rows, c.data.window_blocks * schema.block_rows) * len(schema.columns) * 4
    batches = micro * traced.training_row + c.data.eval_batch_size * traced.evaluation_row
    return Cost(traced.flops_per_row * examples, steps, round(traced.fixed + batches + 2 * window))

  def _trace(self, c: fields_lib.Config) -> _Traced:
    """Traces a config without the fields that change neither FLOPs nor memory."""
    data = fields_lib.Data(path=c.data.path)
    key = dataclasses.replace(without_rates(c), train=fields_lib.Train(), data=data)
    if key not in self._traced:
      spec = make_step_spec(key, self._schema(c.data.path), self._mesh, 1)
      state = step.abstract_state(spec)
      rows = abstract_embeddings(spec.tables, spec.column_tables, counts.ROWS)
      training = counts.train_jaxpr(spec, state.params, counts.ROWS)
      evaluation = jax.make_jaxpr(lambda p, r: spec.model.apply({'params': p}, r, Context()))(
        state.params, rows
      )
      jaxprs = training.jaxpr, evaluation.jaxpr
      compiler = _BYTES_AN_EQUATION * sum(map(memory.equations, jaxprs))
      made = [memory.nbytes(jaxpr) / counts.ROWS for jaxpr in jaxprs]
      self._traced[key] = _Traced(
        flops.count_jaxpr(training).total / counts.ROWS,
        _BASE_BYTES + round(_STATES * _bytes(state)) + compiler,
        made[0],
        made[1] + _bytes(rows) / counts.ROWS,
      )
    return self._traced[key]

  def solve(self, c: fields_lib.Config, budget: float, what: str) -> dict[str, Any]:
    """Returns the fields to set so that a run trains for `budget` FLOPs; raises UserError."""
    key = (without_rates(c), what)
    if key not in self._solved:
      solver = self._steps if what == 'steps' else self._width
      self._solved[key] = solver(c, budget, self._schema(c.data.path))
    if what == 'steps':
      return {'train.steps': self._solved[key], 'train.epochs': 0.0}
    return {'model.dim': self._solved[key]}

  def _steps(self, c: fields_lib.Config, budget: float, schema: Schema) -> int:
    rows = schema.splits['train'].rows
    return budget_lib.steps(
      budget,
      self._trace(c).flops_per_row,
      lambda n: batches_lib.examples_until(n, rows, c.data.batch_size),
    )

  def _width(self, c: fields_lib.Config, budget: float, schema: Schema) -> int:
    def flops_of(dim: int) -> float | None:
      wide = dataclasses.replace(c, model=dataclasses.replace(c.model, dim=dim))
      try:
        return self.cost(config_lib.resolve(config_lib.as_dict(wide))).train_flops  # checks it
      except UserError:
        return None

    self.cost(c)  # an error at the configured width has another reason than the width
    return budget_lib.width(budget, c.model.heads, flops_of)


def _bytes(tree) -> int:
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def answer(request: dict[str, Any]) -> list[dict[str, Any]]:
  """Returns the answers to a request, as the head of this file describes them."""
  forecaster, out = Forecaster(), []
  for fields in request['configs']:
    result = {'cost': None, 'solved': {}, 'error': None}
    try:
      c = config_lib.resolve(fields)
      if request['budget'] is None:
        result['cost'] = msgspec.to_builtins(forecaster.cost(c))
      else:
        result['solved'] = forecaster.solve(c, request['budget'], request['solve'])
    except UserError as e:
      result['error'] = str(e)
    except Exception as e:  # a model that cannot be traced must not fail the others
      result['error'] = f'cannot be traced: {type(e).__name__}: {(str(e).splitlines() or [""])[0]}'
    out.append(result)
  return out


def main(argv: list[str]):
  """Runs the command: answers the request on standard input."""
  cli.no_arguments(argv)
  print(json.dumps(answer(json.load(sys.stdin))))


if __name__ == '__main__':
  app.run(cli.guarded(main), flags_parser=cli.parse)
