# SPDX-License-Identifier: Apache-2.0
"""Scalars and hyper-parameters in TensorBoard's event files.

Written by hand because libraries that do it import PyTorch or TensorFlow where they find it, which
takes longer than all else that a run imports. A file is a row of TFRecords (length, its checksum,
data, its checksum), each an `Event` of tensorflow/core/util/event.proto.
"""

import os
import pathlib
import socket
import struct
import time
from typing import Any

from deres_jax import hparams, wire

_WALL_TIME, _STEP = b'\x09', b'\x10'  # keys of Event's fields: number << 3 | type
_VERSION, _SUMMARY, _SESSION = 3, 5, 7  # numbers of Event's other fields
_SESSION_START = b'\x08\x01'
_SIMPLE_VALUE = b'\x15'


class Events:
  """The event file of one start of a run; TensorBoard shows all files of a folder as one."""

  def __init__(self, folder: pathlib.Path, step: int, settings: dict[str, Any] | None = None):
    """
    Args:
      step: from it on, this file replaces what earlier ones say.
      settings: of the run, for the table of hyper-parameters.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # TensorBoard reads files in the order of their stamps, whatever the clock did meanwhile.
    stamps = [int(x.name.split('.')[3]) for x in folder.glob('events.out.tfevents.*')]
    stamp = max([int(time.time()), *(x + 1 for x in stamps)])
    name = f'events.out.tfevents.{stamp}.{socket.gethostname()}.{os.getpid()}'
    self._file = (folder / name).open('ab')
    self._write(0, _VERSION, b'brain.Event:2')
    self._write(step, _SESSION, _SESSION_START)
    self._in_table = settings is not None
    if settings is not None:
      self._write(0, _SUMMARY, wire.field(1, hparams.started(settings, time.time())))

  def write(self, step: int, figures: dict[str, float]):
    """One event with all figures of a step. Those of the test split are the end of the run."""
    values = [
      wire.field(1, tag.encode()) + _SIMPLE_VALUE + struct.pack('<f', x)
      for tag, x in figures.items()
    ]
    if self._in_table and any(tag.startswith('test/') for tag in figures):
      values.append(hparams.ended(time.time()))
    self._write(step, _SUMMARY, b''.join(wire.field(1, value) for value in values))

  def close(self):
    """Closes the file; what was written is on disk."""
    self._file.close()

  def _write(self, step: int, number: int, content: bytes):
    event = _WALL_TIME + struct.pack('<d', time.time()) + _STEP + wire.varint(step)
    self._file.write(_record(event + wire.field(number, content)))
    self._file.flush()


def _record(data: bytes) -> bytes:
  length = struct.pack('<Q', len(data))
  return length + _checksum(length) + data + _checksum(data)


def _table() -> list[int]:
  out = []
  for crc in range(256):
    for _ in range(8):
      crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    out.append(crc)
  return out


_CRC = _table()


def _checksum(data: bytes) -> bytes:
  """CRC-32C, masked as TFRecords have it."""
  crc = 0xFFFFFFFF
  for byte in data:
    crc = crc >> 8 ^ _CRC[(crc ^ byte) & 255]
  crc ^= 0xFFFFFFFF
  return struct.pack('<I', (crc >> 15 | crc << 17) + 0xA282EAD8 & 0xFFFFFFFF)
