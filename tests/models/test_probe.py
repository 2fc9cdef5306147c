# SPDX-License-Identifier: Apache-2.0
"""What `deres_jax.inspect` sees of connectors and does to them, against loops over their equations.

Shapes: B rows, T tokens, D width, N sources.
"""

import dataclasses
import types

import jax
import jax.numpy as jnp
import made
import numpy as np
import pytest
import reference
import reference_streams as streams
from arrays import assert_close, double
from driving import B, D, T, connector, embedding, make_branches, randomised, resolve, run
from marks import slow

from deres_jax import config, models
from deres_jax.inspect import claims, findings, page, probes, stats
from deres_jax.models import probe
from deres_jax.models.inputs import Context
from deres_jax.training.checkpoints.restore import Trained

DEPTH, LAYER = 3, 2
SITES = DEPTH * LAYER
BRANCHES = make_branches(SITES)
NAMES = tuple(f'{kind}_{l}' for l in range(DEPTH) for kind in ('attention', 'ffn'))
SOFTMAX = {'score_fn': 'softmax', 'include_partial': True}
SWITCHES = {'deres': {}, 'deres_s': SOFTMAX, 'attnres': SOFTMAX | {'path': 'attn'}}


def made_of(name):
  """A connector with blocks of one layer, its parameters and the switches of the loop."""
  c = resolve({'block_layers': 1})
  c = dataclasses.replace(c, attnres=dataclasses.replace(c.attnres, block_layers=1))
  module = connector(c, name, depth=DEPTH)
  params = randomised(module)
  return module, params, dataclasses.asdict(c.deres) | SWITCHES.get(name, {})


def recorded(module, params, there=None):
  """Returns the structure and statistics that a recorder collects in a run."""
  recorder = probes.Recorder(probes.Structure(), jnp.ones(B))
  x_BTD = jnp.asarray(embedding(), jnp.float32)
  recorder.start(x_BTD, there, NAMES)
  with probe.using(recorder):
    run(module, params, BRANCHES)
  return recorder.structure, recorder.stats


def change_of(structure, gone=(), clip=0.0, gate=np.nan):
  return probes.Ablation({n: float(n not in gone) for n in structure.removable()}, clip, gate)


def changed(module, params, what):
  with probe.using(probes.Ablator(what)):
    return run(module, params, BRANCHES)


def looped(params, switches, monkeypatch, weigh=lambda a, site: a, gate=None):
  """The loop of reference.py with what it weighs by changed; (inputs, head's) and weights by read.

  weights: lists of [N] by site, rows and tokens one after another.
  """
  plain, taken = reference.weights, []

  def weights(switches, z):
    site = len(taken) // (B * T)
    taken.append(plain(switches, z))
    return weigh(list(taken[-1]), site)

  monkeypatch.setattr(reference, 'weights', weights)
  if gate is not None:
    monkeypatch.setattr(reference, 'gate', lambda *args: np.full(D, gate))
  out = reference.deres(double(params), switches, 'rms', LAYER, embedding(), BRANCHES)
  monkeypatch.undo()
  return out, [np.array(taken[s * B * T : (s + 1) * B * T]) for s in range(SITES + 1)]


def same(got, want):
  for a, b in zip([*got[0], got[1]], [*want[0], want[1]], strict=True):
    assert_close(a, b)


@pytest.mark.parametrize('name', ['deres', 'attnres'])
def test_recorded_weights_equal_the_equation(name, monkeypatch):
  module, params, switches = made_of(name)
  structure, statistics = recorded(module, params)
  _, want = looped(params, switches, monkeypatch)
  for site, a in enumerate(want):
    m = statistics['weights'][f'recall {site}']
    by_token = a.reshape(B, T, -1)
    assert_close(m.mean, by_token.mean(axis=0))
    assert_close(stats.merged([m]).std() + 1, by_token.std(axis=0) + 1)
    np.testing.assert_array_equal(m.negative, (by_token < 0).sum(axis=0))
    assert_close(statistics['rows'][f'recall {site}'], by_token.mean(axis=1))
  blocks = tuple(f'block {i}' for i in range(1, DEPTH + 1))
  assert structure.sources['recall', SITES] == ('embedding', *blocks)
  opened = ('open block',) if name == 'attnres' else ()
  assert structure.sources['recall', 3] == ('embedding', 'block 1', *opened)
  assert structure.simplex == (name == 'attnres')


def test_recorded_gates_and_paths_equal_the_equation():
  module, params, _ = made_of('deres')
  structure, statistics = recorded(module, params)
  assert structure.gates == set(range(SITES + 1))
  for site in range(SITES + 1):
    g = 1 / (1 + np.exp(-np.float64(params['gate'][site])))
    bins = np.bincount((g * probes.BINS).astype(int), minlength=probes.BINS)
    assert np.abs(np.cumsum(bins) - np.cumsum(statistics['gates'][str(site)])).max() <= 1
    assert statistics['gates'][str(site)].sum() == D
  x_BTD = embedding()
  size_BT = np.sqrt(np.mean(x_BTD**2, axis=-1))
  assert_close(statistics['norms']['identity 0'].mean, size_BT.mean(axis=0))
  assert_close(statistics['cosine']['0'].mean, _cosine(params, x_BTD).mean(axis=0))


def _cosine(params, x_BTD):
  """Of the first read, g x + (1 - g) a x, with the tokens."""
  g = 1 / (1 + np.exp(-np.float64(params['gate'][0])))
  out = np.zeros((B, T))
  for b, t in np.ndindex(B, T):
    x = x_BTD[b, t]
    z = params['query'][0] @ reference.rms_norm(x)
    u = g * x + (1 - g) * reference.POINTWISE['silu'](z) * x
    out[b, t] = u @ x / np.linalg.norm(u) / np.linalg.norm(x)
  return out


@pytest.mark.parametrize(
  ('name', 'gone'),
  [
    ('deres', 'embedding'),
    ('deres_s', 'block 1'),
    ('deres_s', 'open block'),
    ('attnres', 'block 1'),
  ],
)
def test_removed_source_has_no_weight(name, gone, monkeypatch):
  """Under a softmax the others are as if its score were -inf."""
  module, params, switches = made_of(name)
  structure, _ = recorded(module, params)

  def weigh(a, site):
    names = structure.sources['recall', site]
    a = [0.0 if n == gone else v for n, v in zip(names, a, strict=True)]
    return [v / sum(a) if sum(a) else 0.0 for v in a] if structure.simplex else a

  want, _ = looped(params, switches, monkeypatch, weigh)
  got = changed(module, params, change_of(structure, {gone}))
  for a, b in zip([*got[0], got[1]], [*want[0], want[1]], strict=True):
    if np.abs(b).max() > 0:  # a read of nothing at all is 0 in both
      assert_close(a, b)
    else:
      assert not np.any(a)


def test_zeroed_negatives_and_no_ablation(monkeypatch):
  module, params, switches = made_of('deres')
  structure, _ = recorded(module, params)
  want, _ = looped(params, switches, monkeypatch, lambda a, site: [max(v, 0) for v in a])
  same(changed(module, params, change_of(structure, clip=1.0)), want)
  for a, b in zip(
    jax.tree.leaves(changed(module, params, change_of(structure))[:2]),
    jax.tree.leaves(run(module, params, BRANCHES)[:2]),
    strict=True,
  ):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(('gate', 'path'), [(1.0, 'identity'), (0.0, 'attn'), (0.5, None)])
def test_fixed_gate_leaves_one_path_or_the_mean_of_both(gate, path, monkeypatch):
  module, params, switches = made_of('deres')
  structure, _ = recorded(module, params)
  got = changed(module, params, change_of(structure, gate=gate))
  if path is None:
    same(got, looped(params, switches, monkeypatch, gate=gate)[0])
  else:
    alone = switches | {'path': path}
    same(got, reference.deres(double(params), alone, 'rms', LAYER, embedding(), BRANCHES))


def test_denseformer_s_weights_and_a_layer_removed():
  module, params, _ = made_of('denseformer')
  structure, statistics = recorded(module, params)
  without = double(params)
  for l in range(DEPTH):
    a = params[f'weights_{l}']
    np.testing.assert_array_equal(statistics['weights'][f'recall {LAYER * (l + 1)}'].mean[0], a)
    without[f'weights_{l}'][1] = 0
  assert structure.sources['recall', 4] == ('embedding', 'layer 1', 'layer 2')
  assert ('recall', 4) in structure.static
  want = streams.dense_former(without, 'rms', embedding(), BRANCHES, LAYER)
  same(changed(module, params, change_of(structure, {'layer 1'})), want)


@pytest.mark.parametrize('name', ['hc', 'mhc', 'mhc_lite'])
def test_stream_maps_equal_the_equation(name):
  """At the first site, where all streams are the tokens."""
  module, params, _ = made_of(name)
  _, statistics = recorded(module, params)
  x_BTD, p = embedding(), double(params)
  if name == 'hc':
    a_BTNK, post_BTN = streams.hyper_maps(p, 0, [x_BTD] * 4)
    assert_close(statistics['weights']['pre_res 0'].mean, np.swapaxes(a_BTNK, 2, 3).mean(axis=0))
    assert_close(statistics['weights']['post 0'].mean, post_BTN.mean(axis=0))
    return
  maps = [
    [streams.manifold_maps(p, 0, [x_BTD[b, t]] * 4, 20, name == 'mhc_lite') for t in range(T)]
    for b in range(B)
  ]
  for k, kind in enumerate(('pre', 'post', 'res')):
    want = np.array([[np.array(token[k]) for token in row] for row in maps]).mean(axis=0)
    assert_close(statistics['weights'][f'{kind} 0'].mean, want)


def test_masked_tokens_are_not_counted():
  module, params, _ = made_of('deres')
  there = np.ones((B, T), bool)
  there[:2, 0] = False
  _, statistics = recorded(module, params, jnp.asarray(there))
  m, whole = statistics['weights']['recall 6'], recorded(module, params)[1]['weights']['recall 6']
  assert m.count.tolist() == [B - 2, *[B] * (T - 1)]
  assert_close(m.mean[1:], whole.mean[1:])
  assert statistics['scatter']['6'].count == there.sum()


# Whole models.

FIELDS, WIDTH = 4, 3


def model(name):
  c = config.base(
    f'model.connector={name},model.backbone=autoint,model.depth=2,model.dim=8,model.heads=2,'
    f'model.embed_dim={WIDTH},deres.block_layers=1,residual.interval_layers=1,'
    f'attnres.block_layers={2 if name == "haares" else 1}'
  )
  c = config.resolve(c)
  return c, models.build(c, models.Layout(FIELDS), -1.0)


# Each of these has the same kinds of sources as another one.
ALIKE = (
  'postnorm', 'interval', 'vector', 'matrix', 'rezero', 'layerscale', 'mhc_lite', 'attnres_full',
)  # fmt: skip


@pytest.mark.parametrize('name', [slow(n) if n in ALIKE else n for n in models.CONNECTORS])
def test_every_connector_can_be_inspected(name):
  """From the programs to the page; untouched logits equal the model's, gradients exist."""
  c, module = model(name)
  rng = np.random.default_rng(0)
  rows = np.float32(rng.normal(size=(8, FIELDS, WIDTH)))
  params = jax.eval_shape(lambda: module.init(jax.random.key(0), rows, Context()))['params']
  params = jax.tree.map(lambda x: np.float32(0.4 * rng.normal(size=x.shape)), params)
  labels, ones = np.float32([0, 1] * 4), jnp.ones(8)
  structure, tried = probes.Structure(), {}

  def everything(params):
    def forward():
      return module.apply({'params': params}, rows, Context())

    plain = forward()
    logits, statistics, by_row = probes.record(structure, ones, forward)
    tried.update(findings.ablations(structure))
    out = {k: probes.ablated(what, forward) for k, what in list(tried.items())[:2]}
    gradients = probes.gradients(structure, ones, labels, forward)
    return plain, logits, statistics, by_row, out, gradients

  plain, logits, statistics, by_row, out, gradients = jax.device_get(jax.jit(everything)(params))
  np.testing.assert_allclose(logits, plain, atol=1e-6)
  np.testing.assert_allclose(out[''], plain, atol=1e-6)
  assert gradients.keys() == {-1, 0, 1} and all(g.mean > 0 for g in gradients.values())
  assert set(statistics['cosine']) == {'0', '1', '2'}
  schema = made.schema([5] * FIELDS)
  whole = Trained(c, schema, types.SimpleNamespace(layout=models.Layout(FIELDS)), 0, (), 7, None)
  early = findings._early(structure, by_row, 8)
  content = findings.summarise(
    whole, findings.Measurements(structure, statistics, gradients, early, out, labels)
  )
  content |= {'claims': claims.claims(content), 'rows': 8, 'rows_of_split': 8, 'dim': 8}
  content |= dict.fromkeys(('workdir', 'config_hash', 'backbone', 'dataset', 'split'), 'x')
  content |= {'connector': name, 'layers': 2, 'seed': 0, 'step': 7, 'versions': {}}
  text = page.page(content)
  kinds = {kind for kind, _ in structure.sources}
  assert ('Depth weights of each read' in text) == ('recall' in kinds)
  assert ('Streams' in text) == ('post' in kinds) == (name in ('hc', 'mhc', 'mhc_lite'))
  assert ('Gates by depth' in text) == bool(structure.gates)
  assert bool(structure.gates) == (name in ('highway', 'deres', 'deres_s'))


def test_gradient_of_a_branch_equals_that_of_the_stream_after_it():
  """Pre-norm of one sub-layer: d loss / d y = d loss / d (x + y), by differences."""
  _, module = model('prenorm')
  rng = np.random.default_rng(0)
  rows = np.float32(rng.normal(size=(2, FIELDS, WIDTH)))
  params = module.init(jax.random.key(0), rows, Context())['params']
  labels, structure = np.float32([0, 1]), probes.Structure()

  def forward():
    return module.apply({'params': params}, rows, Context())

  probes.record(structure, jnp.ones(2), forward)
  got = probes.gradients(structure, jnp.ones(2), labels, forward)

  @jax.jit
  def loss(nudge, row):
    nudges = {k: jnp.zeros(s) for k, s in structure.branches.items()}
    with probe.using(probes.Offsets(nudges | {0: nudges[0].at[row].set(nudge)})):
      z = forward()
    return jnp.sum(jax.nn.softplus(jnp.where(labels > 0, -z, z)))

  norms = []
  for row in range(2):
    slopes = np.zeros((FIELDS, 8))
    for place in np.ndindex(slopes.shape):
      nudge = np.zeros(slopes.shape, np.float32)
      nudge[place] = 0.05
      slopes[place] = (loss(nudge, row) - loss(-nudge, row)) / 0.1
    norms.append(np.linalg.norm(slopes))
  np.testing.assert_allclose(got[0].mean[0], np.mean(norms), rtol=2e-2)


def test_null_probe_adds_no_operation():
  """Training runs with the null probe."""
  _, module = model('deres')
  rows = np.zeros((2, FIELDS, WIDTH), np.float32)
  params = module.init(jax.random.key(0), rows, Context())['params']

  def program():
    return str(jax.make_jaxpr(lambda p: module.apply({'params': p}, rows, Context()))(params))

  before = program()
  with probe.using(probes.Recorder(probes.Structure(), jnp.ones(2))):
    assert len(program()) > len(before)
  assert program() == before
