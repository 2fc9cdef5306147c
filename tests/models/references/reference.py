# SPDX-License-Identifier: Apache-2.0
"""Connectors and layers written again in NumPy float64 from the papers' equations.

Loops over rows, tokens, sites and sources, one vector at a time, and no bookkeeping: the outputs
of all sub-layers are kept and every read adds its blocks up again from them. A test compares these
with the code, so nothing here imports it.

Shapes: B rows, T tokens, D width, R rank or key width, H heads, K head width, O outputs.
"""

import math

import numpy as np

EPS = 1e-6


# Norms.


def rms_norm(x_D):
  """x / sqrt(mean(x^2) + eps), no gain."""
  return x_D / math.sqrt(sum(v * v for v in x_D) / len(x_D) + EPS)


def site_norm(params, kind, x_BTD, site):
  """RMSNorm with a gain, or LayerNorm with gain and bias, of one site."""
  out_BTD = np.zeros(x_BTD.shape)
  for b, t in np.ndindex(x_BTD.shape[:2]):
    x_D = x_BTD[b, t]
    if kind == 'layer':
      centred_D = x_D - np.mean(x_D)
      x_D = centred_D / math.sqrt(np.mean(centred_D**2) + EPS)
      out_BTD[b, t] = x_D * params['scale'][site] + params['bias'][site]
    else:
      out_BTD[b, t] = rms_norm(x_D) * params['scale'][site]
  return out_BTD


# Plain residual: u_s = Norm_s(x), x <- x + F_s(u_s).


def prenorm(params, norm, x0_BTD, branches):
  """Inputs of all sub-layers and the head's."""
  x_BTD, inputs = x0_BTD, []
  for site, branch in enumerate(branches):
    inputs.append(site_norm(params['norms'], norm, x_BTD, site))
    x_BTD = x_BTD + branch(inputs[-1])
  return inputs, site_norm(params['norms'], norm, x_BTD, len(branches))


# Attention Residuals, arXiv 2603.15031. Sub-layers count from 1, as in the paper.


def attention_read(w_D, sources):
  """h = sum_i phi(w, v_i) v_i / sum_j phi(w, v_j), phi(q, k) = exp(q . RMSNorm(k)). [B, T, D]."""
  h_BTD = np.zeros(sources[0].shape)
  for b, t in np.ndindex(h_BTD.shape[:2]):
    phis = [math.exp(w_D @ rms_norm(v_BTD[b, t])) for v_BTD in sources]
    for phi, v_BTD in zip(phis, sources, strict=True):
      h_BTD[b, t] += phi / sum(phis) * v_BTD[b, t]
  return h_BTD


def full_attnres(params, norm, x0_BTD, branches):
  """Every sub-layer's output is a source: v_0 = h_1 is the embedding, v_l = f_l(h_l)."""
  v, inputs = [x0_BTD], []
  for l in range(1, len(branches) + 1):
    # h_1 is the embedding itself; a softmax over one source gives it too.
    h_BTD = v[0] if l == 1 else attention_read(params['query'][l - 1], v[:l])
    inputs.append(site_norm(params['norms'], norm, h_BTD, l - 1))
    v.append(branches[l - 1](inputs[-1]))
  h_BTD = attention_read(params['query'][-1], v)
  return inputs, site_norm(params['norms'], norm, h_BTD, len(branches))


def block_attnres(params, norm, block, x0_BTD, branches):
  """Sources of the i-th sub-layer of a block: whole blocks; with i >= 2, its partial sum too."""
  b, inputs, l = [x0_BTD], [], 0
  while l < len(branches):
    partial = np.zeros(x0_BTD.shape)
    for i in range(1, min(block, len(branches) - l) + 1):  # the last block takes the rest
      sources = b if i == 1 else [*b, partial]
      h_BTD = attention_read(params['query'][l], sources)
      inputs.append(site_norm(params['norms'], norm, h_BTD, l))
      partial = partial + branches[l](inputs[-1])
      l += 1
    b.append(partial)
  h_BTD = attention_read(params['query'][-1], b)
  return inputs, site_norm(params['norms'], norm, h_BTD, len(branches))


# DeRes, arXiv 2606.07980, with every switch.


def sigmoid(z):
  return 1 / (1 + math.exp(-z))


POINTWISE = {
  'silu': lambda z: z * sigmoid(z),
  'sigmoid': sigmoid,
  'tanh': math.tanh,
  'relu': lambda z: max(z, 0.0),
  'silu_clipped': lambda z: max(z * sigmoid(z), 0.0),
}


def weights(switches, z):
  """Scores of all sources of one token -> their weights."""
  if switches['score_fn'] in ('softmax', 'softmax1'):
    # The null source of softmax1 is one more score of 0. Open in the specification: whether tau
    # and n_src touch a normalised weight. In the code they do not.
    null = 1.0 if switches['score_fn'] == 'softmax1' else 0.0
    total = null + sum(math.exp(v) for v in z)
    return [math.exp(v) / total for v in z]
  a = [POINTWISE[switches['score_fn']](v + switches['silu_center']) for v in z]
  # Open: what n counts. In the code, the sources of this read.
  return [v / len(z) for v in a] if switches['silu_norm'] == 'n_src' else a


def key(switches, b_D):
  """Open: `lowrank_key` is the first R of d dimensions, after the norm over all d."""
  k_D = rms_norm(b_D)
  return k_D[: switches['key_rank']] if switches['compress'] == 'lowrank_key' else k_D


def query(params, switches, row, t, x_D):
  if switches['query'] == 'shared':
    return params['query'][0]
  if switches['query'] == 'static_per_token':
    return params['query'][row, t]
  w_R = params['query'][row]
  if switches['query'] == 'lowrank_dynamic':
    return w_R + (rms_norm(x_D) @ params['query_down'][row]) @ params['query_up'][row]
  return w_R


def gate(params, switches, row, x_D):
  """g_s in (0, 1), one a dimension (one for all of them where gate=scalar)."""
  z = params['gate'][row] + np.zeros(len(x_D))
  if switches['gate'] == 'lowrank_dynamic':
    z = z + (rms_norm(x_D) @ params['gate_down'][row]) @ params['gate_up'][row]
  if switches['gate'] == 'dense':  # open: the gate's input; in the code the normed stream
    z = z + rms_norm(x_D) @ params['gate_map'][row]
  return np.array([sigmoid(v) for v in z])


def recall(params, switches, row, t, x_D, sources):
  """r = sum_i a_i b_i of one token."""
  w_R = query(params, switches, row, t, x_D)
  z = [switches['score_scale'] * (w_R @ key(switches, b_D)) for b_D in sources]
  r_D = np.zeros(len(x_D))
  for a, b_D in zip(weights(switches, z), sources, strict=True):
    r_D = r_D + a * b_D
  if switches['silu_norm'] == 'rms':
    r_D = r_D * math.sqrt(np.mean(x_D**2) / np.mean(r_D**2))
  return r_D


def read_token(params, switches, row, t, x_D, sources):
  """u_s of one token, before the norm."""
  if switches['path'] == 'identity':
    return x_D
  r_D = recall(params, switches, row, t, x_D, sources)
  if switches['path'] == 'attn':
    return r_D
  if switches['gate_form'] == 'additive':
    return x_D + r_D
  g_D = gate(params, switches, row, x_D)
  if switches['gate_form'] == 'additive_gated':
    return x_D + 2 * g_D * r_D
  return g_D * x_D + (1 - g_D) * r_D


def keep(params, switches, x_BTD, site):
  """The skip of a write. Open: the side of W_l in `W_l x`; in the code x is a row, x W_l."""
  if switches['identity_kind'] == 'identity':
    return x_BTD
  if switches['identity_kind'] == 'matrix':
    return x_BTD @ params['keep'][site]
  return x_BTD * params['keep'][site]


def compress(switches, outputs, x_end_BTD, complete):
  """A block: the outputs of its sub-layers and the stream after it -> its summary [B, T, D].

  Open: the unfinished block under each choice. In the code `mean` divides by the outputs that are
  there (of a short last block too, where the specification writes sum / S), `last` is the stream
  so far, and `token_mean` takes the mean over tokens only of a block that is complete.
  """
  if switches['compress'] == 'last':
    return x_end_BTD
  total = sum(outputs)
  if switches['compress'] == 'mean':
    return total / len(outputs)
  if switches['compress'] == 'token_mean' and complete:
    tokens = total.shape[1]
    mean_BD = sum(total[:, t] for t in range(tokens)) / tokens
    return np.stack([mean_BD] * tokens, axis=1)
  return total


def sources_at(switches, block, x0_BTD, outputs, streams, readout):
  """b_0, the complete blocks and, if it is a source, the unfinished one.

  outputs: of all sub-layers so far; streams: x after each of them. The readout closes the block
  that is open, whatever include_partial says.
  """
  done = len(outputs)
  sources = [x0_BTD]
  for first in range(0, done - done % block, block):
    last = first + block
    sources.append(compress(switches, outputs[first:last], streams[last - 1], True))
  rest = outputs[done - done % block :]
  if rest and (readout or switches['include_partial']):
    sources.append(compress(switches, rest, streams[-1], readout))
  return sources


def row_of(switches, per_layer, sites, site):
  """Which row of the queries and gates a site has, or None where it reads the stream alone."""
  if site == sites and not switches['readout_mix'] and switches['path'] != 'attn':
    return None  # open: without an identity path the head has nothing else to read
  if switches['sites'] == 'sublayer':
    return site
  # Open: where a layer reads once. In the code, before its first sub-layer.
  return site // per_layer if site % per_layer == 0 else None


def mix(params, switches, row, x_BTD, sources):
  if row is None:
    return x_BTD
  u_BTD = np.zeros(x_BTD.shape)
  for b, t in np.ndindex(x_BTD.shape[:2]):
    own = [source[b, t] for source in sources]
    u_BTD[b, t] = read_token(params, switches, row, t, x_BTD[b, t], own)
  return u_BTD


def deres(params, switches, norm, per_layer, x0_BTD, branches):
  """Inputs of all sub-layers and the head's.

  Args:
    params: the connector's arrays by name, float64.
    switches: of the experiment, by name; block_layers counts layers of per_layer sub-layers.
    norm: 'rms' or 'layer'.
    branches: functions [B, T, D] -> [B, T, D] of the normed input.
  """
  block = switches['block_layers'] * per_layer
  x_BTD, inputs, outputs, streams = x0_BTD, [], [], []
  sites = len(branches)
  for site in range(sites + 1):
    row = row_of(switches, per_layer, sites, site)
    sources = sources_at(switches, block, x0_BTD, outputs, streams, site == sites)
    u_BTD = mix(params, switches, row, x_BTD, sources)
    normed_BTD = site_norm(params['norms'], norm, u_BTD, site)
    if site == sites:
      return inputs, normed_BTD
    inputs.append(normed_BTD)
    outputs.append(branches[site](normed_BTD))
    if switches['mix_site'] == 'stream':
      x_BTD = u_BTD  # x <- g x + (1 - g) r + o
    x_BTD = keep(params, switches, x_BTD, site) + outputs[-1]
    streams.append(x_BTD)


# Layers.


def gelu(x):
  """The tanh form of Hendrycks & Gimpel 2016. Open in OneTrans; the code says GELU."""
  return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def token_dense(kernel, x_BTD, bias=None):
  """kernel [D, O] for all tokens or [T, D, O], a matrix a token; bias likewise. [B, T, O]."""
  B, T, _ = x_BTD.shape
  y_BTO = np.zeros((B, T, kernel.shape[-1]))
  for b, t, o in np.ndindex(y_BTO.shape):
    kernel_DO = kernel[t] if kernel.ndim == 3 else kernel
    y_BTO[b, t, o] = sum(x_BTD[b, t, d] * kernel_DO[d, o] for d in range(x_BTD.shape[-1]))
    if bias is not None:
      y_BTO[b, t, o] += bias[t, o] if bias.ndim == 2 else bias[o]
  return y_BTO


def attention(params, heads, causal, x_BTD):
  """softmax(q k^T / sqrt(K)) v a head, heads side by side, then the output map.

  q, k and v are thirds of one map's outputs; head h has dimensions h K .. (h + 1) K - 1 of each.
  """
  B, T, D = x_BTD.shape
  K = D // heads
  q_BTD, k_BTD, v_BTD = np.split(token_dense(params['qkv']['kernel'], x_BTD), 3, axis=-1)
  y_BTD = np.zeros((B, T, D))
  for b, h, t in np.ndindex(B, heads, T):
    own = slice(h * K, (h + 1) * K)
    seen = range(t + 1) if causal else range(T)
    e = [math.exp(q_BTD[b, t, own] @ k_BTD[b, j, own] / math.sqrt(K)) for j in seen]
    for j in seen:
      y_BTD[b, t, own] += e[j] / sum(e) * v_BTD[b, j, own]
  return token_dense(params['out']['kernel'], y_BTD)


def feed_forward(params, x_BTD):
  """W2 gelu(W1 x)."""
  h_BTM = gelu(token_dense(params['up']['kernel'], x_BTD))
  return token_dense(params['down']['kernel'], h_BTM)
