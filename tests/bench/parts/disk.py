# SPDX-License-Identifier: Apache-2.0
"""Training from a prepared folder on disk beside training on one batch in memory."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import reading
import steps

REPO = Path(__file__).resolve().parents[3]
FIELDS, LARGEST = 39, 1_000_000  # ids of the largest field: 3.6M rows of tables in all
ROWS = 640_000  # no epoch ends while it is timed
# Config and steps at a time: the faster the model, the less time it leaves the reader.
MODELS = {'Transformer': (steps.TRANSFORMER, 5), 'MLP': (steps.MLP, 40)}


def disk(rounds: int) -> Iterator[list[dict]]:
  with tempfile.TemporaryDirectory(prefix='bench-disk-') as folder:
    prepared = Path(folder, 'data')
    build = [sys.executable, '-m', 'data_pipelines.build', '--dataset=synthetic']
    build += [f'--out={prepared}', f'--rows_train={ROWS}', f'--fields={FIELDS}']
    build += [f'--cardinality_max={LARGEST}', '--logit_std=0']
    subprocess.run(build, cwd=REPO, capture_output=True, check=True)
    for name, (overrides, many) in MODELS.items():
      settings = f'{overrides},data.batch_size={steps.BATCH}'
      times, rows = reading.training(prepared, settings, many, rounds)
      what = f'training from disk beside one batch in memory: {name}, {FIELDS} fields'
      yield [times.beside(what, 'disk', '>= 0.95', limit='one', unit='rows/s', work=1e3 * rows)]
