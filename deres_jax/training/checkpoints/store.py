# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of (state, clock), each one folder; the latest two and the best are kept.

The only module that knows Orbax. The position in the data is the step, which is the name of the
checkpoint and part of the state; `restore` asserts that they agree.

A save in progress is checkpoints/STEP.saving. When Orbax has finished it, process 0 adds the
manifest and renames it to checkpoints/STEP, so a folder of that name is complete, whenever the
process is killed. Only then are older checkpoints deleted.
"""

import concurrent.futures
import dataclasses
import os
import pathlib
import shutil
from typing import Any

import jax
import tensorstore
from orbax.checkpoint import v1 as ocp

from deres_jax.core import allocator, files
from deres_jax.core.errors import UserError
from deres_jax.pod import processes
from deres_jax.training.checkpoints import manifest

_KEPT = 2  # latest checkpoints, beside the best

# TensorStore (up to 0.1.86 at least) leaks the JSON that it returns: every string and list in it
# has one reference too many. Orbax asks for such JSON at every save: twice for all metrics of the
# store, only to log them (20 KiB), and for each array for the spec of a folder (15 KiB for 50
# arrays). So these two functions are replaced, for the whole process, by ones that make no JSON.
_collect_metrics = tensorstore.experimental_collect_matching_metrics
_spec_to_json = tensorstore.KvStore.Spec.to_json


def _no_metrics(prefix: str, *args) -> list:
  return [] if prefix == '/tensorstore/kvstore/' else _collect_metrics(prefix, *args)


def _folder_spec(spec: tensorstore.KvStore.Spec, include_defaults: bool = False):
  plain = {'driver': 'file', 'path': spec.path}
  if not include_defaults and spec == tensorstore.KvStore.Spec(plain):
    return plain
  return _spec_to_json(spec, include_defaults=include_defaults)


tensorstore.experimental_collect_matching_metrics = _no_metrics
tensorstore.KvStore.Spec.to_json = _folder_spec


@dataclasses.dataclass(frozen=True)
class Clock:
  """Time and data that a run has spent so far, over all its starts."""

  wall_seconds: float
  rows_seen: int
  evaluated: bool = True  # whether the validation due here was done; False if a stop interrupted it
  lines: int = 0  # in metrics.jsonl
  skipped: int = 0  # steps skipped because they were not finite
  rollbacks: int = 0  # returns to a checkpoint because a step was not finite


# Names in the files of a checkpoint, where they differ from the fields of a state.
_ON_DISK = {'tables': 'rows', 'table_opt_state': 'slots'}
_FIELDS = {name: field for field, name in _ON_DISK.items()}


def _to_disk(state: Any, stream: Any) -> dict[str, Any]:
  return {_ON_DISK.get(k, k): x for k, x in state._asdict().items()} | {'stream': stream}


class Checkpoints:
  """Saves and restores a state whose field `step` counts the steps done.

  In a run of several processes, all make one and call its methods at the same points. Raises
  UserError for checkpoints of another format.
  """

  def __init__(self, folder: pathlib.Path, writes: bool = True):
    """Opens a folder. Without `writes` nothing in it is changed: a run may be saving there."""
    self._folder = folder.absolute()
    self._writes = writes
    self._pool = concurrent.futures.ThreadPoolExecutor(1, 'checkpoint')
    self._saving: concurrent.futures.Future | None = None
    saved, damaged = processes.on_process_0(self._open)
    # step -> validation AUC and clock; step -> why its manifest cannot be read
    self._saved = {step: (auc, Clock(**clock)) for step, auc, clock in saved}
    self._damaged = dict(damaged)

  def _path(self, step: int) -> pathlib.Path:
    return self._folder / str(step)

  def _open(self) -> tuple[list, list]:
    """Deletes the unfinished saves of a killed process; reads the manifests."""
    if self._writes:
      self._folder.mkdir(parents=True, exist_ok=True)
    saved, damaged = [], []
    for path in sorted(self._folder.glob('*')):
      if '.saving' in path.name or path.name.endswith('.deleting'):
        if self._writes:
          shutil.rmtree(path)
      elif path.name.isdigit():
        try:
          content = manifest.read(path)
          saved.append([int(path.name), content['auc'], content['clock']])
        except manifest.Damaged as e:
          damaged.append([int(path.name), str(e)])
    return saved, damaged

  def resume(self, abstract: Any, stream: Any) -> tuple[int | None, list[str]]:
    """Finds the newest complete checkpoint, reading all its files; renames newer, damaged ones.

    Returns:
      Its step, None if there are no checkpoints; and messages for the user.

    Raises:
      UserError: all are damaged, or the newest complete one holds another state than `abstract` and
        `stream`. Nothing was changed then.
    """
    expected = manifest.structure(_to_disk(abstract, stream))
    step, messages, renamed = processes.on_process_0(lambda: self._find_complete(expected))
    for damaged in renamed:
      self._saved.pop(damaged, None)
    self._damaged = {}
    return step, messages

  def _find_complete(self, expected: dict[str, list]) -> tuple[int | None, list[str], list[int]]:
    damaged, complete, messages = dict(self._damaged), None, []
    for step in sorted(self._saved, reverse=True):
      try:
        messages += manifest.check(self._path(step), expected)
        complete = step
        break
      except manifest.Damaged as e:
        damaged[step] = str(e)
    if damaged and complete is None:
      raise UserError(
        f'no checkpoint in {self._folder} is whole ({_list(damaged)}): put back a copy of one, or '
        'start anew in another --workdir; nothing was changed'
      )
    for step, why in damaged.items():
      names = (f'damaged-{step}{x}' for x in ('', *(f'.{n}' for n in range(1, 1000))))
      name = next(x for x in names if not (self._folder / x).exists())
      os.rename(self._path(step), self._folder / name)
      messages.append(f'checkpoint {step} is damaged ({why}): set aside as {name}')
    return complete, messages, list(damaged)

  def clock(self, step: int) -> Clock:
    """Returns the clock of the checkpoint at `step`."""
    return self._saved[step][1]

  def latest(self) -> int | None:
    """Returns the step of the newest checkpoint."""
    self.wait()
    return max(self._saved, default=None)

  def best(self) -> tuple[int, float] | None:
    """Returns step and validation AUC of the best evaluated checkpoint, the earliest of equals.

    Raises UserError if a damaged checkpoint might be the best.
    """
    self.wait()
    if self._damaged:
      raise UserError(
        f'{self._folder}: the best checkpoint is unknown, because some are damaged '
        f'({_list(self._damaged)}): put back a copy, or move them out of the folder'
      )
    return self._best()

  def _best(self) -> tuple[int, float] | None:
    scored = [(auc, -step) for step, (auc, _) in self._saved.items() if auc is not None]
    return (-max(scored)[1], max(scored)[0]) if scored else None

  def save(self, step: int, state: Any, stream: Any, clock: Clock, auc: float | None):
    """Starts a save in the background; the state may be donated at once.

    All processes call it; each writes what its devices hold.

    Args:
      stream: sum of the streaming metrics since the last line of metrics.
      auc: validation AUC at this step; None: not evaluated.
    """
    self.wait()
    tree = _to_disk(state, stream)
    content = {'step': step, 'auc': auc, 'clock': dataclasses.asdict(clock)}
    content['tree'] = manifest.structure(tree)
    with files.faults(self._folder):
      response = ocp.save_async(self._folder / f'{step}.saving', tree)
    self._saved[step] = auc, clock
    best = self._best() or (step, None)
    needed = {*sorted(self._saved)[-_KEPT:], best[0]}
    obsolete = [old for old in self._saved if old not in needed]
    self._saving = self._pool.submit(self._finish, response, content, obsolete)
    self._pool.submit(allocator.give_back)
    for old in obsolete:
      del self._saved[old]

  def _finish(self, response: ocp.AsyncResponse, content: dict[str, Any], obsolete: list[int]):
    """Completes the checkpoint that Orbax writes, then deletes obsolete ones. In the background."""
    with files.faults(self._folder):
      response.result()  # now all processes have written
      if not processes.is_process_0():
        return
      saving = self._folder / f'{content["step"]}.saving'
      manifest.write(saving, content)
      os.rename(saving, self._path(content['step']))
      files.sync(self._folder)
      for old in obsolete:
        # Renamed first: a half-deleted checkpoint would count as damaged.
        deleting = self._folder / f'{old}.deleting'
        os.rename(self._path(old), deleting)
        shutil.rmtree(deleting)

  def evaluated(self, step: int, clock: Clock, auc: float | None):
    """Records the validation of the latest checkpoint, which was saved before it."""

    def amend():
      content = manifest.read(self._path(step)) | {'auc': auc, 'clock': dataclasses.asdict(clock)}
      with files.faults(self._folder):
        manifest.save(self._path(step), content)

    self.wait()
    processes.on_process_0(amend)
    self._saved[step] = auc, clock

  def wait(self):
    """Waits for the save in progress. Raises UserError if the disk is full."""
    saving, self._saving = self._saving, None
    if saving is not None:
      processes.on_process_0(saving.result)  # process 0 renames the folder
      saving.result()

  def restore(self, step: int, abstract: Any, stream: Any) -> tuple[Any, Any, Clock]:
    """Loads state, stream and clock at `step`, with the shapes and shardings given, on any mesh."""
    self.wait()  # a save of this step may still be in progress
    loaded = self._load(step, _to_disk(abstract, stream))
    stream = loaded.pop('stream')
    state = type(abstract)(**{_FIELDS.get(k, k): x for k, x in loaded.items()})
    if int(state.step) != step:
      raise RuntimeError(f'checkpoint {step} holds the state of step {int(state.step)}')
    return state, stream, self.clock(step)

  def restore_params(self, step: int, abstract: Any) -> tuple[Any, tuple[jax.Array, ...]]:
    """Loads params and tables at `step`, after verifying all files.

    Raises UserError if the checkpoint is damaged; no other is taken in its place.
    """
    self.wait()
    needed = {'params': abstract.params, _ON_DISK['tables']: abstract.tables}

    def check():
      try:
        manifest.check(self._path(step), manifest.structure(needed), partial=True)
      except manifest.Damaged as e:
        raise UserError(
          f'checkpoint {self._path(step)} is to be evaluated and is damaged ({e}): put back a copy '
          'of it; or move it out of the folder, and the best of those that are left is taken'
        ) from e

    processes.on_process_0(check)
    loaded = self._load(step, needed)
    return loaded['params'], loaded[_ON_DISK['tables']]

  def _load(self, step: int, tree: dict[str, Any]) -> dict[str, Any]:
    context = ocp.Context()
    context.pytree.loading.partial_load = True  # `tree` may lack parts of the checkpoint
    with context:
      loaded = ocp.load(self._path(step), abstract_state=tree)
    # Orbax returns optax's named tuples as dicts; unflattening restores them.
    return jax.tree.unflatten(jax.tree.structure(tree), jax.tree.leaves(loaded))

  def close(self):
    """Waits for this process's part of the save in progress."""
    try:
      # Not `wait`: a process that fails alone would wait there for the others.
      if self._saving is not None:
        self._saving.result()
    finally:
      self._pool.shutdown()


def _list(damaged: dict[int, str]) -> str:
  return '; '.join(f'{step}: {why}' for step, why in sorted(damaged.items()))
