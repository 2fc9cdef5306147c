# SPDX-License-Identifier: Apache-2.0
"""Apache Beam's direct runner writes the bytes of a local build."""

import gzip

import kuairand_rows
import pytest
from invented_rows import AVAZU_HEADER, avazu_lines, criteo_lines, write_lines

from data_pipelines import beam_build, build
from data_pipelines.doctor import __main__ as doctor


def files(folder):
  return {p.relative_to(folder): p.read_bytes() for p in folder.rglob('*') if p.is_file()}


RUNNER = ['--runner=DirectRunner', '--direct_running_mode=in_memory']


def criteo(folder):
  lines = criteo_lines(700)
  lines[300] = 'bad'
  return ['--dataset=criteo', f'--raw={write_lines(folder / "raw", lines)}', '--min_count=2']


def avazu(folder):
  raw = write_lines(folder / 'raw', [AVAZU_HEADER, *avazu_lines(300)])
  return ['--dataset=avazu', f'--raw={raw}', '--protocol=time']


def criteo_1tb(folder):
  for day in range(3):
    write_lines(folder / f'day_{day}', criteo_lines(100, seed=day))
  return ['--dataset=criteo_1tb', f'--raw={folder}', '--max_ids=1000', '--min_count=1']


def social(folder):
  rows = kuairand_rows.log_rows(300)
  logs = {kuairand_rows.EARLY: rows[:200], kuairand_rows.LATE: rows[200:]}
  raw = kuairand_rows.write_folder(folder / 'data', logs)
  return ['--dataset=social', f'--raw={raw}', '--events=5']


@pytest.mark.parametrize('dataset', [criteo, avazu, criteo_1tb, social], ids=lambda f: f.__name__)
def test_beam_writes_the_same_bytes(dataset, tmp_path, monkeypatch):
  monkeypatch.setattr('data_pipelines.text.ingest.CHUNK_BYTES', 20_000)
  monkeypatch.setattr('data_pipelines.text.encoding._GROUP_ROWS', 200)
  (tmp_path / 'in').mkdir()
  flags = dataset(tmp_path / 'in')
  assert build.main([*flags, f'--out={tmp_path / "local"}']) == 0
  assert beam_build.main([*flags, f'--out={tmp_path / "beam"}', *RUNNER]) == 0
  assert files(tmp_path / 'beam') == files(tmp_path / 'local')
  assert doctor.main([str(tmp_path / 'beam')]) == 0
  assert sorted(p.name for p in tmp_path.iterdir()) == ['beam', 'in', 'local']


def test_mistakes_are_one_line_under_beam_too(tmp_path, capsys):
  raw = tmp_path / 'raw'
  raw.write_bytes(gzip.compress('\n'.join(criteo_lines(20)).encode()))
  given = ['--dataset=criteo', f'--raw={raw}', f'--out={tmp_path / "out"}']
  assert beam_build.main(given) == 2
  error = capsys.readouterr().err
  assert error.count('\n') == 1 and 'unzip it first' in error
  write_lines(raw, criteo_lines(5))
  assert beam_build.main(given) == 2
  assert 'only 5 valid rows' in capsys.readouterr().err
  assert [p.name for p in tmp_path.iterdir()] == ['raw']
