# SPDX-License-Identifier: Apache-2.0
"""The guide does what it says: its commands run, in order, with the files that its pages show."""

import ast
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
import quick

from deres_jax import config
from deres_jax.sweep import points

REPO = pathlib.Path(__file__).resolve().parents[2]
DOCS = REPO / 'docs'
BLOCK = re.compile(r'(?:^`([\w./]+)`\n\n)?^```(\w+)\n(.*?)^```$', re.M | re.S)


def blocks(page: str) -> list[tuple[str, str, str]]:
  """(file that is named above it or '', language, text) of every fenced block with a language."""
  return BLOCK.findall((DOCS / page).read_text())


def fresh(folder: pathlib.Path) -> pathlib.Path:
  """A copy of what a page needs of a clone."""
  for name in ('deres_jax', 'data_pipelines', 'experiments'):
    shutil.copytree(REPO / name, folder / name, ignore=shutil.ignore_patterns('__pycache__'))
  (folder / 'tests').mkdir()
  shutil.copytree(REPO / 'tests' / 'models', folder / 'tests' / 'models')
  shutil.copytree(REPO / 'tests' / 'helpers', folder / 'tests' / 'helpers')
  shutil.copy(REPO / 'tests' / 'conftest.py', folder / 'tests')
  shutil.copy(REPO / 'pyproject.toml', folder)
  return folder


def sh(script: str, folder: pathlib.Path, **variables: str) -> str:
  """What a block prints, run as it stands; a failure shows it all."""
  path = f'{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'
  environ = {**os.environ, 'PATH': path, **variables}
  # Simulated devices are for tests in this process.
  environ['XLA_FLAGS'] = quick.XLA_FLAGS
  done = subprocess.run(
    ['sh', '-e', '-c', script],
    cwd=folder,
    env=environ,
    capture_output=True,
    text=True,
    check=False,
  )
  assert not done.returncode, f'{script}\n{done.stdout}\n{done.stderr}'
  return done.stdout + done.stderr


def put(page: str, folder: pathlib.Path):
  """Writes the files of a page and applies its diffs."""
  for name, language, text in blocks(page):
    if name:
      (folder / name).write_text(text)
    elif language == 'diff':
      subprocess.run(
        ['git', 'apply', '--recount', '-'], cwd=folder, input=text, text=True, check=True
      )


def commands(page: str) -> list[str]:
  return [text for _, language, text in blocks(page) if language == 'sh']


@pytest.fixture(scope='module')
def house(tmp_path_factory, planted) -> pathlib.Path:
  """A clone with the pages' additions, and planted data where the tutorial puts it."""
  folder = fresh(tmp_path_factory.mktemp('guide'))
  for page in ('connector', 'backbone', 'dataset', 'sweep'):
    put(f'extend/{page}.md', folder)
  (folder / 'runs' / 'tutorial').mkdir(parents=True)
  (folder / 'runs' / 'tutorial' / 'data').symlink_to(planted)
  return folder


@pytest.mark.parametrize('page', ['connector', 'backbone'])
def test_a_page_s_module_trains_and_is_its_equation(house, page):
  train, test = commands(f'extend/{page}.md')
  assert 'test auc' in sh(train, house)
  assert re.search(r'\b[1-9]\d* passed', sh(test, house))


def test_the_data_set_of_its_page_is_built_whole_and_trains(house):
  raw, build = commands('extend/dataset.md')
  sh(raw, house)
  said = re.sub(' +', ' ', sh(build, house))
  for line in ('rows read 4,001', 'rows written 4,000', 'rows rejected 1', 'runs/shop is whole'):
    assert line in said
  assert "line 4002: hour: not an integer: 'noon'" in said and 'test auc' in said


def test_the_sweep_of_its_page_lists_and_runs_its_points(house):
  (listed_and_run,) = commands('extend/sweep.md')
  said = sh(listed_and_run, house)
  assert said.count('vector gate') >= 2 and said.count('scalar gate') >= 2
  assert len(list((house / 'runs' / 'gates' / 'runs').glob('*/result.json'))) == 2


def finished_sweep(out: pathlib.Path):
  """Puts the sweep that the tutorial speaks of where its command looks for finished runs."""
  module = config.load(str(REPO / 'experiments' / 'tutorial.py'), 'tutorial.py')
  stored = json.loads((DOCS / 'results' / 'tutorial.json').read_text())
  results = {(x['name'], x['depth'], x['seed']): x['result'] for x in stored}
  raw = module.get_config().to_dict()
  for point in points.resolve(raw, module.sweep(), set(), 'tutorial'):
    result = results.pop((point.name, point.config.model.depth, point.config.seed))
    whole = {'config': config.as_dict(point.config), 'identity': config.identity(point.config)}
    workdir = out / 'runs' / point.id
    workdir.mkdir(parents=True)
    (workdir / 'config.json').write_text(
      json.dumps({**whole, 'data_content': result['data_content']})
    )
    (workdir / 'result.json').write_text(json.dumps({**result, 'config_hash': point.id}))
  assert not results


def figures(text: str) -> set[str]:
  return set(re.findall(r'-?\d+\.\d{3,}', text))


@pytest.mark.parametrize('whole', [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_tutorial_runs_to_its_end(tmp_path, whole):
  """`whole`: its sweep too; else the runs of its sweep are there, and the page's figures follow."""
  folder, page = fresh(tmp_path), (DOCS / 'tutorial.md').read_text()
  if not whole:
    finished_sweep(folder / 'runs' / 'tutorial' / 'sweep')
  said = sh(''.join(commands('tutorial.md')), folder)
  assert 'resuming at step 100 of 200' in said and '16 points: 16 done, 0 failed, 0 left' in said
  assert '</html>' in (folder / 'runs' / 'tutorial' / 'scaling' / 'report.html').read_text()
  if not whole:
    for head in ('## Compare', '## A scaling law'):
      shown = page.split(f'{head}\n')[1].split('\n## ')[0]
      assert figures('\n'.join(l for l in shown.splitlines() if l[:4] == '    ')) <= figures(said)
    auc = json.loads((folder / 'runs/tutorial/deres/result.json').read_text())['auc']
    assert abs(auc - float(re.search(r'test auc ([\d.]+) \(se 0.00352', page)[1])) < 0.01


# Errors that docs/faq.md quotes.


def messages() -> list[list[str]]:
  """The fixed parts, in order, of every text in the sources that says something."""
  out = []
  for path in (*REPO.glob('deres_jax/**/*.py'), *REPO.glob('data_pipelines/**/*.py')):
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.JoinedStr | ast.Constant):
        parts = node.values if isinstance(node, ast.JoinedStr) else [node]
        texts = [x.value if isinstance(x, ast.Constant) else None for x in parts]
        if len(''.join(t for t in texts if isinstance(t, str))) > 20:
          out.append(texts)
  return out


def fits(line: str, texts: list[str | None]) -> bool:
  """Whether a line is a text with something where values are put in."""
  if not all(t in line for t in texts if t):
    return False
  return bool(re.fullmatch(''.join('.+' if t is None else re.escape(t) for t in texts), line))


def test_quoted_errors_are_those_of_the_code():
  quoted = re.findall(r'^- `(?:error|stopped): (.+)`$', (DOCS / 'faq.md').read_text(), re.M)
  known = messages()
  assert len(quoted) > 25
  assert not [line for line in quoted if not any(fits(line, m) for m in known)]


# Pages and what they point to.


def pages() -> list[pathlib.Path]:
  return [REPO / 'README.md', REPO / 'CONTRIBUTING.md', *sorted(DOCS.rglob('*.md'))]


@pytest.mark.parametrize('page', pages(), ids=lambda p: str(p.relative_to(REPO)))
def test_links_lead_somewhere(page):
  for target in re.findall(r'\]\(([^)\s#]+)[^)]*\)', page.read_text()):
    assert re.match('https?:', target) or (page.parent / target).exists(), target


def test_the_index_names_every_page():
  index = (DOCS / 'README.md').read_text()
  for page in DOCS.rglob('*.md'):
    name = str(page.relative_to(DOCS))
    assert name == 'README.md' or f']({name})' in index, name


def shown(text: str) -> list[str]:
  """Our cells of a table beside others: the second column, without head and rule."""
  rows = [l.split('|')[1:-1] for l in text.splitlines() if l.startswith('| ') and l.count('|') == 7]
  return [row[1] for row in rows if row[1].strip() != '**deres_jax**']


def test_what_we_say_of_ourselves_names_the_test_that_shows_it():
  cells = shown((DOCS / 'comparison.md').read_text())
  assert len(cells) >= 15
  for cell in cells:
    named = re.findall(r'`(test_\w+\.py)::(test_\w+)`', cell)
    assert named or re.match(' (no|not tested)\\b', cell), cell
    for file, test in named:
      (path,) = (REPO / 'tests').rglob(file)
      assert f'def {test}(' in path.read_text(), f'{file}::{test}'
