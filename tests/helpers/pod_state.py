# SPDX-License-Identifier: Apache-2.0
"""What the newest checkpoint of a workdir is, restored by this process or by one of several.

  python tests/helpers/pod_state.py WORKDIR [--coordinator=HOST:PORT --processes=N --process=I]

Prints one JSON line: a digest of every array and of the next global batch.
"""

import argparse
import hashlib
import json
import pathlib

import jax
import numpy as np
from jax.experimental import multihost_utils
from made import numbers

from deres_jax import config
from deres_jax.data.feed import Prefetch, feed
from deres_jax.pod import processes
from deres_jax.pod.launchers import ProcessSpec
from deres_jax.training import run as run_lib
from deres_jax.training import step
from deres_jax.training.checkpoints.store import Checkpoints


def describe(workdir: pathlib.Path, devices: int) -> dict:
  """Digests by name, on a mesh of so many devices over all processes."""
  raw = json.loads((workdir / 'config.json').read_text())['config']
  raw['mesh']['devices'] = devices
  run = run_lib.build_run(config.resolve(raw))
  checkpoints = Checkpoints(workdir / 'checkpoints')
  at = checkpoints.latest()
  abstract = step.abstract_state(run.spec), step.abstract_stream(run.spec)
  state, _, clock = checkpoints.restore(at, *abstract)
  checkpoints.close()
  for x, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(abstract[0]), strict=True):
    assert x.sharding.is_equivalent_to(wanted.sharding, x.ndim)
  whole = jax.tree.map(lambda x: multihost_utils.process_allgather(x, tiled=True), state)
  found = {
    jax.tree_util.keystr(k): _digest(v) for k, v in jax.tree_util.tree_leaves_with_path(whole)
  }
  rows = run.train.examples(at)
  ids, labels = processes.gather(rows.ids), processes.gather(rows.labels)
  batch = {'ids': ids.reshape(-1, ids.shape[-1]), 'labels': labels.reshape(-1)}
  found |= {name: _digest(x) for name, x in batch.items()}
  found |= {'step': at, 'rows_seen': clock.rows_seen, 'mesh': run.spec.mesh.size}
  return found | _fed(run, at)


def _fed(run, at: int) -> dict:
  """Three batches as a step receives them: small capacities, and a stop request on one host.

  The last process requests it from its second batch on.
  """
  run.train.default_capacity = np.full_like(run.train.default_capacity, 2)
  calls, last = [], jax.process_index() == jax.process_count() - 1

  def stop_requested() -> bool:
    calls.append(0)
    return last and len(calls) > 1

  numbers_of, stops = [], []
  mesh, tables = run.spec.mesh, run.spec.tables
  for device_batch in feed(run.train, mesh, (at, at + 3), Prefetch(1, 2), stop_requested):
    batch = jax.tree.map(
      lambda x: multihost_utils.process_allgather(x, tiled=True), device_batch.batch
    )
    numbers_of.append(numbers(tables, batch, mesh.size, run.spec.column_tables))
    stops.append(device_batch.stop)
  return {'fed': _digest(np.stack(numbers_of)), 'stops': stops}


def _digest(x) -> str:
  x = np.asarray(x)
  return f'{x.dtype}{list(x.shape)} {hashlib.sha256(x.tobytes()).hexdigest()}'


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('workdir', type=pathlib.Path)
  parser.add_argument('--coordinator')
  parser.add_argument('--processes', type=int)
  parser.add_argument('--process', type=int)
  args = parser.parse_args()
  if args.coordinator:
    processes.start(ProcessSpec(args.coordinator, args.processes, args.process), 60, 60)
  found = describe(args.workdir, 0)
  if processes.is_process_0():
    print(json.dumps(found), flush=True)


if __name__ == '__main__':
  main()
