# SPDX-License-Identifier: Apache-2.0
"""Single-stream and many-stream connectors in NumPy float64, from the papers' equations.

Loops over rows, tokens, streams and sites, one number at a time where an equation has indices.
Each function returns the inputs of all sub-layers and the head's; norms are those of
reference.py. A test compares these with the code, so nothing here imports it.

Shapes: B rows, T tokens, D width, N streams, C = N * D.
"""

import itertools
import math

import numpy as np
from reference import rms_norm, sigmoid, site_norm


def tokens_of(x_BTD):
  """The indices of all tokens of all rows."""
  return np.ndindex(x_BTD.shape[:2])


# One stream, or two.


def post_norm(params, norm, x_BTD, branches):
  """x <- Norm(x + F(x)), Vaswani et al. 2017. The head reads what the last norm left."""
  inputs = []
  for site, branch in enumerate(branches):
    inputs.append(x_BTD)
    x_BTD = site_norm(params['norms'], norm, x_BTD + branch(x_BTD), site)
  return inputs, x_BTD


def siamese(params, norm, x0_BTD, branches):
  """O = F(X + Norm(Y)), X <- Norm(X + O), Y <- Y + O; the head reads X + Norm(Y).

  Open: what one F is. In the code a sub-layer, in UniMixer a block.
  """
  post_BTD, pre_BTD, inputs = x0_BTD, x0_BTD, []
  for site, branch in enumerate(branches):
    inputs.append(post_BTD + site_norm(params['norms'], norm, pre_BTD, site))
    o_BTD = branch(inputs[-1])
    post_BTD = site_norm(params['post_norms'], norm, post_BTD + o_BTD, site)
    pre_BTD = pre_BTD + o_BTD
  return inputs, post_BTD + site_norm(params['norms'], norm, pre_BTD, len(branches))


def interval(params, norm, x0_BTD, branches, per_layer, every):
  """Pre-norm, and X^(l) += X^(l - every) at every `every`-th layer l that is not the last.

  Open: whether the windows overlap and which X^(l) is added. In the code they do not overlap, and
  it is the stream after its own addition, with which the tokens' share doubles at each.
  """
  depth = len(branches) // per_layer
  x, inputs = [x0_BTD], []
  for l in range(1, depth + 1):
    x_BTD = x[-1]
    for site in range((l - 1) * per_layer, l * per_layer):
      inputs.append(site_norm(params['norms'], norm, x_BTD, site))
      x_BTD = x_BTD + branches[site](inputs[-1])
    if l % every == 0 and l != depth:
      x_BTD = x_BTD + x[l - every]
    x.append(x_BTD)
  return inputs, site_norm(params['norms'], norm, x[-1], len(branches))


def learnable_token(params, kind, site, x_D, y_D):
  """lam x + mu y with numbers or vectors, or W x + y. Open: W's side; in the code x is a row."""
  out_D = np.zeros(len(x_D))
  for d in range(len(x_D)):
    if kind == 'matrix':
      out_D[d] = sum(x_D[e] * params['keep'][site][e, d] for e in range(len(x_D))) + y_D[d]
    else:
      k = 0 if kind == 'scalar' else d
      out_D[d] = params['keep'][site][k] * x_D[d] + params['scale'][site][k] * y_D[d]
  return out_D


def learnable(params, norm, x0_BTD, branches, kind):
  x_BTD, inputs = x0_BTD, []
  for site, branch in enumerate(branches):
    inputs.append(site_norm(params['norms'], norm, x_BTD, site))
    y_BTD, next_BTD = branch(inputs[-1]), np.zeros(x_BTD.shape)
    for b, t in tokens_of(x_BTD):
      next_BTD[b, t] = learnable_token(params, kind, site, x_BTD[b, t], y_BTD[b, t])
    x_BTD = next_BTD
  return inputs, site_norm(params['norms'], norm, x_BTD, len(branches))


def rezero(params, norm, x_BTD, branches):
  """x <- x + a F(x), arXiv 2003.04887. Open: the head's read; in the code it is normed."""
  inputs = []
  for site, branch in enumerate(branches):
    inputs.append(x_BTD)
    x_BTD = x_BTD + params['scale'][site][0] * branch(x_BTD)
  return inputs, site_norm(params['norms'], norm, x_BTD, 0)


def layer_scale(params, norm, x0_BTD, branches):
  """x <- x + diag(gamma) F(Norm(x)), arXiv 2103.17239."""
  x_BTD, inputs = x0_BTD, []
  for site, branch in enumerate(branches):
    inputs.append(site_norm(params['norms'], norm, x_BTD, site))
    y_BTD, x_BTD = branch(inputs[-1]), x_BTD.copy()
    for b, t in tokens_of(x_BTD):
      for d, gamma in enumerate(params['scale'][site]):
        x_BTD[b, t, d] += gamma * y_BTD[b, t, d]
  return inputs, site_norm(params['norms'], norm, x_BTD, len(branches))


def highway(params, norm, x0_BTD, branches):
  """x <- (1 - g) x + g F(Norm(x)), g = sigmoid(W x + b), arXiv 1505.00387.

  Open: what W reads in a pre-norm network. In the code x over its RMS without a gain, whatever
  the norm of the sub-layers.
  """
  x_BTD, inputs = x0_BTD, []
  for site, branch in enumerate(branches):
    inputs.append(site_norm(params['norms'], norm, x_BTD, site))
    y_BTD, next_BTD = branch(inputs[-1]), np.zeros(x_BTD.shape)
    for b, t in tokens_of(x_BTD):
      z_D = rms_norm(x_BTD[b, t]) @ params['gate_map'][site] + params['gate'][site]
      for d, z in enumerate(z_D):
        g = sigmoid(z)
        next_BTD[b, t, d] = (1 - g) * x_BTD[b, t, d] + g * y_BTD[b, t, d]
    x_BTD = next_BTD
  return inputs, site_norm(params['norms'], norm, x_BTD, len(branches))


# All layers before.


def dense_former(params, norm, x0_BTD, branches, per_layer):
  """X_0 the tokens, X_l = B_l(Y_{l-1}), Y_0 = X_0, Y_l = sum_{j <= l} a_lj X_j. arXiv 2402.02622.

  B_l is a whole pre-norm layer with its own skips.
  """
  x, y_BTD, inputs = [x0_BTD], x0_BTD, []
  for l in range(1, len(branches) // per_layer + 1):
    x_BTD = y_BTD
    for site in range((l - 1) * per_layer, l * per_layer):
      inputs.append(site_norm(params['norms'], norm, x_BTD, site))
      x_BTD = x_BTD + branches[site](inputs[-1])
    x.append(x_BTD)
    a = params[f'weights_{l - 1}']  # the code counts layers from 0
    assert len(a) == len(x)
    y_BTD = np.zeros(x0_BTD.shape)
    for j in range(l + 1):
      y_BTD = y_BTD + a[j] * x[j]
  return inputs, site_norm(params['norms'], norm, y_BTD, len(branches))


# Many streams. h_NBTD is a list of N streams.


def weighted(streams, weights_BTN):
  """sum_n w_n h_n, with other weights for every token."""
  out_BTD = np.zeros(streams[0].shape)
  for b, t in tokens_of(out_BTD):
    for n, h_BTD in enumerate(streams):
      out_BTD[b, t] += weights_BTN[b, t, n] * h_BTD[b, t]
  return out_BTD


def hyper_maps(params, site, streams):
  """A = A_static + s_a tanh(Hn W_a) [N, N + 1] and B = B_static + s_b tanh(Hn w_b) [N]."""
  N, shape = len(streams), streams[0].shape[:2]
  a_BTNK, post_BTN = np.zeros((*shape, N, N + 1)), np.zeros((*shape, N))
  for n, h_BTD in enumerate(streams):
    normed_BTD = site_norm(params['stream_norms'], 'layer', h_BTD, site)
    for b, t in tokens_of(h_BTD):
      v_D = normed_BTD[b, t]
      for k in range(N + 1):
        dynamic = math.tanh(v_D @ params['mix_map'][site][:, k])
        a_BTNK[b, t, n, k] = params['mix_static'][site][n, k]
        a_BTNK[b, t, n, k] += params['mix_scale'][site] * dynamic
      dynamic = math.tanh(v_D @ params['post_map'][site])
      post_BTN[b, t, n] = params['post_static'][site][n] + params['post_scale'][site] * dynamic
  return a_BTNK, post_BTN


def hyper(params, norm, x0_BTD, branches, streams):
  """Hyper-Connections, arXiv 2409.19606. A^T H: row 0 is the input, rows 1 .. N the new streams."""
  h_NBTD, inputs = [x0_BTD] * streams, []
  for site, branch in enumerate(branches):
    a_BTNK, post_BTN = hyper_maps(params, site, h_NBTD)
    mix = [weighted(h_NBTD, a_BTNK[..., k]) for k in range(streams + 1)]
    inputs.append(site_norm(params['norms'], norm, mix[0], site))
    y_BTD = branch(inputs[-1])
    h_NBTD = [mix[n + 1] + post_BTN[..., n : n + 1] * y_BTD for n in range(streams)]
  return inputs, site_norm(params['norms'], norm, sum(h_NBTD), len(branches))


def sinkhorn(z_NN, iterations):
  """M_0 = exp(z); M <- rownorm(colnorm(M)). Float64 holds exp(+-300), so nothing is subtracted."""
  N = len(z_NN)
  m_NN = np.array([[math.exp(z) for z in row] for row in z_NN])
  for _ in range(iterations):
    for j in range(N):
      m_NN[:, j] = m_NN[:, j] / sum(m_NN[i, j] for i in range(N))
    for i in range(N):
      m_NN[i] = m_NN[i] / sum(m_NN[i, j] for j in range(N))
  return m_NN


def permutation_mix(z_P, streams):
  """sum_k softmax(z)_k Perm_k, arXiv 2601.05732. Open: their order; in the code lexicographic."""
  total = sum(math.exp(z) for z in z_P)
  m_NN = np.zeros((streams, streams))
  for z, order in zip(z_P, itertools.permutations(range(streams)), strict=True):
    for i, j in enumerate(order):
      m_NN[i, j] += math.exp(z) / total
  return m_NN


def manifold_maps(params, site, h_ND, iterations, lite):
  """H_pre [N], H_post [N] and H_res [N, N] of one token; vec(H) goes stream by stream."""
  N = len(h_ND)
  v_C = rms_norm(np.array([v for h_D in h_ND for v in h_D]))
  z = {}
  for i, name in enumerate(('pre', 'post', 'res')):
    scale = params['map_scale'][site][i]
    z[name] = scale * (v_C @ params[f'{name}_map'][site]) + params[f'{name}_bias'][site]
  pre_N = [sigmoid(v) for v in z['pre']]
  post_N = [2 * sigmoid(v) for v in z['post']]
  if lite:
    return pre_N, post_N, permutation_mix(z['res'], N)
  return pre_N, post_N, sinkhorn(z['res'].reshape(N, N), iterations)


def manifold(params, norm, x0_BTD, branches, streams, iterations, lite):
  """mHC, arXiv 2512.24880: H <- H_res H + H_post^T F(Norm(H_pre H))."""
  h_NBTD, inputs = [x0_BTD] * streams, []
  for site, branch in enumerate(branches):
    shape = x0_BTD.shape[:2]
    pre_BTN, post_BTN = np.zeros((*shape, streams)), np.zeros((*shape, streams))
    res_BTNN = np.zeros((*shape, streams, streams))
    for b, t in tokens_of(x0_BTD):
      own_ND = [h_BTD[b, t] for h_BTD in h_NBTD]
      maps = manifold_maps(params, site, own_ND, iterations, lite)
      pre_BTN[b, t], post_BTN[b, t], res_BTNN[b, t] = maps
    inputs.append(site_norm(params['norms'], norm, weighted(h_NBTD, pre_BTN), site))
    y_BTD = branch(inputs[-1])
    h_NBTD = [
      weighted(h_NBTD, res_BTNN[:, :, n]) + post_BTN[..., n : n + 1] * y_BTD for n in range(streams)
    ]
  return inputs, site_norm(params['norms'], norm, sum(h_NBTD), len(branches))
