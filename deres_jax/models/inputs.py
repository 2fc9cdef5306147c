# SPDX-License-Identifier: Apache-2.0
"""Inputs of a model: how the embeddings of a row are laid out, and the context of a sub-layer."""

import dataclasses

import jax


@dataclasses.dataclass(frozen=True)
class Layout:
  """What the table rows [B, S, E] of a model are, S = fields + events * event_fields.

  Attributes:
    fields: single-valued fields, which stand first.
    events: length of the behaviour sequence, oldest event first; 0: the data has none.
    event_fields: attributes of an event, which stand side by side.
    targets: for the first len(targets) attributes of an event, the field of the row that says the
      same of the candidate (its item, its category ...).
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
  """What a model may know besides its table rows.

  Attributes:
    keys_B: a PRNG key a row, or None outside training. Noise is a function of a row's key and of
      the place that draws it, so it does not depend on micro-batches or on the mesh.
    progress: share of the training steps that are done, 0 to 1: annealed temperatures follow it.
    mask_BT: True where a token is there and False where a short history is padded, or None where
      all are. A model is given that of the events, [B, events], and hands on that of its tokens.
  """

  keys_B: jax.Array | None = None
  progress: jax.Array | float = 1.0
  mask_BT: jax.Array | None = None

  @property
  def train(self) -> bool:
    return self.keys_B is not None

  def with_mask(self, mask_BT: jax.Array | None) -> 'Context':
    """The same with another mask of what is there."""
    return dataclasses.replace(self, mask_BT=mask_BT)
