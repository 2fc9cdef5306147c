# SPDX-License-Identifier: Apache-2.0
"""The parts of a run: data, step and lengths, made from its config before any state exists."""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax

from deres_jax.config import fields
from deres_jax.data import batches as batches_lib
from deres_jax.data.blocks import Blocks
from deres_jax.data.schema import Schema, load_schema
from deres_jax.pod import mesh as mesh_lib
from deres_jax.pod import processes
from deres_jax.training import step
from deres_jax.training.logs import profiling
from deres_jax.training.step_spec import StepSpec, make_step_spec


@dataclasses.dataclass(frozen=True)
class Run:
  """What does not change while a run goes on."""

  config: fields.Config
  schema: Schema
  spec: StepSpec
  train: batches_lib.Batches
  held_out: Callable[[str], batches_lib.Batches]  # of a split; opened at its first evaluation, once
  logits: Callable  # (params, tables, step, batch) -> logits; compiled at the first evaluation
  steps: int
  eval_every: int


def build_run(c: fields.Config, mesh: jax.sharding.Mesh | None = None) -> Run:
  """Opens the data, makes all parts of the step. Raises UserError.

  Args:
    mesh: to plan for; None: the one that the config asks for.
  """
  schema = load_schema(c.data.path)
  mesh = mesh or mesh_lib.make_mesh(c.mesh.devices)
  steps = steps_of(c, schema)
  profiling.check(c.train.profile, steps)
  per_epoch = -(-schema.splits['train'].rows // c.data.batch_size)
  eval_every = c.train.eval_steps or max(1, round(c.train.eval_epochs * per_epoch))
  spec = make_step_spec(c, schema, mesh, steps)
  train = _batches(c, schema, spec, 'train', c.data.batch_size, shuffle_seed=c.seed)

  @functools.cache
  def held_out(split: str) -> batches_lib.Batches:
    return _batches(c, schema, spec, split, c.data.eval_batch_size)

  return Run(c, schema, spec, train, held_out, step.make_eval_step(spec), steps, eval_every)


def steps_of(c: fields.Config, schema: Schema) -> int:
  """Length of a run in steps."""
  per_epoch = -(-schema.splits['train'].rows // c.data.batch_size)
  return c.train.steps or math.ceil(c.train.epochs * per_epoch)


def _batches(c, schema, spec, split, batch_size, shuffle_seed=None) -> batches_lib.Batches:
  batches = batches_lib.Batches(
    Blocks(schema, split),
    spec.tables,
    batch_size,
    spec.mesh.size,
    c.data.window_blocks,
    shuffle_seed,
    jax.process_index(),
    jax.process_count(),
  )
  batches.default_capacity = processes.gather(batches.default_capacity).max(axis=0)
  return batches
