# SPDX-License-Identifier: Apache-2.0
"""Two real processes of four devices beside one of eight: the same run on planted data."""

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROUNDS, STEPS, LOG_STEPS = 2, 100, 10
REPO = Path(__file__).parents[3]
SHAPES = {'2 x 4': (2, 4), '1 x 8': (1, 8)}


def _run(folder: Path, workdir: Path, processes: int, devices: int) -> list[dict]:
  """Lines of metrics.jsonl of a run."""
  numbers = {
    'data.path': folder / 'data',
    'train.steps': STEPS,
    'train.epochs': 0,
    'train.eval_steps': STEPS,
    'train.eval_epochs': 0,
    'train.log_steps': LOG_STEPS,
  }
  pod = ['deres_jax.pod', f'--processes={processes}', f'--devices={devices}', '--']
  run = ['--config=experiments/quickstart.py', f'--workdir={workdir}']
  _call([*pod, *run, *(f'--config.{k}={v}' for k, v in numbers.items())])
  return list(map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines()))


def _call(command: list[str]):
  done = subprocess.run(
    [sys.executable, '-m', *command], cwd=REPO, capture_output=True, text=True, check=False
  )
  if done.returncode:
    raise RuntimeError(f'{" ".join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}')


def pods() -> Iterator[list[dict]]:
  """Rows a second and losses of both, in turns."""
  speeds, losses = {name: [] for name in SHAPES}, {}
  with tempfile.TemporaryDirectory(prefix='bench-scale-') as name:
    folder = Path(name)
    _call(['data_pipelines.build', '--dataset=synthetic', f'--out={folder / "data"}'])
    for k in range(ROUNDS):
      for shape, (processes, devices) in SHAPES.items():
        lines = _run(folder, folder / f'{k}-{processes}', processes, devices)
        # The first line of a run has the compilation in it.
        train = [line for line in lines if line['split'] == 'train'][1:]
        speeds[shape].append(statistics.median(line['rows_per_second'] for line in train))
        losses[shape] = [line['logloss'] for line in lines]
  ours, beside = (statistics.median(speeds[shape]) for shape in SHAPES)
  ratios = [a / b for a, b in zip(*speeds.values(), strict=True)]
  apart = max(abs(a - b) for a, b in zip(*losses.values(), strict=True))
  yield [
    {
      'what': 'training: 2 processes x 4 devices beside 1 x 8 (planted data, DeRes 2 layers)',
      'unit': 'rows/s',
      'ours': ours,
      'beside': beside,
      'ratio': statistics.median(ratios),
      'spread': [min(ratios), max(ratios)],
      'aim': '',
      'rounds': ROUNDS,
    },
    {
      'what': 'their log losses, most that a line differs',
      'unit': 'nats',
      'ours': apart,
      'beside': None,
      'ratio': None,
      'aim': '<= 1e-5',
    },
  ]
