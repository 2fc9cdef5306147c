# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: (state, position, clock) in one folder; the latest two and the best are kept.

The only module that knows Orbax. The position in the data is the step, which is the name of the
checkpoint and stands in the state too; `restore` asserts that they agree.

A save under way is checkpoints/STEP.saving. Orbax finishes it, process 0 adds the manifest, and
renaming it to checkpoints/STEP makes it a checkpoint: from a folder of that name nothing is
missing, whenever the process was killed. Only then are older ones deleted.
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

_KEPT = 2  # latest checkpoints; the best is kept besides


# TensorStore (to 0.1.86 at least) gives every string and list within the JSON that it hands to
# Python one reference too many. Orbax asks for such JSON at every save: twice for all figures of
# the store, only to log them (20 KiB), and for each array for the description of a folder (15 KiB
# for 50 arrays). A run would keep all of it.
_all_figures = tensorstore.experimental_collect_matching_metrics
_any_json = tensorstore.KvStore.Spec.to_json


def _figures(prefix: str, *args) -> list:
  return [] if prefix == '/tensorstore/kvstore/' else _all_figures(prefix, *args)


def _json(spec: tensorstore.KvStore.Spec, include_defaults: bool = False):
  plain = {'driver': 'file', 'path': spec.path}
  if not include_defaults and spec == tensorstore.KvStore.Spec(plain):
    return plain
  return _any_json(spec, include_defaults=include_defaults)


def keep_tensorstore_from_making_json():
  """Replaces two functions of TensorStore for the whole process."""
  tensorstore.experimental_collect_matching_metrics = _figures
  tensorstore.KvStore.Spec.to_json = _json


keep_tensorstore_from_making_json()


@dataclasses.dataclass(frozen=True)
class Clock:
  """What a run has spent so far, over all its starts.

  Attributes:
    evaluated: whether the validation that is due at this step was done: not where a run was stopped
      meanwhile.
    lines: in metrics.jsonl by then.
    skipped, rollbacks: steps that moved nothing because something in them was not finite, and how
      often the run went back to a checkpoint for that.
  """

  wall_seconds: float
  rows_seen: int
  evaluated: bool = True
  lines: int = 0
  skipped: int = 0
  rollbacks: int = 0


# Names in the files of a checkpoint where they differ from the fields of a state.
_ON_DISK = {'tables': 'rows', 'table_opt_state': 'slots'}
_FIELDS = {name: field for field, name in _ON_DISK.items()}


def _to_disk(state: Any, stream: Any) -> dict[str, Any]:
  return {_ON_DISK.get(k, k): x for k, x in state._asdict().items()} | {'stream': stream}


class Checkpoints:
  """Saves and restores a state whose field `step` counts the steps done.

  On many hosts all processes make one and call its methods at the same points. Raises UserError for
  checkpoints of another format.
  """

  def __init__(self, folder: pathlib.Path, writes: bool = True):
    """Opens a folder. Without `writes` it is left as it is: a run may be saving there."""
    self._folder = folder.absolute()
    self._writes = writes
    self._pool = concurrent.futures.ThreadPoolExecutor(1, 'checkpoint')
    self._saving: concurrent.futures.Future | None = None
    found = processes.on_process_0(self._open)
    self._saved = {step: _Facts(auc, Clock(**clock)) for step, auc, clock in found['saved']}
    self._damaged = dict(found['damaged'])  # step -> why: their manifests cannot be read

  def _open(self) -> dict[str, list]:
    """Removes what a killed process left half done; reads the manifests."""
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
    return {'saved': saved, 'damaged': damaged}

  def resume(self, abstract: Any, stream: Any) -> tuple[int | None, list[str]]:
    """Step of the newest checkpoint that is whole; None where there is no checkpoint.

    Reads all its files. Newer ones that are damaged are renamed to damaged-STEP.

    Args:
      abstract, stream: what it will be restored to.
    Returns: step, and what is to be said about it: a line each.
    Raises: UserError where none is whole, or where it cannot be restored to that. Nothing was
      touched then.
    """
    wanted = manifest.structure(_to_disk(abstract, stream))
    step, lines, aside = processes.on_process_0(lambda: self._find(wanted))
    for damaged in aside:
      self._saved.pop(damaged, None)
    self._damaged = {}
    return step, lines

  def _find(self, wanted: dict[str, list]) -> tuple[int | None, list[str], list[int]]:
    bad, good, lines = dict(self._damaged), None, []
    for step in sorted(self._saved, reverse=True):
      folder = self._folder / str(step)
      try:
        content = manifest.read(folder)
        remark = manifest.check_versions(folder, content)
        manifest.check_structure(folder, content, wanted)
        manifest.verify(folder, content)
      except manifest.Damaged as e:
        bad[step] = str(e)
        continue
      good = step
      lines += [remark] if remark else []
      break
    if bad and good is None:
      raise UserError(
        f'no checkpoint in {self._folder} is whole ({_list(bad)}): put back a copy of one, or '
        'start anew in another --workdir; nothing was changed'
      )
    for step, why in bad.items():
      name = self._set_aside(step)
      lines.append(f'checkpoint {step} is damaged ({why}): set aside as {name}')
    return good, lines, list(bad)

  def _set_aside(self, step: int) -> str:
    names = (f'damaged-{step}{x}' for x in ('', *(f'.{n}' for n in range(1, 1000))))
    name = next(x for x in names if not (self._folder / x).exists())
    os.rename(self._folder / str(step), self._folder / name)
    return name

  def clock(self, step: int) -> Clock:
    """Of the checkpoint at `step`."""
    return self._saved[step].clock

  def latest(self) -> int | None:
    """Step of the newest checkpoint."""
    self.wait()
    return max(self._saved, default=None)

  def best(self) -> tuple[int, float] | None:
    """Step and validation AUC of the best evaluated checkpoint; the earlier one of equals."""
    self.wait()
    if self._damaged:
      raise UserError(
        f'{self._folder}: the best of these cannot be told, as there are damaged ones '
        f'({_list(self._damaged)}): put back a copy, or move them out of the folder'
      )
    return _best(self._saved)

  def save(self, step: int, state: Any, stream: Any, clock: Clock, auc: float | None):
    """Starts a save in the background; the state may be donated at once.

    All processes call it; each writes what its devices hold.

    Args:
      stream: sum of the streaming metrics since they were last written.
      auc: validation AUC at this step, or None where it was not evaluated.
    """
    self.wait()
    tree = _to_disk(state, stream)
    content = {'step': step, 'auc': auc, 'clock': dataclasses.asdict(clock)}
    content['tree'] = manifest.structure(tree)
    with files.faults(self._folder):
      response = ocp.save_async(self._folder / f'{step}.saving', tree)
    self._saved[step] = _Facts(auc, clock)
    kept = {*sorted(self._saved)[-_KEPT:]}
    if best := _best(self._saved):
      kept.add(best[0])
    gone = [old for old in self._saved if old not in kept]
    self._saving = self._pool.submit(self._finish, response, content, gone)
    self._pool.submit(allocator.give_back)
    for old in gone:
      del self._saved[old]

  def _finish(self, response: ocp.AsyncResponse, content: dict[str, Any], gone: list[int]):
    """In the background: makes a checkpoint of what Orbax writes, then deletes what it replaces."""
    with files.faults(self._folder):
      response.result()  # all processes have written
      if not processes.is_process_0():
        return
      saving = self._folder / f'{content["step"]}.saving'
      manifest.write(saving, content)
      os.rename(saving, self._folder / str(content['step']))
      files.sync(self._folder)
      for old in gone:
        # In one piece for whoever looks: half a checkpoint would count as damaged.
        away = self._folder / f'{old}.deleting'
        os.rename(self._folder / str(old), away)
        shutil.rmtree(away)

  def evaluated(self, step: int, clock: Clock, auc: float | None):
    """The latest checkpoint was saved before its validation, which has been made up for."""
    self.wait()
    processes.on_process_0(lambda: self._amend(step, clock, auc))
    self._saved[step] = _Facts(auc, clock)

  def _amend(self, step: int, clock: Clock, auc: float | None):
    folder = self._folder / str(step)
    content = manifest.read(folder) | {'auc': auc, 'clock': dataclasses.asdict(clock)}
    with files.faults(self._folder):
      manifest.save(folder, content)

  def wait(self):
    """Returns when the save in progress is a checkpoint. Raises UserError for a full disk."""
    saving, self._saving = self._saving, None
    if saving is not None:
      processes.on_process_0(saving.result)  # it renames
      saving.result()

  def restore(self, step: int, abstract: Any, stream: Any) -> tuple[Any, Any, Clock]:
    """State, stream and clock at `step`, laid out as `abstract` and `stream` are.

    Args:
      abstract, stream: shapes, types and shardings, of any mesh and number of processes.
    """
    self.wait()  # a save of this very step may still be under way
    # Orbax knows dicts, lists and leaves; optax's own tuples come back through the structure.
    wanted = _to_disk(abstract, stream)
    loaded = ocp.load(self._folder / str(step), abstract_state=wanted)
    loaded = jax.tree.unflatten(jax.tree.structure(wanted), jax.tree.leaves(loaded))
    stream = loaded.pop('stream')
    state = type(abstract)(**{_FIELDS.get(k, k): x for k, x in loaded.items()})
    if int(state.step) != step:
      raise RuntimeError(f'checkpoint {step} holds the state of step {int(state.step)}')
    return state, stream, self.clock(step)

  def restore_params(self, step: int, abstract: Any) -> tuple[Any, tuple[jax.Array, ...]]:
    """Only what evaluation needs of the state at `step`, after a look at all its files.

    Returns: params, tables.
    Raises: UserError for a damaged checkpoint: no other is taken in its place.
    """
    self.wait()
    needed = {'params': abstract.params, 'rows': abstract.tables}
    processes.on_process_0(lambda: self._check(step, manifest.structure(needed)))
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with context:
      loaded = ocp.load(self._folder / str(step), abstract_state=needed)
    found = jax.tree.unflatten(jax.tree.structure(needed), jax.tree.leaves(loaded))
    return found['params'], found['rows']

  def _check(self, step: int, wanted: dict[str, list]):
    folder = self._folder / str(step)
    try:
      content = manifest.read(folder)
      manifest.check_versions(folder, content)
      parts = ("['params']", "['rows']")
      tree = {k: v for k, v in content['tree'].items() if k.startswith(parts)}
      manifest.check_structure(folder, content | {'tree': tree}, wanted)
      manifest.verify(folder, content)
    except manifest.Damaged as e:
      raise UserError(
        f'checkpoint {folder} is to be evaluated and is damaged ({e}): put back a copy of it; '
        'or move it out of the folder, and the best of those that are left is taken'
      ) from e

  def close(self):
    """Waits for the save in progress."""
    try:
      # Not `wait`: a process that fails alone would wait here for the others.
      if self._saving is not None:
        self._saving.result()
    finally:
      self._pool.shutdown()


@dataclasses.dataclass(frozen=True)
class _Facts:
  """What is remembered of a checkpoint."""

  auc: float | None
  clock: Clock


def _best(saved: dict[int, _Facts]) -> tuple[int, float] | None:
  scored = [(facts.auc, -step) for step, facts in saved.items() if facts.auc is not None]
  if not scored:
    return None
  auc, negative_step = max(scored)
  return -negative_step, auc


def _list(damaged: dict[int, str]) -> str:
  return '; '.join(f'{step}: {why}' for step, why in sorted(damaged.items()))
