# SPDX-License-Identifier: Apache-2.0
"""Training steps on one device, by vocabulary, beside a dense gradient, and with smaller slots."""

from collections.abc import Iterator

import jax
import optax
import scale_made
from scale_made import Trained

from deres_jax.models.inputs import Context
from deres_jax.training import step

BATCH, DRAWN_FOR = 4096, 100_000
VOCABULARIES = {'100k': 100_000, '1M': 1_000_000, '10M': 10_000_000}
KINDS = ('zipf', 'uniform')
# One hidden layer: the table is most of the step.
DNN = 'model.backbone=dnn,mlp.layers=1,mlp.units=128'
ADAGRAD, ADAM = 'optim.table=rowwise_adagrad', 'optim.table=lazy_adam'
GROUPS = {
  'dnn E=16, row-wise Adagrad': f'{DNN},{ADAGRAD}',
  'dnn E=16, lazy Adam': f'{DNN},{ADAM}',
  'dnn E=64, row-wise Adagrad': f'{DNN},{ADAGRAD},model.embed_dim=64',
  'dnn E=64, lazy Adam': f'{DNN},{ADAM},model.embed_dim=64',
  'lr E=1, row-wise Adagrad': f'model.backbone=lr,model.embed_dim=1,{ADAGRAD}',
  'onetrans 2 layers E=16, row-wise Adagrad': f'model.depth=2,model.dim=32,{ADAGRAD}',
}


def by_vocabulary() -> Iterator[list[dict]]:
  """Time and temporary memory of the train step at three vocabularies, same batch."""
  for group, overrides in GROUPS.items():
    lines = []
    trained = {
      size: Trained(*scale_made.parts(overrides, rows, BATCH, 1, DRAWN_FOR))
      for size, rows in VOCABULARIES.items()
    }
    variants = {f'{size} {kind}': t.steps(kind) for kind in KINDS for size, t in trained.items()}
    times = scale_made.round_robin(variants)
    for kind in KINDS:
      for size, aim in (('1M', ''), ('10M', '<= 1.15')):
        what = f'step, {size} beside 100k rows: {group}, {kind}'
        lines.append(times.line(what, f'{size} {kind}', f'100k {kind}', aim))
      temporary = {size: t.temporary(kind) for size, t in trained.items()}
      named = {'rows_named': trained['10M'].batches[kind].unique_ids[0].size}
      what = f'temporary bytes, 10M beside 100k rows: {group}, {kind}'
      lines.append(
        _bytes(what, temporary['10M'], temporary['100k'], '= 1')
        | {'of_1M': temporary['1M'] / 2**20}
        | named
      )
    yield lines
    del trained, variants  # before the next ones are made


def _bytes(what: str, ours: int, beside: int, aim: str = '') -> dict:
  return {
    'what': what,
    'unit': 'MiB',
    'ours': ours / 2**20,
    'beside': beside / 2**20,
    'ratio': ours / beside,
    'aim': aim,
  }


class Dense:
  """The same model and rows, but optax.adam moves the dense part and the whole table.

  The gradient by the table is an array as large as the table. It is made from the rows of the
  batch, a micro-batch at a time, as in the step beside it: both have the same dense part.
  """

  def __init__(self, spec: step.StepSpec, batch):
    start = step.init_state(spec)
    optimizer = optax.adam(1e-3)

    def loss(params, rows_mSE, labels_m, weights_m):
      logits_m = spec.model.apply({'params': params}, rows_mSE, Context())
      return step.bce_sum(logits_m, labels_m, weights_m) / batch.num_examples, logits_m

    def train(params, table, opt, batch):
      ids = batch.unique_ids[0].reshape(-1)
      rows = table.at[ids].get(mode='fill', fill_value=0)
      _, _, g_params, g_bSE = step.micro_grads(
        loss, params, rows[batch.inverse], (batch.labels, batch.weights), spec.micro_batch
      )
      g_rows = rows.at[...].set(0).at[batch.inverse].add(g_bSE)
      g_table = (0 * table).at[ids].add(g_rows, mode='drop')
      updates, opt = optimizer.update((g_params, g_table), opt, (params, table))
      return *optax.apply_updates((params, table), updates), opt

    self._batch = batch
    self._state = start.params, start.tables[0], optimizer.init((start.params, start.tables[0]))
    self.compiled = jax.jit(train, donate_argnums=(0, 1, 2)).lower(*self._state, batch).compile()

  def run(self, n: int):
    for _ in range(n):
      self._state = self.compiled(*self._state, self._batch)
    jax.block_until_ready(self._state)


def beside_dense() -> Iterator[list[dict]]:
  """Our step beside one whose gradient is as large as the table: 10M rows, E = 16."""
  trained = {}
  for name, table in (('row-wise Adagrad', ADAGRAD), ('lazy Adam', ADAM)):
    spec, batches = scale_made.parts(f'{DNN},{table}', VOCABULARIES['10M'], BATCH, 1, DRAWN_FOR)
    trained[name] = Trained(spec, batches)
  dense = Dense(spec, trained['lazy Adam'].batches['zipf'])
  variants = {name: t.steps('zipf') for name, t in trained.items()}
  times = scale_made.round_robin(variants | {'dense': dense.run})
  temporary = dense.compiled.memory_analysis().temp_size_in_bytes
  lines = []
  for name, t in trained.items():
    lines.append(times.line(f'step, {name} beside dense Adam: 10M rows', name, 'dense', '<= 0.2'))
    what = f'temporary bytes, {name} beside dense Adam: 10M rows'
    lines.append(_bytes(what, t.temporary('zipf'), temporary))
  yield lines


def slots() -> Iterator[list[dict]]:
  """Lazy Adam with bfloat16 slots beside float32 ones."""
  for width, size in ((16, '10M'), (64, '1M')):
    trained = {
      dtype: Trained(
        *scale_made.parts(
          f'{DNN},{ADAM},model.embed_dim={width},optim.table_slots={dtype}',
          VOCABULARIES[size],
          BATCH,
          1,
          DRAWN_FOR,
        )
      )
      for dtype in ('float32', 'bfloat16')
    }
    what = f'lazy Adam, bfloat16 beside float32 slots: {size} rows, E={width}'
    times = scale_made.round_robin(
      {f'{dtype} {kind}': t.steps(kind) for kind in KINDS for dtype, t in trained.items()}
    )
    lines = [
      times.line(f'step, {what}, {kind}', f'bfloat16 {kind}', f'float32 {kind}', '<= 1.2')
      for kind in KINDS
    ]
    half, whole = trained['bfloat16'], trained['float32']
    lines.append(_bytes(f'bytes of rows and slots, {what}', half.bytes(), whole.bytes(), '= 0.667'))
    temporary = half.temporary('zipf'), whole.temporary('zipf')
    lines.append(_bytes(f'temporary bytes, {what}', *temporary, '<= 1.2'))
    yield lines
    del trained
