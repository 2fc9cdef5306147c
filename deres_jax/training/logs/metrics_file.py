# SPDX-License-Identifier: Apache-2.0
"""Records a run's figures in metrics.jsonl and passes them to the sinks."""

import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any, Protocol

from deres_jax.core import files


class Sink(Protocol):
  """Receives the figures of a run: `deres_jax.training.logs.wandb`."""

  def write(self, step: int, figures: dict[str, float]):
    """Receives figures by tag, such as 'train/auc'. Those of the test split come last."""

  def close(self):
    """Ends the record."""


class Metrics:
  """The metrics.jsonl of a run, and its sinks.

  A run that resumes at step s drops the lines that it will write again: those of later steps, the
  test figures, which come last whatever the step, and a line that a crash cut short.

  Attributes:
    lines: number of lines in metrics.jsonl.
    lost: a message if lines of earlier steps are missing; usually empty.
  """

  def __init__(self, workdir: pathlib.Path, step: int, expected: int, sinks: Sequence[Sink] = ()):
    """Drops the lines that will be written again, and opens the file.

    Args:
      expected: number of lines up to `step`, from its checkpoint.
      sinks: receive all figures that are written; closed with this.
    """
    path = workdir / 'metrics.jsonl'
    lines = [x for x in _read(path) if x['step'] <= step and x['split'] != 'test']
    self.lines, self.lost = len(lines), []
    if self.lines < expected:
      self.lost.append(
        f'{path} has {self.lines} of {expected} lines up to step {step}: the figures of earlier '
        'steps are gone; the run goes on'
      )
    files.write(path, ''.join(json.dumps(x) + '\n' for x in lines))
    self._file = path.open('a')
    self._sinks = sinks

  def write(self, step: int, split: str, figures: dict[str, float]):
    """Writes a line of step, split and figures; a figure that is not finite becomes null."""
    values = {k: v if abs(v) < float('inf') else None for k, v in figures.items()}
    self._file.write(json.dumps({'step': step, 'split': split, **values}) + '\n')
    self._file.flush()
    self.lines += 1
    for sink in self._sinks:
      sink.write(step, {f'{split}/{k}': v for k, v in figures.items()})

  def sync(self):
    """Waits until all lines are on the disk."""
    os.fsync(self._file.fileno())

  def close(self):
    """Closes the file and the sinks."""
    self._file.close()
    for sink in self._sinks:
      sink.close()


def _read(path: pathlib.Path) -> list[dict[str, Any]]:
  if not path.exists():
    return []
  out = []
  for line in path.read_text(errors='replace').splitlines():
    try:
      out.append(json.loads(line))
    except json.JSONDecodeError:
      continue  # cut short by a crash: the step that wrote it runs again
  return [x for x in out if isinstance(x, dict) and {'step', 'split'} <= x.keys()]


class NullWriter:
  """Takes the place of `Metrics` and `Progress` in a process that writes neither."""

  lines, lost = 0, ()

  def _ignore(self, *args): ...

  write = step = line = sync = close = _ignore
