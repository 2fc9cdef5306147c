# SPDX-License-Identifier: Apache-2.0
"""Turns counts into the figures of describe.json, which the table and the page show.

Shapes: V ids of a field, S of them that occur in training, by falling count.
"""

import itertools
import math
from pathlib import Path

import msgspec
import numpy as np

from data_pipelines.describe.counts import Counts, SplitCounts
from data_pipelines.prepared.schema import (
  FIRST_TOKEN_ID,
  SPLITS,
  VOCABULARY_FOLDER,
  Field,
  Group,
  Items,
  Schema,
  Sequence,
)

COMMONEST = 10  # ids with a click rate each
EACH_SHOWN = 24  # up to 24 ids get a point each; more are grouped by frequency
FREQUENCY_GROUPS = 10
CURVE_POINTS = 40
RARE = 10  # rows
ENOUGH_ROWS = 100  # that make the click rate of an id comparable
Z95 = 1.959963984540054


def rate(part: int, whole: int) -> float:
  """Returns part / whole, or 0.0 if both are 0."""
  return int(part) / int(whole) if whole else 0.0


def wilson(clicks: int, rows: int) -> tuple[float, float]:
  """Returns the 95 % interval of a click rate (Wilson 1927); (0, 1) without rows."""
  if not rows:
    return 0.0, 1.0
  p, z2 = clicks / rows, Z95**2 / rows
  middle = p + z2 / 2
  half = Z95 * math.sqrt(p * (1 - p) / rows + z2 / (4 * rows))
  return max(0.0, (middle - half) / (1 + z2)), min(1.0, (middle + half) / (1 + z2))


def click_point(label: str, rows: int, clicks: int) -> dict:
  """Returns rows, clicks and click rate with its interval, under a label."""
  low, high = wilson(int(clicks), int(rows))
  point = {'label': label, 'rows': int(rows), 'clicks': int(clicks)}
  return point | {'click_rate': rate(clicks, rows), 'low': low, 'high': high}


def _tokens(folder: Path, field: Field, ids: list[int]) -> list[str]:
  """Returns the tokens of ids; for a hashed field, the ids themselves."""
  path = folder / VOCABULARY_FOLDER / f'{field.name}.txt'
  if field.hashed or not path.is_file() or not ids:
    return [str(i) for i in ids]
  with open(path, 'rb') as file:
    lines = list(itertools.islice(file, max(ids) - FIRST_TOKEN_ID + 1))
  return [lines[i - FIRST_TOKEN_ID].rstrip(b'\n').decode('utf-8', 'replace') for i in ids]


def _numeric(points: list[dict]) -> list[dict]:
  """Sorts points by their labels if these are all numbers."""
  try:
    return sorted(points, key=lambda point: int(point['label']))
  except ValueError:
    return points


def _by_frequency(rows_S: np.ndarray, clicks_S: np.ndarray) -> list[dict]:
  """Returns the click rates of groups of ids, each with a tenth of the known rows, commonest first.

  An id is never cut in two, so a very common one is a group by itself and groups may be missing.
  """
  before_S = np.cumsum(rows_S) - rows_S
  middle_S = before_S + rows_S / 2
  group_S = np.minimum(middle_S / rows_S.sum() * FREQUENCY_GROUPS, FREQUENCY_GROUPS - 1).astype(int)
  points = []
  for group in range(FREQUENCY_GROUPS):
    member_S = group_S == group
    if member_S.any():
      point = click_point(f'{group + 1}', rows_S[member_S].sum(), clicks_S[member_S].sum())
      points.append(point | {'ids': int(member_S.sum())})
  return points


def coverage(missing: float, unknown: float, kept: bool) -> dict:
  """Returns the shares of training rows that are known, missing, unknown.

  Args:
    unknown: share of rows with the unknown id, which missing values have too unless `kept`.
    kept: whether missing values are a token like any other.
  """
  return {
    'known': 1 - unknown - (missing if kept else 0.0),
    'missing': missing,
    'unknown': unknown - (0.0 if kept else missing),
    'missing_kept': kept if missing else None,
  }


def describe_field(folder: Path, field: Field, f: int, counts: Counts) -> dict:
  """Returns the statistics of one field."""
  pairs_V2 = counts.ids[f][FIRST_TOKEN_ID:]
  occurring = np.flatnonzero(pairs_V2.any(axis=1))  # of hashed ids, few occur
  pairs_S2 = pairs_V2[occurring].astype(np.int64)
  falling = np.argsort(-pairs_S2.sum(axis=1), kind='stable')
  order, pairs_S2 = occurring[falling], pairs_S2[falling]
  rows_S, clicks_S = pairs_S2.sum(axis=1), pairs_S2[:, 1]
  train, known = counts.splits['train'].rows, int(rows_S.sum())
  covered_S = np.cumsum(rows_S)
  top = (order[:EACH_SHOWN] + FIRST_TOKEN_ID).tolist()
  points = [
    click_point(token, rows, clicks) | {'id': i}
    for token, i, rows, clicks in zip(
      _tokens(folder, field, top), top, rows_S[: len(top)], clicks_S[: len(top)], strict=True
    )
  ]
  unknown = {
    split: rate(counts.splits[split].unknown_F[f], counts.splits[split].rows) for split in SPLITS
  }
  rates = [p['click_rate'] for p in points[:COMMONEST] if p['rows'] >= ENOUGH_ROWS]
  ranks = np.unique(np.geomspace(1, max(1, len(order)), CURVE_POINTS).round().astype(int))
  each = len(order) <= EACH_SHOWN
  return {
    'name': field.name,
    'hashed': field.hashed,
    'vocab_size': field.vocab_size,
    'min_count': field.min_count,
    'missing_rate_train': field.missing_rate_train,
    'unknown_rate': unknown,
    'coverage': coverage(field.missing_rate_train, unknown['train'], field.missing_kept),
    'ids_seen': len(order),
    'commonest_share': rate(rows_S[0], train) if len(order) else 0.0,
    'ids_of_half': int(np.searchsorted(covered_S, 0.5 * known)) + 1 if known else 0,
    'ids_of_90_percent': int(np.searchsorted(covered_S, 0.9 * known)) + 1 if known else 0,
    'seen_once': rate(np.count_nonzero(rows_S == 1), len(order)),
    'seen_rarely': rate(np.count_nonzero(rows_S < RARE), len(order)),
    'click_rate_range': [min(rates), max(rates)] if rates else None,
    'commonest': points[:COMMONEST],
    'rank_frequency': [[int(r), int(rows_S[r - 1])] for r in ranks] if len(order) else [],
    'click_rates_by': 'id' if each else 'frequency',
    'click_rates': _numeric(points) if each else _by_frequency(rows_S, clicks_S),
  }


def _describe_sequence(sequence: Sequence, splits: dict[str, SplitCounts]) -> dict:
  lengths = np.arange(sequence.length + 1)
  return {
    'length': sequence.length,
    'attributes': [attribute.name for attribute in sequence.attributes],
    'mean_events': {s: rate((lengths * c.by_length).sum(), c.rows) for s, c in splits.items()},
    'empty': {s: rate(c.by_length[0], c.rows) for s, c in splits.items()},
    'full': {s: rate(c.by_length[-1], c.rows) for s, c in splits.items()},
    'rows_by_length_train': splits['train'].by_length.tolist(),
  }


def _describe_groups(group: Group, splits: dict[str, SplitCounts]) -> dict:
  train_U = splits['train'].by_group
  rows_U = train_U[train_U > 0]  # of the users in train
  bins = int(rows_U.max()).bit_length() if len(rows_U) else 0
  by_rows = []
  for k in range(bins):  # 1, 2 to 3, 4 to 7, ... rows
    low, high = 1 << k, (2 << k) - 1
    by_rows.append([low, high, int(np.count_nonzero((rows_U >= low) & (rows_U <= high)))])
  return {
    'name': group.name,
    'groups': group.groups,
    'seen': {s: int(np.count_nonzero(c.by_group)) for s, c in splits.items()},
    'median_rows_train': float(np.median(rows_U)) if len(rows_U) else 0.0,
    'mean_rows_train': rate(splits['train'].rows, len(rows_U)),
    'rows_of_groups_in_train': {
      s: rate(c.by_group[train_U > 0].sum(), c.rows) for s, c in splits.items()
    },
    'groups_by_rows_train': by_rows,
  }


def _describe_items(items: Items, vocab_size: int, splits: dict[str, SplitCounts]) -> dict:
  head, torso = items.head_below, items.torso_below
  ids = (head - FIRST_TOKEN_ID, torso - head, vocab_size - torso)
  return {
    'field': items.field,
    'parts': [
      {
        'part': part,
        'ids': ids[k],
        'rows': {s: int(c.by_part[k, 0]) for s, c in splits.items()},
        'share': {s: rate(c.by_part[k, 0], c.rows) for s, c in splits.items()},
        'click_rate': {s: rate(c.by_part[k, 1], c.by_part[k, 0]) for s, c in splits.items()},
      }
      for k, part in enumerate(('head', 'torso', 'tail'))
    ],
  }


def figures(folder: Path, schema: Schema, counts: Counts) -> dict:
  """Returns the whole description, as describe.json has it."""
  splits, fields = counts.splits, schema.fields
  sizes = {field.name: field.vocab_size for field in fields}
  sequence, group, items = schema.sequence, schema.group, schema.items
  return {
    'dataset': schema.dataset,
    'build': schema.build,
    'raw': msgspec.to_builtins(schema.raw),
    'splits': {split: click_point(split, c.rows, c.clicks) for split, c in splits.items()},
    'fields': [describe_field(folder, field, f, counts) for f, field in enumerate(fields)],
    'sequence': _describe_sequence(sequence, splits) if sequence else None,
    'groups': _describe_groups(group, splits) if group else None,
    'items': _describe_items(items, sizes[items.field], splits) if items else None,
  }
