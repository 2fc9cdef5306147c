"""Small prepared folders of invented rows that a test holds in memory."""

import dataclasses
from pathlib import Path

import numpy as np

from data_pipelines.core.workers import Workers
from data_pipelines.datasets.synthetic.dataset import SYNTHETIC
from data_pipelines.prepared.dataset import BuildContext, Encoded, FieldInfo
from data_pipelines.prepared.rejects import Rejects
from data_pipelines.prepared.schema import (
  BLOCK_ROWS,
  FIRST_TOKEN_ID,
  SPLITS,
  Group,
  Items,
  RecordShape,
  Sequence,
)
from data_pipelines.prepared.vocabulary import write_vocabulary
from data_pipelines.prepared.writer import write_prepared

Columns = dict[str, np.ndarray]


@dataclasses.dataclass
class ArraySource:
  """Rows in memory: by split `ids`, `label` and, if there are any, `events` and `group`."""

  shape: RecordShape
  columns: dict[str, Columns]

  @property
  def rows(self) -> dict[str, int]:
    return {split: len(self.columns[split]['label']) for split in SPLITS}

  def blocks(self, split, first, last):
    for k in range(first, last):
      part = slice(k * BLOCK_ROWS, (k + 1) * BLOCK_ROWS)
      yield {name: array[part] for name, array in self.columns[split].items()}


def write_folder(
  folder: Path,
  fields: tuple[FieldInfo, ...],
  columns: dict[str, Columns],
  sequence: Sequence | None = None,
  group: Group | None = None,
  items: Items | None = None,
) -> Path:
  """Fills a new folder with the rows; the tokens of the vocabularies are invented too."""
  (folder / 'vocabulary').mkdir(parents=True)
  attributes = sequence.attributes if sequence else ()
  own = [attribute for attribute in attributes if attribute.field is None]
  for info in [*(field for field in fields if not field.hashed), *own]:
    tokens = range(FIRST_TOKEN_ID, info.vocab_size)
    write_vocabulary(folder, info.name, b''.join(b't%d\n' % token for token in tokens))
  shape = RecordShape(
    fields=len(fields),
    events=sequence.length if sequence else 0,
    event_fields=len(attributes),
    grouped=group is not None,
  )
  context = BuildContext(folder, folder / 'work', Workers(1), Rejects(folder), lambda line: None)
  context.work.mkdir()
  rows = sum(len(columns[split]['label']) for split in SPLITS)
  source = ArraySource(shape, columns)
  encoded = Encoded(fields, source, (), rows, None, sequence, group, items)
  write_prepared(context, SYNTHETIC, {}, encoded, compress=False)
  context.work.rmdir()
  return folder
