# SPDX-License-Identifier: Apache-2.0
"""Compiled programs of `deres_jax.inspect`: record activations, ablate reads, take gradients.

All are the forward pass of evaluation in its plain form (no kernels), traced with a probe.

Shapes: b rows of a batch on one device, T tokens, D width, N sources.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from deres_jax.data.batches import Batch
from deres_jax.inspect import stats
from deres_jax.kernels import library
from deres_jax.models import probe
from deres_jax.models.layers import rms
from deres_jax.pod import mesh as mesh_lib
from deres_jax.training import step
from deres_jax.training.step_spec import StepSpec

Array = jax.Array

BINS = 1000  # of a gate's histogram, over [0, 1]
ABLATED = 'recall', 'pre', 'res', 'pre_res'  # kinds of weights that an ablation changes
_START = -1  # key of the tokens among the branches


@dataclasses.dataclass
class Structure:
  """The parts of a model that its probe reports, collected while it is traced.

  Attributes:
    names: of the sub-layers.
    sources: names by (kind, site) of weights.
    simplex: whether the recall's weights are a softmax.
    static: (kind, site) of weights that are the same for all tokens.
    gates: sites whose read has a gate.
    branches: shape of each sub-layer's branch on a device, and at -1 that of the tokens.
  """

  names: tuple[str, ...] = ()
  sources: dict[tuple[str, int], tuple[str, ...]] = dataclasses.field(default_factory=dict)
  simplex: bool = False
  static: set[tuple[str, int]] = dataclasses.field(default_factory=set)
  gates: set[int] = dataclasses.field(default_factory=set)
  branches: dict[int, tuple[int, ...]] = dataclasses.field(default_factory=dict)

  def removable(self) -> tuple[str, ...]:
    """Returns the names of all sources that can be removed, in the order of their first reader."""
    by_read = [names for (kind, _), names in self.sources.items() if kind in ABLATED]
    return tuple(dict.fromkeys(name for names in by_read for name in names))


class Ablation(NamedTuple):
  """A change to the weights and gates of every read.

  Attributes:
    keep: by source name, 1, or 0 to remove it from all reads; weights of a softmax are then
      rescaled to sum to 1, as if its score were -inf.
    clip: 1 to zero negative weights, else 0.
    gate: the value of every gate; NaN leaves gates alone.
  """

  keep: dict[str, Any]
  clip: Any
  gate: Any


class Recorder(probe.Probe):
  """Records statistics of everything over the rows whose weight is 1."""

  def __init__(self, structure: Structure, weight_b: Array):
    self.structure, self.weight_b = structure, weight_b
    self.stats: dict[str, dict[Any, Any]] = {
      k: {} for k in ('weights', 'rows', 'gates', 'gate_tokens', 'norms', 'cosine', 'scatter')
    }

  def _mask(self, tokens: int) -> Array:
    """Returns the mask [b, T] of the last `tokens` tokens: a pyramid drops the first ones."""
    return self.mask_bT[:, self.mask_bT.shape[1] - tokens :]

  def _norm(self, name: str, site: int, x_bTD: Array):
    rms_bT = jnp.sqrt(jnp.mean(x_bTD.astype(jnp.float32) ** 2, axis=-1))
    self.stats['norms'][f'{name} {site}'] = stats.token_stats(rms_bT, self._mask(x_bTD.shape[1]))

  def start(self, x_bTD, mask_bT, names):
    self.structure.names = names
    self.structure.branches[_START] = x_bTD.shape
    self.x0_bTD = x_bTD.astype(jnp.float32)
    mask_bT = jnp.ones(x_bTD.shape[:2]) if mask_bT is None else mask_bT
    self.mask_bT = mask_bT * self.weight_b[:, None]
    return x_bTD

  def read(self, u_bTD, site):
    u = u_bTD.astype(jnp.float32)
    T = u.shape[1]
    self._norm('read', site, u)
    # Both vectors have RMS 1: their product over D is the cosine.
    x0_bTD = self.x0_bTD[:, self.x0_bTD.shape[1] - T :]
    cosine_bT = jnp.mean(rms(u, 1e-30) * rms(x0_bTD, 1e-30), axis=-1)
    self.stats['cosine'][str(site)] = stats.token_stats(cosine_bT, self._mask(T))
    self.stats['scatter'][str(site)] = stats.scatter(u, self._mask(T))
    return u_bTD

  def branch(self, y_bTD, site):
    self.structure.branches[site] = y_bTD.shape
    self._norm('branch', site, y_bTD)
    return y_bTD

  def paths(self, x_bTD, r_bTD, site):
    self._norm('identity', site, x_bTD)
    self._norm('recall', site, r_bTD)

  def weights(self, a, site, sources, kind='recall', axis=-1, simplex=False):
    self.structure.sources[kind, site] = sources
    self.structure.simplex |= simplex
    values = jnp.moveaxis(a, axis, -1)  # [..., outputs, sources]
    key = f'{kind} {site}'
    if a.ndim < 3:  # the same for all tokens
      self.structure.static.add((kind, site))
      self.stats['weights'][key] = stats.static_stats(values)
      return a
    mask_bT = self._mask(a.shape[1])
    self.stats['weights'][key] = stats.token_stats(values, mask_bT)
    if kind == 'recall':
      n = jnp.maximum(jnp.sum(mask_bT, axis=1), 1)
      self.stats['rows'][key] = jnp.einsum('bt,btn->bn', mask_bT, values) / n[:, None]
    return a

  def gate(self, g, site):
    self.structure.gates.add(site)
    bin_index = jnp.clip((g * BINS).astype(jnp.int32), 0, BINS - 1)
    count = jnp.ones(g.shape, jnp.int32)
    if g.ndim == 3:
      mask_bT = self._mask(g.shape[1])
      count = count * mask_bT[..., None].astype(jnp.int32)
      self.stats['gate_tokens'][str(site)] = stats.token_stats(jnp.mean(g, axis=-1), mask_bT)
    # Counted in integers: float32 stops counting at 2^24.
    self.stats['gates'][str(site)] = jnp.zeros(BINS, jnp.int32).at[bin_index].add(count)
    return g


class Ablator(probe.Probe):
  """Applies an `Ablation` to the weights and gates of every read."""

  def __init__(self, ablation: Ablation):
    self.ablation = ablation

  def weights(self, a, site, sources, kind='recall', axis=-1, simplex=False):
    del site
    if kind not in ABLATED:
      return a
    keep = jnp.stack([jnp.asarray(self.ablation.keep[name], a.dtype) for name in sources])
    keep = keep.reshape(-1, *(1,) * (-1 - axis))
    a = jnp.where(self.ablation.clip > 0, jnp.maximum(a, 0), a) * keep
    if not simplex:
      return a
    total = jnp.sum(a, axis=axis, keepdims=True)
    # A read without its only source is 0.
    scaled = a / jnp.where(total > 0, total, 1)
    return jnp.where(jnp.all(keep == 1), a, scaled)

  def gate(self, g, site):
    del site
    return jnp.where(jnp.isnan(self.ablation.gate), g, self.ablation.gate).astype(g.dtype)


class Offsets(probe.Probe):
  """Adds arrays to the tokens and branches: the gradients of the former are those of the latter."""

  def __init__(self, offsets: dict[int, Array]):
    self.offsets = offsets

  def start(self, x_BTD, mask_BT, names):
    return x_BTD + self.offsets[_START]

  def branch(self, y_BTD, site):
    return y_BTD + self.offsets[site].astype(y_BTD.dtype)


@dataclasses.dataclass(frozen=True)
class Programs:
  """The programs, compiled at their first call.

  All take params, tables, step, batch, and how many of the batch's rows count.

  Attributes:
    record: -> (logits [B], statistics of every device [devices, ...], row by row 'rows' [B, N]).
    ablate: takes an Ablation too -> logits [B].
    gradients: -> {site: TokenStats of the norm of each row's gradient}, site -1: of the tokens.
    structure: filled when `record` is traced, so `record` must be called first.
  """

  record: Callable
  ablate: Callable
  gradients: Callable
  structure: Structure


def record(
  structure: Structure, weight_b: Array, forward: Callable[[], Array]
) -> tuple[Array, dict[str, Any], dict[str, Array]]:
  """Returns logits, a `Recorder`'s statistics, and mean weights of each row; fills `structure`."""
  recorder = Recorder(structure, weight_b)
  with probe.using(recorder):
    logits_b = forward()
  rows = recorder.stats.pop('rows')
  return logits_b, recorder.stats, rows


def ablated(ablation: Ablation, forward: Callable[[], Array]) -> Array:
  """Returns the logits of the ablated model."""
  with probe.using(Ablator(ablation)):
    return forward()


def gradients(
  structure: Structure, weight_b: Array, labels_b: Array, forward: Callable[[], Array]
) -> dict[int, stats.TokenStats]:
  """Returns, by site, norms of each row's gradient with respect to the branch; -1: the tokens."""

  def loss(offsets):
    with probe.using(Offsets(offsets)):
      logits_b = forward()
    return step.bce_sum(logits_b, labels_b, weight_b)

  grads = jax.grad(loss)({k: jnp.zeros(shape) for k, shape in structure.branches.items()})
  norms = {k: jnp.sqrt(jnp.sum(g**2, axis=(1, 2)))[:, None] for k, g in grads.items()}
  return {k: stats.token_stats(norm, weight_b[:, None]) for k, norm in norms.items()}


def make(spec: StepSpec) -> Programs:
  """Builds the programs for the mesh and model of `spec`."""
  structure = Structure()

  def forward(*args):
    return lambda: step.forward(spec, *args)

  def record_body(params, tables, at, batch, count):
    weight_b = _weights(batch, count)
    logits, recorded, rows = record(structure, weight_b, forward(params, tables, at, batch))
    return logits, jax.tree.map(lambda x: x[None], recorded), rows

  def ablate_body(params, tables, at, batch, count, ablation):
    del count
    return ablated(ablation, forward(params, tables, at, batch))

  def gradients_body(params, tables, at, batch, count):
    weight_b = _weights(batch, count)
    norms = gradients(structure, weight_b, batch.labels, forward(params, tables, at, batch))
    return jax.tree.map(lambda x: x[None], norms)

  return Programs(
    record=_program(spec, record_body, (mesh_lib.BATCH,) * 3),
    ablate=_program(spec, ablate_body, mesh_lib.BATCH, mesh_lib.REPLICATED),
    gradients=_program(spec, gradients_body, mesh_lib.BATCH),
    structure=structure,
  )


def _weights(batch: Batch, count: Array) -> Array:
  """Returns weights [b] of this device's rows, 0 from the batch's row `count` on."""
  b = batch.weights.shape[0]
  first = jax.lax.axis_index(mesh_lib.AXIS) * b
  return batch.weights * (first + jnp.arange(b) < count)


def _program(spec: StepSpec, body: Callable, out: Any, *more: Any) -> Callable:
  def plain(*args):
    with library.using(False):
      return body(*args)

  fixed = mesh_lib.REPLICATED, mesh_lib.TABLE, mesh_lib.REPLICATED, step.BATCH_SPECS
  program = jax.shard_map(
    plain,
    mesh=spec.mesh,
    in_specs=(*fixed, mesh_lib.REPLICATED, *more),
    out_specs=out,
    check_vma=False,
  )
  return jax.jit(program)
