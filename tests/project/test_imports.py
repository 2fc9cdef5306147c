# SPDX-License-Identifier: Apache-2.0
"""Imports flow one way; settings have no hidden defaults."""

import ast
import functools
import pathlib
import re

import pytest

REPO = pathlib.Path(__file__).resolve().parents[2]

# Rooms of deres_jax from the ground up. A room imports from lower floors only, never from its own;
# below a room's top folder, files import each other freely as long as there is no cycle.
FLOORS = {
  'deres_jax': (
    'core kernels metrics',
    'config pod report',
    'models embeddings costs',
    'data',
    'training',
    'serving',
    'sweep inspect main export',
    'compare',
    'scaling',
    'claims',
  ),
  'data_pipelines': ('core', 'prepared', 'text describe doctor', 'datasets', 'build', 'beam_build'),
}
FLOOR = {
  f'{package}.{room}': number
  for package, floors in FLOORS.items()
  for number, rooms in enumerate(floors)
  for room in rooms.split()
}


def _module(path: pathlib.Path) -> str:
  parts = path.relative_to(REPO).with_suffix('').parts
  return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


def _files(folder: str) -> list[pathlib.Path]:
  return sorted((REPO / folder).rglob('*.py'))


@functools.cache
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


MODULES = {_module(path): path for package in FLOORS for path in _files(package)}


def _room(module: str) -> str:
  return '.'.join(module.split('.')[:2])


def _cycle(edges: dict[str, set[str]]) -> list[str]:
  """Nodes on a cycle of a directed graph, or an empty list."""
  left = {a: set(b) for a, b in edges.items()}
  while free := [a for a, b in left.items() if not b & left.keys()]:
    for a in free:
      del left[a]
  return sorted(left)


@pytest.mark.parametrize('package', FLOORS)
def test_rooms_import_from_lower_floors_only(package):
  for module, path in MODULES.items():
    here = _room(module)
    if not module.startswith(f'{package}.'):
      continue
    assert here in FLOOR, f'{here}: say in FLOORS on which floor it is'
    for other in _imports(path) & MODULES.keys() - set(FLOORS):
      there = _room(other)
      assert there in (here, 'deres_jax.core') or FLOOR[there] < FLOOR[here], (
        f'{module} imports {other}'
      )


def test_no_module_and_no_pair_of_sibling_folders_imports_in_a_cycle():
  modules = {m: _imports(path) & MODULES.keys() - {m} for m, path in MODULES.items()}
  # `from a.b import c` names the package a.b too; it is imported for itself only where a name of
  # its __init__ is taken.
  for module, others in modules.items():
    modules[module] = {o for o in others if not _only_a_parent(MODULES[module], o)}
  assert not _cycle(modules)
  folders: dict[str, set[str]] = {}
  for module, others in modules.items():
    a = MODULES[module].parent
    for other in others:
      b = MODULES[other].parent
      if a != b and a not in b.parents and b not in a.parents:
        folders.setdefault(str(a), set()).add(str(b))
  assert not _cycle(folders)


@functools.cache
def _only_a_parent(path: pathlib.Path, package: str) -> bool:
  """Whether a file takes nothing but modules from a package."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import) and package in {a.name for a in node.names}:
      return False
    if isinstance(node, ast.ImportFrom):
      names = {f'{node.module}.{a.name}' for a in node.names}
      if package in names or (node.module == package and names - MODULES.keys()):
        return False
  return True


# The commands' names are fixed, and tests stand in the same rooms.
MAIN_DOORS = REPO / 'deres_jax', REPO / 'tests'


@pytest.mark.parametrize('package', [*FLOORS, 'tests'])
def test_a_folder_has_at_most_twelve_entries(package):
  for folder in [REPO / package, *(REPO / package).rglob('*')]:
    if folder.is_dir() and folder.name != '__pycache__' and folder not in MAIN_DOORS:
      entries = {p.name for p in folder.iterdir()} - {'__init__.py', '__pycache__'}
      assert len(entries) <= 12, f'{folder.relative_to(REPO)}: {sorted(entries)}'


@pytest.mark.parametrize('path', _files('deres_jax') + _files('data_pipelines'), ids=_module)
def test_no_import_hides_in_a_function(path):
  tree = ast.parse(path.read_text())
  top = set(map(id, tree.body))
  for node in ast.walk(tree):
    if isinstance(node, ast.Import | ast.ImportFrom):
      assert id(node) in top, f'{path}:{node.lineno}'


# What data_pipelines may import of deres_jax.
SHARED = 'deres_jax.core', 'deres_jax.report'


def test_the_two_packages_share_pages_and_meet_on_disk():
  for path in _files('data_pipelines'):
    ours = {i for i in _imports(path) if i.startswith('deres_jax.')}
    assert all(_room(i) in SHARED for i in ours), path
    assert not any(i.split('.')[0] == 'jax' for i in _imports(path)), path
  for path in _files('deres_jax'):
    assert not any(i.split('.')[0] == 'data_pipelines' for i in _imports(path)), path


def _reachable(room: str) -> set[str]:
  """All modules that importing the files of a room imports."""
  todo = {m for m in MODULES if m == room or m.startswith(f'{room}.')}
  out: set[str] = set()
  while todo:
    module = todo.pop()
    out.add(module)
    todo |= (_imports(MODULES[module]) if module in MODULES else set()) - out
  return {module.split('.')[0] for module in out}


def test_heavy_libraries_are_imported_only_where_they_are_needed():
  for room in SHARED:
    assert not _reachable(room) & {'jax', 'jaxlib', 'flax'}, room
  for room in ('deres_jax.training', 'deres_jax.serving', 'deres_jax.sweep', 'deres_jax.main'):
    assert 'matplotlib' not in _reachable(room), room
  drawing = {m for m, path in MODULES.items() if any('pyplot' in i for i in _imports(path))}
  assert not drawing


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


def test_the_readme_shows_every_folder_and_the_picture_every_floor():
  tree = (REPO / 'README.md').read_text().partition('## Architecture')[2].split('```')[1]
  for package in FLOORS:
    start = tree.index(f'{package}/')
    for folder in (REPO / package).rglob('*'):
      if (folder / '__init__.py').is_file():
        assert re.search(rf'^ +{folder.name}/ +\w', tree[start:], re.M), folder
  picture = (REPO / 'docs' / 'images' / 'rooms.svg').read_text()
  boxes = re.findall(r'y="(\d+)" [^>]*rx="5"/><text[^>]*>(\w+)</text>', picture)
  drawn = iter(boxes)
  for floors in FLOORS.values():
    rows = [{next(drawn) for _ in floor.split()} for floor in reversed(floors)]
    assert [{name for _, name in row} for row in rows] == [set(f.split()) for f in reversed(floors)]
    heights = [{int(y) for y, _ in row} for row in rows]
    assert all(len(h) == 1 for h in heights) and sorted(heights, key=min) == heights
