# SPDX-License-Identifier: Apache-2.0
"""Protocol buffers by hand: the two parts of their encoding that event files need."""


def varint(n: int) -> bytes:
  """A whole number, 7 bits a byte, the lowest first."""
  out = bytearray()
  while n > 127:
    out.append(n & 127 | 128)
    n >>= 7
  return bytes([*out, n])


def field(number: int, content: bytes) -> bytes:
  """A field of bytes: a text or a message."""
  return varint(number << 3 | 2) + varint(len(content)) + content
