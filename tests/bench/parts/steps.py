# SPDX-License-Identifier: Apache-2.0
"""Whole training steps beside PyTorch's on the same cores, and beside the machine's products.

Both train the same function from the same parameters, which is checked first, on the same rows:
2048, of 39 fields, ids from Zipf(1.05). They take turns in one process; each turn begins when the
other library's threads have had time to go to sleep.
"""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scale_made
from scale_made import Times, Trained
from scale_steps import Dense

from deres_jax.costs import flops
from deres_jax.data.batches import Batch
from deres_jax.kernels import library
from deres_jax.models.inputs import Context
from deres_jax.training import step

BATCH = 2048
ADAM, ADAGRAD = 'optim.table=lazy_adam', 'optim.table=rowwise_adagrad'
TRANSFORMER = (
  'model.backbone=transformer,model.connector=prenorm,model.depth=4,model.dim=64,'
  'model.embed_dim=64,model.head=concat,optim.clip_norm=0'
)
MLP = 'model.backbone=dnn,model.embed_dim=64,mlp.units=256,mlp.layers=2,optim.clip_norm=0'
# Name, config, rows of the table, aim beside eager PyTorch.
MODELS = {
  'transformer': ('Transformer, 39 fields, d=64, 4 layers, 1M x 64', TRANSFORMER, 1_000_000, 1.5),
  'dcnv2': ('DCNv2, 1M x 16', 'model.backbone=dcnv2,optim.clip_norm=0', 1_000_000, 1.5),
  'deepfm': ('DeepFM, 1M x 16', 'model.backbone=deepfm,optim.clip_norm=0', 1_000_000, 1.5),
  'dnn': ('MLP 256-256, 4M x 64', MLP, 4_000_000, 2.0),
}
PRODUCT, PRODUCTS = 1024, 10  # size of the measured products, and how many at a time
EAGER = 'PyTorch eager, SparseAdam'
PAUSE = 0.3


class Floor:
  """The dense part alone: the same model, rows and dense optimizer, and no table."""

  def __init__(self, spec: step.StepSpec, batch: Batch):
    params = step.init_params(spec)

    def loss(params, x, labels_m, weights_m):
      logits_m = spec.model.apply({'params': params}, x, Context())
      return step.bce_sum(logits_m, labels_m, weights_m) / batch.num_examples, logits_m

    def train(params, opt, x):
      with library.using(spec.kernels):
        _, _, grads, g_x = step.micro_grads(
          loss, params, x, (batch.labels, batch.weights), spec.micro_batch
        )
      updates, opt = spec.optimizer.update(grads, opt, params)
      return optax.apply_updates(params, updates), opt, g_x

    shape = (*batch.inverse.shape, spec.tables.dim)
    self._x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    self._state = params, spec.optimizer.init(params)
    self._train = jax.jit(train, donate_argnums=(0, 1))

  def run(self, n: int):
    for _ in range(n):
      *state, g_x = self._train(*self._state, self._x)
      self._state = tuple(state)
    jax.block_until_ready((self._state, g_x))


def products() -> dict[str, Callable[[int], None]]:
  """PRODUCTS float32 matrix products of 1024 x 1024, by JAX and by PyTorch."""
  import torch

  a = np.random.default_rng(0).normal(size=(PRODUCT, PRODUCT)).astype(np.float32)
  ours, theirs = jax.jit(jnp.matmul), torch.tensor(a)
  a = jnp.asarray(a)

  def by_jax(n: int):
    for _ in range(n * PRODUCTS):
      ours(a, a).block_until_ready()

  def by_torch(n: int):
    for _ in range(n * PRODUCTS):
      theirs @ theirs

  return {'product': by_jax, 'product of PyTorch': by_torch}


def forward_flops(spec: step.StepSpec) -> float:
  """Of a row, in matrix products."""
  rows = 64
  params = jax.eval_shape(lambda: step.init_params(spec))
  x = jax.ShapeDtypeStruct((rows, spec.layout.slots, spec.tables.dim), jnp.float32)
  counted = flops.count(lambda p, x: spec.model.apply({'params': p}, x, Context()), params, x)
  return counted.matmul / rows


def steps(rounds: int) -> Iterator[list[dict]]:
  """All models, a model after another."""
  for backbone in MODELS:
    yield _model(backbone, rounds)


def trained(overrides: str, table_rows: int) -> tuple[step.StepSpec, Batch, Trained]:
  """The StepSpec of a config, its batch of Zipf ids on the host, and what trains on it."""
  spec, batches = scale_made.parts(overrides, table_rows, BATCH, 1, min(table_rows, 100_000))
  return spec, batches['zipf'][0], Trained(spec, {'zipf': batches['zipf']})


def _model(backbone: str, rounds: int) -> list[dict]:
  name, overrides, table_rows, aim = MODELS[backbone]
  spec, host, ours = trained(f'{overrides},{ADAM}', table_rows)
  _, _, adagrad = trained(f'{overrides},{ADAGRAD}', table_rows)
  theirs, note = _peers(backbone, spec, ours, host)
  runs = {'lazy Adam': ours.steps('zipf'), 'row-wise Adagrad': adagrad.steps('zipf')}
  runs |= theirs | products()
  if backbone == 'transformer':
    runs['dense part'] = Floor(spec, ours.batches['zipf']).run
  times = scale_made.round_robin(runs, rounds, rounds, 0.25, PAUSE)
  best = min(theirs, key=lambda way: np.median(times.ms[way]))
  best_aim = '>= 1.4' if backbone == 'transformer' else ''
  what = f'step: {name}, {{}} beside {{}}'
  lines = [
    times.beside(what.format('lazy Adam', EAGER), 'lazy Adam', f'>= {aim}', EAGER),
    times.beside(
      what.format('lazy Adam', "PyTorch's best"), 'lazy Adam', best_aim, best, note=best + note
    ),
    times.beside(what.format('row-wise Adagrad', EAGER), 'row-wise Adagrad', '', EAGER),
  ]
  # A step at the rate of one large product and nothing else: neither library gets below it.
  work = 3 * forward_flops(spec) * BATCH
  rate = 2 * PRODUCT**3 * PRODUCTS / np.median(times.ms['product'])
  lines = [line | {'limit': work / rate} for line in lines]
  if backbone == 'transformer':
    lines += _limits(work, times)
  if backbone == 'dnn':
    del theirs, runs, adagrad  # there may be no room for all tables
    dense = Dense(spec, ours.batches['zipf'])
    runs = {'lazy Adam': ours.steps('zipf'), 'dense': dense.run}
    times = scale_made.round_robin(runs, rounds, rounds)
    other = 'JAX with a dense Adam'
    lines.append(times.beside(what.format('lazy Adam', other), 'lazy Adam', '>= 6', 'dense'))
  return lines


def _peers(
  backbone: str, spec: step.StepSpec, ours: Trained, host: Batch
) -> tuple[dict[str, Callable[[int], None]], str]:
  """PyTorch's ways to train our model, checked to be the same one, and what is to be said."""
  import torch
  import torch_models

  peer, *batch = torch_models.of(backbone, ours.state, host)
  check_same(spec, ours.state, host, peer, *batch)
  # Static shapes: else the second number of rows would make one slower program for all.
  model, compiled = peer.model, torch.compile(peer.model, dynamic=False)
  chunk = torch_models.CHUNK
  out = {
    EAGER: peer.steps(model, BATCH, *batch),
    f'PyTorch eager, by {chunk} rows': peer.steps(model, chunk, *batch),
  }
  if backbone == 'dcnv2':
    dense, *_ = torch_models.of(backbone, ours.state, host, dense=True)
    out['PyTorch eager, dense fused Adam'] = dense.steps(dense.model, BATCH, *batch)
  more = {'PyTorch compiled': peer.steps(compiled, BATCH, *batch)}
  if backbone == 'transformer':
    more[f'PyTorch compiled, by {chunk} rows'] = peer.steps(compiled, chunk, *batch)
  try:
    for run in more.values():
      run(1)
  except RuntimeError as e:  # TorchDynamo's errors are: mostly no C++ compiler
    return out, f'; nothing compiled: {str(e).strip().splitlines()[0]}'
  return out | more, ''


def _limits(work: float, times: Times) -> list[dict]:
  """Products of both libraries, and the share of ours that the dense part reaches.

  Args:
    work: FLOPs of a step's products.
  """
  work, product = work / 1e6, 2 * PRODUCT**3 * PRODUCTS / 1e6  # over a millisecond: GFLOP/s
  peaks = times.beside(
    f'float32 product {PRODUCT} x {PRODUCT}',
    'product',
    peer='product of PyTorch',
    unit='GFLOP/s',
    work=product,
  )
  if peaks['ratio'] > 1.3:
    peaks['note'] = "PyTorch's float32 product is the slower one (MKL on another maker's processor)"
  what = "share of the float32 product in the dense part's: the Transformer above"
  share = times.beside(
    what, 'dense part', '>= 0.4', limit='product', unit='GFLOP/s', work=(work, product)
  )
  share['note'] = 'FLOPs: 3 times those of the forward products'
  what = 'step: the Transformer above, lazy Adam beside its dense part'
  return [peaks, share, times.beside(what, 'lazy Adam', '>= 0.95', limit='dense part')]


def check_same(spec, state, host, peer, ids_BF, label_B):
  """Raises unless both libraries give the same logits and gradients."""
  import torch

  def loss(params, named_KE):
    logits_B = spec.model.apply({'params': params}, named_KE[host.inverse], Context())
    return step.bce_sum(logits_B, host.labels, host.weights) / len(host.labels), logits_B

  ids_K = host.unique_ids[0].reshape(-1)
  named_KE = state.tables[0].at[ids_K].get(mode='fill', fill_value=0)
  grad = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
  with library.using(spec.kernels):
    (_, want_B), (g_params, g_KE) = grad(state.params, named_KE)
  with torch.no_grad():
    logits_B = peer.model(peer.table(ids_BF)).numpy()
  np.testing.assert_allclose(logits_B, want_B, rtol=0, atol=1e-4)
  peer.gradients(peer.model, len(label_B), ids_BF, label_B)
  theirs = peer.table.weight.grad.coalesce()
  U = theirs.values().shape[0]
  np.testing.assert_array_equal(theirs.indices()[0].numpy(), ids_K[:U])
  mine = [*jax.tree.leaves(g_params), g_KE[:U]]
  its = [*jax.tree.leaves(peer.model.gradients()), theirs.values().numpy()]
  for a, b in zip(mine, its, strict=True):
    # In the whole: a unit at the kink of its ReLU may be on there and off here.
    if np.linalg.norm(b - a) > 1e-2 * np.linalg.norm(a) + 1e-8:
      raise ValueError(f'gradients differ: {a.shape} by {np.linalg.norm(b - a):.3g}')
