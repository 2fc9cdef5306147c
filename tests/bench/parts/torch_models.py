# SPDX-License-Identifier: Apache-2.0
"""PyTorch's side of steps.py: our models from our parameters, and ways to train them.

Shapes: B rows, F fields, T tokens, E row width, D token width, H heads, K head width, R table rows.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from deres_jax.data.batches import Batch
from deres_jax.training.step import State

Tensor = torch.Tensor
CHUNK = 128  # rows at a time of the chunked ways, as many as ours
HEADS = 4  # the default of ours


class Parts(nn.Module):
  """Modules by the names of our parameters: a map is an nn.Linear, all else a parameter."""

  def __init__(self, params: dict[str, Any]):
    super().__init__()
    for name, value in params.items():
      if not isinstance(value, dict):
        self.register_parameter(name, nn.Parameter(torch.tensor(value)))
      elif np.ndim(value.get('kernel')) == 2:
        self.add_module(name, _linear(value['kernel'], value.get('bias')))
      else:
        self.add_module(name, Parts(value))

  def gradients(self) -> dict[str, Any]:
    """The parameters' gradients, in the tree and layout of ours."""
    out = {name: p.grad.numpy() for name, p in self.named_parameters(recurse=False)}
    for name, part in self.named_children():
      if isinstance(part, Parts):
        out[name] = part.gradients()
      else:
        out[name] = {'kernel': part.weight.grad.numpy().T}
        if part.bias is not None:
          out[name]['bias'] = part.bias.grad.numpy()
    return out


def _linear(kernel: np.ndarray, bias: np.ndarray | None) -> nn.Linear:
  linear = nn.Linear(*kernel.shape, bias=bias is not None)
  linear.weight = nn.Parameter(torch.tensor(np.ascontiguousarray(kernel.T)))
  if bias is not None:
    linear.bias = nn.Parameter(torch.tensor(bias))
  return linear


def _mlp(layers: Parts, x_BI: Tensor) -> Tensor:
  for layer in layers.children():
    x_BI = functional.relu(layer(x_BI))
  return x_BI


class Dnn(Parts):
  """Hidden layers over all rows side by side. [B, F, E] -> [B]."""

  def forward(self, x_BFE: Tensor) -> Tensor:
    return _mlp(self.mlp, x_BFE.flatten(1)) @ self.kernel + self.bias


class DeepFM(Parts):
  """FM + hidden layers; a row's last column is its linear weight. [B, F, E + 1] -> [B]."""

  def forward(self, x_BFE: Tensor) -> Tensor:
    v, linear_B = x_BFE[..., :-1], x_BFE[..., -1].sum(1)
    pairs_B = 0.5 * (v.sum(1) ** 2 - (v * v).sum(1)).sum(-1)
    return linear_B + pairs_B + _mlp(self.mlp, v.flatten(1)) @ self.kernel + self.bias


class DCNv2(Parts):
  """Full cross layers beside hidden layers. [B, F, E] -> [B]."""

  def forward(self, x_BFE: Tensor) -> Tensor:
    x0 = x = x_BFE.flatten(1)
    for name, cross in self.named_children():
      if name.startswith('cross_'):
        x = x0 * cross(x) + x
    return torch.cat([x, _mlp(self.mlp, x0)], 1) @ self.kernel + self.bias


class Transformer(Parts):
  """Field tokens, pre-norm layers of attention and feed-forward, all tokens to a logit."""

  heads: int

  def forward(self, x_BFE: Tensor) -> Tensor:
    tokens = self.tokens
    x = torch.baddbmm(tokens.map.bias[:, None], x_BFE.transpose(0, 1), tokens.map.kernel)
    x = _rms(x.transpose(0, 1), tokens.norm.scale[0])
    scales, stack = self.stack.connector.norms.scale, self.stack
    depth = (len(scales) - 1) // 2
    for l in range(depth):
      attention, ffn = stack.get_submodule(f'attention_{l}'), stack.get_submodule(f'ffn_{l}')
      x = x + self._attend(attention, _rms(x, scales[2 * l]))
      wide = functional.gelu(ffn.up(_rms(x, scales[2 * l + 1])), approximate='tanh')
      x = x + ffn.down(wide)
    return _rms(x, scales[2 * depth]).flatten(1) @ self.head.kernel + self.head.bias

  def _attend(self, maps: Parts, x_BTD: Tensor) -> Tensor:
    B, T, D = x_BTD.shape
    qkv = maps.qkv(x_BTD).view(B, T, 3, self.heads, D // self.heads)
    y_BHTK = functional.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))
    return maps.out(y_BHTK.transpose(1, 2).reshape(B, T, D))


def _rms(x: Tensor, scale: Tensor) -> Tensor:
  return functional.rms_norm(x, x.shape[-1:], scale, 1e-6)


MODELS = {'transformer': Transformer, 'dcnv2': DCNv2, 'deepfm': DeepFM, 'dnn': Dnn}


def _loss(logits_B: Tensor, label_B: Tensor, rows: int) -> Tensor:
  """The sum over these rows, of so many whose mean is wanted."""
  total = functional.binary_cross_entropy_with_logits(logits_B, label_B, reduction='sum')
  return total / rows


class Peer:
  """A model with its table and optimizers.

  The table's optimizer is SparseAdam, that of all other parameters Adam in its fastest form
  (fused); with `dense` one such Adam moves the whole table too.
  """

  def __init__(
    self, backbone: str, heads: int, params: dict[str, Any], table_RE: np.ndarray, dense: bool
  ):
    self.model = MODELS[backbone](params)
    self.model.heads = heads
    self.table = nn.Embedding(*table_RE.shape, sparse=not dense, _weight=torch.tensor(table_RE))
    inner = list(self.model.parameters())
    if dense:
      self.optimizers = [torch.optim.Adam([*inner, self.table.weight], fused=True)]
    else:
      adam = torch.optim.Adam(inner, fused=True)
      self.optimizers = [adam, torch.optim.SparseAdam([self.table.weight])]

  def gradients(self, forward: Callable, chunk: int, ids_BF: Tensor, label_B: Tensor) -> None:
    """Leaves the gradients of the mean loss in the parameters, `chunk` rows at a time."""
    rows = self.table(ids_BF)
    if chunk == len(label_B):
      _loss(forward(rows), label_B, chunk).backward()
      return
    # Leaves of their own: the gradient of a slice would be an array as large as the whole.
    leaves = [part.detach().requires_grad_() for part in rows.split(chunk)]
    for leaf, label in zip(leaves, label_B.split(chunk), strict=True):
      _loss(forward(leaf), label, len(label_B)).backward()
    rows.backward(torch.cat([leaf.grad for leaf in leaves]))

  def steps(
    self, forward: Callable, chunk: int, ids_BF: Tensor, label_B: Tensor
  ) -> Callable[[int], None]:
    """Does so many steps on the batch."""

    def run(n: int):
      for _ in range(n):
        for optimizer in self.optimizers:
          optimizer.zero_grad()
        self.gradients(forward, chunk, ids_BF, label_B)
        for optimizer in self.optimizers:
          optimizer.step()

    return run


def of(
  backbone: str, state: State, host: Batch, dense: bool = False
) -> tuple[Peer, Tensor, Tensor]:
  """The peer of a state of ours, and a batch's ids and labels for it."""
  table_RE = np.asarray(state.tables[0])
  peer = Peer(backbone, HEADS, jax.device_get(state.params), table_RE, dense)
  ids_BF = torch.tensor(host.unique_ids[0].reshape(-1)[host.inverse])
  return peer, ids_BF, torch.tensor(host.labels)
