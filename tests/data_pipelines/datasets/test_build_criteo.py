# SPDX-License-Identifier: Apache-2.0
"""Criteo from raw text to a prepared folder, on invented rows."""

import collections
import functools
import hashlib
import json
import math
import pickle

import numpy as np
import pytest
from invented_rows import criteo_lines, read_prepared, run_python, set_block_rows, write_lines

from data_pipelines import build
from data_pipelines.core.workers import Workers
from data_pipelines.doctor import __main__ as doctor
from data_pipelines.text import ingest

FIELDS = [f'I{i}' for i in range(1, 14)] + [f'C{i}' for i in range(1, 27)]


def prepare(raw, out, *flags) -> int:
  return build.main(['--dataset=criteo', f'--raw={raw}', f'--out={out}', *flags])


def reference(lines: list[str], seed: int, min_count: int):
  """The x4 protocol in plain Python: tokens by field and (ids, labels) by split."""
  rows = [line.split('\t') for line in lines]
  permutation = np.random.default_rng(seed).permutation(len(rows)).tolist()
  tenth = len(rows) // 10
  splits = {
    'test': [rows[i] for i in permutation[:tenth]],
    'validation': [rows[i] for i in permutation[tenth : 2 * tenth]],
    'train': [rows[i] for i in permutation[2 * tenth :]],
  }

  def token(f: int, text: str) -> str:
    if f >= 13:
      return text.lower()
    value = int(text) if text else 0
    return str(math.floor(math.log(value) ** 2) if value > 2 else value)

  vocabularies = []
  for f in range(39):
    counts = collections.Counter(token(f, row[f + 1]) for row in splits['train'])
    del counts['']
    kept = [t for t in counts if counts[t] >= min_count]
    vocabularies.append(sorted(kept, key=lambda t: (-counts[t], t)))
  encoded = {}
  for split, part in splits.items():
    ids = [
      [
        v.index(token(f, row[f + 1])) + 2 if token(f, row[f + 1]) in v else 1
        for f, v in enumerate(vocabularies)
      ]
      for row in part
    ]
    encoded[split] = (ids, [int(row[0]) for row in part])
  return vocabularies, encoded


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  """6000 good rows (so that train has two blocks) and 5 bad ones: lines, raw file, folder."""
  folder = tmp_path_factory.mktemp('criteo')
  good = criteo_lines(6000, seed=1)
  bad = {
    3: '1\t2',
    100: '',
    2000: '7' + good[0][1:],
    2001: good[0] + '\textra',
    6005: good[0][:-9] + '\tzzzzzzzz',
  }
  lines, rest = [], iter(good)
  for number in range(1, 6006):
    lines.append(bad[number] if number in bad else next(rest))
  raw = write_lines(folder / 'rows.tsv', lines)
  result = run_python(
    '-m', 'data_pipelines.build', '--dataset=criteo', f'--raw={raw}', f'--out={folder / "out"}',
    '--seed=4', '--min_count=100',
  )  # fmt: skip
  assert result.returncode == 0, result.stderr
  return good, sorted(bad), raw, folder / 'out', result.stdout


def test_ids_equal_those_of_the_plain_protocol(prepared):
  good, _, _, out, _ = prepared
  schema, blocks = read_prepared(out)
  vocabularies, encoded = reference(good, seed=4, min_count=100)
  for split, (ids, labels) in encoded.items():
    np.testing.assert_array_equal(np.concatenate([b[0] for b in blocks[split]]), ids)
    np.testing.assert_array_equal(np.concatenate([b[1] for b in blocks[split]]), labels)
  for field, tokens in zip(schema['fields'], vocabularies, strict=True):
    text = (out / 'vocabulary' / f'{field["name"]}.txt').read_text()
    assert text.splitlines() == tokens
    assert field['vocab_size'] == len(tokens) + 2
  assert any(len(tokens) < 15 for tokens in vocabularies[:13])  # min_count does drop some


def test_schema_describes_the_stored_rows(prepared):
  _, _, raw, out, _ = prepared
  schema, blocks = read_prepared(out)
  assert (schema['format'], schema['format_version']) == ('deres_jax.prepared', 3)
  assert (schema['dataset'], schema['tfds']) == ('criteo_display', 'criteo_display/x4/1.0.0')
  assert schema['build'] == {'protocol': 'x4', 'seed': 4, 'min_count': 100, 'limit': None}
  assert [f['name'] for f in schema['fields']] == FIELDS
  assert {f['kind'] for f in schema['fields']} == {'categorical'}
  assert [len(label) for _, label in blocks['train']] == [4096, 704]
  data = raw.read_bytes()
  assert schema['raw'] == {
    'files': [{'name': 'rows.tsv', 'bytes': len(data), 'sha256': hashlib.sha256(data).hexdigest()}],
    'rows_read': 6005,
    'rows_written': 6000,
    'rows_rejected': 5,
  }
  for split, stored in blocks.items():
    ids = np.concatenate([b[0] for b in stored])
    clicks = sum(int(b[1].sum()) for b in stored)
    entry = schema['splits'][split]
    content = b''.join(hashlib.sha256(b[0].tobytes() + b[1].tobytes()).digest() for b in stored)
    assert entry['content_sha256'] == hashlib.sha256(content).hexdigest()
    assert (entry['rows'], entry['blocks'], entry['clicks']) == (len(ids), len(stored), clicks)
    assert entry['click_rate'] == clicks / len(ids)
    assert all(b[0].dtype == np.int32 and b[1].dtype == np.uint8 for b in stored)
    for f, field in enumerate(schema['fields']):
      assert field['oov_rate'][split] == (ids[:, f] == 1).mean()
  assert 0.15 < schema['fields'][0]['missing_rate_train'] < 0.25


def test_bad_rows_are_reported_counted_and_stored(prepared):
  _, bad, _, out, printed = prepared
  rejects = [line.split('\t', 3) for line in (out / 'rejects.tsv').read_text().splitlines()]
  assert [int(r[1]) for r in rejects] == bad
  assert {r[0] for r in rejects} == {'rows.tsv'}
  assert rejects[0][2:] == ['expected 40 tab-separated columns, found 2', '1\t2']
  for number in bad:
    assert f'line {number}: ' in printed
  assert 'rows rejected                5' in printed and str(out / 'rejects.tsv') in printed


def test_prepared_folder_is_whole(prepared, capsys):
  _, _, _, out, _ = prepared
  assert doctor.main([str(out)]) == 0
  assert capsys.readouterr().out.endswith(f'{out} is whole\n')


def test_the_folder_stores_nothing_about_the_machine(prepared):
  _, _, raw, out, _ = prepared
  for path in out.rglob('*.json'):
    assert str(raw.parent) not in path.read_text()
  assert sorted(p.name for p in out.iterdir()) == [
    'criteo_display',
    'rejects.tsv',
    'schema.json',
    'vocabulary',
  ]


def test_a_second_build_changes_nothing_and_refuses_other_options(prepared, capsys):
  _, _, raw, out, _ = prepared
  before = (out / 'schema.json').stat().st_mtime_ns
  assert prepare(raw, out, '--seed=4', '--min_count=100') == 0
  assert 'already holds this data set' in capsys.readouterr().out
  assert prepare(raw, out, '--seed=5', '--min_count=100') == 2
  error = capsys.readouterr().err
  assert error.count('\n') == 1 and 'seed: 4 there, 5 given' in error and '--overwrite' in error
  assert (out / 'schema.json').stat().st_mtime_ns == before


def test_other_raw_file_is_refused_and_overwrite_replaces(tmp_path, capsys):
  raw = write_lines(tmp_path / 'rows', criteo_lines(50))
  assert prepare(raw, tmp_path / 'out') == 0
  write_lines(raw, criteo_lines(60))
  assert prepare(raw, tmp_path / 'out') == 2
  assert 'the raw file differs' in capsys.readouterr().err
  assert prepare(raw, tmp_path / 'out', '--overwrite') == 0
  assert read_prepared(tmp_path / 'out')[0]['raw']['rows_read'] == 60
  assert sorted(p.name for p in tmp_path.iterdir()) == ['out', 'rows']


def test_overwriting_removes_the_old_vocabularies(tmp_path):
  """In one process: a worker uses the look-ups of the current build."""
  raw = write_lines(tmp_path / 'rows', criteo_lines(60, seed=1))
  assert prepare(raw, tmp_path / 'out', '--min_count=1') == 0
  write_lines(raw, criteo_lines(90, seed=2))
  assert prepare(raw, tmp_path / 'out', '--min_count=1', '--overwrite') == 0
  assert prepare(raw, tmp_path / 'fresh', '--min_count=1') == 0
  over, fresh = (read_prepared(tmp_path / name)[0]['splits'] for name in ('out', 'fresh'))
  assert over == fresh


def test_same_seed_same_content(tmp_path):
  raw = write_lines(tmp_path / 'rows', criteo_lines(300))
  digests = []
  for name, seed in (('a', 1), ('b', 1), ('c', 2)):
    assert prepare(raw, tmp_path / name, f'--seed={seed}', '--min_count=2') == 0
    splits = json.loads((tmp_path / name / 'schema.json').read_text())['splits']
    digests.append([splits[s]['content_sha256'] for s in ('train', 'validation', 'test')])
  assert digests[0] == digests[1]
  assert all(one != other for one, other in zip(digests[0], digests[2], strict=True))


def test_vocabulary_comes_from_training_rows_only(tmp_path):
  lines = criteo_lines(100)
  order = np.random.default_rng(0).permutation(100)
  for i in range(100):  # C1 is one token in the training rows, another everywhere else
    values = lines[i].split('\t')
    values[14] = '0000aaaa' if i in order[20:] else '0000bbbb'
    lines[i] = '\t'.join(values)
  raw = write_lines(tmp_path / 'rows', lines)
  assert prepare(raw, tmp_path / 'out', '--min_count=1') == 0
  schema, blocks = read_prepared(tmp_path / 'out')
  assert (tmp_path / 'out/vocabulary/C1.txt').read_text() == '0000aaaa\n'
  assert {int(i) for i in blocks['train'][0][0][:, 13]} == {2}
  for split in ('validation', 'test'):
    assert {int(i) for i in blocks[split][0][0][:, 13]} == {1}
    assert schema['fields'][13]['oov_rate'][split] == 1.0


def test_limit_reads_the_first_lines(tmp_path):
  lines = criteo_lines(80)
  full = write_lines(tmp_path / 'full', lines)
  head = write_lines(tmp_path / 'head', lines[:37])
  assert prepare(full, tmp_path / 'a', '--limit=37') == 0
  assert prepare(head, tmp_path / 'b') == 0
  a, b = read_prepared(tmp_path / 'a')[0], read_prepared(tmp_path / 'b')[0]
  assert a['raw']['rows_read'] == 37
  assert a['splits']['train']['content_sha256'] == b['splits']['train']['content_sha256']


def test_chunks_shards_and_workers_change_nothing(tmp_path, monkeypatch):
  lines = criteo_lines(400)
  lines[50] = 'broken'
  lines[300] = 'broken too'
  raw = write_lines(tmp_path / 'rows', lines)
  flags = ('--min_count=3', '--limit=350')
  assert prepare(raw, tmp_path / 'one', *flags) == 0
  monkeypatch.setattr('data_pipelines.text.ingest.CHUNK_BYTES', 5000)
  monkeypatch.setattr('data_pipelines.text.ingest._PARSE_BYTES', 700)
  monkeypatch.setattr('data_pipelines.text.encoding._GROUP_ROWS', 60)
  monkeypatch.setattr('data_pipelines.text.encoding._TURN_ROWS', 9)
  set_block_rows(monkeypatch, 32)
  monkeypatch.setattr('data_pipelines.prepared.shards.SHARD_BLOCKS', 3)
  monkeypatch.setattr('data_pipelines.core.workers.Workers.map', workers_that_pickle)
  assert prepare(raw, tmp_path / 'many', *flags) == 0
  one, one_blocks = read_prepared(tmp_path / 'one')
  many, many_blocks = read_prepared(tmp_path / 'many')
  assert one['raw'] == many['raw'] and many['raw']['rows_read'] == 350
  assert one['vocabulary'] == many['vocabulary']
  assert (tmp_path / 'one/rejects.tsv').read_text() == (tmp_path / 'many/rejects.tsv').read_text()
  assert many['splits']['train']['blocks'] == 9 and len(many['splits']['train']['files']) == 3
  for split in one_blocks:
    for part in (0, 1):
      np.testing.assert_array_equal(
        np.concatenate([b[part] for b in one_blocks[split]]),
        np.concatenate([b[part] for b in many_blocks[split]]),
      )
  assert doctor.main([str(tmp_path / 'many')]) == 0


def workers_that_pickle(self, function, tasks):
  """Runs Workers.map in this process, with pickled tasks and results."""
  for task in tasks:
    function_there, task_there = pickle.loads(pickle.dumps((function, task)))
    yield pickle.loads(pickle.dumps(function_there(task_there)))


def test_worker_processes_write_the_same_bytes(tmp_path, monkeypatch):
  monkeypatch.setattr('data_pipelines.build.Workers', functools.partial(Workers, start_after=0))
  rows = criteo_lines(1000)
  raw = write_lines(tmp_path / 'rows', [line for k in range(60) for line in rows])
  assert raw.stat().st_size > ingest.CHUNK_BYTES
  for workers in (1, 2):
    assert prepare(raw, tmp_path / str(workers), f'--workers={workers}') == 0
  one, two = (
    {p.relative_to(tmp_path / n): p.read_bytes() for p in (tmp_path / n).rglob('*') if p.is_file()}
    for n in '12'
  )
  assert one == two and len(one) > 40


def test_compressed_records_hold_the_same_rows(tmp_path):
  raw = write_lines(tmp_path / 'rows', criteo_lines(3000))
  assert prepare(raw, tmp_path / 'plain') == 0
  assert prepare(raw, tmp_path / 'small', '--compress') == 0
  plain, small = (json.loads((tmp_path / n / 'schema.json').read_text())['splits']['train']
                  for n in ('plain', 'small'))  # fmt: skip
  assert plain['content_sha256'] == small['content_sha256']
  (plain_file,), (small_file,) = plain['files'].values(), small['files'].values()
  assert small_file['bytes'] < 0.5 * plain_file['bytes']
  assert doctor.main([str(tmp_path / 'small')]) == 0


@pytest.mark.parametrize('protocol, rows', [('x1', (280, 80, 40)), ('time', (320, 40, 40))])
def test_other_protocols(tmp_path, protocol, rows):
  raw = write_lines(tmp_path / 'rows', criteo_lines(400))
  assert prepare(raw, tmp_path / 'out', f'--protocol={protocol}') == 0
  schema, blocks = read_prepared(tmp_path / 'out')
  assert tuple(schema['splits'][s]['rows'] for s in ('train', 'validation', 'test')) == rows
  assert schema['tfds'] == f'criteo_display/{protocol}/1.0.0'
  if protocol == 'time':
    last = sorted(int(line[0]) for line in raw.read_text().splitlines()[-40:])
    assert sorted(blocks['test'][0][1].tolist()) == last
  assert doctor.main([str(tmp_path / 'out')]) == 0


def test_neither_tensorflow_nor_jax_is_imported(tmp_path):
  raw = write_lines(tmp_path / 'rows', criteo_lines(50))
  code = (
    'import sys; from data_pipelines import build;'
    'from data_pipelines.doctor import __main__ as doctor;'
    f'assert build.main(["--dataset=criteo", "--raw={raw}", "--out={tmp_path / "out"}"]) == 0;'
    f'assert doctor.main(["{tmp_path / "out"}"]) == 0;'
    'assert "tensorflow_datasets" in sys.modules;'
    'assert not {"tensorflow", "jax", "jaxlib", "flax", "grain"} & set(sys.modules);'
    'ours = {m for m in sys.modules if m.startswith("deres_jax.")};'
    'assert {m.split(".")[1] for m in ours} <= {"core", "report"}, ours'
  )
  result = run_python('-c', code)
  assert result.returncode == 0, result.stderr
