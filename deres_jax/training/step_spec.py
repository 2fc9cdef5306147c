# SPDX-License-Identifier: Apache-2.0
"""The parts that a step is made of, from config and schema."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import Mesh

from deres_jax import models
from deres_jax.config import checks, fields
from deres_jax.core.errors import UserError
from deres_jax.data.schema import Schema
from deres_jax.embeddings import layout as layout_lib
from deres_jax.embeddings.optimizers import RowOptimizer
from deres_jax.kernels import library
from deres_jax.models.inputs import Context
from deres_jax.pod import mesh as mesh_lib
from deres_jax.training import optimizer as optimizer_lib

Array = jax.Array

# On CPUs an activation [128 * 39, 64] float32 of a token model is 1.3 MB and stays in a core's
# cache. Classic models have few numbers a row, and their products are quick when they are large.
CPU_MICRO_BATCH = 128
CPU_MICRO_BATCH_FLAT = 2048


@dataclasses.dataclass(frozen=True)
class Setup:
  """The parts that a step is made of."""

  mesh: Mesh
  model: nn.Module
  layout: models.Layout
  tables: layout_lib.Tables
  slot_tables: tuple[int, ...]  # for each id of a row its table
  optimizer: optax.GradientTransformation
  row_optimizer: RowOptimizer
  factor: Callable[[Array], Array]  # schedule of both learning rates
  table_lr: float
  table_init_std: float
  kernels: bool  # whether steps call the CPU's own kernels
  micro_batch: int  # rows that a device works on at a time; divides its part of a batch
  noise: bool  # whether the model draws dropout
  aux_weight: float  # of the auxiliary losses' mean
  steps: int  # length of the run
  seed: int
  nan_limit: int  # steps that may be skipped because something in them was not finite


def layout_of(schema: Schema) -> models.Layout:
  """What a row's ids are, for models."""
  sequence = schema.sequence
  if sequence is None:
    return models.Layout(len(schema.fields))
  targets = sequence.columns[: sequence.shared]
  return models.Layout(len(schema.fields), sequence.length, len(sequence.attributes), targets)


def make_setup(c: fields.Config, schema: Schema, mesh: Mesh, steps: int) -> Setup:
  """The parts of the step of a config on some data; allocates nothing on devices.

  Args:
    steps: length of the run.

  Raises:
    UserError: sizes that do not fit each other, the mesh or the tables.
  """
  mesh_lib.check_batch(c.data.batch_size, mesh, 'data.batch_size')
  mesh_lib.check_batch(c.data.eval_batch_size, mesh, 'data.eval_batch_size')
  width, linear = models.row_width(c)
  narrow = checks.narrow(c.model)
  tables = layout_lib.Tables(schema.vocab_sizes, width, linear, narrow)
  tables.check(mesh.size)
  layout = layout_of(schema)
  slot_tables = tuple(tables.table_of[column] for column in schema.columns)
  prior_logit = math.log(schema.click_rate / (1 - schema.click_rate))
  model = make_model(c, layout, prior_logit, tables, slot_tables)
  variables = jax.eval_shape(
    model.init, jax.random.key(0), abstract_rows(tables, slot_tables, 1), Context()
  )
  kernels = uses_kernels(c.train.kernels, mesh)
  factor = optimizer_lib.schedule(c.optim, steps)
  o = c.optim
  return Setup(
    mesh=mesh,
    model=model,
    layout=layout,
    tables=tables,
    slot_tables=slot_tables,
    optimizer=optimizer_lib.dense(o, factor, variables['params']),
    row_optimizer=RowOptimizer(
      o.table, o.table_eps, o.table_l2, o.adam_b1, o.adam_b2, o.table_slots, c.seed
    ),
    factor=factor,
    table_lr=o.table_lr,
    table_init_std=o.table_init_std,
    kernels=kernels,
    micro_batch=micro_rows(c, mesh),
    noise=c.model.dropout > 0 or c.model.embed_dropout > 0 or c.mlp.dropout > 0,
    aux_weight=c.model.aux_weight,
    steps=steps,
    seed=c.seed,
    nan_limit=c.train.nan_bound if c.train.on_nan == 'skip' else 0,
  )


def make_model(
  c: fields.Config,
  layout: models.Layout,
  prior_logit: float,
  tables: layout_lib.Tables,
  slot_tables: tuple[int, ...],
) -> nn.Module:
  """The model of a config, for rows of these tables."""
  model = models.build(c, layout, prior_logit)
  if len(tables.parts) == 1:
    return model
  return models.OneWidth(model, slot_tables, tables.dim, tables.linear)


def _on_cpu(mesh: Mesh) -> bool:
  return mesh.devices.flat[0].platform == 'cpu'


def uses_kernels(wanted: str, mesh: Mesh) -> bool:
  """Whether steps on this mesh call kernels of ours, which are built here. Raises UserError."""
  if wanted == 'off' or not _on_cpu(mesh):
    return False
  missing = library.missing()
  if missing and wanted == 'on':
    raise UserError(f'config train.kernels=on: {missing}; set it to auto to train without them')
  return missing is None


def micro_rows(c: fields.Config, mesh: Mesh) -> int:
  """Rows that a device works on at a time: what is wanted, or what is fast on this platform."""
  wanted, rows = c.train.micro_batch, c.data.batch_size // mesh.size
  if wanted == -1:
    fast = CPU_MICRO_BATCH_FLAT if models.is_flat(c) else CPU_MICRO_BATCH
    return fast if _on_cpu(mesh) and rows % fast == 0 else rows
  if wanted and rows % wanted:
    raise UserError(
      f'config train.micro_batch={wanted} does not divide the {rows} rows that each device '
      'gets of a batch: change it or data.batch_size, or set it to 0'
    )
  return wanted or rows


def abstract_rows(tables: layout_lib.Tables, slot_tables: tuple[int, ...], rows: int) -> Any:
  """Shapes of what the model is given for so many rows of data: see `by_slot` of
  deres_jax.training.step."""
  shapes = tuple(
    jax.ShapeDtypeStruct((rows, slot_tables.count(t), table.dim), jnp.float32)
    for t, table in enumerate(tables.parts)
  )
  return shapes if len(shapes) > 1 else shapes[0]
