# SPDX-License-Identifier: Apache-2.0
"""Progress lines, files of columns and results of tasks."""

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.core import columns_file, progress
from data_pipelines.core.files import read_result, write_result
from data_pipelines.core.workers import cut_runs
from deres_jax.core.errors import UserError


def test_a_line_is_logged_every_five_seconds(monkeypatch):
  now, lines = [100.0], []
  monkeypatch.setattr(progress.time, 'monotonic', lambda: now[0])
  with progress.Progress(lines.append, 'reading', 1000) as bar:
    for _ in range(6):
      now[0] += 2.0
      bar.add(100)
  assert lines == [
    'reading: 300 rows, 50 rows/s, 30 %, 0:14 left',
    'reading: 600 rows, 50 rows/s, 60 %, 0:08 left',
    'reading: 600 rows in 12.0 s',
  ]


def test_a_failed_phase_has_no_closing_line():
  lines = []
  with pytest.raises(KeyboardInterrupt), progress.Progress(lines.append, 'reading', None) as bar:
    bar.add(3, share=0.5)
    raise KeyboardInterrupt
  assert not lines


@given(sizes=st.lists(st.integers(0, 9)), least=st.integers(1, 20))
def test_runs_cover_all_items_and_only_the_last_is_small(sizes, least):
  runs = cut_runs(sizes, least)
  assert [i for first, last in runs for i in range(first, last)] == list(range(len(sizes)))
  assert all(sum(sizes[first:last]) >= least for first, last in runs[:-1])


def test_columns_are_read_back_whole_in_part_and_mapped(tmp_path):
  arrays = {'a': np.arange(10, dtype=np.int16), 'b': np.ones((3, 2)), 'c': np.zeros((0, 4), 'u1')}
  columns_file.write(tmp_path / 'file', arrays)
  with columns_file.Reader(tmp_path / 'file') as file:
    for name, array in arrays.items():
      np.testing.assert_array_equal(file.read(name), array)
      np.testing.assert_array_equal(file.map(name), array)
    np.testing.assert_array_equal(file.read('b', 1, 3), arrays['b'][1:])
    assert 'a' in file and 'd' not in file
  assert [path.name for path in tmp_path.iterdir()] == ['file']


@pytest.mark.parametrize('data', [b'', b'\x09\0\0\0\0\0\0\0{"a": [1]}', b'\x02\0\0\0\0\0\0\0[]'])
def test_a_damaged_file_of_columns_is_a_user_error(tmp_path, data):
  (tmp_path / 'file').write_bytes(data)
  with pytest.raises(UserError, match=r'ends in \.building'):
    columns_file.Reader(tmp_path / 'file')


class Result(msgspec.Struct):
  rows: int
  raw: bytes


def test_results_are_read_back_and_damaged_ones_are_a_user_error(tmp_path):
  path = tmp_path / 'out.building' / 'work' / 'keys' / '000000.json'
  path.parent.mkdir(parents=True)
  write_result(path, Result(3, b'\xff\0'))
  assert read_result(path, Result) == Result(3, b'\xff\0')
  path.write_bytes(path.read_bytes()[:-3])
  with pytest.raises(UserError, match=r'remove .*out\.building and run the build again'):
    read_result(path, Result)
