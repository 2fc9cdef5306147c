# SPDX-License-Identifier: Apache-2.0
"""The same bytes from Apache Beam's direct runner as from a local build."""

import gzip

from invented_rows import criteo_lines, write_lines

from data_pipelines import beam_build, build, doctor


def files(folder):
  return {p.relative_to(folder): p.read_bytes() for p in folder.rglob('*') if p.is_file()}


def test_beam_writes_the_same_bytes(tmp_path, monkeypatch):
  monkeypatch.setattr('data_pipelines.ingest.CHUNK_BYTES', 20_000)
  monkeypatch.setattr('data_pipelines.encoding._GROUP_ROWS', 200)
  lines = criteo_lines(700)
  lines[300] = 'bad'
  raw = write_lines(tmp_path / 'raw', lines)
  flags = ['--dataset=criteo', f'--raw={raw}', '--min_count=2']
  runner = ['--runner=DirectRunner', '--direct_running_mode=in_memory']
  assert build.main([*flags, f'--out={tmp_path / "local"}']) == 0
  assert beam_build.main([*flags, f'--out={tmp_path / "beam"}', *runner]) == 0
  assert files(tmp_path / 'beam') == files(tmp_path / 'local')
  assert doctor.main([str(tmp_path / 'beam')]) == 0
  assert sorted(p.name for p in tmp_path.iterdir()) == ['beam', 'local', 'raw']


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
