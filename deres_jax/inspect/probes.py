# SPDX-License-Identifier: Apache-2.0
"""The programs of `deres_jax.inspect`: what a model shows, what a change of it does, gradients.

All are the forward pass of evaluation, in its plain form (no kernels), traced with a probe.

Shapes: b rows of a batch on one device, T tokens, D width, N sources.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from deres_jax.data.batches import Batch
from deres_jax.inspect import moments
from deres_jax.kernels import library
from deres_jax.models import probe
from deres_jax.models.layers import rms
from deres_jax.pod import mesh as mesh_lib
from deres_jax.training import step
from deres_jax.training.step_spec import StepSpec

Array = jax.Array

BINS = 1000  # of a gate's histogram, over [0, 1]
CHANGED = 'recall', 'pre', 'res', 'pre_res'  # kinds of weights that a change reaches
_START = -1  # the place of the tokens among the branches


@dataclasses.dataclass
class Structure:
  """What a model has to show, found while it is traced.

  Attributes:
    names: of the sub-layers.
    sources: names by (kind, site) of weights.
    simplex: whether a softmax makes the recall's weights.
    static: those whose weights are the same for all tokens.
    gates: sites whose read has a gate.
    branches: shape of each sub-layer's branch on a device, and at -1 that of the tokens.
  """

  names: tuple[str, ...] = ()
  sources: dict[tuple[str, int], tuple[str, ...]] = dataclasses.field(default_factory=dict)
  simplex: bool = False
  static: set[tuple[str, int]] = dataclasses.field(default_factory=set)
  gates: set[int] = dataclasses.field(default_factory=set)
  branches: dict[int, tuple[int, ...]] = dataclasses.field(default_factory=dict)

  def changeable(self) -> tuple[str, ...]:
    """Names of all sources that can be removed, in the order of their first reader."""
    found = [self.sources[key] for key in self.sources if key[0] in CHANGED]
    return tuple(dict.fromkeys(name for names in found for name in names))


class Change(NamedTuple):
  """What is changed at every read.

  Attributes:
    keep: by name of a source 1, or 0 where no read takes from it; weights of a softmax are then
      scaled to sum to 1 again, as if its score were -inf.
    clip: 1 where negative weights are zeroed, else 0.
    gate: what every gate is set to; NaN: as it is.
  """

  keep: dict[str, Any]
  clip: Any
  gate: Any


class Recorder(probe.Probe):
  """Takes down everything, as sums over the rows whose weight is 1."""

  def __init__(self, structure: Structure, rows_b: Array):
    self.structure, self.rows_b = structure, rows_b
    self.found: dict[str, dict[Any, Any]] = {
      k: {} for k in ('weights', 'rows', 'gates', 'gate_tokens', 'norms', 'cosine', 'scatter')
    }

  def _there(self, tokens: int) -> Array:
    """Weights [b, T] of the last `tokens` tokens: a pyramid drops the first ones."""
    return self.there_bT[:, self.there_bT.shape[1] - tokens :]

  def _norm(self, name: str, site: int, x_bTD: Array):
    size = jnp.sqrt(jnp.mean(x_bTD.astype(jnp.float32) ** 2, axis=-1))
    self.found['norms'][f'{name} {site}'] = moments.of(size, self._there(x_bTD.shape[1]))

  def start(self, x_bTD, mask_bT, names):
    """Keeps the tokens, to which later reads are compared."""
    self.structure.names = names
    self.structure.branches[_START] = x_bTD.shape
    self.x0_bTD = x_bTD.astype(jnp.float32)
    there = jnp.ones(x_bTD.shape[:2]) if mask_bT is None else mask_bT
    self.there_bT = there * self.rows_b[:, None]
    return x_bTD

  def read(self, u_bTD, site):
    """Adds up what is read."""
    u = u_bTD.astype(jnp.float32)
    T = u.shape[1]
    self._norm('read', site, u)
    # Of vectors of RMS 1: their product over D.
    x0_bTD = self.x0_bTD[:, self.x0_bTD.shape[1] - T :]
    cosine = jnp.mean(rms(u, 1e-30) * rms(x0_bTD, 1e-30), axis=-1)
    self.found['cosine'][str(site)] = moments.of(cosine, self._there(T))
    self.found['scatter'][str(site)] = moments.scatter(u, self._there(T))
    return u_bTD

  def branch(self, y_bTD, site):
    """Adds up what a sub-layer gives."""
    self.structure.branches[site] = y_bTD.shape
    self._norm('branch', site, y_bTD)
    return y_bTD

  def paths(self, x_bTD, r_bTD, site):
    """Adds up both paths."""
    self._norm('identity', site, x_bTD)
    self._norm('recall', site, r_bTD)

  def weights(self, a, site, sources, kind='recall', axis=-1, simplex=False):
    """Adds up weights by source."""
    self.structure.sources[kind, site] = sources
    self.structure.simplex |= simplex
    values = jnp.moveaxis(a, axis, -1)  # [..., outputs, sources]
    place = f'{kind} {site}'
    if a.ndim < 3:  # the same for all tokens
      self.structure.static.add((kind, site))
      self.found['weights'][place] = moments.of_static(values)
      return a
    there_bT = self._there(a.shape[1])
    self.found['weights'][place] = moments.of(values, there_bT)
    if kind == 'recall':
      n = jnp.maximum(jnp.sum(there_bT, axis=1), 1)
      self.found['rows'][place] = jnp.einsum('bt,btn->bn', there_bT, values) / n[:, None]
    return a

  def gate(self, g, site):
    """Adds up a gate."""
    self.structure.gates.add(site)
    place = jnp.clip((g * BINS).astype(jnp.int32), 0, BINS - 1)
    count = jnp.ones(g.shape, jnp.int32)
    if g.ndim == 3:
      there_bT = self._there(g.shape[1])
      count = count * there_bT[..., None].astype(jnp.int32)
      self.found['gate_tokens'][str(site)] = moments.of(jnp.mean(g, axis=-1), there_bT)
    # Counted in integers: float32 stops counting at 2^24.
    self.found['gates'][str(site)] = jnp.zeros(BINS, jnp.int32).at[place].add(count)
    return g


class Changer(probe.Probe):
  """Changes the weights and gates of every read."""

  def __init__(self, change: Change):
    self.change = change

  def weights(self, a, site, sources, kind='recall', axis=-1, simplex=False):
    """Zeroes, removes or keeps weights."""
    del site
    if kind not in CHANGED:
      return a
    keep = jnp.stack([jnp.asarray(self.change.keep[name], a.dtype) for name in sources])
    keep = keep.reshape(-1, *(1,) * (-1 - axis))
    a = jnp.where(self.change.clip > 0, jnp.maximum(a, 0), a) * keep
    if not simplex:
      return a
    total = jnp.sum(a, axis=axis, keepdims=True)
    # Where the only source is gone nothing is read.
    scaled = a / jnp.where(total > 0, total, 1)
    return jnp.where(jnp.all(keep == 1), a, scaled)

  def gate(self, g, site):
    """Sets a gate, or keeps it."""
    del site
    return jnp.where(jnp.isnan(self.change.gate), g, self.change.gate).astype(g.dtype)


class Nudger(probe.Probe):
  """Adds an array to the tokens and to every branch: the gradient with respect to it is theirs."""

  def __init__(self, nudges: dict[int, Array]):
    self.nudges = nudges

  def start(self, x_BTD, mask_BT, names):
    """Adds the nudge of the tokens."""
    return x_BTD + self.nudges[_START]

  def branch(self, y_BTD, site):
    """Adds the nudge of a sub-layer."""
    return y_BTD + self.nudges[site].astype(y_BTD.dtype)


@dataclasses.dataclass(frozen=True)
class Programs:
  """Compiled at their first call.

  Args of all: params, tables, step, batch, and how many of the batch's rows count.

  Attributes:
    look: -> (logits [B], found: sums of every device [devices, ...], row by row 'rows' [B, N]).
    change: ..., Change -> logits [B].
    gradients: -> {site: Moments of the norm of each row's gradient}, site -1: of the tokens.
    structure: filled when `look` is traced, which has to come first.
  """

  look: Callable
  change: Callable
  gradients: Callable
  structure: Structure


def record(
  structure: Structure, rows_b: Array, forward: Callable[[], Array]
) -> tuple[Array, dict[str, Any], dict[str, Array]]:
  """Logits, what a `Recorder` finds, and mean weights of each row. Fills `structure`."""
  recorder = Recorder(structure, rows_b)
  with probe.using(recorder):
    logits_b = forward()
  rows = recorder.found.pop('rows')
  return logits_b, recorder.found, rows


def changed(what: Change, forward: Callable[[], Array]) -> Array:
  """Logits of the changed model."""
  with probe.using(Changer(what)):
    return forward()


def gradients(
  structure: Structure, rows_b: Array, labels_b: Array, forward: Callable[[], Array]
) -> dict[int, moments.Moments]:
  """By site: norms of each row's gradient with respect to the branch, -1 to the tokens."""

  def loss(nudges):
    with probe.using(Nudger(nudges)):
      logits_b = forward()
    return step.bce_sum(logits_b, labels_b, rows_b)

  grads = jax.grad(loss)({k: jnp.zeros(shape) for k, shape in structure.branches.items()})
  norms = {k: jnp.sqrt(jnp.sum(g**2, axis=(1, 2)))[:, None] for k, g in grads.items()}
  return {k: moments.of(norm, rows_b[:, None]) for k, norm in norms.items()}


def make(spec: StepSpec) -> Programs:
  """The programs for the mesh and model of `spec`."""
  structure = Structure()

  def forward(*args):
    return lambda: step.forward(spec, *args)

  def look(params, tables, at, batch, count):
    counted = _counted(batch, count)
    logits, found, rows = record(structure, counted, forward(params, tables, at, batch))
    return logits, jax.tree.map(lambda x: x[None], found), rows

  def change(params, tables, at, batch, count, what):
    del count
    return changed(what, forward(params, tables, at, batch))

  def slopes(params, tables, at, batch, count):
    counted = _counted(batch, count)
    found = gradients(structure, counted, batch.labels, forward(params, tables, at, batch))
    return jax.tree.map(lambda x: x[None], found)

  return Programs(
    look=_program(spec, look, (mesh_lib.BATCH,) * 3),
    change=_program(spec, change, mesh_lib.BATCH, mesh_lib.REPLICATED),
    gradients=_program(spec, slopes, mesh_lib.BATCH),
    structure=structure,
  )


def _counted(batch: Batch, count: Array) -> Array:
  """Weights [b] of this device's rows of the first `count` rows of the batch."""
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
