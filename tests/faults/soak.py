# SPDX-License-Identifier: Apache-2.0
"""Trains for some minutes, evaluating and saving every few seconds: does anything grow?

  python tests/faults/soak.py --data=DIR --out=DIR --minutes=30

A run in a child is sampled every two seconds: its resident memory, all of it and the anonymous part
(without pages of files, such as libraries, that the kernel takes and gives as it likes), and the
files under its workdir. The slope of memory over the last two thirds (the first is warming up)
comes with a 95 % interval by bootstrap over blocks of samples, as neighbours are alike. Prints a
JSON line. Ends with 1 where the interval of the anonymous part lies above --limit.
"""

import argparse
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np

from deres_jax.core import cli

REPO = pathlib.Path(__file__).resolve().parents[2]
EVERY = 2.0  # seconds between samples
BLOCKS = 12  # that the bootstrap draws from
SETTINGS = (
  'model.depth=1,model.dim=8,model.heads=2,model.embed_dim=4,model.ffn_ratio=1,'
  'deres.block_layers=1,data.batch_size=128,data.eval_batch_size=512,'
  'train.epochs=0.0,train.steps=100000000,train.eval_epochs=0.0,train.eval_steps=1600,'
  'train.checkpoint_steps=400,train.log_steps=50'
)


def resident(pid: int) -> tuple[float, float]:
  """MiB: all, and what is no file's."""
  lines = pathlib.Path(f'/proc/{pid}/status').read_text().splitlines()
  status = dict(x.split(':', 1) for x in lines)
  return tuple(int(status[name].split()[0]) / 1024 for name in ('VmRSS', 'RssAnon'))


def files(workdir: pathlib.Path) -> int:
  return sum(len(names) for _, _, names in os.walk(workdir))


def slope(hours: np.ndarray, mib: np.ndarray) -> tuple[float, float, float]:
  """MiB an hour by least squares, and a 95 % interval over 2,000 draws of blocks of residuals."""
  at = hours - hours.mean()
  fitted = at @ mib / (at @ at)
  blocks = np.array_split(at * (mib - mib.mean() - fitted * at), BLOCKS)
  sums, rng = np.array([b.sum() for b in blocks]), np.random.default_rng(0)
  draws = rng.choice(sums, (2000, BLOCKS)).sum(axis=1) / (at @ at)
  low, high = np.quantile(draws, [0.025, 0.975])
  return fitted, fitted + low, fitted + high


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--data', type=pathlib.Path, required=True)
  parser.add_argument('--out', type=pathlib.Path, required=True)
  parser.add_argument('--minutes', type=float, default=30)
  parser.add_argument('--limit', type=float, default=20, help='MiB an hour')
  a = parser.parse_args()
  a.out.mkdir(parents=True)
  experiment, workdir = a.out / 'soak.py', a.out / 'run'
  experiment.write_text(
    f'from deres_jax.config import base\n\n\ndef get_config():\n  return base({SETTINGS!r})\n'
  )
  command = [sys.executable, '-m', 'deres_jax.main', f'--config={experiment}']
  command += [f'--workdir={workdir}', f'--config.data.path={a.data}']
  with (a.out / 'log.txt').open('w') as log:
    run = subprocess.Popen(command, cwd=REPO, stderr=log)
    began, samples = time.monotonic(), []
    try:
      while time.monotonic() < began + 60 * a.minutes and run.poll() is None:
        time.sleep(EVERY)
        samples.append((time.monotonic() - began, *resident(run.pid), files(workdir)))
    finally:
      run.send_signal(signal.SIGTERM)
      code = run.wait()
  seconds, rss, anon, count = np.array(samples).T
  np.savetxt(
    a.out / 'samples.csv', samples, '%.1f', ',', header='seconds,rss,anon,files', comments=''
  )
  later = seconds > a.minutes * 20
  slopes = {n: slope(seconds[later] / 3600, x[later]) for n, x in (('rss', rss), ('anon', anon))}
  done = [json.loads(x) for x in (workdir / 'metrics.jsonl').read_text().splitlines()]
  print(
    json.dumps(
      {
        'minutes': round(seconds[-1] / 60, 1),
        'steps': done[-1]['step'],
        'saves': done[-1]['step'] // 400,
        'evaluations': sum(x['split'] == 'validation' for x in done),
        'rss_mib': [round(rss[later].min()), round(rss[later].max())],
        'anon_mib': [round(anon[later].min()), round(anon[later].max())],
        'slope_mib_per_hour': {n: [round(x, 1) for x in s] for n, s in slopes.items()},
        'files_max': int(count.max()),
        'files_end': int(count[-1]),
        'code': code,
      }
    )
  )
  sys.exit(0 if code == cli.AGAIN and slopes['anon'][1] < a.limit else 1)


if __name__ == '__main__':
  main()
