# SPDX-License-Identifier: Apache-2.0
"""Inputs of a model: the layout of an example's embeddings, and the context of a sub-layer."""

import dataclasses

import jax
from jax import Array


@dataclasses.dataclass(frozen=True)
class Layout:
  """Layout of the embeddings [B, S, E] of a model, S = fields + events * event_fields.

  Attributes:
    fields: number of single-valued fields, which come first.
    events: length of the behaviour sequence, oldest event first; 0 if the data has none.
    event_fields: attributes of an event, which are adjacent.
    targets: for the first len(targets) attributes of an event, the field that holds the same
      attribute of the candidate (its item, its category ...).
  """

  fields: int
  events: int = 0
  event_fields: int = 0
  targets: tuple[int, ...] = ()

  def __post_init__(self):
    # JAX would clamp an index that is out of range.
    if len(self.targets) > self.event_fields or not all(f < self.fields for f in self.targets):
      raise ValueError(f'{self}: targets must name fields, one for each of the first attributes')

  @property
  def slots(self) -> int:
    return self.fields + self.events * self.event_fields


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
  """Inputs of a model besides its embeddings.

  Attributes:
    keys_B: a PRNG key for each example, or None outside training. Noise depends on an example's key
      and on the place that draws it, not on micro-batches or the mesh.
    progress: completed share of the training steps, 0 to 1: annealed temperatures follow it.
    mask_BT: False where a short history is padded, True elsewhere; None if nothing is padded. A
      model gets the mask of the events, [B, events], and passes on that of its tokens.
  """

  keys_B: Array | None = None
  progress: Array | float = 1.0
  mask_BT: Array | None = None

  @property
  def train(self) -> bool:
    return self.keys_B is not None

  def with_mask(self, mask_BT: Array | None) -> 'Context':
    """Returns a copy with another mask."""
    return dataclasses.replace(self, mask_BT=mask_BT)
