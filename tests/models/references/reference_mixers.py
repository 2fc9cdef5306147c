# SPDX-License-Identifier: Apache-2.0
"""Tokenizers, token mixers, heads and HAARES in NumPy float64, from the papers' equations.

Loops over rows, tokens, heads and pairs; maps, norms and Sinkhorn are those of reference.py and
reference_streams.py. A test compares these with the code, so nothing here imports it.

A padded event is made of NaN here: a sum that takes one in shows.

Shapes: B rows, T tokens, D width, F fields, E table-row width, L events, G attributes of an event,
H heads, K head or block width, R rank, M hidden width.
"""

import math

import numpy as np
from reference import gelu, rms_norm, site_norm, token_dense
from reference_streams import sinkhorn


def relu(x):
  return np.maximum(x, 0.0)


def silu(x):
  return x / (1 + np.exp(-x))


def dense(params, x_I):
  """x W + b of one vector."""
  return np.array([x_I @ column for column in params['kernel'].T]) + params.get('bias', 0.0)


def mlp(params, x_I):
  """Dense maps with a ReLU after each, the last one too."""
  for i in range(len(params)):
    x_I = relu(dense(params[f'layer_{i}'], x_I))
  return x_I


# Tokenizers: tokens of RMS 1, but for a gain.


def normed(params, x_BTD):
  return site_norm(params['norm'], 'rms', x_BTD, 0)


def field_tokens(params, rows_BFE):
  """A map a field."""
  return normed(params, token_dense(params['map']['kernel'], rows_BFE, params['map']['bias']))


def even_slices(row_FE, tokens):
  """A row's numbers side by side, in `tokens` slices of one length; zeros fill the last."""
  numbers = [v for field in row_FE for v in field]
  width = math.ceil(len(numbers) / tokens)
  numbers += [0.0] * (tokens * width - len(numbers))
  return np.array([numbers[t * width : (t + 1) * width] for t in range(tokens)])


def slice_tokens(params, rows_BFE, tokens):
  """RankMixer: x_t = Proj_t(slice_t)."""
  slices = np.stack([even_slices(row, tokens) for row in rows_BFE])
  return normed(params, token_dense(params['map']['kernel'], slices, params['map']['bias']))


def global_tokens(params, rows_BFE, tokens):
  """TokenMixer-Large: a token of all numbers first. Open: its groups; in the code even slices."""
  slices = np.stack([even_slices(row, tokens - 1) for row in rows_BFE])
  rest_BTD = token_dense(params['map']['kernel'], slices, params['map']['bias'])
  first_BD = [dense(params['global_map'], row.ravel()) for row in rows_BFE]
  return normed(params, np.stack([[g, *rest] for g, rest in zip(first_BD, rest_BTD, strict=True)]))


def event_tokens(params, rows_BLGE):
  """One map of an event's attributes for all events, plus its place's position."""
  B, L = rows_BLGE.shape[:2]
  x_BLD = token_dense(params['map']['kernel'], rows_BLGE.reshape(B, L, -1))
  return normed(params, x_BLD + params['position'])


def pooled(rows_BFE, rows_BLGE, mask_BL):
  """The fields and, of each attribute, the mean over the events that are there; none: zeros."""
  out = []
  for fields, events, there in zip(rows_BFE, rows_BLGE, mask_BL, strict=True):
    seen = [event for event, is_there in zip(events, there, strict=True) if is_there]
    out.append([*fields, *(sum(seen) / len(seen) if seen else np.zeros(events.shape[1:]))])
  return np.array(out)


# Heads.


def logit_head(params, pool, fields, x_BTD):
  """Open in most papers: what is pooled of a sequence. In the code the last `fields` tokens."""
  out = []
  for x_TD in x_BTD[:, x_BTD.shape[1] - fields :]:
    if pool == 'mean':
      v = sum(x_TD) / fields
    elif pool == 'global':
      v = x_TD[0]
    else:
      v = np.array([number for token in x_TD for number in token])
    if pool == 'mlp':
      v = mlp(params['mlp'], v)
    out.append(v @ params['kernel'] + params['bias'])
  return np.array(out)


# RankMixer (arXiv 2507.15551) and TokenMixer-Large (2602.06563).


def head_mix(x_BTD, heads):
  """New token h is [x_1^(h), x_2^(h) ..], the h-th heads of all tokens. [B, H, T K]."""
  B, T, D = x_BTD.shape
  K = D // heads
  out_BHM = np.zeros((B, heads, T * K))
  for b, h, t, k in np.ndindex(B, heads, T, K):
    out_BHM[b, h, t * K + k] = x_BTD[b, t, h * K + k]
  return out_BHM


def revert(x_BHM, tokens):
  """Gives every piece back to the token that it came from. [B, T, H K]."""
  B, H, M = x_BHM.shape
  K = M // tokens
  out_BTD = np.zeros((B, tokens, H * K))
  for b, h, t, k in np.ndindex(B, H, tokens, K):
    out_BTD[b, t, h * K + k] = x_BHM[b, h, t * K + k]
  return out_BTD


def swiglu(params, x_BTD):
  """W_down (swish(W_gate x + b) * (W_up x + b)) + b, matrices a token's own."""
  both_BTM = token_dense(params['up']['kernel'], x_BTD, params['up']['bias'])
  gate, up = np.split(both_BTM, 2, axis=-1)
  return token_dense(params['down']['kernel'], silu(gate) * up, params['down']['bias'])


def mix_and_revert(params, x_BTD):
  """H = Mix(X), H' = H + pSwiGLU(RMS(H)), R = Revert(H'), pSwiGLU(RMS(R)); X is not added here.

  Open: notes write Norm(pSwiGLU(.) + .) and say pre-norm; in the code pre-norm.
  """
  tokens = x_BTD.shape[1]
  h_BTD = head_mix(x_BTD, tokens)
  h_BTD = h_BTD + swiglu(params['mixed'], site_norm(params['norms'], 'rms', h_BTD, 0))
  r_BTD = revert(h_BTD, tokens)
  return swiglu(params['reverted'], site_norm(params['norms'], 'rms', r_BTD, 1))


def bare_interval(x_BTD, branches, every):
  """TokenMixer-Large's skips around blocks that norm inside: X + F(X), and X^(l) += X^(l - every).

  Not at the last block. Overlap as in reference_streams.interval.
  """
  x, inputs = [x_BTD], []
  for l, branch in enumerate(branches, start=1):
    inputs.append(x[-1])
    x_BTD = x[-1] + branch(x[-1])
    if l % every == 0 and l != len(branches):
      x_BTD = x_BTD + x[l - every]
    x.append(x_BTD)
  return inputs, x[-1]


# UniMixer (arXiv 2604.00590).


def doubly_stochastic(v_NN, tau, iterations):
  """Sinkhorn(exp((V + V^T) / 2 tau)). Open: its iterations; rows are normalised last."""
  return sinkhorn((v_NN + v_NN.T) / 2 / tau, iterations)


def unimix(x_BTD, local_NKK, global_NN):
  """h_i = x_i W_i for every block of the flat row, o_n = sum_i W_ni h_i."""
  N, K = local_NKK.shape[:2]
  out_BTD = np.zeros(x_BTD.shape)
  for b, x_TD in enumerate(x_BTD):
    flat = x_TD.ravel()
    h_NK = [flat[i * K : (i + 1) * K] @ local_NKK[i] for i in range(N)]
    o_NK = [sum(global_NN[n, i] * h_NK[i] for i in range(N)) for n in range(N)]
    out_BTD[b] = np.reshape(o_NK, x_TD.shape)
  return out_BTD


def unimixing(params, x_BTD, tau, iterations):
  if 'local_bases' in params:  # lite: W_i of sum_l w_il Z_l, W_G of A B
    z_LKK = params['local_bases']
    local = [sum(w * z for w, z in zip(w_L, z_LKK, strict=True)) for w_L in params['local_weights']]
    whole = params['global_left'] @ params['global_right']
  else:
    local, whole = params['local_logits'], params['global_logits']
  local_NKK = np.stack([doubly_stochastic(v, tau, iterations) for v in local])
  return unimix(x_BTD, local_NKK, doubly_stochastic(whole, tau, iterations))


def unimixer_block(params, x_BTD, tau, iterations):
  """O = RMS(X + UniMixing(X)), then pSwiGLU(O)."""
  y_BTD = unimixing(params['mixing'], x_BTD, tau, iterations)
  return swiglu(params['swiglu'], normed(params, x_BTD + y_BTD))


# Attention. A key is seen where it is there and, if causal, not later than the query.


def seen_keys(query, keys, causal, there_T):
  return [j for j in range(keys) if there_T[j] and (not causal or j <= query)]


def hstu(params, heads, causal, x_BTD, mask_BT=None):
  """HSTU, arXiv 2402.17152: A = SiLU(q k^T + bias) / T, y = W_o (LN(A v) * u).

  Heads side by side in each of u, v, q, k; the norm is over all of them and has no gain.
  """
  B, T, D = x_BTD.shape
  K = D // heads
  mask_BT = np.ones((B, T), bool) if mask_BT is None else mask_BT
  y_BTD = np.zeros(x_BTD.shape)
  for b in range(B):
    parts = [np.split(silu(dense(params['uvqk'], x_D)), 4) for x_D in x_BTD[b]]
    u, v, q, k = ([part[i] for part in parts] for i in range(4))
    for t in range(T):
      av_D = np.zeros(D)
      for h in range(heads):
        own = slice(h * K, (h + 1) * K)
        for j in seen_keys(t, T, causal, mask_BT[b]):
          a = silu(q[t][own] @ k[j][own] + params['bias'][t, j]) / T
          av_D[own] += a * v[j][own]
      y_BTD[b, t] = dense(params['out'], rms_norm(av_D - np.mean(av_D)) * u[t])
  return y_BTD


def softmax_attention(q_BQD, k_BTD, v_BTD, heads, scale, causal=False, mask_BT=None):
  """Heads side by side; the queries are the last tokens. One that sees nothing has no value."""
  B, T, D = k_BTD.shape
  Q, K = q_BQD.shape[1], D // heads
  mask_BT = np.ones((B, T), bool) if mask_BT is None else mask_BT
  y_BQD = np.zeros((B, Q, D))
  for b, h, i in np.ndindex(B, heads, Q):
    own = slice(h * K, (h + 1) * K)
    seen = seen_keys(T - Q + i, T, causal, mask_BT[b])
    e = [math.exp(scale * (q_BQD[b, i, own] @ k_BTD[b, j, own])) for j in seen]
    y_BQD[b, i, own] = sum((a / sum(e) * v_BTD[b, j, own] for a, j in zip(e, seen, strict=True)))
    y_BQD[b, i, own] += 0.0 if seen else math.nan
  return y_BQD


def interacting(params, heads, x_BTD):
  """AutoInt, arXiv 1810.11921: scores are not scaled, heads are concatenated as they are."""
  q, k, v = np.split(token_dense(params['qkv']['kernel'], x_BTD), 3, axis=-1)
  return softmax_attention(q, k, v, heads, 1.0)


def composite_attention(params, heads, x_BTD):
  """HiFormer, arXiv 2311.05884: [q_1 .. q_T] = vec(X) U V, and so k and v; W_O a token's own."""
  T, D = x_BTD.shape[1:]
  qkv = []
  for down, up in zip(params['down'], params['up'], strict=True):
    qkv.append(np.stack([(x_TD.ravel() @ down @ up).reshape(T, D) for x_TD in x_BTD]))
  y_BTD = softmax_attention(*qkv, heads, 1 / math.sqrt(D // heads))
  return token_dense(params['out']['kernel'], y_BTD)


# OneTrans, arXiv 2510.26104: events S share matrices, fields NS have their own.


def mixed_dense(params, own, x_BTD):
  """The last `own` tokens have a matrix each, those before them share one."""
  shared = x_BTD.shape[1] - own if own else 0
  last_BTO = token_dense(params['kernel'], x_BTD[:, shared:], params.get('bias'))
  if shared == 0:
    return last_BTO
  first_BTO = token_dense(params['kernel_shared'], x_BTD[:, :shared])
  return np.concatenate([first_BTO, last_BTO], axis=1)


def mixed_attention(params, own, heads, causal, x_BTD, mask_BT=None, queries=None):
  """The last `queries` tokens ask, keys are of all. Open: W_O; in the code one for all tokens."""
  T, D = x_BTD.shape[1:]
  queries = queries or T
  if 'qkv' in params:
    q, k, v = np.split(mixed_dense(params['qkv'], own, x_BTD), 3, axis=-1)
  else:
    q = mixed_dense(params['q'], own, x_BTD[:, T - queries :])
    k, v = np.split(mixed_dense(params['kv'], own, x_BTD), 2, axis=-1)
  scale = 1 / math.sqrt(D // heads)
  y_BQD = softmax_attention(q[:, -queries:], k, v, heads, scale, causal, mask_BT)
  return token_dense(params['out']['kernel'], y_BQD)


def mixed_feed_forward(params, own, x_BTD):
  """W2 gelu(W1 x); in RankMixer, where every token has its own, W2 gelu(W1 x + b1) + b2."""
  return mixed_dense(params['down'], own, gelu(mixed_dense(params['up'], own, x_BTD)))


# Wukong, arXiv 2403.02545.


def wukong(params, interactions, x_BTD):
  """concat(reshape(MLP(LN(flatten(X X^T Y)))), W_L X). Open: the MLP's end; in the code a ReLU."""
  T, D = x_BTD.shape[1:]
  R = params['projection'].shape[1]
  out = []
  for x_TD in x_BTD:
    fm_TR = np.zeros((T, R))
    for i, j, r in np.ndindex(T, T, R):
      fm_TR[i, r] += (x_TD[i] @ x_TD[j]) * params['projection'][j, r]
    flat = site_norm(params['norm'], 'layer', fm_TR.reshape(1, 1, T * R), 0)[0, 0]
    fmb = relu(dense(params['out'], mlp(params['mlp'], flat)))
    fmb_SD = [fmb[s * D : (s + 1) * D] for s in range(interactions)]
    lcb_SD = [sum(w_T[i] * x_TD[i] for i in range(T)) for w_T in params['compression']]
    out.append([*fmb_SD, *lcb_SD])
  return np.array(out)


# Connectors.


def projected(params, x_BTD, branches):
  """AutoInt: x <- ReLU(F(x) + W_res x). Open: W's side; in the code x is a row."""
  inputs = []
  for site, branch in enumerate(branches):
    inputs.append(x_BTD)
    x_BTD = relu(branch(x_BTD) + token_dense(params['kernel'][site], x_BTD))
  return inputs, x_BTD


def block_details(outputs, per_layer):
  """HAARES: of a whole block, first sub-layers of layers minus the others, early minus late half.

  Each in the RMS of the block's sum. Open: a half of an odd block; in the code the late one is
  longer. Nothing tells sub-layers of a layer apart where it has one, and the two patterns of one
  layer of two sub-layers are the same.
  """
  n = len(outputs)
  phase = [1 if i % per_layer == 0 else -1 for i in range(n)]
  split = [1 if i < n // 2 else -1 for i in range(n)]
  patterns = [split] if per_layer == 1 or phase == split else [phase, split]
  total_BTD, details = sum(outputs), []
  for signs in patterns:
    d_BTD = sum(s * y_BTD for s, y_BTD in zip(signs, outputs, strict=True))
    for b, t in np.ndindex(d_BTD.shape[:2]):
      size, detail_size = (np.mean(v[b, t] ** 2) + 1e-6 for v in (total_BTD, d_BTD))
      d_BTD[b, t] *= math.sqrt(size / detail_size)
    details.append(d_BTD)
  return details


def haares_read(w_D, extra, sources):
  """softmax over all sources of <w, v / RMS(v)> + c, c = 0 for a sum."""
  u_BTD = np.zeros(sources[0].shape)
  for b, t in np.ndindex(u_BTD.shape[:2]):
    z = [w_D @ rms_norm(v_BTD[b, t]) + c for c, v_BTD in zip(extra, sources, strict=True)]
    total = sum(math.exp(v) for v in z)
    for v, v_BTD in zip(z, sources, strict=True):
      u_BTD[b, t] += math.exp(v) / total * v_BTD[b, t]
  return u_BTD


def haares(params, norm, block, per_layer, x0_BTD, branches):
  """arXiv 2606.06564 over block AttnRes: every read adds its sources up from all outputs so far."""
  inputs, outputs = [], []
  for site in range(len(branches) + 1):
    sums, details = [x0_BTD], []
    for first in range(0, site, block):
      own = outputs[first : first + block]
      sums.append(sum(own))
      details += block_details(own, per_layer) if len(own) == block else []
    extra = [0.0] * len(sums) + [params['detail'][site - block] for _ in details]
    u_BTD = haares_read(params['query'][site], extra, [*sums, *details])
    inputs.append(site_norm(params['norms'], norm, u_BTD, site))
    if site < len(branches):
      outputs.append(branches[site](inputs[-1]))
  return inputs[:-1], inputs[-1]
