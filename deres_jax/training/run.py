# SPDX-License-Identifier: Apache-2.0
"""A run before its first step: data, step and lengths, made from the config."""

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
  """The constants of a run."""

  config: fields.Config
  schema: Schema
  spec: StepSpec
  train: batches_lib.Batches  # shuffled
  held_out: Callable[[str], batches_lib.Batches]  # by split; opened at its first evaluation
  eval_step: Callable  # (params, tables, step, batch) -> logits; compiled at the first evaluation
  steps: int
  eval_every: int  # steps


def build_run(c: fields.Config, mesh: jax.sharding.Mesh | None = None) -> Run:
  """Opens the data and builds the step, on a given mesh or on the one that the config names."""
  schema = load_schema(c.data.path)
  mesh = mesh or mesh_lib.make_mesh(c.mesh.devices)
  steps = steps_of(c, schema)
  profiling.check(c.train.profile, steps)
  spec = make_step_spec(c, schema, mesh, steps)

  def batches(split: str, batch_size: int, shuffle_seed: int | None = None) -> batches_lib.Batches:
    opened = batches_lib.Batches(
      Blocks(schema, split),
      spec.tables,
      batch_size,
      mesh.size,
      c.data.window_blocks,
      shuffle_seed,
      jax.process_index(),
      jax.process_count(),
    )
    opened.default_capacity = processes.gather(opened.default_capacity).max(axis=0)
    return opened

  return Run(
    config=c,
    schema=schema,
    spec=spec,
    train=batches('train', c.data.batch_size, c.seed),
    held_out=functools.cache(lambda split: batches(split, c.data.eval_batch_size)),
    eval_step=step.make_eval_step(spec),
    steps=steps,
    eval_every=c.train.eval_steps or max(1, round(c.train.eval_epochs * _per_epoch(c, schema))),
  )


def steps_of(c: fields.Config, schema: Schema) -> int:
  """Returns the length of a run in steps."""
  return c.train.steps or math.ceil(c.train.epochs * _per_epoch(c, schema))


def _per_epoch(c: fields.Config, schema: Schema) -> int:
  return -(-schema.splits['train'].rows // c.data.batch_size)
