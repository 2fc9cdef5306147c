# SPDX-License-Identifier: Apache-2.0
"""Training from a prepared folder on disk beside training on one batch in memory."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import reading
import steps

from deres_jax.schema import load_schema

REPO = Path(__file__).resolve().parents[2]
ROWS, FIELDS = 500_000, 39
MODELS = {'Transformer': steps.TRANSFORMER, 'MLP': steps.MLP}


def disk() -> Iterator[list[dict]]:
  with tempfile.TemporaryDirectory() as folder:
    data = Path(folder, 'data')
    build = [sys.executable, '-m', 'data_pipelines.build', '--dataset=synthetic', f'--out={data}']
    build += [f'--rows_train={ROWS}', f'--fields={FIELDS}', '--logit_std=0']
    subprocess.run(build, cwd=REPO, capture_output=True, check=True)
    schema = load_schema(str(data))
    for name, overrides in MODELS.items():
      many = reading.STEPS if name == 'MLP' else 5
      rates = reading.training(schema, f'{overrides},data.batch_size={steps.BATCH}', many)
      from_disk, cached = map(np.array, rates)
      shares = from_disk / cached
      yield [
        {
          'what': f'training from disk beside one batch in memory: {name}, {FIELDS} fields',
          'unit': 'rows/s',
          'ours': float(np.median(from_disk)),
          'peer': None,
          'limit': float(np.median(cached)),
          'ratio': float(np.median(shares)),
          'spread': [float(shares.min()), float(shares.max())],
          'aim': '>= 0.95',
          'rounds': len(shares),
        }
      ]
