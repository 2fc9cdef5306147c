# SPDX-License-Identifier: Apache-2.0
"""What a run writes while it goes: metrics.jsonl, the record, and what its sinks take of it."""

import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any, Protocol

from deres_jax.core import files


class Sink(Protocol):
  """Takes the figures of a run: `deres_jax.training.logs.wandb`."""

  def write(self, step: int, figures: dict[str, float]):
    """Args: figures by tag, such as 'train/auc'; those of the test split come last."""

  def close(self):
    """Nothing more comes."""


class Metrics:
  """metrics.jsonl of one run, and the sinks that get the same figures.

  A run that resumes at step s drops what it will write again: the lines of later steps and the
  test figures, which come last whatever the step; and a line that a crash tore.

  Attributes:
    lines: number of lines in metrics.jsonl.
    lost: what is to be said where earlier ones are gone; most often nothing.
  """

  def __init__(self, workdir: pathlib.Path, step: int, expected: int, sinks: Sequence[Sink] = ()):
    """
    Args:
      expected: lines up to `step`, as its checkpoint says.
      sinks: get all figures that are written, and are closed with this.
    """
    self._path = workdir / 'metrics.jsonl'
    lines = [x for x in self._lines() if x['step'] <= step and x['split'] != 'test']
    self.lines, self.lost = len(lines), []
    if self.lines < expected:
      self.lost.append(
        f'{self._path} has {self.lines} of {expected} lines up to step {step}: the figures of '
        'earlier steps are gone; the run goes on'
      )
    files.write(self._path, ''.join(json.dumps(x) + '\n' for x in lines))
    self._file = self._path.open('a')
    self._sinks = sinks

  def _lines(self) -> list[dict[str, Any]]:
    if not self._path.exists():
      return []
    out = []
    for line in self._path.read_text(errors='replace').splitlines():
      try:
        out.append(json.loads(line))
      except json.JSONDecodeError:
        continue  # torn by a crash: the step that wrote it runs again
    return [x for x in out if isinstance(x, dict) and {'step', 'split'} <= x.keys()]

  def write(self, step: int, split: str, figures: dict[str, float]):
    """One line: step, split and the figures; a figure that is not finite becomes null."""
    values = {k: v if abs(v) < float('inf') else None for k, v in figures.items()}
    self._file.write(json.dumps({'step': step, 'split': split, **values}) + '\n')
    self._file.flush()
    self.lines += 1
    for sink in self._sinks:
      sink.write(step, {f'{split}/{k}': v for k, v in figures.items()})

  def sync(self):
    """Returns when all lines are on the disk."""
    os.fsync(self._file.fileno())

  def close(self):
    """Closes the files."""
    self._file.close()
    for sink in self._sinks:
      sink.close()


class NullWriter:
  """In place of `Metrics` and `Progress`, in a process that writes neither."""

  lines, lost = 0, ()

  def _ignore(self, *args): ...

  write = step = line = sync = close = _ignore
