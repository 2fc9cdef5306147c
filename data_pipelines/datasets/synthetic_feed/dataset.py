# SPDX-License-Identifier: Apache-2.0
"""Planted feed (`synthetic_social`): users with parallel interests, histories, Bayes metrics.

A user's rows are a function of (seed, user number); the first impressions are training rows, the
next ones validation, the last ones test, and a history goes on across the splits. A shard has the
rows of a range of users, shuffled: it can be made alone.
"""

import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_pipelines.core.random import uniforms
from data_pipelines.datasets.synthetic.bayes import bayes_metrics, grouped_auc, soft_auc
from data_pipelines.datasets.synthetic_feed.calibration import calibrate
from data_pipelines.datasets.synthetic_feed.options import PARTS, FeedOptions
from data_pipelines.datasets.synthetic_feed.teacher import (
  ATTRIBUTES,
  FIELDS,
  GAP_BUCKETS,
  HOURS,
  ITEM,
  KINDS,
  SHARED,
  TAG,
  FeedTeacher,
  gap_tokens,
)
from data_pipelines.datasets.synthetic_feed.users import Population, Rows, simulate
from data_pipelines.prepared import recipes, shards
from data_pipelines.prepared.dataset import (
  BuildContext,
  Encoded,
  FieldInfo,
  generated_dataset,
  head_and_torso,
)
from data_pipelines.prepared.records import Block
from data_pipelines.prepared.schema import (
  BLOCK_ROWS,
  FIRST_TOKEN_ID,
  SPLITS,
  Attribute,
  Group,
  RecordShape,
  Sequence,
)
from data_pipelines.prepared.tfds import BlockBuilder
from data_pipelines.prepared.vocabulary import text_of, write_vocabulary

_STREAM_USERS, _STREAM_STEPS, _STREAM_SHUFFLE = 16, 17, 18  # of the seed; a shuffle a split

_CHUNK_USERS = 2048  # simulated together: their histories stay in a core's cache
_TASK_USERS = 16 * _CHUNK_USERS


class FeedSource:
  """Generates the impressions of any users, and the shards of any split."""

  def __init__(self, options: FeedOptions, teacher: FeedTeacher):
    self.options, self.teacher = options, teacher
    self.shape = RecordShape(len(FIELDS), options.events, len(ATTRIBUTES), grouped=True)
    self.rows = options.rows()

  def impressions(self, first: int, users: int, keep: tuple[int, int], events: bool) -> Rows:
    """Simulates impressions [keep) of users [first, first + users), with or without histories."""
    rows = Rows.empty(users, keep[1] - keep[0], self.options.events if events else 0)
    population = Population(self.options.seed, _STREAM_USERS, _STREAM_STEPS)
    for start in range(0, users, _CHUNK_USERS):
      chunk = rows.users(start, start + _CHUNK_USERS)
      simulate(self.teacher, self.options, population, first + start, keep, chunk)
    return rows

  def blocks(self, split: str, first: int, last: int) -> Iterator[Block]:
    """See BlockSource.blocks. Value v of a field has id v + 2."""
    size = shards.SHARD_BLOCKS * BLOCK_ROWS
    for start in range(first * BLOCK_ROWS // size * size, last * BLOCK_ROWS, size):
      stop = min(start + size, self.rows[split])
      arrays = self._stretch(split, start, stop)
      shuffle = uniforms(
        self.options.seed, _STREAM_SHUFFLE + SPLITS.index(split), start, stop - start, 1
      )
      order_N = np.argsort(shuffle[:, 0], kind='stable')
      for row in range(max(start, first * BLOCK_ROWS), min(stop, last * BLOCK_ROWS), BLOCK_ROWS):
        chosen = order_N[row - start : row - start + BLOCK_ROWS]
        yield {name: array[chosen] for name, array in arrays.items()}

  def _stretch(self, split: str, start: int, stop: int) -> Block:
    """Returns rows [start, stop) of a split in the order of users and time."""
    keep = self.options.steps()[split]
    steps = keep[1] - keep[0]
    first, last = start // steps, -(-stop // steps)
    rows = self.impressions(first, last - first, keep, events=True)
    part = slice(start - first * steps, stop - first * steps)
    group_US = np.broadcast_to(np.arange(first, last, dtype=np.int32)[:, None], rows.label_US.shape)
    return {
      name: array_US.reshape(-1, *array_US.shape[2:])[part]
      for name, array_US in (
        ('ids', rows.ids_USF),
        ('label', rows.label_US),
        ('events', rows.events_USLG),
        ('group', group_US),
      )
    }


def _known(first: int, source: FeedSource) -> dict[str, dict[str, np.ndarray]]:
  """Simulates the users of a task; returns by split the arrays that the metrics need."""
  options = source.options
  users = min(_TASK_USERS, options.users - first)
  rows = source.impressions(first, users, (0, options.impressions), events=False)
  user_US = np.broadcast_to(np.arange(first, first + users)[:, None], rows.label_US.shape)
  arrays = {
    'logit': rows.logit_US,
    'main': rows.main_US,
    'tag': rows.ids_USF[..., TAG],
    'label': rows.label_US,
    'user': user_US,
  }
  return {
    split: {name: array_US[:, start:stop].reshape(-1) for name, array_US in arrays.items()}
    for split, (start, stop) in options.steps().items()
  }


def split_metrics(known: dict[str, np.ndarray], memory: 'Memory | None') -> dict:
  """Returns the best reachable metrics of one split.

  Returns:
    Those of bayes_metrics.
    bayes_gauc: mean over users with both labels, weighted by rows, of the AUC of the true logit
      within a user; None without such a user.
    memory_auc: AUC of the order-1 part plus `memory`; None without one.
  """
  logit_N, main_N, label_N = known['logit'], known['main'], known['label']
  remembered = None
  if memory is not None:
    remembered = soft_auc(main_N + memory.recall(known['user'], known['tag']), label_N)
  return {
    **bayes_metrics(logit_N, main_N, label_N),
    'bayes_gauc': grouped_auc(logit_N, label_N, known['user']),
    'memory_auc': remembered,
  }


class Memory:
  """The mean of the history's part over a user's training rows of a tag.

  About the best that a model can do which reads no history but memorises every user; here it even
  sees the parts themselves, not just clicks.
  """

  def __init__(self, known: dict[str, np.ndarray]):
    """Args: the training rows' arrays of _known."""
    history_N = known['logit'] - known['main']
    self._keys_C, cell_N, rows_C = np.unique(
      self._key(known['user'], known['tag']), return_inverse=True, return_counts=True
    )
    self._mean_C = np.bincount(cell_N, weights=history_N) / rows_C
    # A tag that is new to the user is most like those that occurred once.
    rare_C = rows_C == rows_C.min()
    self._unseen = float(self._mean_C[rare_C].mean())

  @staticmethod
  def _key(user_N: np.ndarray, tag_N: np.ndarray) -> np.ndarray:
    return (user_N.astype(np.int64) << 32) | tag_N

  def recall(self, user_N: np.ndarray, tag_N: np.ndarray) -> np.ndarray:
    """Returns the means of these users' tags, float64 [N]."""
    key_N = self._key(user_N, tag_N)
    place_N = np.minimum(np.searchsorted(self._keys_C, key_N), len(self._keys_C) - 1)
    return np.where(self._keys_C[place_N] == key_N, self._mean_C[place_N], self._unseen)


def planted_metrics(source: FeedSource, measured: dict, context: BuildContext) -> dict:
  """Returns `planted` of schema.json."""
  options, teacher = source.options, source.teacher
  tasks = range(0, options.users, _TASK_USERS)
  parts = list(context.workers.map(functools.partial(_known, source=source), tasks))
  planted = {
    'parts': list(PARTS),
    'shares': list(options.shares),
    'scales': [teacher.scale_main, *teacher.scale_P.tolist()],
    'bias': teacher.bias,
    'calibration': measured,
    'splits': {},
  }
  memory = None
  for split in SPLITS:
    known = {
      name: np.concatenate([part[split][name] for part in parts]) for name in parts[0][split]
    }
    planted['splits'][split] = split_metrics(known, memory)
    if split == 'train':
      memory = Memory(known)
    context.log(f'drew {source.rows[split]:,} rows of {split}')
  return planted


def _write_vocabularies(options: FeedOptions, folder: Path) -> dict[str, int]:
  """Writes the vocabularies of fields and of attributes with their own ids; returns their sizes."""
  counts = (options.users, options.items, options.authors, options.tags, HOURS)
  tokens = {
    name: [b'%d' % v for v in range(count)] for name, count in zip(FIELDS, counts, strict=True)
  }
  tokens |= {'kind': [kind.encode() for kind in KINDS], 'gap': gap_tokens()}
  for name, texts in tokens.items():
    write_vocabulary(folder, name, text_of(texts))
  return {name: len(texts) + FIRST_TOKEN_ID for name, texts in tokens.items()}


def _recipes() -> dict[str, recipes.Recipe]:
  edges = [1 << b for b in range(GAP_BUCKETS - 1)]  # minutes
  tokens = [token.decode('ascii') for token in gap_tokens()]
  return {
    **{name: recipes.integer(name) for name in FIELDS},
    'kind': recipes.text('kind'),
    'gap': recipes.buckets('gap', edges, tokens),
  }


def encode(o: FeedOptions, context: BuildContext) -> Encoded:
  """See Dataset.encode."""
  teacher, measured = calibrate(o)
  source = FeedSource(o, teacher)
  sizes = _write_vocabularies(o, context.folder)
  attributes = [
    Attribute(name, sizes[name], name if name in SHARED else None) for name in ATTRIBUTES
  ]
  return Encoded(
    fields=tuple(FieldInfo(name, sizes[name], 0, 0.0) for name in FIELDS),
    source=source,
    raw_files=(),
    rows_read=sum(source.rows.values()),
    planted=planted_metrics(source, measured, context),
    sequence=Sequence(o.events, attributes),
    group=Group('user_id', o.users),
    # Expected rows, not counted ones: ids are then the same for any number of users.
    items=head_and_torso(FIELDS[ITEM], teacher.catalogue.probability_I * source.rows['train']),
    recipes=_recipes(),
  )


class SyntheticFeed(BlockBuilder):
  """Generated feed of users with histories and a known logit, in blocks of rows."""

  name = 'synthetic_social'
  DESCRIPTION = (
    'Generated impressions of a social feed: users with several interests at the same time, items '
    'with author and tag, and the history of what a user clicked, how he reacted and how long ago. '
    'Clicks are drawn from a planted logit of what the row shows. The true click probabilities are '
    'known, and with them the best reachable AUC and log loss.'
  )
  HOMEPAGE = ''
  LICENCE = 'Apache-2.0'
  CITATION = ''


SYNTHETIC_FEED = generated_dataset(
  'synthetic_social',
  'planted feed of users with parallel interests and a known best AUC; needs no raw file',
  SyntheticFeed,
  FeedOptions,
  encode,
)
