# SPDX-License-Identifier: Apache-2.0
"""Shared by tests: ways to damage a checkpoint, one folder of checkpoints/."""

import pathlib

from deres_jax.training.checkpoints import manifest


def flip(file: pathlib.Path, bit: int | None = None):
  """Flips one bit; the one in the middle where none is given."""
  data = bytearray(file.read_bytes())
  bit = len(data) * 4 if bit is None else bit
  data[bit // 8] ^= 1 << bit % 8
  file.write_bytes(data)


def table(folder: pathlib.Path) -> pathlib.Path:
  """The largest file of a checkpoint: it holds the arrays."""
  return max(folder.rglob('*'), key=lambda p: p.stat().st_size * p.is_file())


def rewrite(folder: pathlib.Path, **changes):
  """A manifest that is whole and says something else."""
  manifest.save(folder, manifest.read(folder) | changes)
