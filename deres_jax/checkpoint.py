# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: (state, position, clock) in one Orbax save; the latest and the best are kept.

The only module that knows Orbax. The position in the data is the step, which is the name of the
checkpoint and stands in the state too; `restore` asserts that they agree.
"""

import dataclasses
import pathlib
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp


@dataclasses.dataclass(frozen=True)
class Clock:
  """What a run has spent so far, over all its starts.

  Attributes:
    evaluated: whether the validation that is due at this step was done: not where a run was stopped
      meanwhile.
    skipped, rollbacks: steps that moved nothing because something in them was not finite, and how
      often the run went back to a checkpoint for that.
  """

  wall_seconds: float
  rows_seen: int
  evaluated: bool = True
  skipped: int = 0
  rollbacks: int = 0


class Checkpoints:
  """Saves and restores a state whose field `step` counts the steps done."""

  def __init__(self, folder: pathlib.Path):
    keep = ocp.training.preservation_policies
    self._orbax = ocp.training.Checkpointer(
      folder.absolute(),
      save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
      preservation_policy=keep.AnyPreservationPolicy(
        [
          keep.LatestN(1),
          keep.BestN(get_metric_fn=lambda m: m['auc'], n=1, keep_checkpoints_without_metrics=False),
        ]
      ),
      cleanup_tmp_directories=True,
    )

  def latest(self) -> int | None:
    """Step of the newest checkpoint."""
    return self._orbax.latest.step if self._orbax.latest else None

  def best(self) -> tuple[int, float] | None:
    """Step and validation AUC of the best evaluated checkpoint; the earlier one of equals."""
    scored = [(c.metrics['auc'], -c.step) for c in self._orbax.checkpoints if c.metrics]
    if not scored:
      return None
    auc, negative_step = max(scored)
    return -negative_step, auc

  def save(self, step: int, state: Any, stream: Any, clock: Clock, auc: float | None):
    """Starts a save in the background; the state may be donated at once.

    All processes call it; each writes what its devices hold.

    Args:
      stream: sum of the streaming metrics since they were last written.
      auc: validation AUC at this step, or None where it was not evaluated.
    """
    self._orbax.save_async(
      step,
      {**state._asdict(), 'stream': stream},
      overwrite=step == self.latest(),  # the step where a run was stopped before it was evaluated
      metrics=None if auc is None else {'auc': auc},
      custom_metadata=dataclasses.asdict(clock),
    )

  def restore(self, step: int, abstract: Any, stream: Any) -> tuple[Any, Any, Clock]:
    """State, stream and clock at `step`, laid out as `abstract` and `stream` are.

    Args:
      abstract, stream: shapes, types and shardings, of any mesh and number of processes.
    """
    self._orbax.wait()  # a save of this very step may still be under way
    # Orbax knows dicts, lists and leaves; optax's own tuples come back through the structure.
    wanted = {**abstract._asdict(), 'stream': stream}
    loaded = self._orbax.load(step, abstract_state=wanted)
    clock = Clock(**self._orbax.metadata(step).custom_metadata)
    leaves = jax.tree.leaves(loaded)
    loaded = jax.tree.unflatten(jax.tree.structure(wanted), leaves)
    stream = loaded.pop('stream')
    state = type(abstract)(**loaded)
    if int(state.step) != step:
      raise RuntimeError(f'checkpoint {step} holds the state of step {int(state.step)}')
    return state, stream, clock

  def restore_params(self, step: int, abstract: Any) -> tuple[Any, tuple[jax.Array, ...]]:
    """Only what evaluation needs of the state at `step`: (params, rows)."""
    self._orbax.wait()
    needed = {'params': abstract.params, 'rows': abstract.rows}
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with context:
      loaded = self._orbax.load(step, abstract_state=needed)
    found = jax.tree.unflatten(jax.tree.structure(needed), jax.tree.leaves(loaded))
    return found['params'], found['rows']

  def close(self):
    """Waits for the save in progress."""
    self._orbax.close()
