# SPDX-License-Identifier: Apache-2.0
"""TensorBoard's event files: read back by another library's protocol buffers and checksums."""

import math
import pathlib
import struct
import subprocess
import sys
import time

import pytest
from tensorboardX.proto import api_pb2, event_pb2
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData
from tensorboardX.record_writer import masked_crc32c

from deres_jax.training.logs import tensorboard

REPO = pathlib.Path(__file__).resolve().parents[3]


def read(folder) -> list[event_pb2.Event]:
  """Events of all files, in TensorBoard's order."""
  out = []
  for file in sorted(folder.iterdir()):
    data = file.read_bytes()
    while data:
      length, checksum = data[:8], data[8:12]
      assert checksum == struct.pack('<I', masked_crc32c(length))
      end = 12 + struct.unpack('<Q', length)[0]
      assert data[end : end + 4] == struct.pack('<I', masked_crc32c(data[12:end]))
      out.append(event_pb2.Event.FromString(data[12:end]))
      data = data[end + 4 :]
  return out


def test_another_library_reads_what_is_written(tmp_path):
  began = time.time()
  written = [(1, {'train/auc': 0.75}), (300, {'ä' * 100: -1e30, 'b': math.nan, 'c': math.inf})]
  file = tensorboard.Events(tmp_path / 'board', 1)
  for step, figures in written:
    file.write(step, figures)
  version, start, *summaries = read(tmp_path / 'board')  # not closed: a run may be killed
  file.close()
  assert version.file_version == 'brain.Event:2'
  assert start.session_log.status == event_pb2.SessionLog.START and start.step == 1
  assert len(summaries) == len(written)
  for event, (step, figures) in zip(summaries, written, strict=True):
    assert event.step == step and began <= event.wall_time <= time.time()
    got = {value.tag: value.simple_value for value in event.summary.value}
    assert got == pytest.approx(figures, nan_ok=True)


def test_a_later_start_says_from_where_it_replaces_the_earlier_one(tmp_path):
  for step in (1, 50):
    tensorboard.Events(tmp_path, step).close()
  starts = [e.step for e in read(tmp_path) if e.HasField('session_log')]
  assert starts == [1, 50]


def test_the_table_of_hyper_parameters_has_a_row_of_the_run(tmp_path):
  """Parsed as the plugin stores it; what it begins with, and its end after the test figures."""
  settings = {'model.depth': 300, 'optim.lr': -1e-30, 'model.causal': True, 'off': False, 'ä': 'ö'}
  settings['long'] = 'x' * 300
  began = time.time()
  file = tensorboard.Events(tmp_path, 7, settings)
  file.write(7, {'train/auc': 0.5})
  file.write(9, {'test/auc': 0.75, 'test/rows': 3})
  file.close()
  values = [value for event in read(tmp_path) for value in event.summary.value]
  assert [x.tag for x in values] == [
    *('_hparams_/session_start_info', 'train/auc', 'test/auc', 'test/rows'),
    '_hparams_/session_end_info',
  ]
  plugin = [x.metadata.plugin_data for x in (values[0], values[-1])]
  assert [x.plugin_name for x in plugin] == ['hparams'] * 2
  start, end = (HParamsPluginData.FromString(x.content) for x in plugin)
  assert start.version == end.version == 0
  got = start.session_start_info
  kinds = {k: v.WhichOneof('kind') for k, v in got.hparams.items()}
  assert {k: v for k, v in kinds.items() if k in ('model.causal', 'off')} == dict.fromkeys(
    ('model.causal', 'off'), 'bool_value'
  )
  assert {k: getattr(v, kinds[k]) for k, v in got.hparams.items()} == settings
  assert end.session_end_info.status == api_pb2.Status.Value('STATUS_SUCCESS')
  assert began <= got.start_time_secs <= end.session_end_info.end_time_secs <= time.time()
  assert values[0].tensor.dtype == 1 and [x.size for x in values[0].tensor.tensor_shape.dim] == [0]


def test_a_run_imports_neither_pytorch_nor_tensorflow():
  """Each would take longer to import than everything else, for users who have it."""
  code = "import sys, deres_jax.main; print({'torch', 'tensorflow'} & sys.modules.keys())"
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, cwd=REPO, check=True
  )
  assert done.stdout == 'set()\n'


def test_a_clock_that_jumps_back_changes_no_order(tmp_path, monkeypatch):
  """A later start comes later in TensorBoard, which reads files in the order of their names."""
  for now, step in ((2e9, 1), (1.9e9, 5), (1.9e9, 9)):
    monkeypatch.setattr(tensorboard.time, 'time', lambda now=now: now)
    file = tensorboard.Events(tmp_path, step)
    file.write(step, {'train/auc': 0.5})
    file.close()
  assert [e.step for e in read(tmp_path) if e.HasField('summary')] == [1, 5, 9]
