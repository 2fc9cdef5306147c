# SPDX-License-Identifier: Apache-2.0
"""Scalars and hyper-parameters in TensorBoard's event files.

Written by hand, because libraries that do it import PyTorch or TensorFlow where they are installed,
which takes longer than all other imports of a run. A file is a sequence of TFRecords (length, its
checksum, data, its checksum), each holding an `Event` of tensorflow/core/util/event.proto.

A run's row in the table of hyper-parameters consists of two values of a Summary, with messages of
tensorboard/plugins/hparams/plugin_data.proto. The table's columns are not written: TensorBoard
takes them from the rows of all runs, and shows first the fields in which they differ.
"""

import os
import pathlib
import socket
import struct
import time
from typing import Any

# Keys of Event's fields, number << 3 | type, and the numbers of those that hold bytes.
_WALL_TIME, _STEP = b'\x09', b'\x10'
_VERSION, _SUMMARY, _SESSION = 3, 5, 7
_SESSION_START = b'\x08\x01'
_SIMPLE_VALUE = b'\x15'  # key in Summary.Value


class Events:
  """The event file of one start of a run. TensorBoard shows all files of a folder as one."""

  def __init__(self, folder: pathlib.Path, step: int, settings: dict[str, Any] | None = None):
    """Opens a file with a later stamp than all others of the folder.

    Args:
      step: from it on, this file replaces what earlier files hold.
      settings: of the run, for the table of hyper-parameters.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # TensorBoard reads files in the order of their stamps, so they must rise even if the clock
    # was set back.
    stamps = [int(x.name.split('.')[3]) for x in folder.glob('events.out.tfevents.*')]
    stamp = max([int(time.time()), *(x + 1 for x in stamps)])
    name = f'events.out.tfevents.{stamp}.{socket.gethostname()}.{os.getpid()}'
    self._file = (folder / name).open('ab')
    self._write(0, _VERSION, b'brain.Event:2')
    self._write(step, _SESSION, _SESSION_START)
    self._in_table = settings is not None
    if settings is not None:
      self._write(0, _SUMMARY, field(1, started(settings, time.time())))

  def write(self, step: int, figures: dict[str, float]):
    """Writes all figures of a step as one event. Those of the test split end the run."""
    values = [
      field(1, tag.encode()) + _SIMPLE_VALUE + struct.pack('<f', x) for tag, x in figures.items()
    ]
    if self._in_table and any(tag.startswith('test/') for tag in figures):
      values.append(ended(time.time()))
    self._write(step, _SUMMARY, b''.join(field(1, value) for value in values))

  def close(self):
    """Closes the file."""
    self._file.close()

  def _write(self, step: int, number: int, content: bytes):
    event = _WALL_TIME + struct.pack('<d', time.time()) + _STEP + varint(step)
    self._file.write(_record(event + field(number, content)))
    self._file.flush()


# The table of hyper-parameters.

_STARTED, _ENDED = 3, 4  # fields of HParamsPluginData; its version is 0, which is not written
_START_SECONDS, _END_SECONDS = b'\x29', b'\x11'  # keys in SessionStartInfo and SessionEndInfo
_SUCCESS = b'\x08\x01'  # SessionEndInfo.status
_NUMBER, _BOOL = b'\x11', b'\x20'  # keys in google.protobuf.Value
_NO_TENSOR = b'\x08\x01\x12\x04\x12\x02\x08\x00'  # TensorProto: float, of shape [0]


def started(settings: dict[str, Any], now: float) -> bytes:
  """Encodes the settings of a run (numbers, booleans, strings) and when it began."""
  fields = [field(1, field(1, k.encode()) + field(2, _value(v))) for k, v in settings.items()]
  info = b''.join(fields) + _START_SECONDS + struct.pack('<d', now)
  return _summary_value('_hparams_/session_start_info', field(_STARTED, info))


def ended(now: float) -> bytes:
  """Encodes that the run is finished, and when."""
  info = _SUCCESS + _END_SECONDS + struct.pack('<d', now)
  return _summary_value('_hparams_/session_end_info', field(_ENDED, info))


def _value(x: Any) -> bytes:
  if isinstance(x, bool):
    return _BOOL + bytes([x])
  if isinstance(x, int | float):
    return _NUMBER + struct.pack('<d', x)
  return field(3, x.encode())


def _summary_value(tag: str, content: bytes) -> bytes:
  plugin = field(1, b'hparams') + field(2, content)
  return field(1, tag.encode()) + field(8, _NO_TENSOR) + field(9, field(1, plugin))


# Protocol buffers: the two parts of their encoding that are needed here.


def varint(n: int) -> bytes:
  """Encodes a whole number, 7 bits a byte, the lowest first."""
  out = bytearray()
  while n > 127:
    out.append(n & 127 | 128)
    n >>= 7
  return bytes([*out, n])


def field(number: int, content: bytes) -> bytes:
  """Encodes a field of bytes: a string or a message."""
  return varint(number << 3 | 2) + varint(len(content)) + content


# TFRecords.


def _record(data: bytes) -> bytes:
  length = struct.pack('<Q', len(data))
  return length + _checksum(length) + data + _checksum(data)


def _crc_table() -> list[int]:
  out = []
  for crc in range(256):
    for _ in range(8):
      crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    out.append(crc)
  return out


_CRC = _crc_table()


def _checksum(data: bytes) -> bytes:
  """Computes CRC-32C, masked as TFRecords require."""
  crc = 0xFFFFFFFF
  for byte in data:
    crc = crc >> 8 ^ _CRC[(crc ^ byte) & 255]
  crc ^= 0xFFFFFFFF
  return struct.pack('<I', (crc >> 15 | crc << 17) + 0xA282EAD8 & 0xFFFFFFFF)
