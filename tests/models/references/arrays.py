# SPDX-License-Identifier: Apache-2.0
"""Sizes, random arrays and randomised modules for tests of layers and models.

Shapes: B rows, T tokens, D width, F fields, E table-row width.
"""

import jax
import jax.numpy as jnp
import numpy as np

from deres_jax.models import inputs

B, T, D, F, E = 3, 4, 8, 5, 3
KEY = jax.random.key(0)
PLAIN = inputs.Context()  # no keys: evaluation
F32 = jnp.float32


def normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape)


def randomised(module, *args, seed=1):
  """Parameters of the right shapes, none at its start."""
  rng = np.random.default_rng(seed)
  params = jax.eval_shape(lambda: module.init(KEY, *args)).get('params', {})
  return jax.tree.map(lambda p: np.float32(0.4 * rng.normal(size=p.shape)), params)


def initial(module, *args, seed=0):
  return jax.jit(module.init)(jax.random.key(seed), *args)['params']


def double(params):
  return jax.tree.map(lambda p: np.asarray(p, np.float64), params)


def assert_close(got, want, tolerance=1e-5):
  """Errors relative to the largest entry; a NaN fails."""
  got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
  assert got.shape == want.shape
  error = np.max(np.abs(got - want)) / np.max(np.abs(want))
  assert error <= tolerance, error


def leaf_shapes(params):
  return jax.tree.map(jnp.shape, params)


def row_keys(rows, seed=3):
  return jax.random.split(jax.random.key(seed), rows)
