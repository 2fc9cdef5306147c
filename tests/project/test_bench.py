# SPDX-License-Identifier: Apache-2.0
"""`make bench`: its lines, its parts, and that PyTorch's models are ours."""

import ast
import json
import pathlib
import sys

import bench
import numpy as np
import pytest
import scale
import steps
import table
from scale_made import Times

RESULTS = pathlib.Path(__file__).resolve().parents[2] / 'docs' / 'results'
TIMES = Times(
  {'ours': [10.0, 20.0, 10.0], 'peer': [20.0, 30.0, 30.0]},
  {'ours': [0.0, 0.0, 0.0], 'peer': [0.0, 0.5, 0.0]},
)


def test_times_beside_a_peer():
  line = TIMES.beside('step', 'ours', '>= 2', peer='peer', note='a note')
  assert (line['ours'], line['peer'], line['limit'], line['ratio']) == (10, 30, None, 2)
  # Too few quiet rounds: all are taken, and the line says so.
  assert (line['spread'], line['rounds'], line['quiet']) == ([1.5, 3], 3, False)


def test_rates_beside_a_limit():
  line = TIMES.beside('rows', 'ours', limit='peer', unit='rows/s', work=(3000.0, 6000.0))
  assert (line['ours'], line['peer'], line['limit'], line['ratio']) == (300, None, 200, 1)
  assert line['spread'] == [0.75, 1.5]


def test_times_of_ours_alone():
  line = TIMES.beside('step', 'ours', '<= 12')
  assert line['ratio'] is None and line['spread'] == [10, 20] and table.met(line)


def test_cells_of_a_line_that_was_skipped():
  line = {'what': 'step', 'unit': 'ms', 'aim': '', 'note': 'skipped'}
  line |= {'met': table.met(line)}
  assert table.cells(line, bench.HEAD) == ('step', 'ms', *[''] * 6, 'skipped')


@pytest.mark.parametrize(
  ('module', 'name'), [(scale, 'scaling_out'), (bench, 'bench'), (bench, 'bench_system')]
)
def test_the_stored_page_is_made_of_the_stored_figures(module, name):
  result = json.loads((RESULTS / f'{name}.json').read_text())
  assert module.markdown(result) == (RESULTS / f'{name}.md').read_text()


TINY = """
import steps
import tables

steps.BATCH = 256


def tiny(rounds):
  update = tables.Update(f'{tables.TABLE},{steps.ADAGRAD}', 2000)
  times = tables.scale_made.round_robin({'ours': update.run}, rounds, rounds, 0.01)
  yield [times.beside('table update', 'ours', '<= 1e9')]


def broken(rounds):
  raise ValueError('broken on purpose')
"""


@pytest.mark.parametrize('part', bench.PARTS)
def test_every_part_is_called_with_the_rounds(part):
  tree = ast.parse((bench.HERE / 'parts' / f'{part}.py').read_text())
  (made,) = [x for x in tree.body if isinstance(x, ast.FunctionDef) and x.name == part]
  arguments, defaults = made.args.args, made.args.defaults
  assert arguments[0].arg == 'rounds' and len(arguments) - len(defaults) <= 1


def test_a_part_that_fails_is_named_and_the_others_go_on(tmp_path, monkeypatch, capfd):
  for name in ('tiny', 'broken'):
    (tmp_path / f'{name}.py').write_text(TINY)
  out = tmp_path / 'bench.json'
  monkeypatch.setenv('PYTHONPATH', str(tmp_path))
  monkeypatch.setattr(bench, 'PARTS', ('broken', 'tiny'))
  monkeypatch.setattr(sys, 'argv', ['bench.py', f'--out={out}', '--rounds=2', '--allocator=system'])
  with pytest.raises(SystemExit, match='parts that failed: broken'):
    bench.main()
  shown = capfd.readouterr()
  assert 'table update' in shown.out and 'broken on purpose' in shown.err
  result = json.loads(out.read_text())
  assert result['command'] == 'python tests/bench/bench.py --rounds=2 --allocator=system'
  (line,) = result['table']
  assert (line['part'], line['met'], line['rounds']) == ('tiny', True, 2) and line['ours'] > 0
  assert result['failed'] == [['broken', 1]] and result['complete']
  page = out.with_suffix('.md').read_text()
  assert '| table update | ms |' in page and 'The part `broken` failed' in page


@pytest.fixture(params=steps.MODELS)
def same(request, monkeypatch):
  """What `check_same` compares: (spec, state, batch, peer, its ids, its labels)."""
  pytest.importorskip('torch', reason="PyTorch is not installed: pip install -e '.[bench]'")
  import torch_models

  monkeypatch.setattr(steps, 'BATCH', 256)
  _, overrides, _, _ = steps.MODELS[request.param]
  spec, host, ours = steps.trained(f'{overrides},{steps.ADAM}', 2000)
  return spec, ours.state, host, *torch_models.of(request.param, ours.state, host)


def test_the_peers_are_our_models(same):
  steps.check_same(*same)
  *_, peer, ids_BF, label_B = same
  whole = peer.table.weight.grad.to_dense().numpy()
  for optimizer in peer.optimizers:
    optimizer.zero_grad()
  peer.gradients(peer.model, 64, ids_BF, label_B)
  np.testing.assert_allclose(peer.table.weight.grad.to_dense().numpy(), whole, atol=1e-7)
  next(peer.model.parameters()).data += 0.5
  with pytest.raises((AssertionError, ValueError)):
    steps.check_same(*same)
