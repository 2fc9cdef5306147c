# SPDX-License-Identifier: Apache-2.0
"""Files of others are data: nothing in them is run, leads out of their folder, or steers what shows
them."""

import ast
import contextlib
import html.parser
import io
import json
import pathlib
import shutil

import msgspec
import numpy as np
import pytest
import swept

from data_pipelines.describe import __main__ as describe
from data_pipelines.doctor import __main__ as doctor
from deres_jax.compare import logits, runs
from deres_jax.core import cli, run_files
from deres_jax.core.errors import UserError
from deres_jax.data.blocks import Blocks
from deres_jax.data.schema import load_schema
from deres_jax.report import __main__ as report
from deres_jax.scaling import __main__ as scaling
from deres_jax.scaling import analysis
from deres_jax.scaling import page as scaling_page
from deres_jax.sweep import folder as folder_lib

REPO = pathlib.Path(__file__).resolve().parents[2]

# What turns bytes into code. Config files are code by design, and the help of --config says so.
CODE = {'eval', 'exec', '__import__'}
MODULES = {'pickle', 'cPickle', 'marshal', 'shelve', 'dill', 'cloudpickle', 'joblib', 'jsonpickle'}
SHELL = {'system', 'popen', 'getoutput', 'getstatusoutput'}
# Beam's results between its own processes, in the build's own folder, are pickled by Beam's rules.
ALLOWED = {('data_pipelines/beam_build.py', 'pickle')}


def findings(tree, file=''):
  for node in ast.walk(tree):
    if isinstance(node, ast.Import | ast.ImportFrom):
      names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or '']
      for name in names:
        top = name.split('.')[0]
        if top in MODULES and (file, top) not in ALLOWED:
          yield node.lineno, f'import {name}'
    if not isinstance(node, ast.Call):
      continue
    name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, 'attr', '')
    owner = getattr(getattr(node.func, 'value', None), 'id', '')
    keywords = {k.arg: getattr(k.value, 'value', k.value) for k in node.keywords}
    if isinstance(node.func, ast.Name) and name in CODE:
      yield node.lineno, name
    if name in SHELL or (owner == 'yaml' and name in ('load', 'unsafe_load', 'full_load')):
      yield node.lineno, f'{owner}.{name}'
    if keywords.get('shell', False) is not False:
      yield node.lineno, 'shell'
    loads = owner in ('np', 'numpy') and name == 'load'
    if loads and keywords.get('allow_pickle', True) is not False:
      yield node.lineno, 'np.load without allow_pickle=False'


@pytest.mark.parametrize('folder', ['deres_jax', 'data_pipelines', 'experiments'])
def test_no_file_is_run_or_unpickled(folder):
  found = []
  for path in sorted((REPO / folder).rglob('*.py')):
    name = path.relative_to(REPO).as_posix()
    found += [f'{name}:{line} {what}' for line, what in findings(ast.parse(path.read_text()), name)]
  assert not found


HARM = [
  'import pickle', 'from marshal import loads', 'import shelve as s', 'eval(x)', 'exec(x)',
  'np.load(f)', 'np.load(f, allow_pickle=True)', 'numpy.load(f, "r")', 'yaml.load(f)',
  'os.system(x)', 'subprocess.run(x, shell=True)', 'subprocess.run(x, shell=s)', 'a.b.popen(x)',
]  # fmt: skip


@pytest.mark.parametrize('text', HARM)
def test_what_would_be_found(text):
  assert len(list(findings(ast.parse(text)))) == 1
  assert not list(findings(ast.parse('np.load(f, allow_pickle=False); model.eval_step(x)')))


def test_stored_logits_that_are_pickled_are_refused(tmp_path):
  run = runs.Run(str(tmp_path), 'id', 'n', '', 0, {}, {})
  (tmp_path / 'runs' / 'id').mkdir(parents=True)
  np.save(tmp_path / 'runs' / 'id' / 'test_logits.npy', np.array([{}], object), allow_pickle=True)
  with pytest.raises(UserError, match=r'test_logits\.npy: is not an array of logits'):
    logits.logits(run, np.zeros(1))


# Paths.


@pytest.fixture
def copied(planted, tmp_path):
  shutil.copytree(planted, tmp_path / 'data')
  return tmp_path / 'data'


def edit(folder, change, name='schema.json'):
  (file,) = folder.rglob(name)
  content = json.loads(file.read_text())
  change(content)
  file.write_text(json.dumps(content))


def refused(folder):
  """What training, doctor and describe say of a folder that they must not read."""
  with pytest.raises(UserError) as e:
    Blocks(load_schema(str(folder)), 'train')
  said = [str(e.value)]
  for command in (doctor, describe):
    error = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(error):
      assert command.main([str(folder), '--workers=1']) == 2
    said.append(error.getvalue())
  return said


@pytest.mark.parametrize('tfds', ['../data2/synthetic_ctr/1.0.0', '/etc', 'a/../../data2', '..'])
def test_a_folder_of_records_outside_is_refused(copied, planted, tfds):
  shutil.copytree(planted, copied.parent / 'data2')
  edit(copied, lambda s: s.update(tfds=tfds))
  said = refused(copied)
  assert 'outside of it' in said[0] and all('cannot be the name' in x for x in said[1:])


@pytest.mark.parametrize('what', ['a record file', 'the folder'])
def test_links_that_lead_out_are_refused(copied, planted, what):
  schema = json.loads((copied / 'schema.json').read_text())
  target = copied / schema['tfds']
  if what == 'a record file':
    target = next(target.glob('*-train.array_record*'))
  elsewhere = copied.parent / 'elsewhere'
  target.rename(elsewhere)
  target.symlink_to(elsewhere)
  said = refused(copied)
  assert 'outside of it' in said[0] and all('leads out of the folder' in x for x in said[1:])


def test_a_link_to_the_prepared_folder_itself_is_none_that_leads_out(planted, tmp_path):
  (tmp_path / 'link').symlink_to(planted)
  Blocks(load_schema(str(tmp_path / 'link')), 'train').read(0)
  with contextlib.redirect_stdout(io.StringIO()):
    assert doctor.main([str(tmp_path / 'link'), '--workers=1']) == 0


def test_a_template_of_names_that_leads_out_is_refused(copied, planted):
  shutil.copytree(planted, copied.parent / 'data2')
  other = '../../../data2/synthetic_ctr/1.0.0/{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}'
  edit(copied, lambda s: s['splits'][0].update(filepathTemplate=other), 'dataset_info.json')
  with pytest.raises(UserError, match=r'outside of it|cannot be read'):
    Blocks(load_schema(str(copied)), 'train')


def test_a_description_of_data_imports_nothing_of_others(copied, monkeypatch):
  (copied.parent / 'harmful.py').write_text('raise SystemExit("run")\n')
  monkeypatch.syspath_prepend(copied.parent)
  edit(copied, lambda s: s.update(pythonClassName='harmful.Feature'), 'features.json')
  with pytest.raises(UserError, match=r"names the Python class 'harmful\.Feature'"):
    Blocks(load_schema(str(copied)), 'train')


@pytest.mark.parametrize('name', ['../../x', '/etc/passwd', 'a/b', '..', '', '\x1b[31m', 'a\nb'])
def test_names_that_are_none_of_a_file_are_refused_by_doctor(copied, name):
  edit(copied, lambda s: s['fields'][1].update(name=name))
  error = io.StringIO()
  with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(error):
    assert doctor.main([str(copied), '--workers=1']) == 2
  assert 'cannot be the name of a file' in error.getvalue() and '\x1b' not in error.getvalue()


# Pages and terminals.

# Without '=', which would make a name one of fields.
HOSTILE = ['<script>a()</script>', '"><img/src/onerror>', '</style><script>', '\'&"`']


class Tags(html.parser.HTMLParser):
  """Tags and attributes of a page; style is text."""

  def __init__(self, page):
    super().__init__()
    self.tags, self.attributes = set(), set()
    self.feed(page)

  def handle_starttag(self, tag, attrs):
    self.tags.add(tag)
    self.attributes |= {name for name, _ in attrs}


def harmless(page):
  found = Tags(page)
  assert not found.tags & {'script', 'img', 'iframe', 'link', 'object', 'embed', 'base', 'form'}
  assert not [a for a in found.attributes if a.startswith('on') or a in ('src', 'srcdoc')]
  assert page.count('</style>') == page.count('<style>') == 1


@pytest.mark.parametrize('name', HOSTILE)
def test_a_report_escapes_every_text_of_a_result(name):
  content = swept.RESULT | {'backbone': name, 'connector': name, 'dataset': name}
  content |= {'versions': {name: name}, 'audit': {'command': name}}
  result = msgspec.convert(content, run_files.Result)
  lines = [run_files.MetricsLine(s, 'validation', 0.6 + s / 100) for s in (1, 2)]
  run = report.Finished(pathlib.Path(name), result, lines, json.dumps(content))
  harmless(report.page(run, run))


def test_pages_of_sweeps_escape_names(tmp_path):
  kinds = *swept.TRUTH.values(), ('attnres', 0.1, 0.044)
  truth = dict(zip(HOSTILE, kinds, strict=False))
  some = [*swept.points(truth=truth, dims=(64,), seeds=2)]
  folder = swept.folder(tmp_path / 'sweep', some, dataset=HOSTILE[0])
  with contextlib.redirect_stdout(io.StringIO()) as out:
    write_page(folder, tmp_path / 'out', list(truth))
  harmless((tmp_path / 'out' / 'report.html').read_text())
  assert '\x1b' not in out.getvalue()


def write_page(folder, out, names):
  options = analysis.Options(bootstraps=0)
  content, _, finished = scaling.fit([folder], 'forward', names, None, False, None, options)
  out.mkdir()
  (out / 'report.html').write_text(scaling_page.page(content, finished, out))


@pytest.mark.parametrize('name', ['\x1b[2J', 'a\x07', 'a\rb', '\x9b31m', '\u202eevil'])
def test_names_of_runs_that_steer_a_terminal_are_refused(tmp_path, name):
  some = [({'name': name, 'seed': 0}, 0.7)]
  folder = swept.folder(tmp_path / 'sweep', some)
  with pytest.raises(UserError, match=r'`\$\[0\]`: expected a name without control'):
    runs.load([folder])
  with pytest.raises(UserError, match=r'`\$\[0\]`: expected a name without control'):
    folder_lib.listed(tmp_path / 'sweep')


def test_lines_of_mistakes_and_reports_carry_no_control_characters(capsys):
  cli.code_of(UserError('no such file: \x1b[31m\x9b \u202e x'))
  assert capsys.readouterr().err == 'error: no such file: \\x1b[31m\\x9b \\u202e x\n'
  result = msgspec.convert(swept.RESULT | {'backbone': 'a\x1b[2J'}, run_files.Result)
  run = report.Finished(pathlib.Path('x'), result, [], '')
  assert '\x1b' not in report.summary(run, run)


def test_config_files_are_said_to_be_code():
  head = ast.get_docstring(ast.parse((REPO / 'deres_jax' / 'main.py').read_text()))
  assert '--config is Python code and is executed' in head
  assert 'a config file is Python and is executed' in (REPO / 'README.md').read_text()


@pytest.mark.parametrize('ident', ['../../x', 'x' * 300, '', 'a b'])
def test_ids_of_runs_that_are_no_names_of_folders_are_refused(tmp_path, ident):
  folder = swept.folder(tmp_path / 'sweep', [({'name': 'a', 'seed': 0}, 0.7)])
  listed = tmp_path / 'sweep' / 'sweep.json'
  points = json.loads(listed.read_text())
  listed.write_text(json.dumps([points[0] | {'id': ident}]))
  with pytest.raises(UserError, match=r'`\$\[0\]\.id`: expected `str` matching'):
    runs.load([folder])
