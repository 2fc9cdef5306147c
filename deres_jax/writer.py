# SPDX-License-Identifier: Apache-2.0
"""What a run writes while it goes: metrics.jsonl (the record), TensorBoard, a progress line."""

import json
import os
import pathlib
import sys
import time
from typing import Any

from rich import progress
from rich.console import Console

from deres_jax.events import Events


def write_json(path: pathlib.Path, value: Any):
  """Writes the whole file or leaves the old one."""
  partial = path.with_name(path.name + '.partial')
  partial.write_text(json.dumps(value, indent=1) + '\n')
  os.replace(partial, path)


class Metrics:
  """metrics.jsonl and TensorBoard events of one run.

  A run that resumes at step s drops what it will write again: the lines of later steps and the
  test figures, which come last whatever the step; and a line that a crash tore.
  """

  def __init__(self, workdir: pathlib.Path, step: int):
    self._path = workdir / 'metrics.jsonl'
    lines = [x for x in self._lines() if x['step'] <= step and x['split'] != 'test']
    partial = self._path.with_name('metrics.jsonl.partial')
    partial.write_text(''.join(json.dumps(x) + '\n' for x in lines))
    os.replace(partial, self._path)
    self._file = self._path.open('a')
    self._events = Events(workdir / 'tensorboard', step + 1)

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
    self._events.write(step, {f'{split}/{k}': v for k, v in figures.items()})

  def close(self):
    """Closes the files."""
    self._file.close()
    self._events.close()


class Progress:
  """How far a run is: a live line on a terminal, plain lines otherwise. Writes to stderr."""

  def __init__(self, total: int, start: int):
    self._total, self._start, self._began = total, start, time.monotonic()
    self._last = self._began
    self._live = None
    dumb = os.environ.get('TERM', '') in ('', 'dumb')
    if sys.stderr.isatty() and not dumb:
      self._live = progress.Progress(
        progress.TextColumn('step'),
        progress.MofNCompleteColumn(),
        progress.BarColumn(),
        progress.TimeRemainingColumn(),
        progress.TextColumn('{task.description}'),
        console=Console(stderr=True),
      )
      self._task = self._live.add_task('', total=total, completed=start)
      self._live.start()

  def step(self, step: int, text: str = ''):
    """Shows that `step` steps are done. Without a terminal a line appears every 10 s at most."""
    if self._live:
      self._live.update(self._task, completed=step, description=text or None)
    elif text and time.monotonic() - self._last > 10:
      self._last = time.monotonic()
      left = (self._last - self._began) / max(step - self._start, 1) * (self._total - step)
      self.line(f'step {step}/{self._total}  {text}  {left:.0f} s left')

  def line(self, text: str):
    """A line that stays."""
    if self._live:
      self._live.console.print(text, highlight=False)
    else:
      print(text, file=sys.stderr, flush=True)

  def close(self):
    """Ends the line."""
    if self._live:
      self._live.stop()


class Nowhere:
  """`Metrics` and `Progress` of a process that writes neither."""

  def write(self, step: int, split: str, figures: dict[str, float]):
    """Writes nothing."""

  def step(self, step: int, text: str = ''):
    """Shows nothing."""

  def line(self, text: str):
    """Prints nothing."""

  def close(self):
    """There is nothing to close."""
