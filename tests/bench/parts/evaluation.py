# SPDX-License-Identifier: Apache-2.0
"""Metrics beside scikit-learn: exact AUC and its error, and what the streaming one is off."""

import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
from sklearn.metrics import roc_auc_score

from deres_jax.metrics import exact
from deres_jax.metrics.streaming import StreamState

ROWS, DELONG_ROWS, BATCH = 10_000_000, 4_600_000, 4096
# Click rates from 50 % to 0.05 %, wide and narrow logits.
REGIMES = [(offset, spread) for offset in (0.0, -3.2, -5.7, -7.6) for spread in (1.0, 0.3, 0.1)]


def _simulated(rows: int, offset: float, spread: float) -> tuple[np.ndarray, np.ndarray]:
  """Labels and the logits that they were drawn from."""
  rng = np.random.default_rng(0)
  logits_N = (rng.normal(size=rows) * spread + offset).astype(np.float32)
  return rng.random(rows) < 1 / (1 + np.exp(-logits_N)), logits_N


def _seconds(run: Callable) -> float:
  began = time.perf_counter()
  run()
  return time.perf_counter() - began


def _line(what: str, unit: str, ours: float, aim: str = '', **more) -> dict:
  line = {'what': what, 'unit': unit, 'ours': ours, 'peer': None, 'limit': None, 'ratio': None}
  return line | {'aim': aim} | more


def evaluation(rounds: int = 5, rows: int = ROWS) -> Iterator[list[dict]]:
  labels_N, logits_N = _simulated(rows, -1.3, 1.0)
  key_N = exact.ordered_bits(logits_N).astype(np.uint64)
  ours, peer, sort = [], [], []
  for _ in range(rounds):
    ours.append(_seconds(lambda: exact.auc(labels_N, logits_N)))
    peer.append(_seconds(lambda: roc_auc_score(labels_N, logits_N)))
    sort.append(_seconds(lambda: np.sort(key_N)))
  ratios = np.array(peer) / np.array(ours)
  yield [
    _line(
      f'exact AUC of {rows:,} rows beside scikit-learn; limit: the sort',
      's',
      float(np.median(ours)),
      '>= 10',
      peer=float(np.median(peer)),
      limit=float(np.median(sort)),
      ratio=float(np.median(ratios)),
      spread=[float(ratios.min()), float(ratios.max())],
      rounds=rounds,
    )
  ]
  few = min(rows, DELONG_ROWS)
  errors = [_seconds(lambda: exact.delong_se(labels_N[:few], logits_N[:few])) for _ in range(3)]
  whole = [_seconds(lambda: exact.evaluate_logits(labels_N[:few], logits_N[:few]))]
  yield [
    _line(f"DeLong's error of {few:,} rows", 's', float(np.median(errors)), '<= 3'),
    _line(f'all figures of {few:,} rows', 's', float(np.median(whole))),
  ]
  yield [_streaming(rows), _step()]


def _streaming(rows: int) -> dict:
  off = []
  for offset, spread in REGIMES:
    labels_N, logits_N = _simulated(rows, offset, spread)
    state = StreamState.from_batch(logits_N, labels_N, np.ones(rows))
    off.append(abs(state.compute()['auc'] - exact.auc(labels_N, logits_N)))
  what = f'streaming AUC, largest error of {len(off)} click rates and spreads, {rows:,} rows'
  return _line(what, 'AUC', max(off), '<= 1e-7')


def _step() -> dict:
  """What a training step pays for its streaming metrics."""
  labels_B, logits_B = _simulated(BATCH, -1.3, 1.0)
  ones_B = np.ones(BATCH, np.float32)

  def merge(state, *batch):
    return state.merge(StreamState.from_batch(*batch))

  update = jax.jit(merge, donate_argnums=0)
  state = update(StreamState.zeros(), logits_B, labels_B, ones_B)
  seconds = []
  for _ in range(30):
    began = time.perf_counter()
    state = jax.block_until_ready(update(state, logits_B, labels_B, ones_B))
    seconds.append(time.perf_counter() - began)
  return _line(
    f'streaming metrics of a step of {BATCH} rows', 'ms', 1e3 * float(np.median(seconds))
  )
