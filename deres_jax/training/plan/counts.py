# SPDX-License-Identifier: Apache-2.0
"""Counts the costs of a run before it runs: parameters, FLOPs, memory. Nothing is compiled.

FLOPs are those of the network from embeddings to logit, a row, counted from the jaxpr by the rules
of `deres_jax.costs.flops` (a multiply-add is 2). Table reads and optimizer updates are left out:
they move memory.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.extend import core

from deres_jax.config import fields
from deres_jax.costs import flops
from deres_jax.models.inputs import Context
from deres_jax.training import step
from deres_jax.training.step_spec import StepSpec, abstract_embeddings, make_model

# Rows of the traced batch; the cost of what is computed once a batch (a gate's sigmoid) is shared.
ROWS = 128


@dataclasses.dataclass(frozen=True)
class Plan:
  """Parameters, FLOPs a row, and bytes a device, of a config on a mesh."""

  devices: int
  params_dense: int
  params_embedding: int  # without padding
  flops_forward_per_row: float
  flops_train_per_row: float  # forward and backward
  flops_connector_extra: float  # relative to the same network with the plain pre-norm residual
  bytes_dense_state: int  # dense parameters and their optimizer state
  bytes_table: int
  bytes_table_slots: int  # state of the sparse optimizer


def make(c: fields.Config, spec: StepSpec) -> Plan:
  """Returns the plan of a config with this StepSpec.

  Takes the whole config, to build the same model with another connector.
  """
  state = step.abstract_state(spec)
  forward, plain_forward = forward_flops(c, spec)
  return Plan(
    devices=spec.mesh.size,
    params_dense=sum(math.prod(x.shape) for x in jax.tree.leaves(state.params)),
    params_embedding=spec.tables.parameters,
    flops_forward_per_row=forward,
    flops_train_per_row=count_train(spec, state.params, ROWS).total / ROWS,
    flops_connector_extra=forward / plain_forward - 1,
    bytes_dense_state=_bytes((state.params, state.opt)),
    bytes_table=_bytes(state.tables) // spec.mesh.size,
    bytes_table_slots=_bytes(state.table_opt_state) // spec.mesh.size,
  )


def forward_flops(c: fields.Config, spec: StepSpec) -> tuple[float, float]:
  """Returns the FLOP of a forward pass a row, and those with the plain pre-norm residual."""
  plain = dataclasses.replace(c, model=dataclasses.replace(c.model, connector='prenorm'))
  model = make_model(plain, spec.layout, 0.0, spec.tables, spec.column_tables)
  return _forward(spec.model, spec), _forward(model, spec)


def _bytes(tree) -> int:
  return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _forward(model, spec: StepSpec) -> float:
  inputs = abstract_embeddings(spec.tables, spec.column_tables, ROWS)
  variables = jax.eval_shape(model.init, jax.random.key(0), inputs, Context())
  counted = flops.count(lambda v, x: model.apply(v, x, Context()), variables, inputs)
  return counted.total / ROWS


def count_train(spec: StepSpec, params, rows: int) -> flops.Flops:
  """Counts the FLOP of a forward and backward pass of `rows` rows; `params` may be shapes."""
  return flops.count_jaxpr(train_jaxpr(spec, params, rows))


def train_jaxpr(spec: StepSpec, params, rows: int) -> core.ClosedJaxpr:
  """Traces a forward and backward pass of `rows` rows; `params` may be shapes."""

  def loss(params, x_BSE, labels_B):
    logits_B = spec.model.apply({'params': params}, x_BSE, Context())
    return step.bce_sum(logits_B, labels_B, jnp.ones_like(labels_B))

  labels = jax.ShapeDtypeStruct((rows,), jnp.float32)
  inputs = abstract_embeddings(spec.tables, spec.column_tables, rows)
  return jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(params, inputs, labels)


def table(plan: Plan) -> str:
  """Formats a plan."""
  return aligned(lines(plan, _mib))


def lines(plan: Plan, size: Callable[[int], str]) -> list[tuple[str, str]]:
  """Returns names and values of a plan, with bytes formatted by `size`."""
  return [
    ('devices', f'{plan.devices}'),
    ('dense parameters', f'{plan.params_dense:,}'),
    ('table parameters', f'{plan.params_embedding:,}'),
    ('forward FLOPs a row', f'{plan.flops_forward_per_row:,.0f}'),
    ('training FLOPs a row', f'{plan.flops_train_per_row:,.0f}'),
    ("connector's extra FLOPs", f'{plan.flops_connector_extra:.2%} over the plain residual'),
    ('dense state, a device', size(plan.bytes_dense_state)),
    ('table, a device', size(plan.bytes_table)),
    ('table slots, a device', size(plan.bytes_table_slots)),
  ]


def aligned(lines: list[tuple[str, str]]) -> str:
  """Formats lines with their values in one column."""
  width = max(len(name) for name, _ in lines)
  return '\n'.join(f'{name:<{width}}  {value}' for name, value in lines)


def _mib(n: int) -> str:
  return f'{n / 2**20:,.1f} MiB'
