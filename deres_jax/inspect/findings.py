# SPDX-License-Identifier: Apache-2.0
"""What is found in a trained model: from its programs over some rows to the content of a page.

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
from deres_jax.inspect import moments, probes
from deres_jax.inspect.probes import Change, Structure
from deres_jax.metrics import exact, paired
from deres_jax.models.backbones import READS_EVENTS
from deres_jax.training.checkpoints.restore import Trained

MOST_ROWS = 1024  # of a batch on a device: gradients keep the activations of all of them
GRADIENT_BATCHES = 8
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
NEAR = 0.05  # a gate below this, or above 1 less this, is near an end
HEAD = 'head'
NEGATIVES, GATES = 'negative weights zeroed', {0.0: 'gate 0', 0.5: 'gate 0.5', 1.0: 'gate 1'}


@dataclasses.dataclass
class Seen:
  """What the programs gave, added up over batches.

  Attributes:
    found: as `probes.Recorder.found`, without rows.
    gradients: Moments by site, of the first batches.
    early_N: each row's mean weight of deep reads on early sources, or None where there are none.
    logits: by change; '' is the untouched model. labels_N: of the same rows.
  """

  structure: Structure
  found: dict[str, dict[str, Any]]
  gradients: dict[int, moments.Moments]
  early_N: np.ndarray | None
  logits: dict[str, np.ndarray]
  labels_N: np.ndarray


def changes(s: Structure) -> dict[str, Change]:
  """What is tried on the model, by name; the first does nothing."""
  keep, names = dict.fromkeys(s.changeable(), 1.0), s.changeable()
  none = Change(keep, 0.0, math.nan)
  out = {'': none}
  signed = any(kind in ('recall', 'pre_res') for kind, _ in s.sources) and not s.simplex
  if signed:
    out[NEGATIVES] = none._replace(clip=1.0)
  for name in names:
    out[f'without {name}'] = none._replace(keep=keep | {name: 0.0})
  if s.gates:
    out |= {title: none._replace(gate=g) for g, title in GATES.items()}
  # One by one: a map over the whole would sort the names.
  return {name: jax.tree.map(np.float32, change) for name, change in out.items()}


def deep_and_early(s: Structure) -> dict[int, int]:
  """For each deep read how many of its sources, the first ones, are early.

  Deep are the reads in the last half of the depth, the head's included; early is the older half of
  what such a read has, the embedding included.
  """
  sites = len(s.names)
  return {
    site: len(sources) // 2
    for (kind, site), sources in s.sources.items()
    if kind == 'recall' and site >= sites / 2 and len(sources) > 1
  }


def batches_of(model: Trained, split: str, rows: int) -> batches_lib.Batches:
  """Batches that hold the first `rows` rows of a split, in the order that they are stored in."""
  c, devices = model.config, model.spec.mesh.size
  size = min(c.data.eval_batch_size, MOST_ROWS * devices)
  blocks = Blocks(model.schema, split)
  return batches_lib.Batches(
    blocks, model.spec.tables, size, devices, c.data.window_blocks, shuffle_seed=None
  )


def look(
  model: Trained, batches: batches_lib.Batches, rows: int, tell: Callable[[int], None]
) -> Seen:
  """Runs everything over the first `rows` rows of a split.

  Args:
    rows: at most those of the split.
    tell: called with the number of batches that are done.
  """
  c, spec = model.config, model.spec
  size = batches.batch_size
  last = -(-rows // size)
  programs, at = probes.make(spec), np.int32(model.at)
  seen = Seen(programs.structure, {}, {}, None, {}, np.zeros(0))
  tried: dict[str, Change] = {}
  logits: dict[str, list] = {}
  labels, early = [], []
  prefetch = Prefetch(1, c.data.prefetch)
  stream = feed(batches, spec.mesh, (0, last), prefetch, lambda: False, lambda r: r.labels.copy())
  for k, device_batch in enumerate(stream):
    count = min(size, rows - k * size)
    args = model.params, model.tables, at, device_batch.batch, np.int32(count)
    out, found, by_row = programs.look(*args)
    tried = tried or changes(programs.structure)
    logits.setdefault('', []).append(np.asarray(out)[:count])
    for name, change in tried.items():
      if name:
        logits.setdefault(name, []).append(np.asarray(programs.change(*args, change))[:count])
    if k < GRADIENT_BATCHES:
      _add({'gradients': seen.gradients}, {'gradients': programs.gradients(*args)})
    _add(seen.found, found)
    labels.append(device_batch.selected[:count])
    early.append(_early(programs.structure, by_row, count))
    tell(k + 1)
  seen.logits = {name: np.concatenate(parts) for name, parts in logits.items()}
  seen.labels_N = np.concatenate(labels)
  seen.early_N = None if early[0] is None else np.concatenate(early)
  return seen


def _early(s: Structure, by_row: dict[str, jax.Array], count: int) -> np.ndarray | None:
  """Each row's mean over the weights of deep reads on early sources."""
  some = [
    np.asarray(by_row[f'recall {site}'])[:count, :first]
    for site, first in deep_and_early(s).items()
    if f'recall {site}' in by_row
  ]
  return np.concatenate(some, axis=1).astype(np.float64).mean(axis=1) if some else None


def _add(total: dict[str, dict], found: dict[str, dict]):
  """Adds up what the devices found in a batch."""
  for name, entries in found.items():
    mine = total.setdefault(name, {})
    for key, value in jax.device_get(entries).items():
      before = [mine[key]] if key in mine else []
      if isinstance(value, np.ndarray):  # a histogram
        mine[key] = sum(before, value.astype(np.int64).sum(axis=0))
        continue
      merge = moments.merged if isinstance(value, moments.Moments) else moments.merged_scatter
      devices = [type(value)(*(x[d] for x in value)) for d in range(len(value.count))]
      mine[key] = merge([*before, *devices])


# Tokens.


def tokens_of(model: Trained, tokens: int) -> dict[str, np.ndarray]:
  """Places of each kind of token among the last `tokens` ones: events, and fields by name."""
  c, layout, schema = model.config, model.spec.layout, model.schema
  reads = c.model.backbone in READS_EVENTS
  if c.model.tokenizer == 'field':
    names = [field.name for field in schema.fields]
    if layout.events and not reads:
      names += [f'mean {x.name} of events' for x in schema.sequence.attributes]
  else:
    names = [f'token {i}' for i in range(1, c.model.tokens + 1)]
  events = tokens - len(names)
  out = {'events': np.arange(events)} if events else {}
  return out | {name: np.array([events + i]) for i, name in enumerate(names)}


# The content.


def content(model: Trained, seen: Seen) -> dict[str, Any]:
  """What inspect.json holds of the model, but for how it was made."""
  s = seen.structure
  checks = _checks(seen)
  return {
    'sites': [*s.names, HEAD],
    'gates': [_gate(model, seen, site) for site in sorted(s.gates)],
    'weights': [
      _weights(model, seen, kind, site) for kind, site in sorted(s.sources, key=lambda k: k[1])
    ],
    'gate_multiplies': _gated(model.config),
    'simplex': s.simplex,
    'depth': [_depth(seen, site) for site in range(len(s.names) + 1)],
    'gradient_tokens': _mean(seen.gradients[-1]),
    'gradient_rows': int(seen.gradients[-1].count.sum()),
    'untouched': exact.evaluate_logits(seen.labels_N, seen.logits['']),
    'checks': checks,
    'early': _early_weights(seen),
  }


def _gated(c: fields.Config) -> str:
  if c.model.connector == 'highway':
    return 'the sub-layer’s output (1 − g: the stream)'
  if c.deres.gate_form == 'additive_gated':
    return 'twice the recall path (the identity path is whole)'
  return 'the identity path (1 − g: the recall path)'


def _gate(model: Trained, seen: Seen, site: int) -> dict[str, Any]:
  count = seen.found['gates'][str(site)]
  total, middle = count.sum(), (np.arange(probes.BINS) + 0.5) / probes.BINS
  below = np.cumsum(count) / total
  edge = round(NEAR * probes.BINS)
  tokens = seen.found.get('gate_tokens', {}).get(str(site))
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
  """The bin of quantile q; of 0 the first that is not empty."""
  return int(np.searchsorted(below, max(q, 1e-12) * (1 - 1e-12)))


def _by_kind(model: Trained, m: moments.Moments) -> dict[str, Any]:
  kinds = tokens_of(model, len(m.count))
  out = {}
  for name, at in kinds.items():
    of_kind = moments.over_tokens(m, at)
    share = of_kind.share_negative()[0].tolist()
    out[name] = {'mean': of_kind.mean[0].tolist(), 'negative': share}
  return out


def _weights(model: Trained, seen: Seen, kind: str, site: int) -> dict[str, Any]:
  m = seen.found['weights'][f'{kind} {site}']
  static = (kind, site) in seen.structure.static
  whole = moments.over_tokens(m)
  return {
    'kind': kind,
    'site': site,
    'sources': list(seen.structure.sources[kind, site]),
    'mean': whole.mean[0].tolist(),
    'sd': whole.deviation()[0].tolist(),
    'negative': whole.share_negative()[0].tolist(),
    'static': static,
    'tokens': _by_kind(model, m) if kind == 'recall' and not static else {},
  }


def _mean(m: moments.Moments) -> float:
  return float(moments.over_tokens(m).mean[0])


def _depth(seen: Seen, site: int) -> dict[str, Any]:
  """Figures of one read and of the branch after it."""
  norms = {
    name: _mean(seen.found['norms'][f'{name} {site}'])
    for name in ('read', 'identity', 'recall', 'branch')
    if f'{name} {site}' in seen.found['norms']
  }
  return {
    'site': site,
    'rms': norms,
    'cosine': _mean(seen.found['cosine'][str(site)]),
    'effective_rank': moments.effective_rank(seen.found['scatter'][str(site)]),
    'gradient': _mean(seen.gradients[site]) if site in seen.gradients else None,
  }


def _checks(seen: Seen) -> list[dict[str, Any]]:
  """Each change's AUC less that of the untouched model, on the same rows."""
  out = []
  for name, logits_N in seen.logits.items():
    if name:
      line = paired.delong(seen.labels_N, logits_N, seen.logits[''])
      out.append({'change': name, 'auc': exact.auc(seen.labels_N, logits_N), **line})
  adjusted = paired.holm([line['p'] for line in out])
  return [{**line, 'p_holm': p} for line, p in zip(out, adjusted, strict=True)]


def _early_weights(seen: Seen) -> dict[str, Any] | None:
  """The mean weight of deep reads on early sources, with a 95 % interval over rows."""
  deep = deep_and_early(seen.structure)
  if not deep:
    return None
  all_of = {site: seen.found['weights'][f'recall {site}'] for site in deep}
  negative = [moments.over_tokens(m).share_negative()[0][: deep[s]] for s, m in all_of.items()]
  out = {
    'reads': {
      str(site): list(seen.structure.sources['recall', site][:n]) for site, n in deep.items()
    },
    'share_negative': float(np.concatenate(negative).mean()),
  }
  if seen.early_N is None:  # static weights: nothing varies over rows
    means = [moments.over_tokens(m).mean[0][: deep[s]] for s, m in all_of.items()]
    return out | {'mean': float(np.concatenate(means).mean()), 'interval': 0.0}
  half = 1.959964 * float(seen.early_N.std(ddof=1)) / math.sqrt(len(seen.early_N))
  return out | {'mean': float(seen.early_N.mean()), 'interval': half}
