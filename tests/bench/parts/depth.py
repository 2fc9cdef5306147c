# SPDX-License-Identifier: Apache-2.0
"""What reading earlier blocks costs: whole training steps beside the plain residual's."""

import contextlib
import dataclasses
from collections.abc import Iterator
from unittest import mock

import jax.numpy as jnp
import scale_made
from scale_made import Trained

from deres_jax.kernels import library
from deres_jax.models import connectors, layers
from deres_jax.models.connectors.deres import DeRes

BATCH, ROWS = 512, 100_000
MODELS = {
  'criteo_8l': 'model.tokenizer=autosplit,model.head=concat',
  '39 fields, d=64': (
    'model.backbone=transformer,model.tokenizer=field,model.head=concat,model.embed_dim=64'
  ),
}
PLAIN, KERNELS = 'train.kernels=off', 'train.kernels=auto'


def trained(model: str, connector: str, depth: int = 8, more: str = KERNELS) -> Trained:
  overrides = f'{MODELS[model]},model.depth={depth},model.connector={connector},{more}'
  spec, batches = scale_made.parts(overrides, ROWS, BATCH, 1, ROWS)
  return Trained(spec, {'zipf': batches['zipf']})


class Scored(DeRes):
  """DeRes as it is written down: every read scores all sources and stacks them."""

  def _recall(self, h, site, reader):
    sources = jnp.stack(h.sources)
    keys = layers.rms(sources)
    scores = self.switches.score_scale * jnp.einsum('nbtd,d->btn', keys, self.queries[reader])
    return jnp.einsum('btn,nbtd->btd', self._weigh(scores), sources)

  def _add_source(self, h, b, reader):
    del reader
    return h._replace(sources=(*h.sources, b))


@contextlib.contextmanager
def without_reads() -> Iterator[None]:
  """Kernels, but for the connector's."""
  with mock.patch.object(layers.SiteNorms, 'fuses', lambda self, *arrays: False):
    yield


def _levers(model: str) -> dict[str, Trained]:
  out = {'plain prenorm': trained(model, 'prenorm', more=PLAIN)}
  scored = dataclasses.replace(connectors.CONNECTORS['deres'], kind=Scored)
  with mock.patch.dict(connectors.CONNECTORS, deres=scored):
    out['written down'] = trained(model, 'deres', more=PLAIN)
  out['scored once'] = trained(model, 'deres', more=PLAIN)
  with without_reads():
    out['kernels prenorm, plain reads'] = trained(model, 'prenorm')
    out['kernels, plain reads'] = trained(model, 'deres')
  return out


def depth(rounds: int = 5) -> Iterator[list[dict]]:
  """Steps of 8 layers beside OneTrans'; then by lever, by depth and by connector."""
  missing = library.missing()
  note = f'no kernels: {missing}' if missing else ''
  for model in MODELS:
    steps = {name: trained(model, name) for name in ('prenorm', 'deres')}
    runs = {name: t.steps('zipf') for name, t in steps.items()}
    times = scale_made.round_robin(runs, 2 * rounds, 2 * rounds)
    what = f'DeRes beside OneTrans, 8 layers, {model}'
    yield [
      _line(times, f'step: {what}', 'deres', 'prenorm', '<= 1.10', note),
      _memory(f'memory of the step: {what}', steps, 'deres', 'prenorm', '<= 1.15'),
    ]
  model = 'criteo_8l'
  levers = _levers(model) | steps_of(model, {'deres': 8, 'prenorm': 8})
  times = scale_made.round_robin({name: t.steps('zipf') for name, t in levers.items()}, 5, 5)
  yield [
    _line(times, f'{name} beside {base}: {model}', name, base)
    for name, base in (
      ('written down', 'plain prenorm'),
      ('scored once', 'plain prenorm'),
      ('kernels, plain reads', 'kernels prenorm, plain reads'),
      ('deres', 'prenorm'),
      ('prenorm', 'plain prenorm'),
      ('deres', 'scored once'),
    )
  ]
  for layers_ in (2, 16):
    steps = {name: trained(model, name, layers_) for name in ('prenorm', 'deres')}
    times = scale_made.round_robin({name: t.steps('zipf') for name, t in steps.items()}, 5, 5)
    what = f'step: DeRes beside OneTrans, {layers_} layers, {model}'
    yield [_line(times, what, 'deres', 'prenorm')]
  names = ('prenorm', 'attnres', 'deres_s', 'denseformer')  # mhc takes six times as long
  steps = steps_of(model, dict.fromkeys(names, 8))
  times = scale_made.round_robin({name: t.steps('zipf') for name, t in steps.items()}, 5, 5)
  yield [
    _line(times, f'step: {name} beside OneTrans, 8 layers, {model}', name, 'prenorm')
    for name in names[1:]
  ]


def steps_of(model: str, connectors: dict[str, int]) -> dict[str, Trained]:
  return {name: trained(model, name, depth) for name, depth in connectors.items()}


def _line(times, what: str, ours: str, beside: str, aim: str = '', note: str = '') -> dict:
  line = times.line(what, ours, beside, aim)
  return line | {'peer': line.pop('beside'), 'limit': None, 'note': note}


def _memory(what: str, steps: dict[str, Trained], ours: str, beside: str, aim: str) -> dict:
  """Of arguments, results that are not donated ones, and temporaries."""

  def used(t: Trained) -> float:
    m = t.compiled['zipf'].memory_analysis()
    total = m.argument_size_in_bytes + m.temp_size_in_bytes + m.output_size_in_bytes
    return (total - m.alias_size_in_bytes) / 2**20

  a, b = used(steps[ours]), used(steps[beside])
  return {
    'what': what,
    'unit': 'MiB',
    'ours': a,
    'peer': b,
    'limit': None,
    'ratio': a / b,
    'aim': aim,
  }


if __name__ == '__main__':
  for lines in depth():
    for line in lines:
      print(line, flush=True)
