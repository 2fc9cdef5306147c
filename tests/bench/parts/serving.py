# SPDX-License-Identifier: Apache-2.0
"""Latency of a served model: raw rows, as strings, to probabilities, from an exported file.

The model is that of experiments/quickstart.py after a few steps. Requests are made of different
rows and follow one another; a process serves them alone. `limit` is the compiled function alone, on
ids that are there already: what is left is encoding in Python.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np

from deres_jax import serving as serving_lib

REPO = Path(__file__).resolve().parents[3]
SIZES, REQUESTS, WARM = (1, 512), (400, 40), 20  # requests a round
PERCENTILES = 50, 95, 99


def serving(rounds: int) -> Iterator[list[dict]]:
  """Percentiles of requests of one row and of many, over all rounds."""
  with tempfile.TemporaryDirectory() as folder:
    file = _exported(Path(folder))
    began = time.perf_counter()
    model = serving_lib.load(file)
    seconds = time.perf_counter() - began
  rng = np.random.default_rng(0)
  # A field's ids are skewed, as in real data: the fourth power of a uniform number.
  sizes = [field['vocab_size'] - 2 for field in model.description['inputs']['fields']]
  names = [field['name'] for field in model.description['inputs']['fields']]
  for size, requests in zip(SIZES, REQUESTS, strict=True):
    values = (rng.random((64, size, len(sizes))) ** 4 * sizes).astype(int).astype(str)
    rows = [[dict(zip(names, row, strict=True)) for row in request] for request in values.tolist()]
    yield list(_lines(model, rows, rounds * requests))
  yield [_line('load of an exported file and its checks', 's', seconds)]


def _exported(folder: Path) -> Path:
  def run(*command: str):
    subprocess.run([sys.executable, '-m', *command], cwd=REPO, capture_output=True, check=True)

  rows = '--rows_train=20000', '--rows_validation=2000', '--rows_test=2000'
  run('data_pipelines.build', '--dataset=synthetic', f'--out={folder / "data"}', *rows)
  length = '--config.train.steps=5', '--config.train.epochs=0.0'
  where = f'--workdir={folder / "run"}', f'--config.data.path={folder / "data"}'
  run('deres_jax.main', '--config=experiments/quickstart.py', *where, *length)
  run('deres_jax.export', where[0], f'--out={folder / "model.zip"}')
  return folder / 'model.zip'


def _line(what: str, unit: str, ours: float, aim: str = '', **more) -> dict:
  line = {'what': what, 'unit': unit, 'ours': ours, 'peer': None, 'limit': None, 'ratio': None}
  return line | {'aim': aim} | more


def _milliseconds(serve: Callable, requests: list, count: int) -> list[float]:
  """Percentiles of calls one after the other."""
  for request in requests[:WARM]:
    serve(request)
  taken = []
  for i in range(count):
    began = time.perf_counter()
    serve(requests[i % len(requests)])
    taken.append(1e3 * (time.perf_counter() - began))
  return np.percentile(taken, PERCENTILES).tolist()


def _lines(model: serving_lib.Model, rows: list[list[dict]], count: int) -> Iterator[dict]:
  size = len(rows[0])
  ids = [model.encode(request) for request in rows]
  whole = _milliseconds(model.predict, rows, count)
  alone = _milliseconds(lambda x: jax.block_until_ready(model.compute(x)), ids, count)
  for percentile, ours, limit in zip(PERCENTILES, whole, alone, strict=True):
    what = (
      f'a request of {size} row{"s" if size > 1 else ""} to the quickstart model, p{percentile}'
    )
    aim = '<= 3' if (size, percentile) == (1, 50) else ''
    yield _line(what, 'ms', ours, aim, limit=limit, rounds=count)
