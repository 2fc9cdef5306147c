# SPDX-License-Identifier: Apache-2.0
"""Wukong (arXiv 2403.02545): stacked factorization machines.

Shapes: B examples, T tokens, D width, R rank of the projection of the interactions.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from deres_jax.config.fields import Config
from deres_jax.core.errors import UserError
from deres_jax.models import inputs, layers
from deres_jax.models.stack import SubLayer


class WukongLayer(nn.Module):
  """Interactions and a linear map over tokens, concat(FMB(x), LCB(x)). [B, T, D] -> [B, T, D].

    FM = X X^T Y, Y in R^{T x R};  FMB = reshape(MLP(LN(flatten(FM))));  LCB = W_L X

  FMB makes `interactions` tokens and LCB the others, so that T stays and the paper's skip needs no
  linear map. The MLP ends in a ReLU, as in FuxiCTR.
  """

  interactions: int
  rank: int
  units: int
  hidden: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x_BTD: Array, ctx: inputs.Context) -> Array:
    B, T, D = x_BTD.shape
    x = x_BTD.astype(self.dtype)
    xavier = nn.initializers.xavier_uniform()
    y_TR = self.param('projection', xavier, (T, self.rank)).astype(self.dtype)
    # X^T Y first: T R D products instead of T T D.
    fm_BTR = jnp.einsum('btd,bdr->btr', x, jnp.einsum('btd,tr->bdr', x, y_TR))
    flat = layers.SiteNorms(1, T * self.rank, 'layer', self.dtype, name='norm')(
      fm_BTR.reshape(B, -1), 0
    )
    flat = layers.Mlp(self.units, self.hidden, 0.0, 0, self.dtype, name='mlp')(flat, ctx)
    fmb = nn.Dense(self.interactions * D, dtype=self.dtype, kernel_init=xavier, name='out')(flat)
    fmb_BTD = jax.nn.relu(fmb).reshape(B, self.interactions, D)
    w_ST = self.param('compression', xavier, (T - self.interactions, T)).astype(self.dtype)
    return jnp.concatenate([fmb_BTD, jnp.einsum('st,btd->bsd', w_ST, x)], axis=1)


def wukong(c: Config, fields: int, events: int, dtype: jnp.dtype) -> tuple[SubLayer, ...]:
  """Returns one sub-layer a layer. The paper's norm is a LayerNorm after the skip."""
  x = c.mixer
  interactions = x.wukong_interactions or fields // 2
  if not 0 < interactions < fields:
    raise UserError(
      f'config mixer.wukong_interactions={interactions}: expected 1 to {fields - 1}, so that the '
      f'{fields} tokens hold some of both kinds'
    )
  sizes = dict(interactions=interactions, rank=x.wukong_rank, units=x.wukong_units)
  sizes |= dict(hidden=x.wukong_layers, dtype=dtype)
  return tuple(SubLayer(f'wukong_{l}', WukongLayer, sizes) for l in range(c.model.depth))
