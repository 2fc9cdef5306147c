# SPDX-License-Identifier: Apache-2.0
"""Files and settings that somebody damaged: a line that says so, never a crash, never a success."""

import json
import pathlib
import random
import shutil

import pytest
import swept
from absl import flags
from fuzzing import deep, examples, mutated, nodes
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import config_flags

from deres_jax import config
from deres_jax.compare import runs
from deres_jax.config import diff, fields
from deres_jax.core import cli
from deres_jax.core.errors import UserError
from deres_jax.data.blocks import Blocks
from deres_jax.data.schema import load_schema
from deres_jax.embeddings import layout
from deres_jax.sweep import folder as folder_lib
from deres_jax.sweep import points

REPO = pathlib.Path(__file__).resolve().parents[2]


def line(e: UserError) -> str:
  said = str(e)
  assert said and '\n' not in said and len(said) < 4100, said
  return said


def write(file: pathlib.Path, value):
  file.write_text(json.dumps(value))


# A prepared folder.


def read_all(folder):
  schema = load_schema(str(folder))
  layout.Tables(schema.vocab_sizes, 4).check(1)
  for split in ('train', 'validation', 'test'):
    blocks = Blocks(schema, split)
    for k in range(-(-blocks.rows // schema.block_rows)):
      blocks.read(k)
  return schema


@pytest.fixture(scope='module')
def copied(planted, tmp_path_factory):
  folder = tmp_path_factory.mktemp('copied') / 'data'
  shutil.copytree(planted, folder)
  return folder


@pytest.mark.parametrize('name', ['schema.json', 'dataset_info.json', 'features.json'])
@examples(40)
@given(rng=st.randoms(use_true_random=False))
def test_a_damaged_description_of_data_is_a_line(planted, copied, name, rng):
  (file,) = copied.rglob(name)
  text = file.read_text()
  write(file, mutated(json.loads(text), rng))
  try:
    read_all(copied)
  except UserError as e:
    line(e)
  finally:
    file.write_text(text)


@pytest.mark.parametrize(
  'text', ['', '{', '[]', 'null', '\udcff', json.dumps(deep(900)), '[' * 9999]
)
def test_what_is_no_object_of_json_is_a_line(copied, text):
  file = copied / 'schema.json'
  before = file.read_bytes()
  file.write_bytes(text.encode('utf-8', 'surrogateescape'))
  try:
    with pytest.raises(UserError, match=r'schema\.json: (not valid JSON|`\$`: expected `object`)'):
      load_schema(str(copied))
  finally:
    file.write_bytes(before)


# Settings.

NAMES = [k for k in diff.flat(fields.Config()) if k != 'seed'] + ['seed']
TEXTS = [
  *('', '0', '-1', '1', '3', '1e999', '-1e999', 'nan', '1e3', '0x10', '9' * 400, '9' * 5000),
  *('true', 'None', '[]', '(1,2)', '()', "'a'", '\x1b[31m', '\x00', 'ü', '(' * 300),
  *('-' * 50_000 + '1', '1_000', '1j', '__import__("os").system("true")', '../x', 'softmax'),
  *('lr', '1:2/3:4', '٣'),
]  # fmt: skip


@examples(200)
@given(st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(TEXTS)), min_size=1, max_size=3))
def test_an_override_is_refused_in_a_line_or_gives_a_config(pairs):
  try:
    c = config.resolve(config.base(','.join(f'{k}={v}' for k, v in pairs)))
  except UserError as e:
    line(e)
    return
  assert config.resolve(json.loads(json.dumps(config.as_dict(c), allow_nan=False))) == c


@examples(60)
@given(st.sampled_from(NAMES), st.sampled_from(TEXTS))
def test_a_flag_ends_in_what_the_command_turns_into_a_line(name, text):
  values = flags.FlagValues()
  config_flags.DEFINE_config_dict('config', config.base(), flag_values=values)
  try:
    values(['prog', f'--config.{name}={text}'])
    config.resolve(values.config)
  except cli.MISTAKES:
    pass


@examples(150)
@given(rng=st.randoms(use_true_random=False))
def test_a_field_of_any_other_value_is_refused_in_a_line_or_gives_a_config(rng):
  raw = mutated(config.as_dict(fields.Config()), rng)
  try:
    c = config.resolve(raw)
  except UserError as e:
    line(e)
    return
  assert isinstance(c, fields.Config)
  for k, v in diff.flat(c).items():
    assert type(v) is type(diff.flat(fields.Config())[k]), k


def test_of_a_long_value_a_line_shows_both_ends():
  with pytest.raises(UserError) as e:
    config.resolve(config.base(f'train.profile={"9" * 50_000}'))
  said = line(e.value)
  assert said.startswith("profile '999") and said.endswith('such as 20:5')
  assert '(46,' in said


# A sweep that goes on.


@pytest.fixture(scope='module')
def sweep(tmp_path_factory):
  """A folder of three runs, two of them finished, and its points."""
  folder = tmp_path_factory.mktemp('sweep')
  some = [*swept.points(seeds=1, depths=(2,), dims=(64,))]
  swept.folder(folder, [*some, *[({**some[0][0], 'seed': 9}, 0.7)]], unfinished=1)
  listed = json.loads((folder / 'sweep.json').read_text())
  raw = config.as_dict(config.resolve(config.base('data.path=/data/x4 train')))
  own = [{**x['overrides'], 'seed': x['seed'], 'name': x['name']} for x in listed]
  return folder, points.resolve(raw, own, set(), 'swept')


FILES = ('sweep.json', 'result.json', 'config.json', 'failed.json', 'costs.json')


@pytest.mark.parametrize('name', FILES)
@pytest.mark.parametrize('how', ['mutated', 'cut'])
@examples(40)
@given(rng=st.randoms(use_true_random=False))
def test_a_sweep_of_damaged_files_counts_no_run_as_finished_that_is_not(sweep, name, how, rng):
  folder, todo = sweep
  point = todo[-1] if name == 'failed.json' else todo[0]
  file = (
    folder / name if name in ('sweep.json', 'costs.json') else folder / 'runs' / point.id / name
  )
  good = {'id': point.id, 'name': 'x', 'seed': 0, 'how': 'exit 1', 'last_line': 'x'}
  good = json.dumps({**good, 'log': 'y', 'attempts': 1})
  if name == 'costs.json':
    good = json.dumps({point.id: {'steps': 3, 'train_flops': 1.0, 'memory': 7}})
  before = file.read_text() if file.exists() else None
  good = before or good
  file.write_text(
    good[: rng.randrange(len(good))] if how == 'cut' else json.dumps(mutated(json.loads(good), rng))
  )
  try:
    states = [folder_lib.state(folder, p) for p in todo]
    assert states[0] in ('done', 'to do') and states[2] in ('failed', 'to do')
    if name == 'result.json':
      assert how != 'cut'
      found = json.loads(file.read_text())
      assert found['config_hash'] == point.id and isinstance(found['auc'], int | float | None)
    folder_lib.listing(folder, todo)
    for cost in folder_lib.costs(folder).values():
      assert all(0 <= x < float('inf') for x in (cost.train_flops, cost.steps, cost.memory))
    folder_lib.record(folder, todo)
    assert {p.id for p in todo} <= {x.id for x in folder_lib.listed(folder)}
    runs.load([str(folder)])
    folder_lib.check_data(folder, todo)
  except UserError as e:
    line(e)
  finally:
    if before is None:
      file.unlink()
    else:
      file.write_text(before)
    if name == 'sweep.json':
      assert [x['id'] for x in json.loads(file.read_text())] == [p.id for p in todo]


def test_helpers_reach_every_value():
  assert len(nodes({'a': [1, {'b': 2}], 'c': 3})) == 6
  changed = sum(mutated({'a': [1, 2], 'b': {'c': 3}}, random.Random(i)) != {} for i in range(50))
  assert changed > 40
