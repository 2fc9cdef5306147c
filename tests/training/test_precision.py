# SPDX-License-Identifier: Apache-2.0
"""Under model.dtype=bfloat16 what has to be float32 is: read off the step's jaxpr."""

import jax
import jax.numpy as jnp
import made
import pytest
from jax.extend import core

from deres_jax import config
from deres_jax.data import batches as batches_lib
from deres_jax.pod import mesh as mesh_lib
from deres_jax.training import step
from deres_jax.training.step_spec import make_step_spec

SIZES = 'model.depth=2,model.dim=8,model.heads=2,model.embed_dim=4,data.batch_size=16'
# Exponentials and norms of softmax, logarithms of the loss, square roots of norms and optimizers.
STRICT = {'exp', 'exp2', 'log', 'log1p', 'expm1', 'rsqrt', 'sqrt', 'reduce_max', 'cumsum'}
# Sums over devices, gradients added to rows, and all reading and writing of tables.
STRICT |= {'psum', 'psum_invariant', 'all_to_all', 'scatter-add', 'scatter', 'gather'}


def jaxprs(jaxpr):
  """All equations, those of inner programs too."""
  for eqn in jaxpr.eqns:
    yield eqn
    for x in eqn.params.values():
      for inner in x if isinstance(x, tuple | list) else [x]:
        if isinstance(inner, core.ClosedJaxpr):
          yield from jaxprs(inner.jaxpr)
        elif isinstance(inner, core.Jaxpr):
          yield from jaxprs(inner)


def traced(more):
  """Equations of the training step on two devices, and what it takes and gives."""
  overrides = f'{SIZES},data.eval_batch_size=16,model.dtype=bfloat16,train.kernels=off,{more}'
  c = config.resolve(config.base(overrides))
  spec = make_step_spec(c, made.schema((20, 30, 40)), mesh_lib.make_mesh(2), 10)
  batches = batches_lib.Batches(made.ZipfBlocks((20, 30, 40), 64), spec.tables, 16, 2, 64, 0)
  args = step.abstract_state(spec), step.abstract_stream(spec, summed=False)
  args = *args, step.abstract_batch(spec, batches[0])
  closed, out = jax.make_jaxpr(step.make_train_step(spec), return_shape=True)(*args)
  return list(jaxprs(closed.jaxpr)), args, out


def bfloat16(variables):
  return [v for v in variables if getattr(v.aval, 'dtype', None) == jnp.bfloat16]


@pytest.mark.parametrize(
  'more',
  [
    'deres.score_fn=softmax,deres.gate=lowrank_dynamic,model.head=concat',
    'model.backbone=transformer,model.connector=mhc,model.norm=layer,optim.table=lazy_adam',
    'model.backbone=rankmixer,model.connector=attnres,model.dropout=0.1,model.dim=9,model.heads=3',
  ],
)
def test_sensitive_operations_stay_float32(more):
  equations, args, out = traced(more)
  assert any(e.primitive.name == 'dot_general' and bfloat16(e.invars) for e in equations)
  names = {e.primitive.name for e in equations}
  assert {'exp', 'log1p', 'rsqrt', 'psum', 'all_to_all', 'gather', 'scatter-add'} <= names
  for e in equations:
    if e.primitive.name in STRICT:
      assert not bfloat16([*e.invars, *e.outvars]), f'{e} at {e.source_info}'
  for tree in (args, out):
    assert not [x for x in jax.tree.leaves(tree) if x.dtype == jnp.bfloat16]
