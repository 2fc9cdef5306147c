# SPDX-License-Identifier: Apache-2.0
"""The optimizer of the dense parameters (optax), and the schedule that the tables share."""

from collections.abc import Callable

import jax
import optax

from deres_jax.config import fields


def schedule(o: fields.Optim, steps: int) -> Callable:
  """Returns step -> factor in [0, 1] on both learning rates: linear warm-up, then `o.schedule`."""
  warmup, decay = round(o.warmup * steps), round(o.decay * steps)
  rest = max(steps - warmup, 1)
  if o.schedule == 'wsd':  # warm-up, stable, decay (Hu et al. 2024, arXiv 2404.06395)
    stable = max(rest - decay, 0)
    after = optax.join_schedules(
      [optax.constant_schedule(1.0), optax.linear_schedule(1.0, 0.0, max(rest - stable, 1))],
      [stable],
    )
  elif o.schedule == 'constant':
    after = optax.constant_schedule(1.0)
  elif o.schedule == 'linear':
    after = optax.linear_schedule(1.0, 0.0, rest)
  else:
    after = optax.cosine_decay_schedule(1.0, rest)
  if not warmup:
    return after
  # Step 0 already learns: the ramp goes from 1 / warmup to 1.
  ramp = optax.linear_schedule(1 / warmup, 1.0, max(warmup - 1, 1))
  return optax.join_schedules([ramp, after], [warmup])


def _leaf(path: tuple) -> str:
  return path[-1].key


def rates(params, gate_mult: float, query_mult: float):
  """Returns the learning-rate multiplier of every parameter, by its name."""
  by_name = {'gate': gate_mult, 'query': query_mult}
  return jax.tree_util.tree_map_with_path(lambda path, _: by_name.get(_leaf(path), 1.0), params)


def decays(params):
  """Returns which parameters decay: kernels; not gates, queries, norms, biases or skips."""
  kernels = ('kernel', 'kernel_shared')
  return jax.tree_util.tree_map_with_path(lambda path, _: _leaf(path) in kernels, params)


def dense(o: fields.Optim, factor: Callable, params) -> optax.GradientTransformation:
  """Makes AdamW (Loshchilov & Hutter 2019) with global-norm clipping and per-parameter rates."""
  mult = rates(params, o.gate_lr_mult, o.query_lr_mult)
  return optax.chain(
    optax.clip_by_global_norm(o.clip_norm) if o.clip_norm else optax.identity(),
    optax.scale_by_adam(b1=o.adam_b1, b2=o.adam_b2, eps=o.adam_eps),
    optax.add_decayed_weights(o.weight_decay, mask=decays(params)),
    optax.stateless(lambda updates, _: jax.tree.map(lambda u, m: u * m, updates, mult)),
    optax.scale_by_schedule(lambda count: -o.dense_lr * factor(count)),
  )
