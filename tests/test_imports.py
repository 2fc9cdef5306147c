# SPDX-License-Identifier: Apache-2.0
"""Imports flow one way; settings have no hidden defaults."""

import ast
import pathlib

import pytest

REPO = pathlib.Path(__file__).resolve().parents[1]

# Lower numbers know nothing of higher ones; equals do not know each other.
LEVEL = {
  'deres_jax': 0,
  'deres_jax.errors': 0,
  'deres_jax.disk': 1,
  'deres_jax.checks': 1,
  'deres_jax.config': 2,
  'deres_jax.config_string': 1,
  'deres_jax.experiment_file': 1,
  'deres_jax.usage': 1,
  'deres_jax.cli': 2,
  'deres_jax.allocator': 3,
  'deres_jax.launcher': 1,
  'deres_jax.cluster': 2,
  'deres_jax.lock': 3,
  'deres_jax.guard': 3,
  'deres_jax.pod': 4,
  'deres_jax.lsq': 1,
  'deres_jax.laws': 2,
  'deres_jax.fits': 3,
  'deres_jax.targets': 3,
  'deres_jax.intervals': 4,
  'deres_jax.bootstrap': 4,
  'deres_jax.power': 5,
  'deres_jax.runs': 9,
  'deres_jax.caveats': 1,
  'deres_jax.stored': 10,
  'deres_jax.analysis': 10,
  'deres_jax.study': 10,
  'deres_jax.contrasts': 11,
  'deres_jax.verdicts': 1,
  'deres_jax.claim_laws': 11,
  'deres_jax.markdown': 2,
  'deres_jax.claims_sections': 3,
  'deres_jax.claims_page': 4,
  'deres_jax.wider': 11,
  'deres_jax.claims': 12,
  'deres_jax.svg': 1,
  'deres_jax.wording': 1,
  'deres_jax.scaling_style': 1,
  'deres_jax.scaling_svg': 2,
  'deres_jax.ratio_svg': 3,
  'deres_jax.scaling_tables': 3,
  'deres_jax.rerun': 9,
  'deres_jax.scaling_runs': 10,
  'deres_jax.scaling_page': 11,
  'deres_jax.scaling': 12,
  'deres_jax.losses': 1,
  'deres_jax.metrics': 1,
  'deres_jax.streaming': 2,
  'deres_jax.wire': 1,
  'deres_jax.hparams': 2,
  'deres_jax.events': 3,
  'deres_jax.sinks': 4,
  'deres_jax.writer': 2,
  'deres_jax.progress': 2,
  'deres_jax.profiling': 2,
  'deres_jax.differences': 4,
  'deres_jax.flops': 1,
  'deres_jax.collectives': 1,
  'deres_jax.parallel': 1,
  'deres_jax.tensorstore_json': 0,
  'deres_jax.manifest': 2,
  'deres_jax.checkpoint': 4,
  'deres_jax.report': 3,
  'deres_jax.machine': 1,
  'deres_jax.live': 1,
  'deres_jax.budget': 1,
  'deres_jax.peak': 1,
  'deres_jax.points': 3,
  'deres_jax.ledger': 4,
  'deres_jax.costs': 5,
  'deres_jax.runner': 6,
  'deres_jax.sweep': 7,
  'deres_jax.forecast': 12,
  'deres_jax.paired': 2,
  'deres_jax.compare': 8,
  'deres_jax.kernels': 0,
  'deres_jax.kernels.library': 0,
  'deres_jax.kernels.ops': 0,
  'deres_jax.models.probe': 0,
  'deres_jax.models.layers': 1,
  'deres_jax.models.stack': 2,
  'deres_jax.models.heads': 2,
  'deres_jax.models.tokenizer': 2,
  'deres_jax.models.classic': 3,
  'deres_jax.models.residual': 3,
  'deres_jax.models.single': 4,
  'deres_jax.models.hyper': 3,
  'deres_jax.models.haares': 3,
  'deres_jax.models.onetrans': 3,
  'deres_jax.models.rankmixer': 3,
  'deres_jax.models.unimixer': 4,
  'deres_jax.models.hstu': 3,
  'deres_jax.models.wukong': 3,
  'deres_jax.models.autoint': 3,
  'deres_jax.models.backbones': 5,
  'deres_jax.models.connectors': 5,
  'deres_jax.models': 6,
  'deres_jax.moments': 1,
  'deres_jax.rows': 1,
  'deres_jax.embedding': 2,
  'deres_jax.optim': 3,
  'deres_jax.topology': 2,
  'deres_jax.roofline': 3,
  'deres_jax.json_files': 1,
  'deres_jax.schema': 2,
  'deres_jax.order': 1,
  'deres_jax.gauc': 3,
  'deres_jax.blocks': 3,
  'deres_jax.reader': 4,
  'deres_jax.data': 5,
  'deres_jax.setup': 7,
  'deres_jax.feed': 6,
  'deres_jax.step': 8,
  'deres_jax.evaluate': 9,
  'deres_jax.audit': 3,
  'deres_jax.plan': 9,
  'deres_jax.nonfinite': 9,
  'deres_jax.mesh_plan': 10,
  'deres_jax.result': 10,
  'deres_jax.workdir': 5,
  'deres_jax.parts': 9,
  'deres_jax.train': 11,
  'deres_jax.raw_rows': 3,
  'deres_jax.artifact': 1,
  'deres_jax.serving': 4,
  'deres_jax.inputs': 4,
  'deres_jax.main': 12,
  'deres_jax.probes': 9,
  'deres_jax.trained': 12,
  'deres_jax.export': 13,
  'deres_jax.findings': 13,
  'deres_jax.inspect_claims': 14,
  'deres_jax.inspect_svg': 3,
  'deres_jax.inspect_page': 4,
  'deres_jax.inspect': 15,
}


def _module(path: pathlib.Path) -> str:
  parts = path.relative_to(REPO).with_suffix('').parts
  return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


def _files(folder: str) -> list[pathlib.Path]:
  return sorted((REPO / folder).rglob('*.py'))


def _imports(path: pathlib.Path) -> set[str]:
  """Full names of all imported modules; `from a import b` gives a and a.b."""
  out = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      out |= {a.name for a in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}: relative import'
      out |= {node.module} | {f'{node.module}.{a.name}' for a in node.names}
  return out


@pytest.mark.parametrize('path', _files('deres_jax'), ids=_module)
def test_deres_jax_imports_flow_one_way(path):
  me = _module(path)
  assert me in LEVEL, f'{me}: give it a level'
  for other in _imports(path) & LEVEL.keys() - {'deres_jax', 'deres_jax.models', me}:
    assert LEVEL[other] < LEVEL[me], f'{me} imports {other}'
  if 'deres_jax.models' in _imports(path) and not me.startswith('deres_jax.models'):
    assert LEVEL[me] > LEVEL['deres_jax.models'] or _imports(path) & {'deres_jax.models.layers'}


@pytest.mark.parametrize('path', _files('deres_jax') + _files('data_pipelines'), ids=_module)
def test_no_import_hides_in_a_function(path):
  tree = ast.parse(path.read_text())
  top = set(map(id, tree.body))
  for node in ast.walk(tree):
    if isinstance(node, ast.Import | ast.ImportFrom):
      assert id(node) in top, f'{path}:{node.lineno}'


def test_the_two_packages_meet_only_on_disk():
  for path in _files('data_pipelines'):
    assert not any(i.split('.')[0] in ('deres_jax', 'jax') for i in _imports(path)), path
  for path in _files('deres_jax'):
    assert not any(i.split('.')[0] == 'data_pipelines' for i in _imports(path)), path


@pytest.mark.parametrize('path', _files('experiments'), ids=_module)
def test_experiments_import_only_config_and_sweep(path):
  ours = {i for i in _imports(path) if i.startswith('deres_jax')}
  assert ours <= {'deres_jax', 'deres_jax.config', 'deres_jax.sweep'}
  assert {i.split('.')[0] for i in _imports(path)} <= {'deres_jax'}


@pytest.mark.parametrize('path', _files('deres_jax'), ids=_module)
def test_no_hidden_defaults(path):
  """Below resolve() a setting is an attribute: no getattr with a default, no **kwargs."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
      assert not (node.func.id == 'getattr' and len(node.args) == 3), f'{path}:{node.lineno}'
    if isinstance(node, ast.FunctionDef):
      assert node.args.kwarg is None, f'{path}:{node.lineno}: **{node.args.kwarg}'
