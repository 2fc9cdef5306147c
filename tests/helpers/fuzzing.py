# SPDX-License-Identifier: Apache-2.0
"""Shared by tests that feed damaged input: how many examples, and what damage is done.

The same examples in every run of the suite; `make fuzz` draws FUZZ times as many, new ones.
"""

import copy
import os
import random

from hypothesis import HealthCheck, settings

TIMES = int(os.environ.get('FUZZ', '1'))


def examples(n: int) -> settings:
  """Settings of a test of n examples in the suite."""
  return settings(
    max_examples=n * TIMES,
    derandomize=TIMES == 1,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
  )


def deep(levels: int) -> list:
  out = []
  for _ in range(levels):
    out = [out]
  return out


# In place of a value of JSON.
STRANGE = [
  *(None, True, False, 0, 1, -1, 7, 2**31, 2**53, 10**400, 0.5, -0.0, 1e308),
  *(float('nan'), float('inf'), '', '7', '../x', '/etc/passwd', 'a/b', '\x1b[31m', '\x00'),
  *('\ud800', 'x' * 5000, [], {}, [1, 2], {'a': 1}, deep(50)),
]  # fmt: skip


def nodes(value, path=()) -> list[tuple]:
  """Paths of all values inside a value of JSON, and of itself."""
  keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
  return [path, *(p for key in keys for p in nodes(value[key], (*path, key)))]


def mutated(value, rng: random.Random):
  """A value of JSON with one to three changes."""
  root = [copy.deepcopy(value)]
  for _ in range(rng.randint(1, 3)):
    *path, key = rng.choice(nodes(root)[1:])
    parent = root
    for k in path:
      parent = parent[k]
    how = rng.randrange(4) if parent is not root else 0
    if how == 1:
      del parent[key]
    elif how == 2 and isinstance(parent, list):
      parent.append(copy.deepcopy(parent[key]))
    elif how == 2:
      parent[rng.choice(['', 'more', '../y', '\x1b'])] = parent.pop(key)
    else:
      parent[key] = copy.deepcopy(rng.choice(STRANGE))
  return root[0]


def damaged(data: bytes, rng: random.Random) -> bytes:
  """Bytes of a file with one to three changes: cut, doubled, overwritten, put in."""
  for _ in range(rng.randint(1, 3)):
    at = rng.randrange(len(data) + 1)
    to = min(len(data), at + rng.choice([0, 1, 1, 2, 8, 100]))
    put = rng.choice(PUT)
    data = data[:at] if rng.random() < 0.15 else data[:at] + put + data[to:]
  return data


PUT = [
  *(b'', b'\x00', b'\n', b'\r\n', b'\r', b'\t', b',', b'"', b'-', b'1', b'2', b' ', b'NaN', b'1e9'),
  *(b'9' * 18, b'9' * 19, b'-' + b'9' * 400, b'\xff\xfe', 'ü'.encode(), b'\xed\xa0\x80'),
  *(b'x' * 3000, b'\n' * 50, b',' * 200, b'\t' * 200, b'deadbeef', b'\x1b[2J', b'\x1f\x8b'),
]  # fmt: skip
