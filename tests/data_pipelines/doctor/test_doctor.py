# SPDX-License-Identifier: Apache-2.0
"""Doctor finds and reports every kind of damage."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from array_record.python.array_record_data_source import ArrayRecordDataSource

from data_pipelines import build
from data_pipelines.core.workers import Workers
from data_pipelines.datasets.synthetic.dataset import SYNTHETIC
from data_pipelines.doctor import __main__ as doctor
from data_pipelines.prepared.dataset import BuildContext, Encoded, FieldInfo
from data_pipelines.prepared.rejects import Rejects
from data_pipelines.prepared.schema import BLOCK_ROWS, RecordShape
from data_pipelines.prepared.split_stats import SplitStats
from data_pipelines.prepared.vocabulary import write_vocabulary
from data_pipelines.prepared.writer import write_prepared


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  out = tmp_path_factory.mktemp('doctor') / 'whole'
  flags = ['--rows_train=9000', '--rows_validation=100', '--rows_test=100']
  assert build.main(['--dataset=synthetic', f'--out={out}', *flags]) == 0
  return out


@pytest.fixture
def folder(whole, tmp_path):
  return shutil.copytree(whole, tmp_path / 'copy')


def diagnose(folder, capsys) -> str:
  """Runs a doctor that must fail; returns its one-line error."""
  capsys.readouterr()
  assert doctor.main([str(folder)]) == 2
  error = capsys.readouterr().err
  assert error.count('\n') == 1
  return error


def records(folder, split):
  (path,) = (folder / 'synthetic_ctr/1.0.0').glob(f'*-{split}.array_record*')
  return path


def edit_schema(folder, edit) -> None:
  schema = json.loads((folder / 'schema.json').read_text())
  edit(schema)
  (folder / 'schema.json').write_text(json.dumps(schema))


def test_whole_folder(folder, capsys):
  assert doctor.main([f'--path={folder}']) == 0
  printed = capsys.readouterr().out
  assert printed.endswith(f'{folder} is whole\n') and 'FAILED' not in printed


def test_flipped_byte(folder, capsys):
  path = records(folder, 'train')
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)
  assert f'train: sha256 of {path.name}: expected ' in diagnose(folder, capsys)


def test_truncated_record_file(folder, capsys):
  path = records(folder, 'test')
  data = path.read_bytes()
  path.write_bytes(data[:-100])
  expected = f'test: bytes of {path.name}: expected {len(data)}, found {len(data) - 100}'
  assert expected in diagnose(folder, capsys)


@pytest.mark.parametrize(
  'entry, value, expected',
  [
    ('rows', 101, 'validation: rows: expected 101, found 100'),
    ('blocks', 2, 'validation: blocks: expected 2, found 1'),
    ('clicks', 7, 'validation: clicks: expected 7, found '),
    ('click_rate', 0.5, 'validation: click rate: expected 0.5, found '),
    ('content_sha256', 'abc', 'validation: content sha256: expected abc, found '),
    ('files', {}, 'validation: record files: expected [], found '),
    ('rows', '100', '`$.splits.validation.rows`: expected `int`, got `str`'),
  ],
)
def test_changed_split_entry(folder, capsys, entry, value, expected):
  edit_schema(folder, lambda schema: schema['splits']['validation'].update({entry: value}))
  capsys.readouterr()
  assert doctor.main([str(folder)]) == 2
  printed = capsys.readouterr()
  assert expected in printed.out + printed.err


def test_changed_counts_and_rates(folder, capsys):
  edit_schema(folder, lambda schema: schema['raw'].update(rows_read=1))
  assert 'rows read = written + rejected: expected 1, found 9200' in diagnose(folder, capsys)
  edit_schema(folder, lambda schema: schema['raw'].update(rows_read=9200))
  edit_schema(folder, lambda schema: schema['fields'][2]['oov_rate'].update(test=0.25))
  assert 'f03: expected 0.25, found 0.0' in diagnose(folder, capsys)
  edit_schema(folder, lambda schema: schema.pop('vocabulary'))
  assert 'missing required field `vocabulary`' in diagnose(folder, capsys)


def test_missing_files(folder, capsys):
  (folder / 'vocabulary/f02.txt').unlink()
  assert 'vocabulary f02.txt: the file is missing' in diagnose(folder, capsys)
  records(folder, 'test').unlink()
  assert 'test: record files: expected [' in diagnose(folder, capsys)
  (folder / 'synthetic_ctr/1.0.0/features.json').unlink()
  assert 'file features.json: missing' in diagnose(folder, capsys)
  (folder / 'schema.json').unlink()
  assert 'no schema.json' in diagnose(folder, capsys)
  shutil.rmtree(folder)
  assert 'no such folder' in diagnose(folder, capsys)


def test_changed_vocabulary(folder, capsys):
  path = folder / 'vocabulary/f01.txt'
  path.write_text(path.read_text() + 'more\n')
  error = diagnose(folder, capsys)
  assert 'vocabulary f01.txt: sha256' in error and 'vocab_size: expected 6, found 7' in error


@pytest.mark.parametrize('text', ['{', '[]', '{"format": "deres_jax.prepared"}'])
def test_schema_of_another_kind(folder, capsys, text):
  (folder / 'schema.json').write_text(text)
  assert 'build' in diagnose(folder, capsys)


def test_unexpected_rejects(folder, capsys):
  (folder / 'rejects.tsv').write_text('rows\t1\tempty line\t\n')
  assert 'rejects.tsv: rows: expected 0, found 1' in diagnose(folder, capsys)


def test_flags(capsys):
  with pytest.raises(SystemExit) as stop:
    doctor.main([])
  assert stop.value.code == 2 and capsys.readouterr().err.count('\n') == 1


@dataclasses.dataclass
class ConstantSource:
  """Rows whose ids are all 2 except one."""

  value: int
  shape = RecordShape(fields=2)
  rows = {'train': 5000, 'validation': 3, 'test': 3}  # noqa: RUF012

  def blocks(self, split, first, last):
    for k in range(first, last):
      rows = min(BLOCK_ROWS, self.rows[split] - k * BLOCK_ROWS)
      ids_NF = np.full((rows, 2), 2, np.int32)
      if split == 'test':
        ids_NF[-1, 1] = self.value
      yield {'ids': ids_NF, 'label': np.zeros(rows, np.uint8)}


def write_constants(folder, value: int) -> None:
  context = BuildContext(folder, folder / 'work', Workers(1), Rejects(folder), print)
  context.work.mkdir()
  (folder / 'vocabulary').mkdir()
  for name in 'ab':
    write_vocabulary(folder, name, b'x\n')
  fields = tuple(FieldInfo(name, 3, 1, 0.0) for name in 'ab')
  encoded = Encoded(fields, ConstantSource(value), (), rows_read=5006)
  write_prepared(context, SYNTHETIC, {}, encoded, compress=False)


@pytest.mark.parametrize('value', [0, 3, -1, 2**31 - 1])
def test_ids_out_of_range(tmp_path, capsys, value):
  write_constants(tmp_path, value)
  error = diagnose(tmp_path, capsys)
  low, high = min(value, 2), max(value, 2)
  assert f'test: ids in range: b: expected ids 1 to 2, found {low} to {high}' in error
  assert '1 of ' in error  # nothing else is wrong


class Forgetful(ArrayRecordDataSource):
  """A store that returns its first record for every index."""

  def __getitem__(self, k):
    return super().__getitem__(0)


def test_the_writer_notices_a_store_that_returns_other_bytes(tmp_path, monkeypatch):
  monkeypatch.setattr('data_pipelines.prepared.records.ArrayRecordDataSource', Forgetful)
  with pytest.raises(AssertionError, match='block 1: read back other bytes than were written'):
    write_constants(tmp_path, 2)
  assert not (tmp_path / 'schema.json').exists()


@pytest.mark.parametrize(
  ('events', 'said'),
  [
    ([[[0, 0], [3, 1], [2, 5]]], ''),
    ([[[0, 0], [0, 0], [0, 0]]], ''),
    ([[[3, 1], [0, 0], [2, 5]]], 'padded at the front'),
    ([[[3, 1], [2, 5], [0, 0]]], 'padded at the front'),
    ([[[0, 0], [3, 0], [2, 5]]], 'some attributes are padding'),
  ],
)
def test_only_the_front_of_a_sequence_is_padded(events, said):
  shape = RecordShape(fields=1, events=3, event_fields=2, grouped=True)
  stats = SplitStats(shape)
  block = {
    'ids': np.array([[4]], np.int32),
    'label': np.array([1], np.uint8),
    'events': np.array(events, np.int32),
    'group': np.array([9], np.int32),
  }
  stats.update(block)
  assert bool(stats.faults) == bool(said) and all(said in fault for fault in stats.faults)
  assert stats.events == (0 if said else np.count_nonzero(np.array(events)[..., 0]))
  assert said or (stats.min_group, stats.max_group) == (9, 9)
