# SPDX-License-Identifier: Apache-2.0
"""The parts of a step: model, tables, optimizers and sizes, made from config, schema and mesh."""

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
from deres_jax.embeddings.optimizers import SparseOptimizer
from deres_jax.kernels import library
from deres_jax.models.inputs import Context
from deres_jax.pod import mesh as mesh_lib
from deres_jax.training import optimizer as optimizer_lib

Array = jax.Array

# On CPUs an activation [128 * 39, 64] float32 of a token model takes 1.3 MB and stays in a core's
# cache. Classic models have few numbers an example; their products are fast when they are large.
CPU_MICRO_BATCH = 128
CPU_MICRO_BATCH_FLAT = 2048


@dataclasses.dataclass(frozen=True)
class StepSpec:
  """Everything that the training and evaluation steps are compiled from."""

  mesh: Mesh
  model: nn.Module
  layout: models.Layout
  tables: layout_lib.Tables
  column_tables: tuple[int, ...]  # the table of each id of an example
  optimizer: optax.GradientTransformation  # of the dense parameters
  sparse_optimizer: SparseOptimizer  # of the tables
  factor: Callable[[Array], Array]  # schedule: multiplies both learning rates
  table_lr: float
  table_init_std: float
  kernels: bool  # whether steps call this project's CPU kernels
  micro_batch: int  # examples that a device processes at a time; divides its part of a batch
  noise: bool  # whether the model uses dropout
  aux_weight: float  # weight of the mean of the auxiliary losses
  steps: int  # length of the run
  seed: int
  nan_limit: int  # how many steps may be skipped because they were not finite


def make_step_spec(c: fields.Config, schema: Schema, mesh: Mesh, steps: int) -> StepSpec:
  """Makes the StepSpec of a run of `steps` steps; allocates nothing on devices.

  Takes the whole config: the step depends on most of its fields, and below here only on StepSpec.
  Raises UserError if sizes do not fit each other, the mesh or the tables.
  """
  mesh_lib.check_batch(c.data.batch_size, mesh, 'data.batch_size')
  mesh_lib.check_batch(c.data.eval_batch_size, mesh, 'data.eval_batch_size')
  width, linear = models.embedding_width(c.model)
  tables = layout_lib.Tables(schema.vocab_sizes, width, linear, checks.narrow(c.model))
  tables.check(mesh.size)
  layout = layout_of(schema)
  column_tables = tuple(tables.table_of[column] for column in schema.columns)
  prior_logit = math.log(schema.click_rate / (1 - schema.click_rate))
  model = make_model(c, layout, prior_logit, tables, column_tables)
  inputs = abstract_embeddings(tables, column_tables, 1)
  variables = jax.eval_shape(model.init, jax.random.key(0), inputs, Context())
  o = c.optim
  factor = optimizer_lib.schedule(o, steps)
  sparse = (o.table, o.table_eps, o.table_l2, o.adam_b1, o.adam_b2, o.table_slots, c.seed)
  return StepSpec(
    mesh=mesh,
    model=model,
    layout=layout,
    tables=tables,
    column_tables=column_tables,
    optimizer=optimizer_lib.dense(o, factor, variables['params']),
    sparse_optimizer=SparseOptimizer(*sparse),
    factor=factor,
    table_lr=o.table_lr,
    table_init_std=o.table_init_std,
    kernels=uses_kernels(c.train.kernels, mesh),
    micro_batch=micro_batch(c, mesh),
    noise=c.model.dropout > 0 or c.model.embed_dropout > 0 or c.mlp.dropout > 0,
    aux_weight=c.model.aux_weight,
    steps=steps,
    seed=c.seed,
    nan_limit=c.train.nan_bound if c.train.on_nan == 'skip' else 0,
  )


def layout_of(schema: Schema) -> models.Layout:
  """Returns how the ids of an example are laid out, for models."""
  sequence = schema.sequence
  if sequence is None:
    return models.Layout(len(schema.fields))
  events, attributes = sequence.length, len(sequence.attributes)
  return models.Layout(len(schema.fields), events, attributes, schema.shared_columns)


def make_model(
  c: fields.Config,
  layout: models.Layout,
  prior_logit: float,
  tables: layout_lib.Tables,
  column_tables: tuple[int, ...],
) -> nn.Module:
  """Makes the model of a config for embeddings of these tables."""
  model = models.build(c, layout, prior_logit)
  if len(tables.parts) == 1:
    return model
  return models.OneWidth(model, column_tables, tables.dim, tables.linear)


def abstract_embeddings(
  tables: layout_lib.Tables, column_tables: tuple[int, ...], examples: int
) -> Any:
  """Returns the shapes of the model's input: see `gather_columns` of deres_jax.training.step."""
  shapes = tuple(
    jax.ShapeDtypeStruct((examples, column_tables.count(t), table.dim), jnp.float32)
    for t, table in enumerate(tables.parts)
  )
  return shapes if len(shapes) > 1 else shapes[0]


def _on_cpu(mesh: Mesh) -> bool:
  return mesh.devices.flat[0].platform == 'cpu'


def uses_kernels(setting: str, mesh: Mesh) -> bool:
  """Returns whether steps call the CPU kernels, which are compiled on this machine.

  Raises UserError if train.kernels, the setting, is `on` and they cannot be compiled.
  """
  if setting == 'off' or not _on_cpu(mesh):
    return False
  missing = library.missing()
  if missing and setting == 'on':
    raise UserError(f'config train.kernels=on: {missing}; set it to auto to train without them')
  return missing is None


def micro_batch(c: fields.Config, mesh: Mesh) -> int:
  """Returns how many examples a device processes at a time: as set, or what is fast here.

  Raises UserError if train.micro_batch does not divide a device's part of a batch.
  """
  setting, examples = c.train.micro_batch, c.data.batch_size // mesh.size
  if setting == -1:
    fast = CPU_MICRO_BATCH_FLAT if models.is_flat(c.model) else CPU_MICRO_BATCH
    return fast if _on_cpu(mesh) and examples % fast == 0 else examples
  if setting and examples % setting:
    raise UserError(
      f'config train.micro_batch={setting} does not divide the {examples} rows that each device '
      'gets of a batch: change it or data.batch_size, or set it to 0'
    )
  return setting or examples
