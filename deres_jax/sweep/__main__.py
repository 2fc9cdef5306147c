# SPDX-License-Identifier: Apache-2.0
"""Many runs of one experiment: its `sweep()` lists them, each in its own process.

  python -m deres_jax.sweep --config=baselines --out=DIR --config.data.path=DATA

The experiment file, which is Python code and is executed, has, beside `get_config()`,

  from deres_jax import sweep as grid

  def sweep():
    models = [
      {'name': 'OneTrans', 'model.connector': 'prenorm'},
      {'name': 'DeRes', 'model.connector': 'deres'},
    ]
    rates = grid.param('optim.dense_lr', [1e-3, 3e-3])
    return grid.product(models, rates, grid.param('seed', [1, 2, 3]))

A point is a dict of config fields by dotted name; 'name' labels it in tables, by default with its
fields. Finished runs are skipped: the same command goes on after an interruption, and several
machines may share DIR, each with a --shard. --list prints which runs are done, running, failed or
to do. `deres_jax.sweep.folder` says what DIR holds, `deres_jax.sweep.runner` how a run may end.

**Order.** The runs with the most training FLOPs start first, so that no core waits long for the
last one. A run starts only if its estimated memory fits beside that of the running ones into
--memory_gib; one alone always starts. Two commands on one machine know nothing of each other.

**Runs at once.** On CPU, --jobs=auto starts a run a core, as far as memory allows and there are
points; each has an equal share of the cores, so that speeds compare. Small models do not fill the
cores: on 2 cores, two runs one after the other took 1.5 and 1.7 times as long as side by side at
depth 1, and 1.2, 1.3 and 1.3 times at depth 8 (sizes of experiments/quickstart.py, up to half a
pass, in turns, on a machine with other work; a fourth pair at depth 8, when that work grew, 0.8).
More cores were not measured. --jobs=1 gives a run all cores. On accelerators auto is one run at a
time, which takes all devices. A larger number of runs share a GPU's memory in equal parts
(XLA_CLIENT_MEM_FRACTION, unless the environment sets it); a TPU belongs to one process. To give
each run a GPU of its own, start one shard for each GPU under CUDA_VISIBLE_DEVICES.

**Budget.** --flops_budget=F sets the steps of each point (--solve=steps) or its width model.dim
(--solve=width) so that train_flops in result.json is as near to F as possible: to a step, or to a
multiple of model.heads, within 10 %. The solved field becomes one of the overrides.
"""

import importlib.util
import math
import os
import pathlib
import signal
import sys
from collections.abc import Iterable

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from deres_jax.config import overrides
from deres_jax.config.diff import flat
from deres_jax.config.overrides import Overrides, as_flag
from deres_jax.core import cli, files, terminal
from deres_jax.core.errors import UserError
from deres_jax.sweep import costs, folder, machine, runner
from deres_jax.sweep.points import Point, resolve, shard


def _define_flags():
  """Defines the flags. Not at import: experiments import this package under `deres_jax.main`."""
  config_flags.DEFINE_config_file(
    'config', None, 'Experiment with sweep(), by name or path; NAME:seed=2 sets a field of all.'
  )
  flags.DEFINE_string('out', None, 'Folder of the sweep: sweep.json and runs/.')
  flags.DEFINE_string('shard', '0/1', 'i/n: run only the points whose index % n is i.')
  flags.DEFINE_bool('list', False, 'Print id, name, state and overrides; run nothing.')
  flags.DEFINE_string('jobs', 'auto', 'Runs at a time; cores are split evenly. auto | a number.')
  flags.DEFINE_float('memory_gib', None, 'GiB for all runs together; by default what there is.')
  flags.DEFINE_float('flops_budget', None, 'FLOPs that each point trains for: solves --solve.')
  flags.DEFINE_enum('solve', 'steps', ['steps', 'width'], 'What --flops_budget sets.')


def _load(file: str) -> Iterable[Overrides]:
  """Returns the points of sweep() in an experiment file."""
  path = pathlib.Path(file)
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  points = module.sweep() if callable(vars(module).get('sweep')) else None
  if not isinstance(points, Iterable):
    raise UserError(
      f'{file} has no sweep() that returns points: give it one that returns a list of dicts such '
      "as {'name': 'OneTrans', 'model.depth': 8}, or train it alone with deres_jax.main"
    )
  return points


def _points() -> list[Point]:
  """Returns all points of the sweep that the flags describe."""
  flag = flags.FLAGS['config']
  if not flag.present:
    raise UserError('no --config: give an experiment file that has sweep()')
  if not flags.FLAGS.out:
    raise UserError('no --out: give the folder of the sweep, --out=DIR')
  file, _, text = config_flags.get_config_filename(flag).partition(':')
  if not pathlib.Path(file).is_file():
    raise UserError(f'--config={file}: no such file')
  if not isinstance(flag.value, ConfigDict):
    raise UserError(f'{file}: get_config() returned {flag.value!r}: return config.update(...)')
  given = {name for name, _ in overrides.settings(flag.value, text)}
  given |= config_flags.get_override_values(flag).keys()
  points = resolve(flag.value.to_dict(), _load(file), given, pathlib.Path(file).stem)
  budget, solve = flags.FLAGS.flops_budget, flags.FLAGS.solve
  if budget is None:
    if flags.FLAGS['solve'].present:
      raise UserError(f'--solve={solve} without a budget: give --flops_budget=FLOPS')
    return points
  if not 0 < budget < math.inf:
    raise UserError(f'--flops_budget={budget:g}: expected FLOPs above 0, such as 1e12')
  return costs.with_budget(points, budget, solve)


def _jobs() -> int | None:
  """Returns --jobs as a number; None for auto."""
  text = flags.FLAGS.jobs
  if text == 'auto':
    return None
  if not text.isdecimal() or not int(text):
    raise UserError(f'--jobs={text}: expected auto or a number of runs, at least 1')
  machine.cores(int(text))
  return int(text)


def _memory() -> float:
  """Returns the bytes for all runs together."""
  gib = flags.FLAGS.memory_gib
  if gib is None:
    return machine.memory()
  if not 0 < gib < math.inf:
    raise UserError(f'--memory_gib={gib:g}: expected GiB above 0')
  return gib * 2**30


def command(file: str, out: pathlib.Path, point: Point) -> list[str]:
  """Returns the command of a run. It sets every field, so that edits of `file` change nothing."""
  settings = [f'--config.{k}={as_flag(v)}' for k, v in flat(point.config).items()]
  head = [sys.executable, '-m', 'deres_jax.main', f'--config={file}']
  # Sweeps that a launcher starts side by side share points; no run is distributed over them.
  return [*head, f'--workdir={folder.workdir(out, point)}', '--distributed=off', *settings]


def limits(jobs: int | None, memory: float, largest: int, count: int) -> runner.Limits:
  """Chooses the resources that the runs may use.

  Args:
    jobs: runs at a time; None: as many as are fast.
    memory: bytes for all runs.
    largest: bytes of the run that needs most, 0 if unknown.
    count: number of points.
  """
  if jobs == 1:
    return runner.Limits(1, memory)
  platform = machine.platform()
  if platform == 'cpu':
    fit = int(memory // largest) if largest else count
    # Of all points, not of those left: later runs get the same share of the cores.
    return runner.Limits(jobs or max(1, min(machine.core_count(), count, fit)), memory)
  if jobs is None:
    return runner.Limits(1, memory)
  if platform in ('tpu', 'busy'):
    reason = 'a TPU belongs to one process' if platform == 'tpu' else 'another process holds it'
    raise UserError(f'--jobs={jobs} on an accelerator: {reason}: take --jobs=1')
  return runner.Limits(jobs, memory, machine.share_of_gpu(jobs, dict(os.environ)))


def main(argv: list[str]):
  """Runs the command: lists the points, or runs those that are not done."""
  cli.no_arguments(argv)
  jobs, memory = _jobs(), _memory()
  points = _points()
  shard_points, out = shard(points, flags.FLAGS.shard), pathlib.Path(flags.FLAGS.out)
  if flags.FLAGS.list:
    print(folder.listing(out, shard_points))
    return
  files.output_folder(flags.FLAGS.out)
  folder.check_data(out, shard_points)
  folder.record(out, points)
  screen = terminal.Screen(sys.stdout)
  todo = [p for p in shard_points if not folder.result(out, p)]
  # The table, the bound of memory and the order need predictions.
  needed = screen.live or (len(todo) > 1 and (jobs != 1 or costs.differ(todo)))
  predicted = costs.predict(out, shard_points) if todo and needed else {}
  largest = max((cost.memory for cost in predicted.values()), default=0)
  file = config_flags.get_config_filename(flags.FLAGS['config']).partition(':')[0]
  work = runner.Runner(
    out,
    shard_points,
    len(points),
    lambda p: command(file, out, p),
    limits(jobs, memory, largest, len(shard_points)),
    predicted,
    screen,
  )
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, work.interrupt)
  if not work.run():
    sys.exit(1)


if __name__ == '__main__':
  _define_flags()
  app.run(cli.guarded(main), flags_parser=cli.parse)
