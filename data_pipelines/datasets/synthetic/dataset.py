# SPDX-License-Identifier: Apache-2.0
"""Planted data: rows as a pure function of (seed, row), and their Bayes metrics.

Row i of a split is row i + offset of one endless table; the splits' offsets lie 2^40 rows apart. So
a split's rows depend neither on its size nor on another split's, and any range can be drawn alone.
"""

from collections.abc import Iterator

import numpy as np

from data_pipelines.core.random import uniforms
from data_pipelines.datasets.synthetic.bayes import bayes_metrics
from data_pipelines.datasets.synthetic.options import MAX_ROWS, SyntheticOptions
from data_pipelines.datasets.synthetic.teacher import Teacher, make_teacher, sigmoid
from data_pipelines.prepared import recipes
from data_pipelines.prepared.dataset import BuildContext, Encoded, FieldInfo, generated_dataset
from data_pipelines.prepared.records import Block
from data_pipelines.prepared.schema import BLOCK_ROWS, FIRST_TOKEN_ID, SPLITS, RecordShape
from data_pipelines.prepared.tfds import BlockBuilder
from data_pipelines.prepared.vocabulary import write_vocabulary

OFFSETS = {split: MAX_ROWS * i for i, split in enumerate(SPLITS)}
_STREAM_ROWS = 0
_CHUNK_ROWS = 1 << 16


class SyntheticSource:
  """Generates any range of rows of any split."""

  def __init__(self, options: SyntheticOptions, teacher: Teacher):
    self._seed = options.seed
    self.teacher = teacher
    self.shape = RecordShape(fields=options.fields)
    self.rows = options.rows()

  def draw(self, split: str, start: int, stop: int):
    """Draws rows [start, stop): values int32 [rows, fields], logit parts [rows, 4], labels."""
    draws = uniforms(
      self._seed, _STREAM_ROWS, OFFSETS[split] + start, stop - start, self.shape.fields + 1
    )
    values_NF = self.teacher.values(draws[:, : self.shape.fields])
    parts_NO = self.teacher.parts(values_NF)
    probability_N = sigmoid(parts_NO.sum(axis=1) + self.teacher.bias)
    return values_NF, parts_NO, (draws[:, -1] < probability_N).astype(np.uint8)

  def blocks(self, split: str, first: int, last: int) -> Iterator[Block]:
    """See BlockSource.blocks. Value v of a field has id v + 2."""
    for k in range(first, last):
      start, stop = k * BLOCK_ROWS, min((k + 1) * BLOCK_ROWS, self.rows[split])
      values_NF, _, label_N = self.draw(split, start, stop)
      yield {'ids': values_NF + np.int32(FIRST_TOKEN_ID), 'label': label_N}


def split_metrics(source: SyntheticSource, split: str) -> dict:
  """Returns the best reachable metrics of one split (see bayes_metrics)."""
  logits, mains, labels = [], [], []
  for start in range(0, source.rows[split], _CHUNK_ROWS):
    stop = min(start + _CHUNK_ROWS, source.rows[split])
    _, parts_NO, label_N = source.draw(split, start, stop)
    logits.append(parts_NO.sum(axis=1) + source.teacher.bias)
    mains.append(parts_NO[:, 0])
    labels.append(label_N)
  return bayes_metrics(np.concatenate(logits), np.concatenate(mains), np.concatenate(labels))


def numbers_text(values: int) -> bytes:
  """Returns a vocabulary file of the numbers below `values`; made in pieces to save memory."""
  return b''.join(
    ''.join(f'{v}\n' for v in range(start, min(start + _CHUNK_ROWS, values))).encode()
    for start in range(0, values, _CHUNK_ROWS)
  )


def encode(o: SyntheticOptions, context: BuildContext) -> Encoded:
  """See Dataset.encode."""
  teacher = make_teacher(o)
  source = SyntheticSource(o, teacher)
  names = [f'f{f + 1:02d}' for f in range(o.fields)]
  fields = []
  for name, values in zip(names, o.cardinalities(), strict=True):
    write_vocabulary(context.folder, name, numbers_text(values))
    fields.append(FieldInfo(name, values + FIRST_TOKEN_ID, 0, 0.0))
  planted = {
    'order_shares': list(o.order_shares),
    'logit_std': o.logit_std,
    'bias': teacher.bias,
    'sets': {
      order: [[names[f] for f in fields] for fields in sets]
      for order, sets in teacher.field_sets().items()
    },
    'splits': {},
  }
  for split in SPLITS:
    planted['splits'][split] = split_metrics(source, split)
    context.log(f'drew {source.rows[split]:,} rows of {split}')
  return Encoded(
    fields=tuple(fields),
    source=source,
    raw_files=(),
    rows_read=sum(source.rows.values()),
    planted=planted,
    recipes={name: recipes.integer(name) for name in names},
  )


class SyntheticCtr(BlockBuilder):
  """Generated click data with a known logit, in blocks of rows."""

  DESCRIPTION = (
    'Generated categorical rows with Zipf-distributed values and clicks drawn from a planted '
    'logit of main effects and interactions of order 2 to 4. The true click probabilities are '
    'known, and with them the best reachable AUC and log loss.'
  )
  HOMEPAGE = ''
  LICENCE = 'Apache-2.0'
  CITATION = ''


SYNTHETIC = generated_dataset(
  'synthetic',
  'planted interactions with a known best AUC; needs no raw file',
  SyntheticCtr,
  SyntheticOptions,
  encode,
  {'sets': 'F, 0.6 F, 0.3 F, 0.1 F of F fields'},
)
