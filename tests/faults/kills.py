# SPDX-License-Identifier: Apache-2.0
"""Kills a small run at random times until it has been killed often enough, and compares its end.

  python tests/faults/kills.py --data=DIR --out=DIR --kills=100 --seed=1

Runs are children of this process, which has imported all they need and touches no device: they
start where a command has done its imports, so that every kill falls into the work. After each kill
every checkpoint must be whole and the newest no older than before; at the end a run must have the
arrays, lines and result of one that nobody disturbed. Prints a JSON line: kills by kind and by what
they hit.
"""

import argparse
import collections
import json
import os
import pathlib
import random
import signal
import sys
import time
from collections.abc import Callable

if __name__ == '__main__':  # before jax is imported
  sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / 'helpers'))
  os.environ['JAX_PLATFORMS'] = 'cpu'
  import quick

  os.environ['XLA_FLAGS'] = quick.XLA_FLAGS
  os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')

from pod_state import describe

from deres_jax import config
from deres_jax.core import cli
from deres_jax.training import loop
from deres_jax.training.checkpoints import manifest

TERMS = 0.2  # share of kills that are SIGTERM
EARLY = 0.15  # share of kills before the first step of a start
AIMED = 0.5  # share of kills in or just after a save
SETTINGS = (
  'model.depth=1,model.dim=8,model.heads=2,model.embed_dim=4,model.ffn_ratio=1,'
  'deres.block_layers=1,model.dropout=0.1,optim.table_lr=0.1,'
  'data.batch_size=128,data.eval_batch_size=512,train.epochs=0.0,train.steps=60,'
  'train.eval_epochs=0.0,train.eval_steps=20,train.checkpoint_steps=3,train.log_steps=5,'
  'mesh.devices=1'
)


def child(work, log) -> int:
  """Process id of a child that does `work` and ends with the exit code of a command."""
  pid = os.fork()
  if pid:
    return pid
  number = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
  os.dup2(number, 1), os.dup2(number, 2)
  code = 0
  try:
    work()
  except BaseException as e:
    code = cli.code_of(e)
    if code is None:
      sys.excepthook(type(e), e, e.__traceback__)
      code = cli.FAULT
  sys.stderr.flush()
  os._exit(code)


def code_of(pid: int, seconds: float = 300) -> int:
  """How a child ended; it must do so in time."""
  until = time.monotonic() + seconds
  while time.monotonic() < until:
    done, status = os.waitpid(pid, os.WNOHANG)
    if done:
      return os.waitstatus_to_exitcode(status)
    time.sleep(0.002)
  os.kill(pid, signal.SIGKILL)
  raise AssertionError(f'a run took more than {seconds} s')


def newest(workdir: pathlib.Path) -> int:
  """Newest checkpoint; all that are there must be whole."""
  steps = [0]
  for folder in (workdir / 'checkpoints').glob('[0-9]*'):
    if folder.name.isdigit():
      manifest.verify(folder, manifest.read(folder))
      steps.append(int(folder.name))
  assert not list(workdir.glob('checkpoints/damaged*')), sorted(workdir.glob('checkpoints/*'))
  return max(steps)


def hit(workdir: pathlib.Path) -> str:
  """What the run was doing when it was killed."""
  names = [p.name for p in workdir.glob('checkpoints/*')]
  if any(x.endswith('.deleting') for x in names):
    return 'deleting an old checkpoint'
  if any(x.endswith('.saving') for x in names):
    return 'between save and commit'
  return 'in a save' if any('.saving' in x for x in names) else 'elsewhere'


def wait(pid: int, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
  """Waits for so long, or until something is so; false if the run ended before."""
  end = time.monotonic() + seconds
  while time.monotonic() < end and not until():
    if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
      return False
    time.sleep(0.0005)
  return True


def disturb(pid: int, workdir: pathlib.Path, rng: random.Random) -> signal.Signals | None:
  """Kills a run at a random time; None if it ended before."""
  record, began, draw = workdir / 'metrics.jsonl', time.time_ns(), rng.random()

  def writes() -> bool:
    return record.exists() and record.stat().st_mtime_ns > began and record.stat().st_size > 0

  if draw < EARLY:
    alive = wait(pid, rng.uniform(0, 1.5))
  elif draw < EARLY + AIMED:
    alive = wait(pid, 120, writes) and wait(pid, rng.uniform(0, 0.8))
    alive = alive and wait(pid, 120, lambda: hit(workdir) != 'elsewhere')
    alive = alive and wait(pid, rng.uniform(0, 0.05))
  else:
    alive = wait(pid, 120, writes) and wait(pid, rng.uniform(0, 1.2))
  if not alive:
    return None
  number = signal.SIGTERM if rng.random() < TERMS else signal.SIGKILL
  os.kill(pid, number)
  return number


def lines(workdir: pathlib.Path) -> list[dict]:
  out = [json.loads(x) for x in (workdir / 'metrics.jsonl').read_text().splitlines()]
  return [{k: v for k, v in x.items() if k != 'rows_per_second'} for x in out]


def end_of(workdir: pathlib.Path) -> dict:
  """What must be equal in all runs."""
  result = json.loads((workdir / 'result.json').read_text())
  for changing in ('wall_seconds', 'rows_per_second', 'test_logits', 'audit'):
    result.pop(changing)
  logits = (workdir / 'test_logits.npy').read_bytes()
  return {'lines': lines(workdir), 'result': result, 'logits': logits.hex()}


def compare(workdir: pathlib.Path, whole: pathlib.Path):
  """In a child: restoring touches devices."""
  a, b = end_of(workdir), end_of(whole)
  for name in a:
    assert a[name] == b[name], f'{workdir}: {name} differs from {whole}'
  assert describe(workdir, 1) == describe(whole, 1), f'{workdir}: arrays differ'


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--data', type=pathlib.Path, required=True)
  parser.add_argument('--out', type=pathlib.Path, required=True)
  parser.add_argument('--kills', type=int, default=100)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--more', default='', help='settings beside ours: a.b=v,c=w')
  parser.add_argument('--minutes', type=float, default=30, help='kill nothing after so long')
  a = parser.parse_args()
  a.out.mkdir(parents=True)
  print(f'seed {a.seed}, runs and their log in {a.out}', flush=True)
  os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(a.out / 'xla'))
  rng, log, began = random.Random(a.seed), a.out / 'log.txt', time.monotonic()
  c = config.resolve(config.base(f'{SETTINGS},data.path={a.data},{a.more}'))
  whole = a.out / 'undisturbed'
  assert code_of(child(lambda: loop.train(c, whole), log)) == 0, log.read_text()
  counts, rounds, starts = collections.Counter(), 0, 0

  def enough() -> bool:
    late = time.monotonic() > began + 60 * a.minutes
    return late or sum(counts.values()) // 2 >= a.kills

  while not enough():
    workdir, before = a.out / f'run{rounds}', 0
    rounds, code = rounds + 1, None
    while code != 0:
      pid = child(lambda workdir=workdir: loop.train(c, workdir), log)
      starts += 1
      sent = None if enough() else disturb(pid, workdir, rng)
      code = code_of(pid)
      allowed = {None: (0,), signal.SIGKILL: (-9, 0), signal.SIGTERM: (75, -15, 0)}[sent]
      assert code in allowed, (code, sent, log.read_text()[-3000:])
      if code != 0:
        counts.update([sent.name, hit(workdir)])
      now = newest(workdir)
      assert now >= before, f'step {before} was lost: the newest is {now}'
      before = now
    assert code_of(child(lambda workdir=workdir: compare(workdir, whole), log)) == 0, (
      log.read_text()[-3000:]
    )
  kills = sum(counts.values()) // 2
  said = {'kills': kills, 'runs': rounds, 'starts': starts, **dict(counts.most_common())}
  print(json.dumps({**said, 'seconds': round(time.monotonic() - began)}), flush=True)
  sys.exit(0 if kills >= a.kills else 1)


if __name__ == '__main__':
  main()
