# SPDX-License-Identifier: Apache-2.0
"""Scalars in TensorBoard's event files.

Written by hand because libraries that do it import PyTorch or TensorFlow where they find it, which
takes longer than all else that a run imports. A file is a row of TFRecords (length, its checksum,
data, its checksum), each an `Event` of tensorflow/core/util/event.proto.
"""

import os
import pathlib
import socket
import struct
import time

_WALL_TIME, _STEP = b'\x09', b'\x10'  # keys of Event's fields: number << 3 | type
_VERSION, _SUMMARY, _SESSION = 3, 5, 7  # numbers of Event's other fields
_SESSION_START = b'\x08\x01'
_SIMPLE_VALUE = b'\x15'


class Events:
  """The event file of one start of a run; TensorBoard shows all files of a folder as one."""

  def __init__(self, folder: pathlib.Path, step: int):
    """From `step` on, this file replaces what earlier ones say."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f'events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}'
    self._file = (folder / name).open('ab')
    self._write(0, _VERSION, b'brain.Event:2')
    self._write(step, _SESSION, _SESSION_START)

  def write(self, step: int, figures: dict[str, float]):
    """One event with all figures of a step."""
    values = [
      _field(1, tag.encode()) + _SIMPLE_VALUE + struct.pack('<f', x) for tag, x in figures.items()
    ]
    self._write(step, _SUMMARY, b''.join(_field(1, value) for value in values))

  def close(self):
    """Closes the file; what was written is on disk."""
    self._file.close()

  def _write(self, step: int, number: int, content: bytes):
    event = _WALL_TIME + struct.pack('<d', time.time()) + _STEP + _varint(step)
    self._file.write(_record(event + _field(number, content)))
    self._file.flush()


def _varint(n: int) -> bytes:
  out = bytearray()
  while n > 127:
    out.append(n & 127 | 128)
    n >>= 7
  return bytes([*out, n])


def _field(number: int, content: bytes) -> bytes:
  """A field of bytes, as protocol buffers hold it."""
  return bytes([number << 3 | 2]) + _varint(len(content)) + content


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
