# SPDX-License-Identifier: Apache-2.0
"""Measures a trained model over rows of a split and summarises it as the content of inspect.json.

Shapes: N rows, T tokens, S sites (S is the head's read).
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from deres_jax.config import fields
from deres_jax.data import batches as batches_lib
from deres_jax.data.blocks import Blocks
from deres_jax.data.feed import Prefetch, feed
from deres_jax.inspect import probes, stats
from deres_jax.inspect.probes import Ablation, Structure
from deres_jax.metrics import exact, paired
from deres_jax.models.backbones import TOKEN_BACKBONES
from deres_jax.training.checkpoints.restore import Trained

MAX_ROWS = 1024  # of a batch on a device: gradients keep the activations of all of them
GRADIENT_BATCHES = 8
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
NEAR = 0.05  # a gate within this distance of 0 or 1 is near it
HEAD = 'head'
NEGATIVES, GATES = 'negative weights zeroed', {0.0: 'gate 0', 0.5: 'gate 0.5', 1.0: 'gate 1'}


@dataclasses.dataclass
class Measurements:
  """Results of the programs, added up over batches.

  Attributes:
    stats: as `probes.Recorder.stats`, without rows.
    gradients: TokenStats by site, of the first batches.
    early_N: each row's mean weight of deep reads on early sources, or None without such reads.
    logits: by ablation; '' is the untouched model. labels_N: of the same rows.
  """

  structure: Structure
  stats: dict[str, dict[str, Any]]
  gradients: dict[int, stats.TokenStats]
  early_N: np.ndarray | None
  logits: dict[str, np.ndarray]
  labels_N: np.ndarray


def ablations(s: Structure) -> dict[str, Ablation]:
  """Returns the ablations of a model by name; the first, '', changes nothing."""
  keep = dict.fromkeys(s.removable(), 1.0)
  none = Ablation(keep, 0.0, math.nan)
  out = {'': none}
  signed = any(kind in ('recall', 'pre_res') for kind, _ in s.sources) and not s.simplex
  if signed:
    out[NEGATIVES] = none._replace(clip=1.0)
  for name in keep:
    out[f'without {name}'] = none._replace(keep=keep | {name: 0.0})
  if s.gates:
    out |= {title: none._replace(gate=g) for g, title in GATES.items()}
  # One by one: a map over all of them would sort the names.
  return {name: jax.tree.map(np.float32, ablation) for name, ablation in out.items()}


def deep_and_early(s: Structure) -> dict[int, int]:
  """Returns, by site of each deep read, how many of its first sources are early.

  Deep reads are those in the last half of the depth, the head's included; the early sources of a
  read are its older half, the embedding included.
  """
  sites = len(s.names)
  return {
    site: len(sources) // 2
    for (kind, site), sources in s.sources.items()
    if kind == 'recall' and site >= sites / 2 and len(sources) > 1
  }


def batches_of(model: Trained, split: str, rows: int) -> batches_lib.Batches:
  """Returns batches of the first `rows` rows of a split, in stored order."""
  c, devices = model.config, model.spec.mesh.size
  size = min(c.data.eval_batch_size, MAX_ROWS * devices)
  blocks = Blocks(model.schema, split)
  return batches_lib.Batches(
    blocks, model.spec.tables, size, devices, c.data.window_blocks, shuffle_seed=None
  )


def measure(
  model: Trained, batches: batches_lib.Batches, rows: int, on_batch: Callable[[int], None]
) -> Measurements:
  """Runs all programs over the first `rows` rows of a split.

  Args:
    rows: at most those of the split.
    on_batch: called with the number of batches done.
  """
  c, spec = model.config, model.spec
  size = batches.batch_size
  num_batches = -(-rows // size)
  programs, at = probes.make(spec), np.int32(model.at)
  out = Measurements(programs.structure, {}, {}, None, {}, np.zeros(0))
  to_try: dict[str, Ablation] = {}
  logits: dict[str, list] = {}
  labels, early = [], []
  prefetch = Prefetch(1, c.data.prefetch)
  stream = feed(
    batches, spec.mesh, (0, num_batches), prefetch, lambda: False, lambda r: r.labels.copy()
  )
  for k, device_batch in enumerate(stream):
    count = min(size, rows - k * size)
    args = model.params, model.tables, at, device_batch.batch, np.int32(count)
    logits_B, recorded, by_row = programs.record(*args)
    to_try = to_try or ablations(programs.structure)
    logits.setdefault('', []).append(np.asarray(logits_B)[:count])
    for name, ablation in to_try.items():
      if name:
        logits.setdefault(name, []).append(np.asarray(programs.ablate(*args, ablation))[:count])
    if k < GRADIENT_BATCHES:
      _add({'gradients': out.gradients}, {'gradients': programs.gradients(*args)})
    _add(out.stats, recorded)
    labels.append(device_batch.selected[:count])
    early.append(_early(programs.structure, by_row, count))
    on_batch(k + 1)
  out.logits = {name: np.concatenate(parts) for name, parts in logits.items()}
  out.labels_N = np.concatenate(labels)
  out.early_N = None if early[0] is None else np.concatenate(early)
  return out


def _early(s: Structure, by_row: dict[str, jax.Array], count: int) -> np.ndarray | None:
  """Returns each row's mean over the weights of deep reads on early sources."""
  weights = [
    np.asarray(by_row[f'recall {site}'])[:count, :first]
    for site, first in deep_and_early(s).items()
    if f'recall {site}' in by_row
  ]
  return np.concatenate(weights, axis=1).astype(np.float64).mean(axis=1) if weights else None


def _add(totals: dict[str, dict], batch: dict[str, dict]):
  """Adds the statistics of a batch, [devices, ...], to `totals`."""
  for name, entries in batch.items():
    total = totals.setdefault(name, {})
    for key, value in jax.device_get(entries).items():
      before = [total[key]] if key in total else []
      if isinstance(value, np.ndarray):  # a histogram
        total[key] = sum(before, value.astype(np.int64).sum(axis=0))
      else:
        devices = [type(value)(*(x[d] for x in value)) for d in range(len(value.count))]
        total[key] = stats.merged([*before, *devices])


def token_positions(model: Trained, tokens: int) -> dict[str, np.ndarray]:
  """Returns positions of each kind of token, events and fields, among the last `tokens` ones."""
  c, layout, schema = model.config, model.spec.layout, model.schema
  reads = TOKEN_BACKBONES[c.model.backbone].reads_events
  if c.model.tokenizer == 'field':
    names = [field.name for field in schema.fields]
    if layout.events and not reads:
      names += [f'mean {x.name} of events' for x in schema.sequence.attributes]
  else:
    names = [f'token {i}' for i in range(1, c.model.tokens + 1)]
  events = tokens - len(names)
  out = {'events': np.arange(events)} if events else {}
  return out | {name: np.array([events + i]) for i, name in enumerate(names)}


# The content of inspect.json.


def summarise(model: Trained, measured: Measurements) -> dict[str, Any]:
  """Returns the content of inspect.json, except the run and how it was measured."""
  s = measured.structure
  return {
    'sites': [*s.names, HEAD],
    'gates': [_gate(model, measured, site) for site in sorted(s.gates)],
    'weights': [
      _weights(model, measured, kind, site) for kind, site in sorted(s.sources, key=lambda k: k[1])
    ],
    'gate_multiplies': _gated(model.config),
    'simplex': s.simplex,
    'depth': [_depth(measured, site) for site in range(len(s.names) + 1)],
    'gradient_tokens': _mean(measured.gradients[-1]),
    'gradient_rows': int(measured.gradients[-1].count.sum()),
    'untouched': exact.evaluate_logits(measured.labels_N, measured.logits['']),
    'checks': _checks(measured),
    'early': _early_weights(measured),
  }


def _gated(c: fields.Config) -> str:
  if c.model.connector == 'highway':
    return 'the sub-layer’s output (1 − g: the stream)'
  if c.deres.gate_form == 'additive_gated':
    return 'twice the recall path (the identity path is unscaled)'
  return 'the identity path (1 − g: the recall path)'


def _gate(model: Trained, measured: Measurements, site: int) -> dict[str, Any]:
  count = measured.stats['gates'][str(site)]
  total, middle = count.sum(), (np.arange(probes.BINS) + 0.5) / probes.BINS
  below = np.cumsum(count) / total
  edge = round(NEAR * probes.BINS)
  tokens = measured.stats.get('gate_tokens', {}).get(str(site))
  return {
    'site': site,
    'mean': float(count @ middle / total),
    'quantiles': {str(q): float(middle[_first(below, q)]) for q in QUANTILES},
    'near_0': float(count[:edge].sum() / total),
    'near_1': float(count[-edge:].sum() / total),
    'histogram': count.reshape(-1, 5).sum(axis=1).tolist(),  # 200 bins over [0, 1]
    'depends_on_input': tokens is not None,
    'tokens': {} if tokens is None else _by_kind(model, tokens),
  }


def _first(below: np.ndarray, q: float) -> int:
  """Returns the bin of quantile q; for 0 the first bin that is not empty."""
  return int(np.searchsorted(below, max(q, 1e-12) * (1 - 1e-12)))


def _by_kind(model: Trained, m: stats.TokenStats) -> dict[str, Any]:
  out = {}
  for name, positions in token_positions(model, len(m.count)).items():
    of_kind = stats.over_tokens(m, positions)
    share = of_kind.share_negative()[0].tolist()
    out[name] = {'mean': of_kind.mean[0].tolist(), 'negative': share}
  return out


def _weights(model: Trained, measured: Measurements, kind: str, site: int) -> dict[str, Any]:
  m = measured.stats['weights'][f'{kind} {site}']
  static = (kind, site) in measured.structure.static
  pooled = stats.over_tokens(m)
  return {
    'kind': kind,
    'site': site,
    'sources': list(measured.structure.sources[kind, site]),
    'mean': pooled.mean[0].tolist(),
    'sd': pooled.std()[0].tolist(),
    'negative': pooled.share_negative()[0].tolist(),
    'static': static,
    'tokens': _by_kind(model, m) if kind == 'recall' and not static else {},
  }


def _mean(m: stats.TokenStats) -> float:
  return float(stats.over_tokens(m).mean[0])


def _depth(measured: Measurements, site: int) -> dict[str, Any]:
  """Returns figures of one read and of the branch after it."""
  norms = {
    name: _mean(measured.stats['norms'][f'{name} {site}'])
    for name in ('read', 'identity', 'recall', 'branch')
    if f'{name} {site}' in measured.stats['norms']
  }
  return {
    'site': site,
    'rms': norms,
    'cosine': _mean(measured.stats['cosine'][str(site)]),
    'effective_rank': stats.effective_rank(measured.stats['scatter'][str(site)]),
    'gradient': _mean(measured.gradients[site]) if site in measured.gradients else None,
  }


def _checks(measured: Measurements) -> list[dict[str, Any]]:
  """Compares each ablation's AUC to the untouched model's on the same rows."""
  out = []
  for name, logits_N in measured.logits.items():
    if name:
      line = paired.delong(measured.labels_N, logits_N, measured.logits[''])
      out.append({'change': name, 'auc': exact.auc(measured.labels_N, logits_N), **line})
  adjusted = paired.holm([line['p'] for line in out])
  return [{**line, 'p_holm': p} for line, p in zip(out, adjusted, strict=True)]


def _early_weights(measured: Measurements) -> dict[str, Any] | None:
  """Returns the mean weight of deep reads on early sources, with a 95 % interval over rows."""
  deep = deep_and_early(measured.structure)
  if not deep:
    return None
  by_site = {site: measured.stats['weights'][f'recall {site}'] for site in deep}
  negative = [stats.over_tokens(m).share_negative()[0][: deep[s]] for s, m in by_site.items()]
  out = {
    'reads': {
      str(site): list(measured.structure.sources['recall', site][:n]) for site, n in deep.items()
    },
    'share_negative': float(np.concatenate(negative).mean()),
  }
  if measured.early_N is None:  # static weights do not vary over rows
    means = [stats.over_tokens(m).mean[0][: deep[s]] for s, m in by_site.items()]
    return out | {'mean': float(np.concatenate(means).mean()), 'interval': 0.0}
  half = 1.959964 * float(measured.early_N.std(ddof=1)) / math.sqrt(len(measured.early_N))
  return out | {'mean': float(measured.early_N.mean()), 'interval': half}
