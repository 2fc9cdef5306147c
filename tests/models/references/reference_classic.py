# SPDX-License-Identifier: Apache-2.0
"""Classic interaction models written again in NumPy float64 from the papers' equations.

One row at a time, sums written out over fields, pairs, maps, heads and events. A test compares
these with the code, so nothing here imports it.

Shapes: F fields, E width of a vector, W = E + 1 columns of which the last is a linear weight,
X = F * E, L events, G attributes of an event, I inputs, O outputs, U hidden units, H maps, K head
width.
"""

import numpy as np
from reference import rms_norm, sigmoid

# What the models share.


def pooled(rows_SE, there_L, fields, attributes):
  """The fields, then each attribute's mean over the events that are there. [F + G, E]."""
  out = [rows_SE[f] for f in range(fields)]
  for g in range(attributes):
    own = [rows_SE[fields + l * attributes + g] for l in range(len(there_L)) if there_L[l]]
    out.append(sum(own) / len(own) if own else np.zeros(rows_SE.shape[1]))
  return np.array(out)


def relu(x):
  return np.array([max(v, 0.0) for v in x])


def dense(p, x_I):
  """y_o = sum_i x_i W_io + b_o."""
  W_IO, b_O = p['kernel'], p['bias']
  assert W_IO.shape == (len(x_I), len(b_O))
  return np.array([sum(x * W_IO[i, o] for i, x in enumerate(x_I)) + b for o, b in enumerate(b_O)])


def mlp(p, x_I):
  """ReLU after every layer, the last one too."""
  for l in range(len(p)):
    x_I = relu(dense(p[f'layer_{l}'], x_I))
  return x_I


def logit(p, *parts):
  x_I = [float(v) for part in parts for v in part]
  return sum(w * x for w, x in zip(p['kernel'], x_I, strict=True)) + p['bias']


def layer_norm(x_D, scale_D, bias_D):
  return rms_norm(x_D - sum(x_D) / len(x_D)) * scale_D + bias_D


def linear(x_FW):
  """sum_f w_f."""
  return sum(x_W[-1] for x_W in x_FW)


def flat(x_FE):
  return np.array([v for x_E in x_FE for v in x_E])


# Models of fields alone: parameters, rows and sizes of the experiment to a logit.


def lr(p, x_F1, c):
  return linear(x_F1) + p['bias']


def pairs(v_FE):
  """sum_{i<j} <v_i, v_j> (Rendle 2010)."""
  F, E = v_FE.shape
  return sum(v_FE[i, e] * v_FE[j, e] for i in range(F) for j in range(i + 1, F) for e in range(E))


def fm(p, x_FW, c):
  return linear(x_FW) + pairs(x_FW[:, :-1]) + p['bias']


def dnn(p, x_FE, c):
  return logit(p, mlp(p['mlp'], flat(x_FE)))


def deepfm(p, x_FW, c):
  """y_FM + y_DNN (arXiv 1703.04247)."""
  return linear(x_FW) + pairs(x_FW[:, :-1]) + logit(p, mlp(p['mlp'], flat(x_FW[:, :-1])))


def cross(p, x0_X, c):
  """x_{l+1} = x_0 * (W_l x_l + b_l) + x_l, or W_l = U_l V_l^T (arXiv 2008.13535)."""
  X = len(x0_X)
  x_X = x0_X
  for l in range(c.cross_layers):
    U, b_X = p[f'cross_{l}']['kernel'], p[f'cross_{l}']['bias']
    W_XX = U
    if c.cross_rank:
      V = p[f'cross_{l}_down']
      W_XX = sum(np.outer(V[:, r], U[r]) for r in range(c.cross_rank))
    next_X = np.zeros(X)
    for o in range(X):
      next_X[o] = x0_X[o] * (sum(x_X[i] * W_XX[i, o] for i in range(X)) + b_X[o]) + x_X[o]
    x_X = next_X
  return x_X


def dcnv2(p, x_FE, c):
  """Parallel: both networks read x_0, and a linear map their outputs."""
  x0_X = flat(x_FE)
  return logit(p, cross(p, x0_X, c), mlp(p['mlp'], x0_X))


def cin(p, v_FE, c):
  """X^k_h = sum_ij W^kh_ij (X^{k-1}_i * X^0_j) and p^k_h = sum_e X^k_he (arXiv 1803.05170)."""
  x_HE, p_plus = v_FE, []
  for k in range(c.cin_layers):
    W = p[f'cin_{k}']
    next_HE = np.zeros((c.cin_maps, v_FE.shape[1]))
    assert W.shape == (c.cin_maps, len(x_HE), len(v_FE))
    for h, i, j in np.ndindex(W.shape):
      next_HE[h] += W[h, i, j] * x_HE[i] * v_FE[j]
    x_HE = next_HE
    p_plus += [sum(x_E) for x_E in x_HE]
  return p_plus


def xdeepfm(p, x_FW, c):
  v_FE = x_FW[:, :-1]
  return linear(x_FW) + logit(p, cin(p, v_FE, c), mlp(p['mlp'], flat(v_FE)))


def dlrm(p, x_FE, c):
  """Dots of all different pairs, (0, 1), (0, 2), ..., without a bottom network (1906.00091)."""
  F = len(x_FE)
  dots = [x_FE[i] @ x_FE[j] for i in range(F) for j in range(i + 1, F)]
  return logit(p, mlp(p['mlp'], dots))


def masknet(p, x_FE, c):
  """V_mask = W_2 ReLU(W_1 V_emb + b_1) + b_2;  ReLU(LN(W (V_mask * LN(V_emb)))) (2102.07619).

  Open: a bias of W; in the code there is one, before the norm.
  """
  F = len(x_FE)
  norm = p['field_norms']
  normed_X = flat([layer_norm(x_FE[f], norm['scale'][f], norm['bias'][f]) for f in range(F)])
  norm, blocks = p['block_norms'], []
  for i in range(c.mask_blocks):
    mask_X = dense(p[f'mask_{i}_out'], relu(dense(p[f'mask_{i}_in'], flat(x_FE))))
    y_U = dense(p[f'block_{i}'], mask_X * normed_X)
    blocks += list(relu(layer_norm(y_U, norm['scale'][i], norm['bias'][i])))
  return logit(p, mlp(p['mlp'], blocks))


def gated(p, name, x_X, c):
  """2 sigmoid(MLP(context)) * x, the context learned (arXiv 2304.00902)."""
  if not c.fusion_gate_units:
    return x_X
  wide_I = relu(dense(p[f'{name}_gate_in'], p[f'{name}_context'][0]))
  gate_X = dense(p[f'{name}_gate_out'], wide_I)
  return np.array([2 * sigmoid(g) * x for g, x in zip(gate_X, x_X, strict=True)])


def finalmlp(p, x_FE, c):
  """b + w_1 o_1 + w_2 o_2 + sum_k o_1k^T W_k o_2k (arXiv 2304.00902)."""
  x_X = flat(x_FE)
  o1_U = mlp(p['first'], gated(p, 'first', x_X, c))
  o2_U = mlp(p['second'], gated(p, 'second', x_X, c))
  K = len(o1_U) // c.fusion_heads
  z = logit(p, o1_U, o2_U)
  for k in range(c.fusion_heads):
    for i in range(K):
      for j in range(K):
        z += o1_U[k * K + i] * p['fusion'][k, i, j] * o2_U[k * K + j]
  return z


# DIN, arXiv 1706.06978.


def din_history(p, x_FE, events_LGE, there_L, targets):
  """sum_j a(e_j, candidate) e_j, without softmax. [G * E].

  Open: the hidden activation of a; in the code the sigmoid of the authors' program.
  """
  q = np.concatenate([x_FE[f] for f in targets])
  total = np.zeros(events_LGE[0].size)
  for l, e_GE in enumerate(events_LGE):
    if not there_L[l]:
      continue
    k = np.concatenate([e_GE[g] for g in range(len(targets))])
    wide = dense(p['attention_in'], np.concatenate([q, k, q - k, q * k]))
    (a,) = dense(p['attention_out'], [sigmoid(v) for v in wide])
    total += a * flat(e_GE)
  return total


def din(p, rows_SE, there_L, layout, times=1):
  """The history counts so many times."""
  x_FE = rows_SE[: layout.fields]
  events_LGE = rows_SE[layout.fields :].reshape(layout.events, layout.event_fields, -1)
  history = times * din_history(p, x_FE, events_LGE, there_L, layout.targets)
  return logit(p, mlp(p['mlp'], [*flat(x_FE), *history]))


MODELS = {
  'lr': lr,
  'fm': fm,
  'dnn': dnn,
  'deepfm': deepfm,
  'dcnv2': dcnv2,
  'xdeepfm': xdeepfm,
  'dlrm': dlrm,
  'masknet': masknet,
  'finalmlp': finalmlp,
}


def logits(backbone, p, rows_BSE, there_BL, layout, c):
  """Of all rows, by the model's loop. there_BL: which events are there, or None without events."""
  out = []
  for b, rows_SE in enumerate(rows_BSE):
    if backbone == 'din':
      out.append(din(p, rows_SE, there_BL[b], layout))
      continue
    x_FE = rows_SE
    if layout.events:
      x_FE = pooled(rows_SE, there_BL[b], layout.fields, layout.event_fields)
    assert backbone in MODELS, f'classic model {backbone} has no loop: add one to MODELS here'
    out.append(MODELS[backbone](p, x_FE, c))
  return np.array(out)
