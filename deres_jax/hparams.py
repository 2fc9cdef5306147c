# SPDX-License-Identifier: Apache-2.0
"""A run's row in TensorBoard's table of hyper-parameters, as values of a Summary.

Messages of tensorboard/plugins/hparams/plugin_data.proto. The table's columns are not written:
TensorBoard takes them from the rows of all runs, and shows first the fields in which they differ.
"""

import struct
from typing import Any

from deres_jax import wire

_STARTED, _ENDED = 3, 4  # fields of HParamsPluginData; its version is 0, which is not written
_SUCCESS = b'\x08\x01'  # SessionEndInfo.status
# Keys of fields, number << 3 | type: of google.protobuf.Value, of SessionStartInfo and ...EndInfo.
_NUMBER, _BOOL = b'\x11', b'\x20'
_START_SECONDS, _END_SECONDS = b'\x29', b'\x11'
_NO_TENSOR = b'\x08\x01\x12\x04\x12\x02\x08\x00'  # TensorProto: float, of shape [0]


def started(settings: dict[str, Any], now: float) -> bytes:
  """The settings of a run (numbers, booleans, texts), and when it began."""
  fields = [
    wire.field(1, wire.field(1, k.encode()) + wire.field(2, _value(v))) for k, v in settings.items()
  ]
  info = b''.join(fields) + _START_SECONDS + struct.pack('<d', now)
  return _summary_value('_hparams_/session_start_info', wire.field(_STARTED, info))


def ended(now: float) -> bytes:
  """That the run is finished, and when."""
  info = _SUCCESS + _END_SECONDS + struct.pack('<d', now)
  return _summary_value('_hparams_/session_end_info', wire.field(_ENDED, info))


def _value(x: Any) -> bytes:
  if isinstance(x, bool):
    return _BOOL + bytes([x])
  if isinstance(x, int | float):
    return _NUMBER + struct.pack('<d', x)
  return wire.field(3, x.encode())


def _summary_value(tag: str, content: bytes) -> bytes:
  plugin = wire.field(1, b'hparams') + wire.field(2, content)
  metadata = wire.field(1, plugin)
  return wire.field(1, tag.encode()) + wire.field(8, _NO_TENSOR) + wire.field(9, metadata)
